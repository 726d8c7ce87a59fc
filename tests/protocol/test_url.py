"""URLs and sub-protocols: the browser's behaviour, row by row, and errors that help without leaking a password."""

from __future__ import annotations

import base64
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nwebsocket._protocol.url import URL, parse_protocols, parse_url
from nwebsocket.exceptions import InvalidArgument, InvalidURL


@pytest.mark.parametrize(
    ("given_url", "href"),
    [
        ("ws://example.org", "ws://example.org/"),
        ("WS://Example.ORG/Path", "ws://example.org/Path"),
        ("http://example.org/", "ws://example.org/"),
        ("https://example.org/", "wss://example.org/"),
        ("ws:example.org:81/p", "ws://example.org:81/p"),
        ("ws:/example.org/p", "ws://example.org/p"),
        ("ws:////example.org/p", "ws://example.org/p"),
        ("ws:\\\\example.org\\a\\b?c\\d", "ws://example.org/a/b?c\\d"),
        (" \x00\x1fws://example.org/a \x00\r\n", "ws://example.org/a"),
        ("w\ts://exa\nmple.org/a\r\tb", "ws://example.org/ab"),
        ("ws://h:80/", "ws://h/"),
        ("ws://h:443/", "ws://h:443/"),
        ("wss://h:443/", "wss://h/"),
        ("wss://h:80/", "wss://h:80/"),
        ("ws://h:/", "ws://h/"),
        ("ws://h:0008080/", "ws://h:8080/"),
        ("ws://h:65535", "ws://h:65535/"),
        ("ws://h?", "ws://h/?"),
        ("ws://h?a=b?c/../d", "ws://h/?a=b?c/../d"),
        ("ws://h/a b?c d%20e", "ws://h/a%20b?c%20d%20e"),
        ("ws://h/ä?ö=😀", "ws://h/%C3%A4?%C3%B6=%F0%9F%98%80"),
        ("ws://h/a\x00b?c\x00d", "ws://h/a%00b?c%00d"),
        ("ws://h/\ud800", "ws://h/%EF%BF%BD"),
        ("ws://h/\ud83d\ude00", "ws://h/%F0%9F%98%80"),
        ("""ws://h/"<>^`{}'|[]\x7f?"<>^`{}'|[]\x7f""", "ws://h/%22%3C%3E%5E%60%7B%7D'|[]%7F?%22%3C%3E^`{}%27|[]%7F"),
        ("ws://h/%zz%?%", "ws://h/%zz%?%"),
        ("ws://h/a/./b/../c", "ws://h/a/c"),
        ("ws://h/../../a/%2E/b/.%2e/", "ws://h/a/"),
        ("ws://h/a/b/..", "ws://h/a/"),
        ("ws://h/a/%2e", "ws://h/a/"),
        ("ws://h//a///..//b", "ws://h//a///b"),
        ("ws://h/...", "ws://h/..."),
    ],
)
def test_serialized_as_in_a_browser(given_url: str, href: str) -> None:
    assert parse_url(given_url).href == href
    assert parse_url(href).href == href


