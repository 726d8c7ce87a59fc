"""The bar chart of compare.py."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _report import Result, number_of
from _rows import Row, is_ours

OURS, OTHERS, FLOOR = "#1f5fbf", "#b8bec8", "#e4e6ea"


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
    labels = [f"{number_of(result.figure)}  {result.note}" for result in results]
    panel.bar_label(bars, labels, padding=3, fontsize=8)
    panel.set_title(f"{row.title}\n", loc="left", fontsize=9, weight="bold")
    unit = f"{row.unit}, default options, server: {row.server}" if row.server else row.unit
    panel.text(0, 1.02, unit, transform=panel.transAxes, fontsize=8)
    panel.invert_yaxis()
    panel.tick_params(labelsize=8, length=0)
    panel.set_xticks([])
    panel.set_xlim(0, 1.6 * most)
    panel.spines[:].set_visible(False)


def _colour(row: Row, client: str) -> str:
    if client == "raw socket":
        return FLOOR
    return OURS if row.measure == "growth" or is_ours(client) else OTHERS
