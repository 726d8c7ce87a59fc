"""Who we say we are: auth=, headers=, cookies= and credentials in the URL; what a redirect does to them."""

from __future__ import annotations

import base64
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Any

import numpy
import pytest
from peers import LIMIT, Authority, Peer, RawServer, echo_server

from nwebsocket import ConnectionFailed, HandshakeError, InvalidArgument, Options, WebSocket, connect

SECRET = "s3s4me"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Visited:
    """What a server was asked: the path and the headers of each request."""

    def __init__(self, answer: Callable[[Peer], bytes | None]) -> None:
        self.requests: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()
        self._answer = answer

    def __call__(self, peer: Peer) -> None:
        self.requests.put((peer.path, peer.headers))
        answer = self._answer(peer)
        if answer is not None:
            peer.send(answer)
            return
        peer.accept()
        assert peer.read_frame().opcode == 8
        peer.send(b"\x88\x00")

    def next(self) -> tuple[str, dict[str, str]]:
        return self.requests.get(timeout=LIMIT)


def redirect(location: str, *headers: str, status: int = 302) -> bytes:
    lines = [f"HTTP/1.1 {status} Moved", f"Location: {location}", "Content-Length: 0", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.fixture
def open_door() -> Iterator[tuple[str, Visited]]:
    """A server that accepts everybody, and what it was asked."""
    visited = Visited(lambda peer: None)
    with RawServer(visited) as server:
        yield server.url, visited


# --- auth


@pytest.mark.parametrize("auth", [("me", SECRET), ("", SECRET), ("me", ""), ("mé", "pä:ss☃")])
def test_auth_is_basic(open_door: tuple[str, Visited], auth: tuple[str, str]) -> None:
    url, visited = open_door
    with connect(url, auth=auth):
        assert visited.next()[1]["authorization"] == basic(*auth)


def test_auth_goes_before_the_credentials_of_the_url(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    with connect(url.replace("//", "//you:other@"), auth=("me", SECRET)):
        assert visited.next()[1]["authorization"] == basic("me", SECRET)


@pytest.mark.parametrize(
    ("auth", "error", "problem"),
    [
        ("me:pw", TypeError, r"\(user, password\)"),
        (("me",), TypeError, r"\(user, password\)"),
        (("me", SECRET, SECRET), TypeError, r"\(user, password\)"),
        (("me", SECRET.encode()), TypeError, r"\(user, password\)"),
        (("m:e", SECRET), InvalidArgument, "colon"),
        (("me", SECRET + "\ud800"), InvalidArgument, "surrogate"),
    ],
)
def test_what_is_no_auth(auth: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem) as caught:
        WebSocket("ws://127.0.0.1/", auth=auth)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({"auth": ("me", SECRET)}, "Authorization"),
        ({"cookies": {"id": SECRET}}, "Cookie"),
        ({"cookies": CookieJar()}, "Cookie"),
        ({"origin": "http://h"}, "Origin"),
    ],
)
def test_what_is_given_twice_is_refused(options: dict[str, Any], header: str) -> None:
    with pytest.raises(InvalidArgument, match=f"and the header {header} are both given") as caught:
        WebSocket("ws://127.0.0.1/", headers={header: SECRET}, **options)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "error", "problem"),
    [
        ("X-Key: 1", TypeError, "must be a mapping or .* not str"),
        (7, TypeError, "must be a mapping or .* not int"),
        ([["X-Key", SECRET]], TypeError, "one entry is of type list"),
        ([("X-Key", SECRET, "")], TypeError, "one entry is a tuple of 3"),
        (numpy.array([["X-Key", SECRET]]), TypeError, "one entry is of type ndarray"),
        ({"X-Key": SECRET.encode()}, TypeError, "header 'X-Key': name and value must be str, not bytes"),
        ({"X Key": SECRET}, InvalidArgument, r"'X\.\.\.' is not a header name"),
        ({f"X-Key {SECRET}": 7}, TypeError, r"header 'X-Key\.\.\.': name and value must be str, not int"),
        ([((SECRET,), "x")], TypeError, "header of type tuple: name and value must be str"),
        ({"Upgrade": SECRET}, InvalidArgument, "the header Upgrade is set by the handshake itself"),
        ({"X-Key": SECRET + "\r\nX: y"}, InvalidArgument, "line break"),
        ({"X-Key": SECRET + "€"}, InvalidArgument, "non-Latin-1"),
    ],
)
def test_what_is_no_header(headers: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem) as caught:
        WebSocket("ws://127.0.0.1/", headers=headers)
    assert SECRET not in str(caught.value)


