# SPDX-License-Identifier: Apache-2.0
"""Every command of docs/training and docs/studies is understood, to the last setting."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers import REPO

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")

from training.__main__ import TOOLS, main, parse_arguments
from training.recipes import RECIPES

PAGES = sorted(
    [
        *(REPO / "docs" / "training").glob("*.md"),
        *(REPO / "docs" / "studies").glob("*.md"),
        *(REPO / "docs").glob("benchmarks*.md"),
    ]
)
BLOCK = re.compile(r"^```\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def commands() -> list[str]:
    """Return the commands in code blocks and inline code of a page, without comments."""
    blocks = "\n".join(block for page in PAGES for block in BLOCK.findall(page.read_text("utf-8")))
    lines = blocks.replace("\\\n", " ").splitlines()
    # A command with a placeholder in capitals for the recipe or the case cannot be parsed.
    inline = [" ".join(code.split()) for code in re.findall(r"`(python -m [^`]*)`", text())]
    stripped = [line.split("  #")[0].strip() for line in [*lines, *inline]]
    return [
        line
        for line in stripped
        if line.startswith("python -m training") and not re.search(r" (RECIPE|CASE) ", line)
    ]


def words(command: str) -> list[str]:
    """Return the arguments of a command; `...` is removed, and of a|b the first is taken."""
    arguments = [word.split("|")[0] for word in shlex.split(command)[3:]]
    # Behind an option it stands for the option's value.
    return [w for k, w in enumerate(arguments) if w != "..." or arguments[k - 1].startswith("--")]


def test_the_docs_have_commands_of_every_kind() -> None:
    used = {words(command)[0] for command in commands()}
    assert set(RECIPES) <= used and {"export", "evaluate", "study", "cka", "annotate"} <= used
    named = {Path(w).name for c in commands() for w in words(c) if w.endswith(".yaml")}
    published = {p.name for p in (REPO / "training" / "configs").glob("*.yaml")}
    assert not {name for name in published - named if "debug" not in name and name not in text()}


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_the_docs_is_understood(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe prints its settings, which checks each of them; a tool reads its options."""
    monkeypatch.chdir(REPO)
    given = words(command)
    if given[0] in TOOLS and given[0] != "benchmark":
        assert parse_arguments(given).command == given[0]
        return
    if given[0] == "benchmark":  # its second word is a recipe, with that recipe's settings
        settings = [word for word in given[2:] if "=" in word or word.endswith(".yaml")]
        given = [given[1], "--config", *settings]
    assert main([*given, "--dry-run"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "loop:" in printed and "seed:" in printed