@pytest.mark.parametrize(
    ("host", "parsed"),
    [
        ("EX%41mple.org", "example.org"),
        ("example.org.", "example.org."),
        ("under_score", "under_score"),
        ("a..b", "a..b"),
        ("x" * 63 + ".org", "x" * 63 + ".org"),
        (".".join(["x" * 62] * 4), ".".join(["x" * 62] * 4)),
        ("bücher.example", "xn--bcher-kva.example"),
        ("b%C3%BCcher.example", "xn--bcher-kva.example"),
        ("☃.net", "xn--n3h.net"),
        ("ｅｘ．ｏｒｇ。", "ex.org."),
        ("127.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0X7F.0.0x.1", "127.0.0.1"),
        ("0177.0.0.01", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("1.256", "1.0.1.0"),
        ("0x0x1", "0x0x1"),
        ("１２７.1", "127.0.0.1"),
        ("1.2.3.4.example", "1.2.3.4.example"),
    ],
)
def test_host(host: str, parsed: str) -> None:
    assert parse_url(f"ws://{host}/").host == parsed


@pytest.mark.parametrize(
    ("host", "parsed"),
    [
        ("::1", "::1"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("2001:DB8:0:0:1:0:0:1", "2001:db8::1:0:0:1"),
        ("::ffff:1.2.3.4", "::ffff:102:304"),
        ("::ffff:0:0", "::ffff:0:0"),
    ],
)
def test_ipv6(host: str, parsed: str) -> None:
    url = parse_url(f"ws://[{host}]:8080/")
    assert (url.host, url.port) == (parsed, 8080)
    assert url.host_header == f"[{parsed}]:8080"
    assert parse_url(f"wss://[{host}]").origin == f"wss://[{parsed}]"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("", "needs ws:// or wss://"),
        ("/path", "needs ws:// or wss://"),
        ("ftp://example.org/", "needs ws:// or wss://"),
        ("mailto:me", "needs ws:// or wss://"),
        ("example.org", "did you mean 'ws://example.org'?"),
        ("//example.org/a", "did you mean 'ws://example.org/a'?"),
        ("localhost:8080", "did you mean 'ws://localhost:8080'?"),
        ("localhost:8080/chat", "did you mean 'ws://localhost:8080/chat'?"),
        ("127.0.0.1:8080", "did you mean 'ws://127.0.0.1:8080'?"),
        ("ws://h/#", "fragment"),
        ("ws://h/#f", "fragment"),
        ("ws://h?q#f", "fragment"),
        ("ws://", "host name is missing"),
        ("ws:", "host name is missing"),
        ("ws://?q", "host name is missing"),
        ("ws://:80/", "host name is missing"),
        ("ws://u@/", "host name is missing"),
        ("ws://h:0/", "1 to 65535"),
        ("ws://h:65536/", "1 to 65535"),
        ("ws://h:" + "9" * 5000, "1 to 65535"),
        ("ws://h:a/", "not a number"),
        ("ws://h:-1/", "not a number"),
        ("ws://h:8_0/", "not a number"),
        ("ws://h:８０/", "not a number"),
        ("ws://a:b:80/", "not a number"),
        ("ws://::1/", "host name is missing"),
        ("ws://a b/", "contains ' '"),
        ("ws://a%00b/", r"contains '\x00'"),
        ("ws://a%25b/", "contains '%'"),
        ("ws://a％41/", "contains '%'"),
        ("ws://a<b/", "contains '<'"),
        ("ws://a]b/", "contains ']'"),
        ("ws://%ff/", "IDNA"),
        ("ws://\ufffd/", "IDNA"),
        ("ws://\xad/", "invisible"),
        ("ws://ä" + "x" * 70 + "/", "IDNA"),
        ("ws://1.2.3.4.5/", "IPv4"),
        ("ws://256.1.1.1/", "IPv4"),
        ("ws://4294967296/", "IPv4"),
        ("ws://08/", "IPv4"),
        ("ws://1..2/", "IPv4"),
        ("ws://a.1/", "IPv4"),
        ("ws://0xg.0x/", "IPv4"),
        ("ws://" + "9" * 5000, "5,000 characters"),
        ("ws://" + "9" * 500, "IPv4"),
        ("ws://" + "x" * 64 + ".org", "64 bytes"),
        ("ws://" + ".".join(["x" * 63] * 4), "255 bytes"),
        ("ws://" + "ä" * 70_000, "70,000 characters"),
        ("ws://[::1/", "IPv6"),
        ("ws://[::1", "IPv6"),
        ("ws://[]/", "IPv6"),
        ("ws://[::g]/", "IPv6"),
        ("ws://[::1]x/", "IPv6"),
        ("ws://[127.0.0.1]/", "IPv6"),
        ("ws://[fe80::1%25eth0]/", "zone id"),
    ],
)
def test_refused(bad: str, said: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        parse_url(bad)
    assert said in str(caught.value)


@pytest.mark.parametrize("bad", [None, b"ws://h/", 7, ["ws://h/"]])
def test_a_url_must_be_a_str(bad: object) -> None:
    with pytest.raises(TypeError, match="must be a str, not"):
        parse_url(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("", None),
        (":", None),
        ("user", "user:"),
        ("user:", "user:"),
        (":secret", ":secret"),
        ("us%20er:p%40ss:w", "us er:p@ss:w"),
        ("a@b:c@d", "a@b:c@d"),
        ("ü:ß", "ü:ß"),
    ],
)
def test_credentials(userinfo: str, credentials: str | None) -> None:
    url = parse_url(f"ws://{userinfo}@h/p")
    assert url.credentials == credentials
    assert (url.host, url.href) == ("h", "ws://h/p")
    if credentials is None:
        assert url.authorization() is None
    else:
        assert url.authorization() == "Basic " + base64.b64encode(credentials.encode()).decode()


def test_credentials_that_are_not_utf8_go_out_byte_for_byte() -> None:
    authorization = parse_url("ws://u:%ff%00@h").authorization()
    assert authorization is not None
    assert base64.b64decode(authorization.removeprefix("Basic ")) == b"u:\xff\x00"


