"""How the results of compare.py look: a table, one for a README, JSON, a bar chart; and what they were measured on."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from _rows import Row

OURS, OTHERS, FLOOR = "#1f5fbf", "#b8bec8", "#e4e6ea"


@dataclass
class Result:
    """What a client reached in a row: a figure of each round, in the row's unit; only a note if it has failed."""

    client: str
    rounds: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)  # microseconds for each message
    note: str = ""
    ratio: float | None = None  # ours to this one's

    def add(self, figure: float, cpu: float | None = None) -> None:
        self.rounds.append(figure)
        if cpu is not None:
            self.cpus.append(cpu)

    def fail(self, why: str) -> None:
        self.rounds, self.cpus, self.note = [], [], why

    @property
    def figure(self) -> float | None:
        return median(self.rounds) if self.rounds else None

    @property
    def cpu(self) -> float | None:
        return median(self.cpus) if self.cpus else None


class Progress:
    """A line on standard error that says what is going on, if somebody looks."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._on:
            print(f"\r{text[:78]:78}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._on:
            print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)


def table(row: Row, results: list[Result]) -> str:
    """The row, a line a client."""
    lines = [f"{row.name}: {row.title}", f"  {'':28}{row.unit:>30}{'ratio':>8}{'CPU us':>9}"]
    for result in results:
        figures = f"{_number(result.figure):>30}{_number(result.ratio, 2):>8}{_number(result.cpu):>9}"
        lines.append(f"  {result.client:28}{figures}  {result.note}".rstrip())
    return "\n".join(lines) + "\n"


def markdown(results: Mapping[Row, list[Result]]) -> str:
    """A line a row, a column a client; in brackets how many times the client's figure ours is."""
    results = {row: found for row, found in results.items() if row.measure != "growth"}
    clients = list(dict.fromkeys(_column(row, result.client) for row in results for result in results[row]))
    lines = ["| | " + " | ".join(clients) + " |", "| --- |" + " ---: |" * len(clients)]
    for row, of_row in results.items():
        cells = dict.fromkeys(clients, "-")
        for result in of_row:
            ratio = f" ({_number(result.ratio, 2)})" if result.client != row.clients[0] else ""
            if result.figure is not None:
                cells[_column(row, result.client)] = _number(result.figure) + ratio
        lines.append(f"| {row.title}, {row.unit} | " + " | ".join(cells.values()) + " |")
    return "\n".join(lines)


def _column(row: Row, client: str) -> str:
    """The library, unless a row compares several ways of using it."""
    return client if row.measure == "idle" else _library(client)


def _library(client: str) -> str:
    return client.partition(",")[0]


def _number(number: float | None, digits: int | None = None) -> str:
    if number is None:
        return "-"
    if digits is None:
        digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"


def load() -> str:
    """Return what else the machine does, as text; to be asked before measuring."""
    return f"load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "load unknown"


def about(versions: Mapping[str, str], processors: tuple[set[int], set[int]], load: str) -> str:
    """Versions and machine, as a few lines of text."""
    libraries = {_library(client): number for client, number in versions.items() if number}
    libraries.pop("nwebsocket 1.0.0", None)
    others = ("picows", "numpy", "wsaccel") if "websocket-client" in versions else ("picows", "numpy")
    libraries |= {name: version(name) for name in others if importlib.util.find_spec(name)}
    server, clients = processors
    where = f"server on processor {min(server)}, clients on {len(clients)} other(s)" if server else "nothing pinned"
    return (
        f"{platform.python_implementation()} {platform.python_version()}; "
        + ", ".join(f"{name} {number}" for name, number in libraries.items())
        + f"\n{platform.platform()}, {_processor()}, {os.cpu_count()} processors; {where}; {load}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_json(results: Mapping[Row, list[Result]], versions: Mapping[str, str], about: str) -> str:
    rows = [
        asdict(row) | {"results": [asdict(result) | {"figure": result.figure, "cpu": result.cpu} for result in found]}
        for row, found in results.items()
    ]
    return json.dumps({"about": about, "versions": versions, "rows": rows}, indent=1) + "\n"


# --- The picture


def require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("matplotlib is not installed, which --plot needs: pip install '.[benchmarks]'")


def plot(results: Mapping[Row, list[Result]], about: str, file: Path) -> None:
    """Draw a panel a row, a bar a client, ours in colour."""
    from matplotlib.figure import Figure

    drawn = {row: [result for result in found if result.figure is not None] for row, found in results.items()}
    drawn = {row: found for row, found in drawn.items() if found}
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(5.2 * columns, 2.6 * lines + 1.2), layout="constrained")
    figure.suptitle("nwebsocket and other WebSocket clients for Python", fontsize=15, weight="bold")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, (row, found) in zip(panels, drawn.items(), strict=False):
        _panel(panel, row, found)
    for panel in panels[len(drawn) :]:
        panel.set_axis_off()
    caption = "Medians of alternating rounds against one server; longer is better unless a panel says otherwise. "
    caption += "The raw socket is the floor under all; its bar may be cut.\n"
    figure.supxlabel(caption + about, fontsize=8, ha="left", x=0.01)
    figure.savefig(file, dpi=120)


def _panel(panel: Any, row: Row, results: list[Result]) -> None:
    names = [result.client for result in results]
    most = max(result.figure or 0 for result in results if result.client != "raw socket")
    lengths = [min(result.figure or 0, 1.15 * most) for result in results]  # the raw socket's may be off the scale
    bars = panel.barh(names, lengths, color=[_colour(row, name) for name in names], height=0.75)
    labels = [f"{_number(result.figure)}  {result.note}" for result in results]
    panel.bar_label(bars, labels, padding=3, fontsize=8)
    panel.set_title(f"{row.title}\n", loc="left", fontsize=9, weight="bold")
    panel.text(0, 1.02, row.unit, transform=panel.transAxes, fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(labelsize=8, length=0)
    panel.set_xticks([])
    panel.set_xlim(0, 1.6 * most)
    panel.spines[:].set_visible(False)


def _colour(row: Row, client: str) -> str:
    if client == "raw socket":
        return FLOOR
    return OURS if row.measure == "growth" or _library(client) == "nwebsocket" else OTHERS
