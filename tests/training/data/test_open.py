# SPDX-License-Identifier: Apache-2.0
"""Opening of a data set by its settings."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from depth_node import config
from tests.helpers.data_sets import opened, put, sample_image
from training.data import layouts
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError


def test_procedural_rooms_follow_from_the_seed() -> None:
    cfg = DataConfig(kind="procedural", seed=4, limit=3, height=24, width=32)
    first, again = open_samples(cfg), open_samples(cfg)
    assert len(first) == 3
    np.testing.assert_array_equal(first[2].image, again[2].image)
    assert not np.array_equal(first[1].image, first[2].image)
    assert first[0].camera is not None and first[0].camera.width == 32
    with pytest.raises(DataError, match="need a seed"):
        open_samples(DataConfig(kind="procedural"))


def test_samples_travel_to_workers(tmp_path: Path) -> None:
    put(tmp_path / "a.png", sample_image())
    samples = pickle.loads(pickle.dumps(opened("images", tmp_path)))
    np.testing.assert_array_equal(samples[0].image, sample_image())


def test_the_kinds_are_the_layouts() -> None:
    (kind,) = (item for item in config.describe(DataConfig) if item.name == "kind")
    assert set(kind.choices) == set(layouts.LAYOUTS) | {"shards", "procedural"}


@pytest.mark.parametrize("kind", ["images", "frames", "nyuv2", "kitti", "void", "shards"])
def test_an_empty_folder_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"holds no"):
        open_samples(DataConfig(kind=kind, folder=str(tmp_path)))
    with pytest.raises(DataError, match="There is no folder"):
        open_samples(DataConfig(kind=kind, folder=str(tmp_path / "absent")))
    with pytest.raises(DataError, match="There is no folder ''"):
        open_samples(DataConfig(kind=kind))


def test_a_list_that_names_absent_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/rgb.png a/depth.png\n")
    cfg = DataConfig(kind="nyuv2", folder=str(tmp_path), list=str(tmp_path / "list.txt"))
    with pytest.raises(DataError, match=r"a/rgb\.png is missing"):
        open_samples(cfg)[0]
    with pytest.raises(DataError, match=r"none\.txt is missing"):
        open_samples(
            DataConfig(kind="nyuv2", folder=str(tmp_path), list=str(tmp_path / "none.txt"))
        )
    with pytest.raises(DataError, match=r"test_image\.txt is missing"):
        open_samples(DataConfig(kind="void", folder=str(tmp_path), split="test"))


def damaged_folder(folder: Path) -> None:
    """Return a folder with three images, one cut off, one empty, and a hidden file of macOS."""
    for name in "abc":
        put(folder / f"{name}.png", sample_image())
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:90])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "._a.png").write_bytes(b"Mac OS X")


def test_what_cannot_be_read_is_left_out_and_counted_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged_folder(tmp_path)
    cfg = DataConfig(kind="images", folder=str(tmp_path), unreadable="leave_out")
    samples = open_samples(cfg)
    assert [Path(sample.name).stem for sample in samples] == ["a", "b", "c"]
    (record,) = caplog.records
    assert record.getMessage().startswith("left out: 2 of 5 samples that cannot be read; the first")
    assert "cut.png" in record.getMessage()


def test_what_cannot_be_read_is_refused_by_name_otherwise(tmp_path: Path) -> None:
    damaged_folder(tmp_path)
    with pytest.raises(DataError, match=r"cut\.png cannot be read"):
        list(open_samples(DataConfig(kind="images", folder=str(tmp_path))))


def test_a_folder_of_nothing_but_damage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    cfg = DataConfig(kind="images", folder=str(tmp_path), unreadable="leave_out")
    with pytest.raises(DataError, match=r"None of 1 samples can be read; the first: .*a\.png"):
        open_samples(cfg)
