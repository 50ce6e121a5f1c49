# SPDX-License-Identifier: Apache-2.0
"""Labels are split by image, and existing files are not overwritten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.__main__ import main
from training.data.ordinal_labels import Pair, read_labels, write_labels


def split(folder: Path, *more: str, name: str = "labels.csv") -> int:
    outs = ["--out-train", str(folder / "train.csv"), "--out-held", str(folder / "held.json")]
    return main(["labels", "split", str(folder / name), *outs, *more])


def made(folder: Path, images: int = 20, each: int = 5) -> list[Pair]:
    pairs = [
        Pair(f"{k}.png" if turn else f"{k}", float(turn), 1.0, 5.0, float(k), "closer")
        for turn in range(each)
        for k in range(images)
    ]
    write_labels(folder / "labels.csv", pairs)
    return pairs


def test_no_image_is_in_both_parts_and_none_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = made(tmp_path)
    assert split(tmp_path, "--held", "0.3") == 0
    train, held = (read_labels(tmp_path / name) for name in ("train.csv", "held.json"))
    key = repr
    assert sorted(map(key, train + held)) == sorted(map(key, pairs))
    assert len(held) == 30
    stems = [{Path(pair.image).stem for pair in part} for part in (train, held)]
    assert not stems[0] & stems[1], "a name without its suffix is the same image"
    printed = " ".join(capsys.readouterr().out.split())
    assert "70 labels" in printed and "30 labels" in printed
    (tmp_path / "again").mkdir()
    made(tmp_path / "again")
    assert split(tmp_path / "again", "--held", "0.3") == 0
    assert read_labels(tmp_path / "again" / "train.csv") == train, "the seed decides"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--held", "0"], "fraction between 0 and 1"),
        (["--held", "1.5"], "fraction between 0 and 1"),
        (["--seed", "-1"], "0 or more"),
        (["--out-held", "SAME"], "three different files"),
        (["--out-held", "notes.txt"], r"\.csv or \.json"),
        (["--out-held", "old.csv"], "exists already"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path)
    write_labels(tmp_path / "old.csv", made(tmp_path)[:2])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    places = {"SAME": "labels.csv", "notes.txt": "notes.txt", "old.csv": "old.csv"}
    more = [str(tmp_path / places[word]) if word in places else word for word in more]
    assert split(tmp_path, *more) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_labels_of_one_image_cannot_be_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, images=1)
    assert split(tmp_path) == 1
    assert "fewer than two images" in capsys.readouterr().err
