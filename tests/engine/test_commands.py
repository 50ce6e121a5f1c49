# SPDX-License-Identifier: Apache-2.0
"""Error messages name a command that works on the machine where they are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from depth_node.engine import depth_tools
from depth_node.engine.manifest import Manifest
from tests.helpers import REPO
from tests.helpers.refusals import refusal


def executable(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_the_command_by_how_the_package_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    assert depth_tools("doctor") == "depth_tools doctor"
    executable(tmp_path / "ws" / "install" / "lib" / "depth_node" / "depth_tools")
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}:{tmp_path / 'ws' / 'install'}:")
    assert depth_tools("doctor") == "ros2 run depth_node depth_tools doctor"
    (tmp_path / "x.yaml").write_text("[")
    sentence = refusal(lambda: Manifest.load(tmp_path / "x.yaml"))
    assert "`ros2 run depth_node depth_tools models manifest`" in sentence
    executable(tmp_path / "bin" / "depth_tools")
    assert depth_tools("doctor") == "depth_tools doctor"


def test_sentences_of_the_engine_ask_for_the_command() -> None:
    """No error message has a literal command; descriptions of parameters may have one."""
    literal = re.compile(r"`depth_tools (models|doctor|parameters)")
    folders = [REPO / "depth_node" / name for name in ("engine", "model_zoo")]
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
        if path.name != "options.py":
            assert not literal.search(code), path
