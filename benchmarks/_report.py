"""What compare.py has measured, as tables, as JSON; and what it was measured on."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median

from _rows import BASE, Row, base_of, is_ours, library

REFERENCES = ("websockets", "websocket-client")
"""The clients that all are compared with where the options are the default ones."""


@dataclass
class Result:
    """What a client reached in a row: a figure of each round, in the row's unit; only a note if it has failed."""

    client: str
    rounds: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)  # microseconds for each message
    note: str = ""
    ratio: float | None = None  # ours to this one's
    compression: str = ""  # with default options: "deflate", "none", or "cannot" if the client has not offered it

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


def paired(ours: list[float], others: list[float]) -> float | None:
    """The median of the ratios of the same rounds; None if there are none, as of a client that has failed."""
    ratios = [mine / other for mine, other in zip(ours, others, strict=False) if other]
    return median(ratios) if ratios else None


def ratios_to(reference: Result | None, result: Result) -> tuple[float | None, float | None]:
    """A client's rate and CPU time to another's."""
    if reference is None:
        return None, None
    return paired(result.rounds, reference.rounds), paired(result.cpus, reference.cpus)


def references(results: list[Result], result: Result) -> dict[str, Result | None]:
    """The clients that this one is compared with, by the names of the columns."""
    by_name = {result.client: result for result in results}
    found = {name: by_name.get(name) for name in REFERENCES}
    if any(library(name) == BASE for name in by_name):
        found[BASE] = by_name.get(base_of(result.client)) if is_ours(result.client) else None
    return found


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
    if row.measure == "default":
        return _default_table(row, results)
    lines = [f"{row.name}: {row.title}", f"  {'':28}{row.unit:>30}{'ratio':>8}{'CPU us':>9}"]
    for result in results:
        figures = f"{number_of(result.figure):>30}{number_of(result.ratio, 2):>8}{number_of(result.cpu):>9}"
        lines.append(f"  {result.client:28}{figures}  {result.note}".rstrip())
    return "\n".join(lines) + "\n"


def _default_table(row: Row, results: list[Result]) -> str:
    columns = references(results, results[0])
    lines = [
        f"{row.name}: {row.title}; default options; server: {row.server}",
        f"  {'':36}{'':12}{'':9}{'':9}" + "".join(f"{'to ' + name:>20}" for name in columns),
        f"  {'':36}{row.unit:>12}{'CPU us':>9}{'deflate':>9}" + f"{'rate':>12}{'CPU':>8}" * len(columns),
    ]
    words = {"deflate": "yes", "none": "no"}
    for result in results:
        compression = words.get(result.compression, result.compression)
        line = f"  {result.client:36}{number_of(result.figure):>12}{number_of(result.cpu):>9}{compression:>9}"
        for reference in references(results, result).values():
            rate, cpu = ratios_to(reference, result)
            line += f"{number_of(rate, 2):>12}{number_of(cpu, 2):>8}"
        lines.append(f"{line}  {result.note}".rstrip())
    return "\n".join(lines) + "\n"


def markdown(results: Mapping[Row, list[Result]]) -> str:
    """The tables for a README, those with default options first."""
    default = {row: found for row, found in results.items() if row.measure == "default"}
    plain = {row: found for row, found in results.items() if row.measure not in ("default", "growth")}
    tables = []
    if default:
        tables += [
            "Default options on both sides:",
            _default_markdown(default, "rate", lambda result: result.rounds),
            "The client's CPU time for each of these messages, in microseconds; less is better:",
            _default_markdown(default, "CPU us", lambda result: result.cpus),
        ]
    if plain:
        tables += ["Without compression, against a server in C:", _plain_markdown(plain)]
    return "\n\n".join(tables) + "\n"


