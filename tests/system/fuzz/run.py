"""The long run: a million inputs, found by what of the library, wsproto, h11 and socksio they reach.

    pip install -e '.[fuzz,tests]'
    python tests/system/fuzz/run.py                       all targets, one after the other
    python tests/system/fuzz/run.py frames 100000         one of them, with so many inputs
    python tests/system/fuzz/run.py keep                  choose anew, from all that was found, what the tests replay

What it finds is in .fuzz/, and the next run goes on from there. An input that fails a target ends the run, and is in
.fuzz/, too: as TARGET-crash-..., TARGET-timeout-... or TARGET-oom-....

The last result, on Python 3.11 with atheris 3.0, beside other work: no input failed, and none took a second.

    target        inputs    seconds    peak memory
    frames       250,000        675         60 MiB
    answer       130,000        115         59 MiB
    proxy        270,000         19         58 MiB
    url          325,000         43         58 MiB
    connection    25,000         65         67 MiB
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

RUNS = {"frames": 250_000, "answer": 130_000, "proxy": 270_000, "url": 325_000, "connection": 25_000}
LARGEST = 1024
"""Bytes of an input."""
MEMORY = 512
"""MiB that a run may take, with all that the fuzzer itself takes."""
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
    """Never returns."""
    import atheris

    with atheris.instrument_imports(include=list(_PACKAGES)):
        import fuzz_seeds
        import fuzz_targets

        import nwebsocket._connection.session  # noqa: F401  # which is otherwise imported with the first connection
    corpus = FOUND / target
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in [*fuzz_seeds.seeds(), *fuzz_seeds.kept()]:
        if name == target:
            (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    limits = [f"-runs={runs}", f"-max_len={LARGEST}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}"]
    options = ["-print_final_stats=1", f"-artifact_prefix={corpus}-"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *options], fuzz_targets.TARGETS[target])
    atheris.Fuzz()


def keep() -> None:
    """Write to `fuzz_seeds.KEPT` what goes beyond the seeds: of all that was found, the smallest first, each input that
    makes a step from one line to another that none before it has made.
    """
    import fuzz_seeds
    import fuzz_targets

    lines = []
    for target, run in fuzz_targets.TARGETS.items():
        seeds = [data for name, data in fuzz_seeds.seeds() if name == target]
        found = sorted((path.read_bytes() for path in (FOUND / target).iterdir()), key=lambda data: (len(data), data))
        known = set[Step]().union(*[steps_of(run, data) for data in seeds])
        for data in found:
            steps = steps_of(run, data)
            if not steps <= known:
                known |= steps
                lines.append(f"{target} {base64.b64encode(data).decode()}\n")
    fuzz_seeds.KEPT.write_text("".join(lines), encoding="ascii")
    print(f"{len(lines)} inputs in {fuzz_seeds.KEPT}")


Step = tuple[str, int, int]


def steps_of(run: Callable[[bytes], None], data: bytes) -> set[Step]:
    """From which line to which it goes in the library, on this thread."""
    import nwebsocket

    package, steps = str(Path(nwebsocket.__file__).parent) + os.sep, set[Step]()

    def trace(frame: FrameType, event: str, _: object) -> Any:
        file, before = frame.f_code.co_filename, frame.f_lineno
        if not file.startswith(package):
            return None

        def trace_line(frame: FrameType, event: str, _: object) -> Any:
            nonlocal before
            steps.add((file, before, frame.f_lineno))
            before = frame.f_lineno
            return trace_line

        return trace_line

    sys.settrace(trace)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return steps


if __name__ == "__main__":
    main()