def test_repeated_headers_go_out_in_order(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    with connect(url, headers=[("X-Tag", "one"), ("x-tag", "two")]):
        assert visited.next()[1]["x-tag"] == "one, two"


# --- cookies


def test_cookies_of_a_mapping(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    with connect(url, cookies={"id": "7", "name": 'a "b" c=d'}):
        assert visited.next()[1]["cookie"] == 'id=7; name=a "b" c=d'
    with connect(url, cookies={}):
        assert "cookie" not in visited.next()[1]


@pytest.mark.parametrize(
    ("cookies", "error", "problem"),
    [
        ("id=7", TypeError, "mapping, an http.cookiejar.CookieJar or None, not str"),
        ([("id", "7")], TypeError, "not list"),
        ({"id": 7}, TypeError, "name and value must be str, not int"),
        ({"i d": "7"}, InvalidArgument, r"'i\.\.\.' is not the name of a cookie"),
        ({f"id={SECRET}": "7"}, InvalidArgument, r"'id\.\.\.' is not the name of a cookie"),
        ({f"id;{SECRET}": 7}, TypeError, r"cookie 'id\.\.\.': name and value must be str, not int"),
        ({(SECRET,): "7"}, TypeError, "cookie of type tuple: name and value must be str"),
        ({"id": f"{SECRET};x"}, InvalidArgument, "cookie id has a semicolon"),
        ({"id": f"{SECRET}\r\nX: y"}, InvalidArgument, "cookie id"),
        ({"id": f"{SECRET}☃"}, InvalidArgument, "cookie id"),
    ],
)
def test_what_are_no_cookies(cookies: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem) as caught:
        WebSocket("ws://127.0.0.1/", cookies=cookies)
    assert SECRET not in str(caught.value)


def test_a_jar_takes_up_what_the_handshake_sets_and_sends_it_the_next_time() -> None:
    with echo_server(process_response=set_cookies) as server:
        jar = CookieJar()
        with connect(server.url, cookies=jar):
            pass
        assert {cookie.name: cookie.value for cookie in jar} == {"id": "7", "theme": "dark"}
        with connect(server.url, cookies=jar):
            pass
    first, second = server.requests
    assert "Cookie" not in first.headers
    assert sorted(second.headers["Cookie"].split("; ")) == ["id=7", "theme=dark"]


def set_cookies(connection: Any, request: Any, response: Any) -> None:
    response.headers["Set-Cookie"] = "id=7; Path=/"
    response.headers["Set-Cookie"] = "theme=dark"
    response.headers["Set-Cookie"] = "hidden=1; Path=/elsewhere; Domain=example.org"


def test_a_jar_takes_up_what_a_refusal_sets() -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nSet-Cookie: try=1\r\nContent-Length: 0\r\n\r\n"
    jar = CookieJar()
    with RawServer(Visited(lambda peer: refusal)) as server, pytest.raises(HandshakeError):
        connect(server.url, cookies=jar)
    assert [cookie.name for cookie in jar] == ["try"]


def test_cookies_for_secure_connections_stay_there(ca: Authority) -> None:
    jar = CookieJar()
    with echo_server(ssl=ca.server(), process_response=set_secure) as server:
        for _ in range(2):
            with connect(server.url, cookies=jar, ssl=ca.client()):
                pass
    assert server.requests[1].headers["Cookie"] == "id=7"
    with echo_server() as plain, connect(plain.url, cookies=jar):
        pass
    assert "Cookie" not in plain.requests[0].headers


def set_secure(connection: Any, request: Any, response: Any) -> None:
    response.headers["Set-Cookie"] = "id=7; Secure"


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise ZeroDivisionError

    __str__ = __repr__


@pytest.mark.parametrize("kind", [ValueError, Unspeakable, SystemExit, KeyboardInterrupt])
def test_a_jar_that_fails_is_an_error_that_says_so(kind: type[BaseException]) -> None:
    class Broken(DefaultCookiePolicy):
        def set_ok(self, cookie: Cookie, request: Any) -> bool:
            raise kind(SECRET)

    with echo_server(process_response=set_cookies) as server:
        with pytest.raises(ConnectionFailed, match=f"the cookie jar failed: {kind.__name__}") as caught:
            connect(server.url, cookies=CookieJar(Broken()))
        assert SECRET not in str(caught.value)
        assert type(caught.value.__cause__) is kind
        with connect(server.url) as ws:  # the loop thread goes on
            ws.send("hello")
            assert ws.recv(LIMIT) == "hello"


@pytest.mark.parametrize("value", [f"{SECRET}\r\nX: y", f"{SECRET}\x00", f"{SECRET}☃", f"{SECRET}\ud800"])
def test_a_jar_with_what_no_header_can_carry_is_an_error_without_its_value(value: str) -> None:
    class Jar(CookieJar):
        def add_cookie_header(self, request: Any) -> None:
            request.add_unredirected_header("Cookie", f"id={value}")

    with echo_server() as server, pytest.raises(ConnectionFailed, match="a cookie of the jar has") as caught:
        connect(server.url, cookies=Jar())
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_jar_is_given_no_more_than_it_can_take_up_in_a_moment() -> None:
    longest = "long=" + (4096 - len("long=")) * "x"
    lines = ["Set-Cookie2: old=1; Version=1", f"Set-Cookie: {longest}x", f"Set-Cookie: {longest}"]
    lines += [f"Set-Cookie: c{n}=1" for n in range(200)]
    refusal = "\r\n".join(["HTTP/1.1 401 Unauthorized", *lines, "Content-Length: 0", "", ""]).encode()
    jar = CookieJar()
    with RawServer(Visited(lambda peer: refusal)) as server, pytest.raises(HandshakeError):
        connect(server.url, cookies=jar)
    names = [cookie.name for cookie in jar]
    assert sorted(names) == sorted(["long", *(f"c{n}" for n in range(149))])


def test_a_mapping_is_asked_at_the_call_only(open_door: tuple[str, Visited]) -> None:
    class Once(Mapping[str, str]):
        """Anybody's code."""

        def __init__(self) -> None:
            self.threads = set[int]()

        def __getitem__(self, name: str) -> str:
            self.threads.add(threading.get_ident())
            return "7"

        def __iter__(self) -> Iterator[str]:
            self.threads.add(threading.get_ident())
            return iter(["id"])

        def __len__(self) -> int:
            self.threads.add(threading.get_ident())
            return 1

    cookies = Once()
    url, visited = open_door
    with connect(url, cookies=cookies):
        assert visited.next()[1]["cookie"] == "id=7"
    assert cookies.threads == {threading.get_ident()}
    changed = {"id": "7"}
    options = Options(cookies=changed)
    changed["id"] = "x; y"
    assert options.request_headers() == (("Cookie", "id=7"),)


# --- redirects


def test_a_redirect_that_sets_the_cookie_it_asks_for_is_no_circle() -> None:
    def answer(peer: Peer) -> bytes | None:
        return None if "cookie" in peer.headers else redirect("/", "Set-Cookie: seen=1")

    visited = Visited(answer)
    with RawServer(visited) as server, connect(server.url, cookies=CookieJar()):
        assert "cookie" not in visited.next()[1]
        assert visited.next()[1]["cookie"] == "seen=1"


@pytest.mark.parametrize("options", [{}, {"cookies": CookieJar()}, {"cookies": {"id": SECRET}}], ids=str)
def test_a_circle_is_refused_with_its_chain(options: dict[str, Any]) -> None:
    def answer(peer: Peer) -> bytes:
        return redirect(f"/b?token={SECRET}" if peer.path == "/" else "/")

    visited = Visited(answer)
    with RawServer(visited) as server, pytest.raises(HandshakeError, match="circle") as caught:
        connect(server.url.replace("//", f"//me:{SECRET}@"), **options)
    text = str(caught.value)
    assert text.startswith(f"{server.url} -> {server.url}b?...: ")
    assert text.endswith(f"circle, back to {server.url}")
    assert SECRET not in text
    assert caught.value.status == 302
    assert visited.requests.qsize() == 2


def test_the_chain_of_a_downgrade_has_no_secrets(ca: Authority) -> None:
    def answer(peer: Peer) -> bytes:
        return redirect(f"ws://me:{SECRET}@example.org/?token={SECRET}")

    with RawServer(answer_with(answer), ssl=ca.server()) as server, pytest.raises(HandshakeError) as caught:
        connect(f"{server.url}?token={SECRET}", ssl=ca.client())
    text = str(caught.value)
    assert f"{server.url}?...: the server redirects from wss to ws://example.org/?..., which is not encrypted" in text


def answer_with(answer: Callable[[Peer], bytes]) -> Callable[[Peer], None]:
    return lambda peer: peer.send(answer(peer)) if peer.request else None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_auth_and_cookies_stay_with_their_origin(open_door: tuple[str, Visited], status: int) -> None:
    url, visited = open_door
    server = Visited(lambda peer: redirect("/there" if peer.path == "/" else url, status=status))
    given: dict[str, Any] = {"auth": ("me", SECRET), "cookies": {"id": SECRET}, "headers": {"X": "y"}}
    with RawServer(server) as first, connect(first.url, **given):
        for path in ("/", "/there"):
            asked, headers = server.next()
            assert (asked, headers["cookie"]) == (path, f"id={SECRET}")
            assert headers["authorization"] == basic("me", SECRET)
        headers = visited.next()[1]
        assert headers["x"] == "y"
        assert not {"authorization", "cookie"} & headers.keys()


def test_the_credentials_of_the_url_stay_with_their_origin(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    server = Visited(lambda peer: redirect("/there" if peer.path == "/" else url))
    with RawServer(server) as first, connect(first.url.replace("//", f"//me:{SECRET}@")):
        assert [server.next()[1]["authorization"] for _ in range(2)] == [basic("me", SECRET)] * 2
        assert "authorization" not in visited.next()[1]


def test_the_credentials_of_a_location_are_used(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    server = Visited(lambda peer: redirect(url.replace("//", f"//you:{SECRET}@")))
    with RawServer(server) as first, connect(first.url, auth=("me", SECRET)):
        assert visited.next()[1]["authorization"] == basic("you", SECRET)


def test_a_jar_decides_itself_what_follows_a_redirect(open_door: tuple[str, Visited]) -> None:
    url, visited = open_door
    server = Visited(lambda peer: redirect(url.replace("127.0.0.1", "localhost"), "Set-Cookie: id=7"))
    with RawServer(server) as first, connect(first.url, cookies=CookieJar()):
        assert "cookie" not in visited.next()[1]


def test_a_redirect_goes_through_the_proxy_of_its_own_url(
    open_door: tuple[str, Visited], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, visited = open_door

    def proxy(peer: Peer) -> None:
        assert peer.request.startswith(b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org:80\r\n")
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        tunnelled = Peer(peer._sock, 0, peer._stop)
        assert tunnelled.path == "/x"
        tunnelled.send(redirect(url))

    with RawServer(proxy) as server:
        monkeypatch.setenv("ws_proxy", server.url.replace("ws:", "http:"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with connect("ws://example.org/x"):
            assert visited.next()[0] == "/"
