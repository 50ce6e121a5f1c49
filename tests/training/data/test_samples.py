# SPDX-License-Identifier: Apache-2.0
"""The sample, and which samples are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.data_sets import H, W, frame, frames, noise
from training.__main__ import main
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError, checked

DEBUG = REPO / "training" / "configs" / "debug.yaml"


def run(folder: Path, out: Path, *more: str) -> int:
    """Run the recipe `supervised` on RGB-D frames, by the command line."""
    settings = ["source=images", f"images.folder={folder}", "loop.steps=3", *more]
    return main(["supervised", "--config", str(DEBUG), "--run", str(out), *settings])


def test_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    frame(tmp_path / "a" / "0001", np.full((H // 2, W), 900, np.uint16))
    with pytest.raises(DataError, match=r"depth\.png is for 64x24 but the image is 64x48"):
        frames(tmp_path)[0]
    assert cv2.imwrite(str(tmp_path / "rgb_1.png"), noise())
    assert cv2.imwrite(str(tmp_path / "depth_1.png"), np.ones((H, W // 2), np.uint16))
    with pytest.raises(DataError, match=r"depth has 32x48 pixels and the image 64x48"):
        open_samples(DataConfig(kind="nyuv2", folder=str(tmp_path)))[0]


def test_depth_without_any_value_is_refused(tmp_path: Path) -> None:
    frame(tmp_path / "zero" / "0001", np.zeros((H, W), np.uint16))
    frame(tmp_path / "nan" / "0001", np.full((H, W), np.nan, np.float32))
    for name in ("zero", "nan"):
        with pytest.raises(DataError, match=f"{name}/0001: no pixel has a valid depth"):
            frames(tmp_path / name)[0]


def test_what_is_no_depth_is_unknown(tmp_path: Path) -> None:
    depth = np.full((H, W), 2.0, np.float32)
    depth[0, :4] = [np.nan, np.inf, -1.0, 0.0]
    frame(tmp_path / "a" / "0001", depth)
    read = frames(tmp_path)[0].depth
    assert read is not None
    assert np.isnan(read[0, :4]).all() and np.isfinite(read[0, 4:]).all()
    assert checked(frames(tmp_path)[0]).depth is not None


def test_nan_in_the_depth_does_not_reach_the_loss(tmp_path: Path) -> None:
    """With three quarters of the depth unknown, every number in the log is finite."""
    depth = np.full((H, W), np.nan, np.float32)
    depth[: H // 2, : W // 2] = np.linspace(1, 4, W // 2)
    frame(tmp_path / "a" / "0001", depth)
    out = tmp_path / "run"
    assert run(tmp_path / "a", out) == 0
    assert "NaN" not in (out / "log.jsonl").read_text()
    assert "Infinity" not in (out / "log.jsonl").read_text()
