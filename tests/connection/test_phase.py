"""The table of a connection's phases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nwebsocket import ReadyState, WebSocket
from nwebsocket._connection.phase import READY_STATES, STEPS, Phase

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_phase_has_its_steps_and_its_state() -> None:
    assert STEPS.keys() == READY_STATES.keys() == set(Phase)
    assert set(READY_STATES.values()) == set(ReadyState)


def test_a_connection_only_moves_forward_but_for_one_that_comes_back() -> None:
    for phase, following in STEPS.items():
        assert all(after >= phase for after in following - {Phase.CONNECTING})


def test_every_connection_may_end_at_any_time_and_then_for_good() -> None:
    assert all(Phase.CLOSED in following for phase, following in STEPS.items() if phase is not Phase.CLOSED)
    assert STEPS[Phase.CLOSED] == frozenset()


@pytest.mark.parametrize("phase", [Phase.CONNECTING, Phase.OPEN, Phase.CLOSED])
def test_another_step_is_an_error_of_ours(echo: str, phase: Phase) -> None:
    with WebSocket(echo) as ws:
        life = ws._nwebsocket.bridge.life
    with pytest.raises(AssertionError, match=f"from CLOSED to {phase.name}"):
        life.enter(phase)
    assert ws.readyState is ReadyState.CLOSED


def test_the_page_for_whoever_changes_the_library_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| .*? \| (.*?) \|$", PAGE, re.MULTILINE)
    assert {Phase[name]: ReadyState[state] for name, state, _ in rows} == READY_STATES
    said = {Phase[name]: {Phase[each] for each in re.findall(r"`(\w+)`", following)} for name, _, following in rows}
    assert said == {phase: set(following - {phase}) for phase, following in STEPS.items()}
