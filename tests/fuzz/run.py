"""The long run: a million inputs, found by the coverage of the library and of wsproto, h11 and socksio.

    pip install -e '.[fuzz,tests]'
    python tests/fuzz/run.py                       all targets, one after the other
    python tests/fuzz/run.py frames 100000         one of them, so many inputs
    python tests/fuzz/run.py keep                  choose anew, from all that was found, what the tests replay

What it finds is in .fuzz/, and the next run goes on from there; an input that fails a target is there, too, as a file
crash-..., timeout-... or oom-..., and the run ends with it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

RUNS = {"frames": 330_000, "answer": 260_000, "proxy": 180_000, "url": 200_000, "connection": 30_000}
LARGEST = 1024
"""Bytes of an input."""
MEMORY = 512
"""MiB that a run may take, Python, coverage and all."""
SECONDS = 10
"""For one input."""

FOUND = Path(".fuzz")
_PACKAGES = ("nwebsocket", "wsproto", "h11", "socksio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["all", "keep", *RUNS], default="all")
    parser.add_argument("runs", nargs="?", type=int)
    arguments = parser.parse_args()
    if arguments.what == "keep":
        keep()
    elif arguments.what == "all":
        for target in RUNS:  # each in a process of its own: the fuzzer ends the one that it runs in
            print(f"== {target}", flush=True)
            subprocess.run([sys.executable, __file__, target], check=True)
    else:
        fuzz(arguments.what, arguments.runs or RUNS[arguments.what])


def fuzz(target: str, runs: int) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=list(_PACKAGES)):
        import fuzz_seeds
        import fuzz_targets

        import nwebsocket._session  # otherwise imported with the first connection
    corpus = FOUND / target
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in [*fuzz_seeds.seeds(), *fuzz_seeds.kept()]:
        if name == target:
            (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    limits = [f"-runs={runs}", f"-max_len={LARGEST}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *limits, "-print_final_stats=1", f"-artifact_prefix={FOUND / target}-"],
        fuzz_targets.TARGETS[target],
    )
    atheris.Fuzz()


def keep() -> None:
    """Write to `fuzz_seeds.KEPT` what the seeds do not do: of all that was found, smallest first, each input that takes
    a step from one line to another that none has taken before.
    """
    import fuzz_seeds
    import fuzz_targets

    lines = []
    for target in RUNS:
        steps = Steps()
        for name, data in fuzz_seeds.seeds():
            if name == target:
                steps.new(lambda data=data: fuzz_targets.TARGETS[target](data))
        found = sorted({path.read_bytes() for path in (FOUND / target).iterdir()}, key=lambda data: (len(data), data))
        for data in found:
            if steps.new(lambda data=data: fuzz_targets.TARGETS[target](data)):
                lines.append(f"{target} {base64.b64encode(data).decode()}\n")
    fuzz_seeds.KEPT.write_text("".join(lines), encoding="ascii")
    print(f"{len(lines)} inputs in {fuzz_seeds.KEPT}")


if __name__ == "__main__":
    main()
