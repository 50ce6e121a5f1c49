# SPDX-License-Identifier: Apache-2.0
"""The classical segmentation: regions end at edges of the image and of the prediction."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from depth_node.config import ConfigError
from depth_node.regions.label_maps import relabel
from depth_node.regions.segmentation import segment
from depth_node.regions.settings import SegmentationConfig
from tests.helpers.region_scenes import connected


def quadrants(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of four colours and its true regions."""
    truth = 1 + (np.arange(height)[:, None] >= height // 2) * 2 + (np.arange(width) >= width // 2)
    colours = np.array([[0, 0, 0], [200, 40, 40], [40, 160, 60], [40, 60, 200], [220, 200, 60]])
    return colours[truth].astype(np.uint8), truth


def crossing(labels: np.ndarray, truth: np.ndarray) -> float:
    """Return the fraction of pixels whose region belongs mostly to another true region."""
    lost = 0
    for label in range(1, labels.max() + 1):
        counts = np.bincount(truth[labels == label])
        lost += counts.sum() - counts.max()
    return lost / labels.size


@pytest.mark.parametrize("size", [(480, 640), (120, 161), (720, 1280)])
def test_regions_end_at_edges_of_the_picture(size: tuple[int, int]) -> None:
    image, truth = quadrants(*size)
    labels = segment(image)
    assert labels.shape == size and labels.dtype == np.int32
    assert labels.min() == 1
    assert crossing(labels, truth) < 0.01


@pytest.mark.parametrize("kind", ["disparity", "depth", "log"])
def test_regions_end_at_edges_of_the_prediction_where_the_picture_has_none(kind: str) -> None:
    _, truth = quadrants(480, 640)
    depth = np.array([0, 1.0, 2.0, 4.0, 8.0], np.float32)[truth]
    values = {"disparity": 1 / depth, "depth": depth, "log": np.log(depth)}[kind]
    image = np.full((480, 640, 3), 128, np.uint8)
    assert crossing(segment(image, values), truth) < 0.01
    assert crossing(segment(image, values * 37 + 5), truth) < 0.01, "scale and shift do not matter"


def test_every_region_is_in_one_piece_and_large_enough() -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), (322, 241))
    config = SegmentationConfig(grow_cells=40)
    labels = segment(image, rng.random((241, 322)).astype(np.float32), config)
    assert np.array_equal(connected(labels), relabel(connected(labels)))
    assert connected(labels).max() == labels.max() == len(np.unique(labels))
    cells = np.bincount(labels.ravel())[1:] / (241 * 322 / (120 * 160))
    assert cells.min() >= 0.9 * config.grow_cells


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (17, 400)])
def test_pictures_of_any_size_are_segmented(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    labels = segment(image, np.ones(size, np.float32))
    assert labels.shape == size and labels.min() == 1


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, -np.inf])
def test_a_prediction_that_says_nothing_changes_nothing(fill: float) -> None:
    image, _ = quadrants(120, 160)
    values = np.full((120, 160), fill, np.float32)
    assert np.array_equal(segment(image, values), segment(image))


def test_holes_in_the_prediction_are_survived() -> None:
    image, truth = quadrants(480, 640)
    values = truth.astype(np.float32)
    values[100:200, 50:90] = np.nan
    assert crossing(segment(image, values), truth) < 0.01


def test_mirroring_the_picture_mirrors_the_regions() -> None:
    image, truth = quadrants(480, 640)
    assert crossing(segment(image[:, ::-1].copy()), truth[:, ::-1]) < 0.01


def test_wrong_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        segment(np.zeros((48, 64), np.uint8))
    with pytest.raises(ValueError, match="image coordinates"):
        segment(np.zeros((48, 64, 3), np.uint8), np.zeros((24, 32), np.float32))
    with pytest.raises(ConfigError, match="grow_cells"):
        SegmentationConfig(grow_cells=0)


def test_segmentation_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8), (640, 480))
    values = cv2.resize(rng.random((12, 16)).astype(np.float32), (640, 480))
    times = []
    for _ in range(5):
        begin = time.thread_time()  # of this core, whatever else the machine does
        segment(image, values)
        times.append(time.thread_time() - begin)
    assert min(times) < 0.040
