# SPDX-License-Identifier: Apache-2.0
"""Results of two runs are never mixed in a folder, and nothing that is there already is lost."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from depth_node.cli import main
from depth_node.cli.console import write_text
from depth_node.recordings.files import FrameError, new_folder
from tests.helpers import REPO
from tests.helpers.recordings import write_frame

pytest.importorskip("rich", reason="rich is not installed")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def replay(source: Path, *more: str) -> int:
    words = ["replay", str(source), "--prediction", "test", "--points", "150"]
    return main.main([*words, *more])


def test_the_usual_folder_gets_a_number_and_the_users_must_be_new(tmp_path: Path) -> None:
    usual = tmp_path / "runs" / "drive"
    assert new_folder(None, usual) == usual
    usual.mkdir(parents=True)
    assert new_folder(None, usual) == usual, "it is empty"
    (usual / "a").touch()
    assert new_folder(None, usual) == tmp_path / "runs" / "drive_2"
    (tmp_path / "runs" / "drive_2").touch()
    assert new_folder(None, usual) == tmp_path / "runs" / "drive_3"
    assert new_folder(tmp_path / "new", usual) == tmp_path / "new"
    with pytest.raises(FrameError, match="holds files already: name a new folder with --out"):
        new_folder(usual, usual)
    with pytest.raises(FrameError, match="is a file: name a new folder"):
        new_folder(tmp_path / "runs" / "drive_2", usual)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FrameError, match="is a file"):
        new_folder(tmp_path / "link", usual)


def test_a_second_replay_does_not_mix_its_images_with_the_first(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(source, "--out", "run", "--images", "2") == 0
    before = files(tmp_path / "run")
    assert replay(source, "--out", "run", "--images", "1") == 2
    assert "run holds files already" in capsys.readouterr().err
    assert files(tmp_path / "run") == before
    for name, images in (("hall", 2), ("hall_2", 1), ("hall_3", 1)):
        assert replay(source, "--images", str(images)) == 0
        assert f"run folder: runs/{name}\n" in capsys.readouterr().out
        assert len(list((tmp_path / "runs" / name / "images").iterdir())) == images


def test_an_export_does_not_mix_its_frames_with_an_earlier_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two drives of one name, with other frames in them."""
    for drive, frames in (("a", ("0", "1")), ("b", ("2", "3")), ("b/other", ("4",))):
        for frame in frames:
            write_frame(tmp_path / drive / "drive" / frame)
    words = ["export-depth", "--out", "data", "--method", "global_disparity"]
    assert main.main([*words, "a/drive"]) == 0
    before = files(tmp_path / "data")
    capsys.readouterr()
    assert main.main([*words, "b/drive"]) == 2
    assert "data/drive holds an earlier export" in capsys.readouterr().err
    assert files(tmp_path / "data") == before
    (tmp_path / "b" / "other" / "drive").rename(tmp_path / "street")
    assert main.main([*words, "street"]) == 0, "another drive for the same data set"
    assert {p.name for p in (tmp_path / "data").iterdir()} == {"drive", "street"}


@pytest.mark.parametrize(
    "words",
    [
        ["calibrate", "{source}", "--out", "full"],
        ["bench", "fit", "--out", "full"],
        ["demo", "--out", "full"],
    ],
)
def test_other_commands_refuse_a_folder_with_files_before_they_work(
    words: list[str], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] == "demo":
        pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main.main([word.format(source=source) for word in words]) == 2
    assert "full holds files already: name a new folder with --out" in capsys.readouterr().err
    assert files(tmp_path / "full") == {"mine.txt": b"mine"}


# ------------------------------------------------------------------------------- files, full disks


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    """As on a disk that is full: RLIMIT_FSIZE refuses the write in the same place."""
    path = tmp_path / "a.json"
    path.write_text("old")
    script = f"""
import resource, signal
from pathlib import Path
from depth_node.cli.console import UsageError, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_text(Path({str(path)!r}), "x" * 2000)
except UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert f"{path} cannot be written (File too large)" in done.stdout
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    write_text(path, "new")
    (tmp_path / "link").symlink_to(path)
    write_text(tmp_path / "link", "newer")
    assert path.read_text() == "newer" and (tmp_path / "link").is_symlink()
    write_text(Path(os.devnull), "nothing")
    assert not Path(os.devnull).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--save-depth"], ["--images", "0", "--json", "a.json"]])
def test_a_disk_that_fills_up_ends_a_replay_with_a_sentence(
    source: Path, tmp_path: Path, more: list[str]
) -> None:
    words = ["replay", str(source), "--prediction", "test", "--points", "150", *more]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-c", "import sys; from depth_node.start import tools; sys.exit(tools())",
         *words],
        env={**os.environ, "PYTHONPATH": str(REPO)}, cwd=tmp_path, preexec_fn=limit,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1, done.stderr
    assert "The run folder runs/hall cannot be written (File too large): make room" in errors[0]
