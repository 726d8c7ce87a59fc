"""A socket as a notebook shows it: one small card of HTML.

Its colours are the page's text colour, more or less transparent, so that it can be read on light and on dark; only the
dot that stands for the state has one of its own. Whatever comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from time import localtime, strftime
from typing import TYPE_CHECKING

from .._base.clock import monotonic
from .._base.escape import escaped
from .._connection.life import Ending
from .._connection.phase import ReadyState
from ..close_codes import CloseCode

if TYPE_CHECKING:
    from .._connection.outbox import OutboxBridge
    from .._connection.parts import Parts
    from .record import Remembered

SHOWN = 100
"""Characters of a message."""

SHOWN_BYTES = 24
"""Bytes of one, in hexadecimal."""

_DOTS = {
    ReadyState.CONNECTING: "#d9902f",
    ReadyState.OPEN: "#2fa35c",
    ReadyState.CLOSING: "#d9902f",
    ReadyState.CLOSED: "#8c8c8c",
}
_FAILED = "#d6453d"

_FRAME = (
    "display:inline-block;box-sizing:border-box;min-width:26em;max-width:100%;padding:.6em .9em;line-height:1.5;"
    "border:1px solid rgba(128,128,128,.4);border-radius:6px;font-family:var(--jp-ui-font-family,system-ui,sans-serif);"
    "font-size:var(--jp-ui-font-size1,13px)"
)
_MONO = "font-family:var(--jp-code-font-family,ui-monospace,Menlo,Consolas,monospace);font-size:.95em"
_FAINT = "opacity:.7"
_GRID = "display:grid;grid-template-columns:max-content minmax(0,1fr);column-gap:1em"
_LINE = "display:flex;gap:.6em;white-space:nowrap"
_TEXT = "overflow:hidden;text-overflow:ellipsis"

# Each message stays on its line.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ") | {ord("\n"): "↵"}


def card(name: str, parts: Parts | None) -> str:
    """The HTML for a socket of the class `name`; `parts` is what it hides, None or not started if never opened."""
    if parts is None or not parts.started:
        return _framed(_head("#8c8c8c", "never opened", name, ""))
    bridge = parts.bridge
    ending, _ = bridge.to_be_heard()
    state = parts.callbacks.visible_state()
    failed = state is ReadyState.CLOSED and bridge.life.ending is not None and bridge.life.ending.error is not None
    sections = [
        _head(_FAILED if failed else _DOTS[state], state.name, name, parts.url.shown),
        _grid(_rows(parts, ending)),
    ]
    messages: list[Remembered] = getattr(bridge.inbox.sifter, "messages", [])
    if messages:
        sections.append(_conversation(messages))
    return _framed("".join(sections))


def _framed(content: str) -> str:
    return f'<div style="{_FRAME}">{content}</div>'


def _head(colour: str, state: str, name: str, url: str) -> str:
    dot = f'<span style="color:{colour};font-size:1.2em">●</span>'
    address = f'<span style="{_MONO};{_FAINT};overflow-wrap:anywhere">{escape(url)}</span>'
    return f'<div style="margin-bottom:.3em">{dot} <b>{escape(name)}</b> <b>{state}</b> {address}</div>'


def _grid(rows: Iterator[tuple[str, str]]) -> str:
    cells = "".join(
        f'<div style="{_FAINT}">{label} </div><div style="overflow-wrap:anywhere">{escape(value)}</div>'
        for label, value in rows
    )
    return f'<div style="{_GRID}">{cells}</div>'


def _rows(parts: Parts, ending: Ending | None) -> Iterator[tuple[str, str]]:
    bridge, session = parts.bridge, parts.session
    opened_at, ended_at = bridge.life.opened_at, bridge.life.ended_at
    if opened_at is not None and bridge.life.was_open:
        if ended_at is None:
            yield "open for", duration(monotonic() - opened_at)
        else:
            yield "was open for", duration(ended_at - opened_at)
    if session.subprotocol:
        yield "sub-protocol", session.subprotocol
    sent, received = bridge.bytes_on_wire()
    yield "sent", f"{_count(bridge.outgoing.accepted_messages, 'message')} · {size(sent)} on the wire"
    waiting = f" · {len(bridge.inbox.messages):,} not taken yet" if len(bridge.inbox.messages) else ""
    yield "received", f"{_count(bridge.inbox.received, 'message')} · {size(received)} on the wire{waiting}"
    if session.keepalive.latency is not None:
        yield "latency", latency(session.keepalive.latency)
    if bridge.comes_back:
        yield from _of_reconnecting(parts.supervisor.bridge, parts.supervisor.backoff.retry_count)
    if ending is not None:
        yield "closed" if bridge.life.ending is not None else "last close", _how(ending, parts.url.shown)


def _of_reconnecting(bridge: OutboxBridge, attempts: int) -> Iterator[tuple[str, str]]:
    """What a ReconnectingWebSocket has more."""
    if attempts:
        yield "attempts", f"{attempts:,} since the last lasting connection"
    if bridge.life.state is ReadyState.CONNECTING and bridge.next_attempt_at is not None:
        seconds = bridge.next_attempt_at - monotonic()
        yield "next attempt", f"in {duration(seconds)}" if seconds > 0 else "now"
    if bridge.outgoing.kept:
        yield "outbox", f"{_count(len(bridge.outgoing.kept), 'message')} · {size(bridge.outgoing.kept_bytes)}"
    if bridge.outgoing.at_risk:
        yield "at risk", _count(bridge.outgoing.at_risk, "message")


def _how(ending: Ending, url: str) -> str:
    """How it ended, in words; the URL stands above already."""
    reason = f" “{_on_one_line(ending.reason)}”" if ending.reason else ""
    if ending.error is not None:
        return f"{ending.code} · {str(ending.error).removeprefix(f'{url}: ')}"
    code = "1005 (no code)" if ending.code == CloseCode.NO_STATUS_RECEIVED else str(ending.code)
    return f"{code}{reason} · by the {ending.closed_first}{'' if ending.clean else ' · not cleanly'}"


# ---- messages


def _conversation(messages: list[Remembered]) -> str:
    rows = "".join(map(_message, messages))
    style = f"margin-top:.4em;padding-top:.4em;border-top:1px solid rgba(128,128,128,.25);{_MONO}"
    return f'<div style="{style}">{rows}</div>'


def _message(message: Remembered) -> str:
    arrow, title = ("↑", "sent") if message.sent else ("↓", "received")
    time = strftime("%H:%M:%S", localtime(message.at))
    text, more = _shortened(message)
    return (
        f'<div style="{_LINE}"><span title="{title}">{arrow}</span> <span style="{_FAINT}">{time}</span>'
        f' <bdi style="{_TEXT}">{escape(text)}</bdi> <span style="{_FAINT}">{more}</span></div>'
    )


def _shortened(message: Remembered) -> tuple[str, str]:
    """The beginning of a message, and how much it is in all if that is not everything."""
    if isinstance(message.start, str):
        text, cut = _on_one_line(message.start[:SHOWN]), message.cut or len(message.start) > SHOWN
        unit = "bytes" if message.sent else "characters"
        return text + "…" * cut, f"{message.size:,} {unit}" if cut else ""
    cut = message.cut or len(message.start) > SHOWN_BYTES
    return message.start[:SHOWN_BYTES].hex(" ") + " …" * cut, _count(message.size, "byte")


def _on_one_line(text: str) -> str:
    return escaped(text.translate(_CONTROLS))


# ---- numbers


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(count: int) -> str:
    """So many bytes, as a person says it."""
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount /= 1000
        name = unit
    return _count(count, "byte") if count < 1000 else f"{amount:.3g} {name}"


def latency(seconds: float) -> str:
    """So many seconds until an answer came, as a person says it."""
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else duration(seconds)


def duration(seconds: float) -> str:
    """So many seconds, as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
