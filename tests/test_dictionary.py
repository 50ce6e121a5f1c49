# SPDX-License-Identifier: Apache-2.0
"""One language: the field's words in code, comments, sentences and pages (docs/architecture.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from depth_node.config import describe
from depth_node.pipeline import PipelineConfig
from tests.helpers import REPO

# What must not come back -> the word to use. Whole words, in any case where they are prose.
FORBIDDEN = {
    r"pictures?": "image",
    r"parity": "comparison, difference",
    r"halving|halved by us|to_half": "fp16",
    r"furniture": "rooms",
    r"journal": "run_log",
    r"Moment|BagMoment|moments": "FrameInput, frames",
    r"_Trial": "LeaveOut",
    r"_Choice": "DetailParameters",
    r"_suspicion|_doubt": "outlier_probability, outlier_nugget",
    r"heard|unheard": "topics_with_subscribers, skipped_no_subscribers",
    r"nobody listens": "no output topic has a subscriber",
    r"left alone": "skipped",
    r"_say|_say_once": "_warn_throttled, _warn_once",
    r"_told_to": "_forward_logs",
    r"_quiet": "_stop_io",
    r"_fate": "_describe_losses",
    r"worn|worn_by": "corrupted, corruptions",
    r"Guess": "PixelHead",
    r"Closing": "Closeable",
    r"mine|told|said": "what the variable holds",
    r"fewer tell": "with fewer points only a scale can be estimated",
}
ONLY_NAMES = {"mine|told|said", "Moment|BagMoment|moments", "heard|unheard"}  # prose may say them
SUFFIXES = (".py", ".md", ".yaml", ".rst", ".html")
FOLDERS = ("depth_node", "training", "docs", "config", "launch")


def pages() -> list[Path]:
    found = [path for name in FOLDERS for path in sorted((REPO / name).rglob("*"))]
    return [path for path in (*found, REPO / "README.md") if path.suffix in SUFFIXES]


@pytest.mark.parametrize("word", FORBIDDEN, ids=lambda word: word.split("|")[0].strip("?"))
def test_private_words_stay_out(word: str) -> None:
    pattern = re.compile(rf"(?<!\w)(?:{word})(?!\w)")
    name = re.compile(rf"(?<![\w.\"'`])(?:{word})(?= *(?:=[^=]|:\s*\w+\s*=|,.* = |\())")
    offenders = [
        f"{path.relative_to(REPO)}:{number}: {line.strip()[:80]}"
        for path in pages()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (name if word in ONLY_NAMES else pattern).search(line)
        and (word not in ONLY_NAMES or path.suffix == ".py")
    ]
    assert not offenders, f"say {FORBIDDEN[word]}:\n" + "\n".join(offenders)


def test_a_class_name_means_one_thing() -> None:
    """But for what every recipe has by convention."""
    homes: dict[str, list[str]] = {}
    for folder in ("depth_node", "training"):
        for path in sorted((REPO / folder).rglob("*.py")):
            for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), re.M):
                homes.setdefault(name, []).append(path.relative_to(REPO).as_posix())
    twice = {
        name: paths
        for name, paths in homes.items()
        if len(paths) > 1 and not all(path.startswith("training/recipes/") for path in paths)
    }
    assert not twice


def test_parameters_speak_in_one_style() -> None:
    """A capital, a full stop, the unit in its own field and in the name where it is not SI."""
    for item in describe(PipelineConfig):
        text = item.description
        assert text[0].isupper(), f"{item.name}: {text}"
        assert text.endswith("."), f"{item.name}: {text}"
        if item.unit in ("px", "MB", "ms"):
            assert item.name.endswith(f"_{item.unit.lower()}"), item.name