@pytest.mark.parametrize(
    "bad",
    [
        "ws://joe:hunter2@/",
        "ws://joe:hunter2@h:0/",
        "ws://joe:hunter2@h:port/",
        "ws://joe:hunter2@h/#f",
        "ws://joe:hunter2#x@h/",
        "ws://joe:hunter2/x@h/",
        "ws://joe:x\\hunter2?@h/",
        "ws:joe:hunter2@a b",
        "http:/joe:hunter2@[::1",
        "ftp://joe:hunter2@h/",
        "joe:hunter2@h/",
        "joe:hunter2@h:80/",
        "joe:8hunter2@h:80/",
        "//joe:hunter2@h/",
        "w\ts://joe:hun\nter2@h:0",
        " joe:hunter2@ws://h:0",
    ],
)
def test_no_error_shows_the_credentials(bad: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        parse_url(bad)
    shown = "".join(traceback.format_exception(caught.value.with_traceback(None)))
    assert "hunter2" not in shown
    assert "joe" not in shown
    assert "hunter2" not in repr(caught.value.__context__)


def test_repr_hides_the_credentials() -> None:
    assert "hunter2" not in repr(parse_url("ws://joe:hunter2@h/"))


def test_a_suggestion_has_no_credentials() -> None:
    with pytest.raises(InvalidURL, match=r"did you mean 'ws://localhost:8080'\?"):
        parse_url("joe:hunter2@localhost:8080")


BASE = parse_url("wss://joe:hunter2@example.org:8443/a/b/c?q")


@pytest.mark.parametrize(
    ("location", "href"),
    [
        ("", "wss://example.org:8443/a/b/c?q"),
        ("#f", "wss://example.org:8443/a/b/c?q"),
        ("?x", "wss://example.org:8443/a/b/c?x"),
        ("d", "wss://example.org:8443/a/b/d"),
        ("../d?x=/..", "wss://example.org:8443/a/d?x=/.."),
        ("./d/../../../../e", "wss://example.org:8443/e"),
        ("/d e", "wss://example.org:8443/d%20e"),
        ("\\d", "wss://example.org:8443/d"),
        ("//other/d", "wss://other/d"),
        ("https://other:8443#f", "wss://other:8443/"),
        ("http://other/", "ws://other/"),
        ("d?http://x/y", "wss://example.org:8443/a/b/d?http://x/y"),
    ],
)
def test_join(location: str, href: str) -> None:
    joined = BASE.join(location)
    assert joined.href == href
    assert joined.credentials is None


def test_join_takes_the_credentials_of_the_location() -> None:
    assert BASE.join("//amy:pw@other/").credentials == "amy:pw"


@pytest.mark.parametrize("location", ["ftp://other/", "//", "//h:0/", "mailto:x"])
def test_join_refuses(location: str) -> None:
    with pytest.raises(InvalidURL):
        BASE.join(location)


@given(st.one_of(st.text(), st.text().map("ws://".__add__), st.from_regex(r"wss?:[/\\]{0,2}[^\n]*")))
def test_anything_is_refused_or_serializes_to_itself(text: str) -> None:
    try:
        url = parse_url(text)
    except InvalidURL:
        return
    assert url.href.isascii()
    assert url.target.startswith("/")
    assert not set(url.href) & set(map(chr, [*range(0x21), 0x23, 0x7F]))
    assert parse_url(url.href) == URL(url.secure, url.host, url.port, url.target, None)


@given(st.binary(min_size=16, max_size=16))
def test_every_ipv6_address_is_compressed(packed: bytes) -> None:
    full = ":".join(packed[i : i + 2].hex() for i in range(0, 16, 2))
    host = parse_url(f"ws://[{full}]").host
    assert len(host) <= len(full)
    assert parse_url(f"ws://[{host}]").host == host


@pytest.mark.parametrize(
    ("protocols", "offered"),
    [
        ((), ()),
        ("chat", ("chat",)),
        (["chat", "superchat"], ("chat", "superchat")),
        (iter(["a", "b"]), ("a", "b")),
        ("!#$%&'*+-.^_`|~09azAZ", ("!#$%&'*+-.^_`|~09azAZ",)),
    ],
)
def test_protocols(protocols: object, offered: tuple[str, ...]) -> None:
    assert parse_protocols(protocols) == offered  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["", " ", "a b", "a,b", "a/b", "a\x00", "a\x7f", "a\n", "ä", *'()<>@;:\\"[]?={}\t'])
def test_protocols_that_are_no_token(bad: str) -> None:
    for protocols in (bad, ["good", bad]):
        with pytest.raises(InvalidArgument, match="invalid sub-protocol"):
            parse_protocols(protocols)


@pytest.mark.parametrize("twice", [["a", "a"], ["chat", "x", "CHAT"]])
def test_protocols_given_twice(twice: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="twice"):
        parse_protocols(twice)


@pytest.mark.parametrize("bad", [None, 7, b"chat", [b"chat"], ["chat", None]])
def test_protocols_that_are_no_str(bad: object) -> None:
    with pytest.raises(TypeError):
        parse_protocols(bad)  # type: ignore[arg-type]
