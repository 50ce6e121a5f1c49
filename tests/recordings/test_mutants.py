# SPDX-License-Identifier: Apache-2.0
"""Damaged frame folders: each mutant gives an error sentence or the right result."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.mutants import in_a_child

FILES = (
    "intrinsics.json",
    "calib.json",
    "rgb.png",
    "rgb.jpg",
    "depth.png",
    "segmentation_a.png",
    "depth.npz",
    "prediction_test.npz",
    "lidar.npy",
)


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("file", FILES)
def test_mutants(file: str, tmp_path: Path) -> None:
    got = in_a_child(file, 300, 1, tmp_path)
    assert got["answers"] + got["sentences"] == 300 and got["sentences"] > 50
    assert got["peak_bytes"] < 300e6


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_thousands_of_mutants(file: str, tmp_path: Path) -> None:
    got = in_a_child(file, 3000, 2, tmp_path, timeout_s=600)
    assert got["answers"] + got["sentences"] == 3000
