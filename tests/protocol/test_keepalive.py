"""Keepalive, on a clock that is passed in."""

from nwebsocket._protocol.keepalive import Keepalive


def test_a_ping_is_due_after_the_interval_of_silence() -> None:
    keepalive = Keepalive(20, 10, now=100)
    assert keepalive.deadline() == 120
    assert keepalive.due(119.9) is None
    assert keepalive.due(120) == "ping"


def test_any_byte_counts_as_life() -> None:
    keepalive = Keepalive(20, 10, now=0)
    keepalive.heard(15)
    assert keepalive.due(20) is None
    assert keepalive.deadline() == 35
    keepalive.keepalive_ping(35)
    keepalive.heard(40)  # not the pong, but life
    assert keepalive.due(45) is None
    assert keepalive.deadline() == 60


def test_silence_after_the_ping_is_death() -> None:
    keepalive = Keepalive(20, 10, now=0)
    keepalive.keepalive_ping(23)  # sent late: the patience runs from then
    assert keepalive.due(32.9) is None
    assert keepalive.due(33) == "dead"


def test_no_interval_no_pings() -> None:
    assert Keepalive(None, 10, now=0).deadline() is None


def test_no_timeout_no_death() -> None:
    keepalive = Keepalive(20, None, now=0)
    keepalive.keepalive_ping(20)
    assert keepalive.deadline() is None
    assert keepalive.due(1e9) is None


def test_silence_while_we_do_not_read_counts_for_nothing() -> None:
    keepalive = Keepalive(20, 10, now=0)
    keepalive.pause()
    assert keepalive.due(1000) is None
    keepalive.resume(1000)
    assert keepalive.deadline() == 1020


def test_a_pong_settles_its_ping_and_all_earlier_ones() -> None:
    keepalive = Keepalive(20, 10, now=0)
    first, second, third = keepalive.ping(1), keepalive.ping(2), keepalive.ping(3)
    assert keepalive.pong(second, 5) == [first, second]
    assert keepalive.latency == 3
    assert keepalive.pong(first, 6) == []
    assert keepalive.pong(third, 7) == [third]
    assert keepalive.latency == 4


def test_who_waits_for_a_pong_gets_the_latency() -> None:
    keepalive = Keepalive(20, 10, now=0)
    first: list[float] = []
    second: list[float] = []
    keepalive.ping(1, first)
    pong = keepalive.ping(2, second)
    keepalive.keepalive_ping(3)
    keepalive.pong(pong, 5)
    keepalive.pong(pong, 6)
    assert (first, second) == ([3], [3])


def test_an_unsolicited_pong_answers_nothing() -> None:
    keepalive = Keepalive(20, 10, now=0)
    assert keepalive.pong(b"", 1) == []
    assert keepalive.latency is None
