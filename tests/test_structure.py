"""The fences between the rooms and the files of the package: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nwebsocket

PACKAGE = Path(nwebsocket.__file__).parent

FLOORS = (
    {"_base", "events", "exceptions", "close_codes"},
    {"_protocol", "_threads"},
    {"_network"},
    {"options"},
    {"_connection"},
    {"websocket", "queries", "reconnecting"},
    {"_notebook"},
    {"__init__"},
    {"_cli", "__main__"},
)
"""The rooms, the lowest first. A room imports from itself and from lower floors; on the lowest, from its neighbours."""

SHARED = {0, 5, 8}
"""The floors whose rooms may import from one another."""

UPWARDS = {
    ("_connection.parts", "_notebook.record"): "the hook of the record: only in a notebook, when a socket is made",
    ("_connection.parts", "websocket"): "a type: what the inside belongs to",
    ("_connection.sockets", "websocket"): "a type: what is registered",
    ("websocket", "_notebook.card"): "the card, when a notebook asks for it",
}
"""The imports that point upwards, and why; nobody waits for them when the package is imported."""


def _name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(name: str, tree: ast.AST) -> Iterator[str]:
    """What a module imports, at run time or for its types: ours by their names in MODULES, others by their first."""
    is_room = (PACKAGE / name.replace(".", "/")).is_dir()
    package = [] if name == "__init__" else name.split(".") if is_room else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                member = ".".join([*base, alias.name])
                yield member if member in MODULES else ".".join(base)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).split(".")[0]


def imports_of(name: str) -> set[str]:
    """The modules that a file imports, also those for its types only."""
    return set(_imports(name, MODULES[name]))


def imports_at_run_time(name: str) -> set[str]:
    body = MODULES[name].body
    body = [node for node in body if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")]
    return set(_imports(name, ast.Module(body=body, type_ignores=[])))


def importers_of(module: str) -> set[str]:
    return {name for name in MODULES if module in imports_at_run_time(name)}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def floor_of(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room_of(name) in rooms)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    for other in imports_of(name) & MODULES.keys():
        same = room_of(other) == room_of(name) or floor_of(name) == floor_of(other) in SHARED
        assert same or floor_of(other) < floor_of(name) or (name, other) in UPWARDS, other


def test_each_import_upwards_is_there_and_late() -> None:
    for name, other in UPWARDS:
        assert other in imports_of(name), f"{name} does not import {other} any more: take it off the list"
        top = ast.Module(body=[n for n in MODULES[name].body if isinstance(n, ast.ImportFrom)], type_ignores=[])
        assert other not in set(_imports(name, top))


def test_no_module_imports_itself_by_way_of_others() -> None:
    below: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in below:
            for other in imports_of(name) & MODULES.keys():
                if (name, other) not in UPWARDS:
                    visit(other, (*path, name))
            below.add(name)

    for name in MODULES:
        visit(name, ())


def test_only_the_protocol_knows_wsproto() -> None:
    assert {room_of(name) for name in importers_of("wsproto")} == {"_protocol"}


def test_curio_is_imported_in_one_place() -> None:
    assert importers_of("curio") == {"_threads.safe_curio"}


def test_only_the_loop_side_knows_curio() -> None:
    assert importers_of("_threads.safe_curio") == {
        "_threads.loop_thread",
        "_connection.session",
        "_connection.supervisor",
        "_connection.intake",
        "_connection.opening",
        "_connection.reader",
        "_network.relay",
        "_network.transport",
        "_network.tcp",
    }


def test_import_nwebsocket_imports_nothing_that_comes_with_the_first_connection() -> None:
    """curio and wsproto take far longer than all the rest; ssl, which curio imports, and the others a tenth of it."""
    late = {"asyncio", "curio", "encodings.idna", "h11", "ipaddress", "numpy", "ssl", "wsproto", "urllib.request"}
    script = f"import sys; before = set(sys.modules); import nwebsocket; print({late} & (sys.modules.keys() - before))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


def test_counts_that_several_locks_guard_change_in_one_step() -> None:
    """With a call between reading and writing, what another thread counted meanwhile was forgotten."""
    counts = {"accepted_bytes", "accepted_messages", "framed_bytes", "framed_messages"}
    changes = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.AugAssign)]
    changes = [each for each in changes if isinstance(each.target, ast.Attribute) and each.target.attr in counts]
    assert len(changes) >= 8
    assert not [ast.unparse(each) for each in changes if any(isinstance(node, ast.Call) for node in ast.walk(each))]


def test_no_field_is_assigned_from_outside_its_object() -> None:
    """What two objects need together is asked for by a method that says what happens."""
    outside = []
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)):
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                outside.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert outside == []


def test_no_function_is_longer_than_can_be_read() -> None:
    long = []
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                words = ast.get_docstring(node, clean=False)
                lines = (node.end_lineno or 0) - node.lineno + 1 - (words.count("\n") + 1 if words else 0)
                if lines > 50:
                    long.append(f"{name}:{node.name} {lines}")
    assert long == []


def test_no_class_is_longer_than_can_be_known() -> None:
    classes = [node for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if (node.end_lineno or 0) - node.lineno > 350] == []


def test_the_protocol_does_no_input_or_output() -> None:
    pure = [name for name in MODULES if room_of(name) == "_protocol" and name != "_protocol.found_numpy"]
    assert len(pure) > 10
    for name in [*pure, "_connection.backoff", "_network.proxies", "_base.json_text", *FLOORS[0] - {"_base"}]:
        assert not imports_at_run_time(name) & {"socket", "ssl", "threading", "time"}, name


def test_the_fast_lanes_know_nothing_of_ours_but_the_switches_nor_wsproto() -> None:
    assert imports_at_run_time("_protocol.fast_lane") == {"__future__", "_base.shortcuts", "codecs", "io", "typing"}
    assert imports_at_run_time("_protocol.plain_handshake") == {"__future__", "collections", "re"}


def test_what_a_notebook_needs_is_imported_only_there() -> None:
    """And IPython by nobody: where there is none, it is not missed."""
    assert not importers_of("IPython") | importers_of("ipykernel")
    script = """
