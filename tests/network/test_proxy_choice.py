"""Which proxy a URL is reached through: the parsing of their URLs, and the environment's variables. No network."""

from __future__ import annotations

import pytest

from nwebsocket import InvalidArgument, Options, WebSocket
from nwebsocket._network.proxies import Proxy, parse_proxy, proxy_of_environment
from nwebsocket._protocol.url import parse_url

SECRET = "s3s4me"


@pytest.mark.parametrize(
    ("url", "shown", "credentials"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None),
        ("http://proxy.example:3128/", "http://proxy.example:3128", None),
        ("HTTP://Proxy.Example", "http://proxy.example:80", None),
        ("proxy.example:3128", "http://proxy.example:3128", None),
        ("me:pw@proxy.example:3128", "http://proxy.example:3128", "me:pw"),
        ("https://proxy.example", "https://proxy.example:443", None),
        ("http://[::1]:3128", "http://[::1]:3128", None),
        ("http://me:p%40ss%3a@proxy.example", "http://proxy.example:80", "me:p@ss:"),
        ("http://bücher.example:8080", "http://xn--bcher-kva.example:8080", None),
        ("socks4://10.0.0.1", "socks4://10.0.0.1:1080", None),
        ("socks4a://10.0.0.1:9", "socks4a://10.0.0.1:9", None),
        ("socks5://me:pw@10.0.0.1", "socks5://10.0.0.1:1080", "me:pw"),
        ("socks5h://localhost", "socks5h://localhost:1080", None),
        ("socks://localhost:1080/", "socks5h://localhost:1080", None),
    ],
)
def test_the_url_of_a_proxy(url: str, shown: str, credentials: str | None) -> None:
    proxy = parse_proxy(url)
    assert (proxy.shown, proxy.credentials) == (shown, credentials)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://proxy.example", "scheme must be one of http, https, socks4"),
        ("ws://proxy.example", "scheme"),
        ("http://", "host name is missing"),
        ("", "host name is missing"),
        ("http://proxy.example:http", "port is not a number"),
        ("http://proxy.example:99999", "port must be from 1 to 65535"),
        ("http://proxy.example/path", "nothing may follow the port"),
        ("http://proxy.example?x", "nothing may follow the port"),
        (f"http://me:{SECRET}@proxy.example:0", "port must be from 1"),
        (f"http://me:{SECRET}/@proxy.example", "nothing may follow"),
        (f"me:{SECRET}@proxy.example/x", "nothing may follow"),
        (f"socks6://me:{SECRET}@proxy.example", "scheme"),
        (f"socks5://me:{SECRET}{'x' * 250}@proxy.example", "255 bytes"),
        (f"socks4://me:{SECRET}@proxy.example", "no password"),
        (f"socks4a://{SECRET}%00x@proxy.example", "zero byte"),
        (f"http://me:{SECRET}\udcff@proxy.example", "lone surrogate"),
        (f"socks5://me\ud800:{SECRET}@proxy.example", "lone surrogate"),
        ("http://pro\udcffxy", "lone surrogate"),
    ],
)
def test_what_is_no_url_of_a_proxy(url: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as caught:
        WebSocket("ws://127.0.0.1/", proxy=url)
    assert SECRET not in str(caught.value)
    assert "proxy" in str(caught.value)


@pytest.mark.parametrize("proxy", [False, 3128, b"http://proxy.example"])
def test_what_is_no_proxy_at_all(proxy: object) -> None:
    with pytest.raises(TypeError, match=f"proxy must be a URL, True .* not {type(proxy).__name__}"):
        WebSocket("ws://127.0.0.1/", proxy=proxy)  # type: ignore[arg-type]


def test_socks_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match=r"pip install 'nwebsocket\[proxy\]'"):
        WebSocket("ws://127.0.0.1/", proxy=f"socks5://me:{SECRET}@proxy.example")


def test_no_secret_is_shown() -> None:
    options = Options(proxy=f"http://me:{SECRET}@proxy.example", headers=(("X-Key", SECRET),), cookies={"id": SECRET})
    assert SECRET not in repr(options) + repr(Options(auth=("me", SECRET))) + repr(parse_proxy(f"me:{SECRET}@h"))


def choose(url: str, **environ: str) -> str | None:
    proxy = proxy_of_environment(parse_url(url), environ)
    return None if proxy is None else proxy.host


ALL = {"ws_proxy": "ws", "wss_proxy": "wss", "http_proxy": "http", "https_proxy": "https", "all_proxy": "all"}


@pytest.mark.parametrize(
    ("url", "order"), [("ws://h/", ["ws", "https", "http", "all"]), ("wss://h/", ["wss", "https", "all"])]
)
def test_the_order_of_the_variables(url: str, order: list[str]) -> None:
    environ = dict(ALL)
    for expected in order:
        assert choose(url, **environ) == expected
        del environ[f"{expected}_proxy"]
    assert choose(url, **environ) is None


def test_lower_case_goes_first_and_an_empty_one_means_none() -> None:
    assert choose("wss://h/", HTTPS_PROXY="upper") == "upper"
    assert choose("wss://h/", HTTPS_PROXY="upper", https_proxy="lower") == "lower"
    assert choose("wss://h/", HTTPS_PROXY="upper", https_proxy="") is None
    assert choose("wss://h/", HTTPS_PROXY="upper", no_proxy="h", NO_PROXY="other") is None


