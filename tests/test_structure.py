"""The fences between the files: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import nwebsocket

PACKAGE = Path(nwebsocket.__file__).parent
MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.glob("*.py")}


def imports_of(name: str) -> set[str]:
    """The modules that a file imports at run time; siblings as ".name"."""
    found = set()
    for node in ast.walk(_without_type_checking(MODULES[name])):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update(f".{name}" for name in names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    body = [n for n in tree.body if not (isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")]
    return ast.Module(body=body, type_ignores=[])


def importers_of(module: str) -> set[str]:
    return {name for name in MODULES if module in imports_of(name)}


def test_only_the_protocol_and_its_parts_know_wsproto() -> None:
    assert importers_of("wsproto") == {"_protocol", "_handshake", "_deflate", "_framing"}


def test_curio_is_imported_in_one_place() -> None:
    assert importers_of("curio") == {"_curio"}


def test_only_the_loop_side_knows_curio() -> None:
    assert importers_of("._curio") == {
        "_loop_thread",
        "_session",
        "_supervisor",
        "_intake",
        "_opening",
        "_reader",
        "_relay",
        "_transport",
        "_tcp",
    }


def test_import_nwebsocket_needs_neither_curio_nor_wsproto() -> None:
    """They come with the first connection: importing them takes far longer than all the rest."""
    script = "import nwebsocket, sys; print({'curio', 'wsproto', 'h11', 'asyncio'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


def test_counts_that_several_locks_guard_change_in_one_step() -> None:
    """With a call between reading and writing, what another thread counted meanwhile was forgotten."""
    counts = {"accepted_bytes", "accepted_messages", "framed_bytes", "framed_messages"}
    changes = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.AugAssign)]
    changes = [each for each in changes if isinstance(each.target, ast.Attribute) and each.target.attr in counts]
    assert len(changes) >= 8
    assert not [ast.unparse(each) for each in changes if any(isinstance(node, ast.Call) for node in ast.walk(each))]


def test_the_protocol_does_no_input_or_output() -> None:
    parts = "_protocol _fast_lane _framing _handshake _http_head _plain_handshake _compression _deflate _keepalive"
    for name in f"{parts} _backoff _url _proxies _cookies _json _payload events exceptions close_codes".split():
        assert not imports_of(name) & {"socket", "ssl", "threading", "time", "._curio", "._transport"}, name


def test_the_fast_lanes_know_nothing_of_ours_nor_wsproto() -> None:
    assert imports_of("_fast_lane") == {"__future__", "codecs", "io", "os"}
    assert imports_of("_plain_handshake") == {"__future__", "collections", "re"}


def test_what_a_notebook_needs_is_imported_only_there() -> None:
    """And IPython by nobody: where there is none, it is not missed."""
    assert not importers_of("IPython") | importers_of("ipykernel")
    script = """
import sys, nwebsocket
ws = nwebsocket.WebSocket("ws://127.0.0.1:1")
ws.wait_closed(10)
print({"nwebsocket._notebook", "nwebsocket._card", "html", "IPython"} & sys.modules.keys())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


def test_the_loop_thread_knows_no_websocket() -> None:
    ours = {name for name in imports_of("_loop_thread") if name.startswith(".")}
    assert ours == {"._clock", "._curio", "._logger", "._orphan"}


COMMAND = {name for name in MODULES if name == "__main__" or name.startswith("_command_")}


def test_the_command_uses_what_every_user_may_use() -> None:
    used: set[str] = set()
    for name in COMMAND:
        siblings = {found[1:] for found in imports_of(name) if found.startswith(".")}
        assert siblings <= COMMAND, name
        for node in ast.walk(MODULES[name]):
            if isinstance(node, ast.ImportFrom) and node.module == "nwebsocket":
                used.update(alias.name for alias in node.names)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "nwebsocket." not in ast.unparse(node), name
    assert used <= set(nwebsocket.__all__)


def test_the_extra_of_the_command_is_imported_where_it_is_used() -> None:
    assert importers_of("rich") == {"_command_screen"}
    assert importers_of("prompt_toolkit") == {"_command_screen", "_command_history"}
    assert importers_of("._command_screen") == {"__main__"}
    assert importers_of("._command_history") == {"_command_screen"}


def test_imports_point_downwards_without_cycles() -> None:
    below: dict[str, set[str]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name in below:
            return
        siblings = {found[1:] for found in imports_of(name) if found.startswith(".")}
        for sibling in siblings:
            visit(sibling, (*path, name))
        below[name] = siblings

    for name in MODULES:
        visit(name, ())