import sys, nwebsocket
ws = nwebsocket.WebSocket("ws://127.0.0.1:1")
ws.wait_closed(10)
print({"nwebsocket._notebook", "html", "IPython"} & sys.modules.keys())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


def test_the_command_uses_what_every_user_may_use() -> None:
    used: set[str] = set()
    command = [name for name in MODULES if room_of(name) in ("_cli", "__main__")]
    for name in command:
        assert {room_of(other) for other in imports_of(name) & MODULES.keys()} <= {"_cli"}, name
        for node in ast.walk(MODULES[name]):
            if isinstance(node, ast.ImportFrom) and node.module == "nwebsocket":
                used.update(alias.name for alias in node.names)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "nwebsocket." not in ast.unparse(node), name
    assert used <= set(nwebsocket.__all__)


def test_the_extra_of_the_command_is_imported_where_it_is_used() -> None:
    assert importers_of("rich") == {"_cli.screen"}
    assert importers_of("prompt_toolkit") == {"_cli.screen", "_cli.history"}
    assert importers_of("_cli.screen") == {"_cli.main"}
    assert importers_of("_cli.history") == {"_cli.screen"}


ON_THE_LOOP_ONLY = {("_connection.callbacks", "run_at_once"), ("_threads.safe_curio", "run")}


def test_no_except_clause_goes_on_inside_of_what_must_be_left_in_order() -> None:
    """CPython 3.12 and 3.13 guard the jump back by nothing: who is interrupted at it keeps the lock, or the flag."""
    found = set()

    def look(name: str, function: str, node: ast.AST, *, guarded: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                look(name, child.name, child, guarded=False)
                continue
            if isinstance(child, ast.Try) and guarded:
                ends = [handler.body[-1] for handler in child.handlers]
                if any(not isinstance(end, (ast.Raise, ast.Return, ast.Continue, ast.Break)) for end in ends):
                    found.add((name, function))
            look(name, function, child, guarded=guarded or isinstance(child, (ast.With, ast.Try)))

    for name in MODULES:
        if room_of(name) in ("_connection", "_network", "_protocol", "_threads", "queries", "websocket"):
            look(name, "", MODULES[name], guarded=False)
    assert found <= ON_THE_LOOP_ONLY, found - ON_THE_LOOP_ONLY


def test_no_function_makes_a_generic_alias() -> None:
    """list[bytes]() makes an alias and calls that, which takes twenty times as long as []: annotate a variable."""
    names = {"list", "dict", "set", "frozenset", "tuple", "deque"}
    found = {
        f"{module}: {function.name}"
        for module, tree in MODULES.items()
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if isinstance(node.func.value, ast.Name) and node.func.value.id in names
    }
    assert found == set()
