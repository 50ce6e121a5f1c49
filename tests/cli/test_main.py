# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints and writes, and one sentence for every mistake."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from depth_node.cli import main
from depth_node.recordings.frames import find_frames

pytest.importorskip("rich", reason="rich is not installed")
# rclpy imports lark, which imports modules that Python has renamed: nobody here can help.
pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_:DeprecationWarning")


@pytest.mark.parametrize(
    "words",
    [["replay", ""], ["replay", "x", "--out", " "], ["export-depth", "x", "--out", ""]],
)
def test_an_empty_path_is_not_the_folder_one_is_in(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `depth_tools replay "$BAG"` where nobody has set BAG."""
    with pytest.raises(SystemExit) as end:
        main.main(words)
    assert end.value.code == 2 and "the path is empty" in capsys.readouterr().err


MISTAKES = [
    (["replay", "/nowhere"], "/nowhere is not a folder"),
    (["replay", "{source}", "--method", "sfs"], "fit.method must be one of"),
    (["replay", "{source}", "--set", "fit.metod=slf"], "did you mean 'fit.method'"),
    (["replay", "{source}", "--set", "nonsense"], "must look like key=value"),
    (["replay", "{source}", "--config", "/nowhere.yaml"], "cannot read the config file"),
    (["replay", "{source}", "--model", "/nowhere.onnx"], "does not exist"),
    (["replay", "{source}", "--prediction", "x"], "here: test"),
    (["replay", "{source}", "--prediction", "test", "--points", "99999"], "ask for fewer points"),
    (["replay", "{source}", "--points", "5", "--lines", "3"], "exclude each other"),
    (["bench", "accuracy", "{source}", "--methods", "slff"], "did you mean slf?"),
    (["bench", "accuracy", "{source}", "--points", "50,many"], "whole numbers"),
    (["bench", "accuracy", "{source}", "--points", "-5"], "--points -5: give numbers"),
    (["bench", "accuracy", "/nowhere"], "is not a folder"),
    (["bench", "accuracy", "{source}", "--seed", "0,-1"], "--seed -1: give numbers from 0"),
    (["bench", "accuracy", "{source}", "--max-scan-age", "1"], "--max-scan-age is for a rosbag2"),
    (["demo", "--seed", "-1"], "--seed -1: give numbers from 0"),
    (["replay", "{source}", "--seed", "-1"], "--seed is -1: give a number from 0"),
    (["replay", "{source}", "--set", "model.path="], "model.path is empty"),
    (["replay", "{source}", "--t-camera-lidar", "1 2"], "--t-camera-lidar is for a rosbag2"),
    (["replay", "{source}", "--rectified"], "--rectified is for a rosbag2"),
    (["export-depth", "{source}", "--out", "x", "--world-frame", "odom"], "is for a rosbag2"),
    (["calibrate", "{source}", "--lidar-time-offset", "0.1"], "is for a rosbag2"),
    (["export-depth", "{source}", "--out", "{source}/depth"], "lies in the source"),
    (["calibrate", "{source}", "--start", "1 2"], "--start needs the 16 numbers"),
    (["demo", "--size", "big"], "--size 'big' is no image size"),
    (["models", "manifest", "/nowhere.onnx", "--meaning", "depth_metric"], "does not exist"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_get_one_sentence_and_status_2(
    arguments: list[str], words: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main.main([part.format(source=source) for part in arguments])
    errors = capsys.readouterr().err.strip()
    assert status == 2
    assert words in errors
    assert errors.startswith("depth_tools: ") and "Traceback" not in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_without_room_is_one_sentence(repo: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "depth_node.cli.main", "models", "list"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=repo, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be read or written (No space left on device)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_an_output_that_is_closed_does_no_harm(repo: Path, closed: str) -> None:
    """As cron and some supervisors start programs."""
    command = f'exec "{sys.executable}" -m depth_node.cli.main models list {closed}'
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=repo, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_that_knows_only_ascii_gets_escapes(repo: Path) -> None:
    script = """
import sys
from depth_node.cli.console import console, run_command
def work():
    console().print("5 °")
    return 3
sys.exit(run_command("tool", work, ()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, cwd=repo, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "5 \\xb0\n"), done.stderr


def test_the_locale_c_shows_all_tables_and_bars(source: Path, tmp_path: Path, repo: Path) -> None:
    """There Python opens its output as ASCII, and passes only undecodable bytes on."""
    folder = tmp_path / "a b é"
    shutil.copytree(source, folder)
    environment = {**os.environ, "PYTHONPATH": str(repo), "LC_ALL": "C", "COLUMNS": "40"}
    environment |= {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "NO_COLOR": "1"}
    environment.pop("PYTHONIOENCODING", None)
    done = subprocess.run(
        [sys.executable, "-m", "depth_node.cli.main", "replay", str(folder), "--prediction",
         "test", "--points", "150", "--images", "0"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "AbsRel" in done.stdout and done.stdout.isascii() and "\x1b" not in done.stdout


@pytest.mark.parametrize("command", ["models list", "--help"])
def test_a_reader_that_has_seen_enough_is_no_failure(repo: Path, command: str) -> None:
    script = f'"{sys.executable}" -m depth_node.cli.main {command}; echo $? >&2'
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["sh", "-c", script], stdout=writer, stderr=subprocess.PIPE,
        cwd=repo, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.stderr == "0\n"


def test_a_folder_that_may_not_be_looked_into_is_passed_by(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may look everywhere, so the system's refusal is played."""
    real = os.stat

    def refusing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("/a") or "/a/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refusing)
    assert [folder.name for folder in find_frames(source)] == ["b"]


def test_unknown_commands_and_help() -> None:
    for arguments, status in ((["dance"], 2), ([], 2), (["--help"], 0), (["bench", "-h"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main.main(arguments)
        assert stopped.value.code == status


def helped(parser: argparse.ArgumentParser) -> int:
    """How many commands there are; each must be able to say how it is used."""
    assert parser.format_help()
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return 1 + sum(helped(child) for action in inner for child in action.choices.values())


def test_every_command_can_say_how_it_is_used() -> None:
    assert helped(main.parser()) > 10


def test_parameters_page_comes_from_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    assert main.main(["parameters"]) == 0
    assert "| `fit.method` |" in capsys.readouterr().out


@pytest.mark.slow
def test_without_ros_and_rich_the_cure_is_named(source: Path) -> None:
    """A fresh interpreter in which they cannot be imported."""
    script = """
import sys
from importlib import util
missing = {missing!r}
sys.modules.update(dict.fromkeys(missing))
found = util.find_spec
util.find_spec = lambda name, *rest: None if name in missing else found(name, *rest)
from depth_node.cli import main
sys.exit(main.main({arguments!r}))
"""
    cases = (
        (["rclpy"], ["demo"], "ros-jazzy-rclpy"),
        (["rclpy"], ["parameters"], "ros-jazzy-rclpy"),
        (["rich"], ["replay", str(source), "--prediction", "test"], "pip install rich"),
    )
    for missing, arguments, words in cases:
        code = script.format(missing=missing, arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr and "Traceback" not in done.stderr
