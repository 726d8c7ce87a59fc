"""The page for whoever changes the library names what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nwebsocket

ROOT = Path(__file__).parents[2]
PACKAGE = Path(nwebsocket.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_named_there_exists() -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    assert len(named) > 20
    every = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        every |= {path.name, path.relative_to(PACKAGE).as_posix()}
    assert named <= every, named - every


def test_every_function_named_there_exists() -> None:
    named = set(re.findall(r"`(\w+)\(\)`", PAGE))
    assert len(named) > 20
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    every = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert named <= every, named - every
