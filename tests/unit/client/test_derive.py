"""The blocking face is what the asynchronous one makes of it, and the front door is complete."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import roost
from roost.client import derive


def test_the_blocking_face_is_current() -> None:
    assert derive.stale() == []


def test_nothing_asynchronous_is_left_in_the_blocking_face() -> None:
    trees = [ast.parse(text) for text in derive.derived().values()]
    left = (ast.AsyncFor, ast.AsyncWith, ast.AsyncFunctionDef, ast.Await)
    assert [node for tree in trees for node in ast.walk(tree) if isinstance(node, left)] == []


def test_every_public_name_can_be_had() -> None:
    assert all(getattr(roost, name) is not None for name in roost.__all__)
    assert set(dir(roost)) == set(roost.__all__)


def test_the_types_of_the_front_door_are_those_of_the_front_door() -> None:
    stub = ast.parse((Path(roost.__file__).with_suffix(".pyi")).read_text())
    imported = {(node.names[0].asname, node.module) for node in stub.body if isinstance(node, ast.ImportFrom)}
    assert imported == set(roost._HOMES.items())


def test_the_version_is_that_of_the_distribution() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    assert f'version = "{roost.__version__}"' in text


def test_importing_roost_imports_nothing_more() -> None:
    source = Path(roost.__file__).read_text()
    imported = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert imported == {"importlib"}
    assert "roost" in sys.modules
