# SPDX-License-Identifier: Apache-2.0
"""Docstrings of the core and the engine: shapes where arrays enter or leave, and what is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import REPO

PACKAGE = REPO / "depth_node"
COVERED = (
    "geometry", "regions", "fitting", "engine", "obstacles",
    "metrics.py", "prediction.py", "config.py", "monitor.py",
)  # fmt: skip

# Names of array types in annotations, those of numpy.typing and the package's own.
ARRAY = re.compile(
    r"\b(NDArray|ArrayLike|FloatArray|Floats|Indices|Labels|Map|Transform|Tensors|ndarray)\b"
)
SIZE = (
    r"(?:\d+|2?[A-Za-z](?:\s?[-+]\s?\d)?|height|width|rows|cols|size|taps|target|masks|repeats"
    r"|\w+\^2|\.\.\.|beams \* azimuth_steps)"
)
SHAPE = re.compile(rf"\({SIZE},(?:\s{SIZE})?(?:,\s{SIZE})*\)")


@dataclass(frozen=True)
class Documented:
    """A public function with the docstrings in which its shapes may stand."""

    name: str
    node: ast.FunctionDef
    own: str
    of_class: str


def modules() -> list[Path]:
    """Every public module that is held to the rules."""
    paths = [path for name in COVERED for path in (PACKAGE / name).rglob("*.py")]
    paths += [PACKAGE / name for name in COVERED if name.endswith(".py")]
    return sorted(path for path in paths if not path.name.startswith("_"))


def functions(path: Path) -> Iterator[Documented]:
    """Public functions and methods of a module; also those of dataclasses' public methods."""
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef):
            yield Documented(statement.name, statement, ast.get_docstring(statement) or "", "")
        elif isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
            of_class = ast.get_docstring(statement) or ""
            for node in statement.body:
                if isinstance(node, ast.FunctionDef):
                    name = f"{statement.name}.{node.name}"
                    yield Documented(name, node, ast.get_docstring(node) or "", of_class)


def is_public(function: Documented) -> bool:
    """No leading underscore; __init__ and __post_init__ are documented by their class."""
    own_name = function.node.name
    return not own_name.startswith("_") or own_name in ("__init__", "__post_init__", "__call__")


def annotations(node: ast.FunctionDef) -> str:
    """Every annotation of a signature as source text."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    found = [one.annotation for one in every] + [node.returns]
    return " ".join(ast.unparse(one) for one in found if one is not None)


def raised(node: ast.FunctionDef) -> set[str]:
    """Classes that the function's own `raise` statements name; bare ones pass an error on."""
    inner = {
        child
        for one in ast.walk(node)
        if isinstance(one, ast.FunctionDef | ast.Lambda) and one is not node
        for child in ast.walk(one)
    }
    names: set[str] = set()
    for one in ast.walk(node):
        if one in inner or not isinstance(one, ast.Raise) or one.exc is None:
            continue
        error = one.exc.func if isinstance(one.exc, ast.Call) else one.exc
        names.add(ast.unparse(error).rpartition(".")[2])
    return names - {"NotImplementedError"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrays_have_shapes(path: Path) -> None:
    missing = [
        function.name
        for function in functions(path)
        if is_public(function)
        and ARRAY.search(annotations(function.node))
        and not SHAPE.search(function.own + " " + function.of_class)
    ]
    assert not missing, f"no shape like (H, W) or (N, 3) in the docstring of {missing}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_errors_are_named(path: Path) -> None:
    missing = []
    for function in functions(path):
        names = raised(function.node)
        text = function.own
        if function.node.name in ("__init__", "__post_init__"):
            text += " " + function.of_class
        is_named = "Raises" in text or any(name in text for name in names)
        if is_public(function) and names and not is_named:
            missing.append(f"{function.name}: {', '.join(sorted(names))}")
    assert not missing, f"the docstring says nothing of what is raised: {missing}"


def test_a_shape_is_told_from_other_brackets() -> None:
    for text in ("(H, W)", "(N,)", "(n, 3)", "(K+1, 6)", "(H, W, 3)", "(n, m, h, w)", "(4, 4)"):
        assert SHAPE.search(text), text
    for text in ("(REP 117)", "(metres)", "()", "(x)", "(scale, shift)", "see above"):
        assert not SHAPE.search(text), text