def _default_markdown(results: Mapping[Row, list[Result]], what: str, figures: Callable[[Result], list[float]]) -> str:
    """A line a row and way of ours, a column a client; in brackets how many times the client's figure ours is."""
    every = [result.client for found in results.values() for result in found]
    peers = list(dict.fromkeys(client for client in every if not is_ours(client) and library(client) != BASE))
    columns = [BASE, *peers] if any(library(client) == BASE for client in every) else peers
    compressing = {r.client for found in results.values() for r in found if r.compression == "deflate"}
    heads = [f"{client}, which compresses" if client in compressing else client for client in columns]
    lines = [
        "| | server | nwebsocket, by | nwebsocket | " + " | ".join(heads) + " |",
        "| --- | --- | --- |" + " ---: |" * (1 + len(columns)),
    ]
    for row, found in results.items():
        by_name = {result.client: result for result in found}
        for ours in (result for result in found if is_ours(result.client)):
            cells = [f"{row.title}, {row.unit if what == 'rate' else what}", row.server, _way(row, ours.client)]
            cells.append(number_of(median(figures(ours)) if figures(ours) else None))
            for client in columns:
                other = by_name.get(base_of(ours.client) if client == BASE else client)
                cells.append(_compared(figures(ours), figures(other)) if other else "-")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_WAYS = {
    "": "recv()",
    "callbacks": "handlers",
    "loop": 'handlers, `callbacks="loop"`',
    "reconnecting": "recv(), reconnecting",
    "reconnecting, callbacks": "handlers, reconnecting",
    "query": "query()",
}


def _way(row: Row, client: str) -> str:
    way = client.partition(", ")[2]
    return "recv(), by hand" if row.job == "tagged" and not way else _WAYS[way]


def _compared(ours: list[float], others: list[float]) -> str:
    return f"{number_of(median(others))} ({number_of(paired(ours, others), 2)})" if others else "-"


def _plain_markdown(results: Mapping[Row, list[Result]]) -> str:
    """A line a row, a column a client; in brackets how many times the client's figure ours is."""
    clients = list(dict.fromkeys(_column(row, result.client) for row in results for result in results[row]))
    lines = ["| | " + " | ".join(clients) + " |", "| --- |" + " ---: |" * len(clients)]
    for row, of_row in results.items():
        cells = dict.fromkeys(clients, "-")
        for result in of_row:
            ratio = f" ({number_of(result.ratio, 2)})" if result.client != row.clients[0] else ""
            if result.figure is not None:
                cells[_column(row, result.client)] = number_of(result.figure) + ratio
        lines.append(f"| {row.title}, {row.unit} | " + " | ".join(cells.values()) + " |")
    return "\n".join(lines)


def _column(row: Row, client: str) -> str:
    """The library, unless a row compares several ways of using it."""
    return client if row.measure == "idle" else library(client)


def number_of(number: float | None, digits: int | None = None) -> str:
    """A figure in three digits or more; "-" if there is none."""
    if number is None:
        return "-"
    if digits is None:
        digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"


def load() -> str:
    """Return what else the machine does, as text; to be asked before measuring."""
    return f"load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else "load unknown"


def about(
    versions: Mapping[str, str], servers: Mapping[str, str], processors: tuple[set[int], set[int]], load: str
) -> str:
    """Versions, of the clients and of servers that say what they are, and machine, as a few lines of text."""
    libraries = {library(client): number for client, number in versions.items() if number}
    libraries.pop("nwebsocket 1.0.0", None)
    others = ("picows", "numpy", "wsaccel") if "websocket-client" in versions else ("picows", "numpy")
    libraries |= {name: version(name) for name in others if importlib.util.find_spec(name)}
    server, clients = processors
    where = f"server on processor {min(server)}, clients on {len(clients)} other(s)" if server else "nothing pinned"
    return (
        f"{platform.python_implementation()} {platform.python_version()}; "
        + ", ".join(f"{name} {number}" for name, number in libraries.items())
        + (f"; servers: {'; '.join(dict.fromkeys(servers.values()))}" if servers else "")
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
    """Everything, each round too; with default options, "to" has each client's ratios to the others."""
    rows = [
        asdict(row) | {"results": [_as_dict(row, found, result) for result in found]} for row, found in results.items()
    ]
    return json.dumps({"about": about, "versions": versions, "rows": rows}, indent=1) + "\n"


def _as_dict(row: Row, results: list[Result], result: Result) -> dict[str, object]:
    figures: dict[str, object] = asdict(result) | {"figure": result.figure, "cpu": result.cpu}
    if row.measure == "default":
        others = {name: ratios_to(reference, result) for name, reference in references(results, result).items()}
        figures["to"] = {name: {"rate": rate, "cpu": cpu} for name, (rate, cpu) in others.items()}
    return figures