def test_the_header_of_a_cgi_client_is_no_proxy() -> None:
    assert choose("ws://h/", HTTP_PROXY="evil") == "evil"
    assert choose("ws://h/", HTTP_PROXY="evil", REQUEST_METHOD="GET") is None
    assert choose("ws://h/", http_proxy="good", REQUEST_METHOD="GET") == "good"


@pytest.mark.parametrize(
    ("url", "no_proxy", "bypassed"),
    [
        ("ws://example.org/", "*", True),
        ("ws://example.org/", "example.org", True),
        ("ws://Example.org/", "EXAMPLE.org", True),
        ("ws://sub.example.org/", "example.org", True),
        ("ws://sub.example.org/", ".example.org", True),
        ("ws://example.org/", ".example.org", True),
        ("ws://sub.example.org/", "*.example.org", True),
        ("ws://myexample.org/", "example.org", False),
        ("ws://example.org.evil/", "example.org", False),
        ("ws://example.org./", "example.org", True),
        ("ws://example.org/", "a, b example.org ,c", True),
        ("ws://example.org/", "", False),
        ("ws://example.org/", ",", False),
        ("ws://example.org/", ".", False),
        ("ws://example.org:8080/", "example.org:8080", True),
        ("ws://example.org:8081/", "example.org:8080", False),
        ("wss://example.org/", "example.org:443", True),
        ("ws://192.0.2.1/", "192.0.2.1", True),
        ("ws://192.0.2.1:9/", "192.0.2.1:9", True),
        ("ws://192.0.2.1:9/", "192.0.2.1:8", False),
        ("ws://10.1.2.3/", "10.0.0.0/8", True),
        ("ws://11.1.2.3/", "10.0.0.0/8", False),
        ("ws://10.1.2.3/", "10.9.9.9/8", True),
        ("ws://[fd00::1]/", "fd00::1", True),
        ("ws://[fd00::1]/", "[fd00::1]", True),
        ("ws://[fd00::1]:9/", "[fd00::1]:9", True),
        ("ws://[fd00::7]/", "fd00::/8", True),
        ("ws://[fd00::1]/", "192.0.2.1", False),
        ("ws://192.0.2.1/", "host.example", False),
        ("ws://bücher.example/", "bücher.example", True),
        ("ws://a.bücher.example/", ".BÜCHER.example", True),
        ("ws://bücher.example/", "büc her.example, bü[cher", False),
    ],
)
def test_no_proxy(url: str, no_proxy: str, bypassed: bool) -> None:
    assert choose(url, all_proxy="proxy.example", no_proxy=no_proxy) == (None if bypassed else "proxy.example")


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("localhost.", True),
        ("a.localhost", True),
        ("mylocalhost", False),
        ("localhost.example", False),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("0x7f.1", True),
        ("128.0.0.1", False),
        ("0.0.0.0", False),
        ("169.254.1.1", False),
        ("[::1]", True),
        ("[0:0::0:1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("[::2]", False),
    ],
)
def test_this_machine_itself_is_reached_without_as_by_browsers(host: str, is_loopback: bool) -> None:
    for scheme in ("ws", "wss"):
        for name in (f"{scheme}_proxy", "https_proxy", "all_proxy"):
            assert choose(f"{scheme}://{host}:8443/", **{name: "proxy"}) == (None if is_loopback else "proxy")
    assert Options(proxy="http://proxy.example").proxy_for(parse_url(f"ws://{host}/")) is not None, "that is asked for"


def test_a_byte_that_is_not_utf8_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"http://me:{SECRET}\udce4@proxy.example")
    with pytest.raises(InvalidArgument, match=r"the environment's all_proxy .* a byte that is not UTF-8") as caught:
        WebSocket("ws://host.example/")
    told = (str(caught.value), repr(caught.value.__context__), repr(caught.value.__cause__))
    assert SECRET not in "".join(told)
    assert choose("ws://host.example/", all_proxy="proxy", no_proxy="\udce4.example, x") == "proxy"
    assert choose("ws://host.example/", all_proxy="proxy", no_proxy="\udce4.example, host.example") is None


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ws_proxy", f"gopher://me:{SECRET}@proxy.example")
    with pytest.raises(InvalidArgument, match=r"the environment's ws_proxy 'gopher://proxy\.example'") as caught:
        WebSocket("ws://host.example/")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["wss_proxy", "https_proxy", "all_proxy", "WSS_PROXY", "HTTPS_PROXY", "ALL_PROXY"])
def test_each_variable_is_found_as_soon_as_it_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """os.environ is not looked up in the same way as another mapping."""
    options, url = Options(), parse_url("wss://h/")
    assert options.proxy_for(url) is None
    monkeypatch.setenv(name, "http://p")
    assert options.proxy_for(url) == Proxy("http", "p", 80)
    monkeypatch.delenv(name)
    assert options.proxy_for(url) is None
    monkeypatch.setattr("os.environ", {name: "http://p"})
    assert options.proxy_for(url) == Proxy("http", "p", 80)


@pytest.mark.parametrize("name", ["ws_proxy", "http_proxy", "WS_PROXY", "HTTP_PROXY"])
def test_each_variable_for_ws_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://p")
    assert Options().proxy_for(parse_url("ws://h/")) == Proxy("http", "p", 80)


def test_the_environment_is_asked_for_each_url() -> None:
    proxy = Options(proxy=True).proxy_for(parse_url("ws://127.0.0.1/"))
    assert proxy is None
    assert Options(proxy="http://h").proxy_for(parse_url("ws://127.0.0.1/")) == Proxy("http", "h", 80)
    assert Options(proxy=None).proxy_for(parse_url("ws://127.0.0.1/")) is None
