# SPDX-License-Identifier: Apache-2.0
"""Panels: colours agree with the bar, and unknown pixels never look like a value."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.gates import GateConfig, Gates
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.visualization import colours, panels
from tests.helpers.views import CAMERA, room


@pytest.mark.parametrize("with_truth", [True, False])
def test_frame_panel_has_every_card_and_saves_them(tmp_path: Path, with_truth: bool) -> None:
    image, depth = room()
    truth = depth.copy() if with_truth else None
    if truth is not None:
        truth[:20] = np.nan
    rows, cols = np.array([10, 60, 100]), np.array([10, 70, 150])
    rejected = np.array([False, True, False])
    labels = (depth < 3).astype(np.int32) + 1
    numbers = panels.TableCard("Scores", ("method", "AbsRel"), [("ssf", "0.05")], 0, columns=3)
    points = SparseDepth.from_arrays(rows, cols, depth[rows, cols])
    gates = Gates(depth, 0.1 * depth, GateConfig(max_std=0, cut_edges=False))
    cards = panels.frame_cards(
        image, CAMERA, points, rejected, labels, depth, gates, truth=truth, method="ssf"
    )
    images = panels.FrameImages("A room", "", (*cards, numbers))
    lidar = next(card for card in images.cards if card.title == "LiDAR on image")
    assert isinstance(lidar, panels.ImageCard)
    assert lidar.caption == "3 metric points, 1 rejected (red crosses)"
    assert tuple(lidar.image[60, 70]) == colours.REJECTED
    assert tuple(lidar.image[10, 10]) != colours.REJECTED
    titles = [card.title for card in images.cards]
    assert ("Error against the truth" in titles) == with_truth
    always = {"Camera image", "LiDAR on image", "Regions", "Relative depth", "Metric depth"}
    always |= {"Point cloud", "Seen from above", "Standard deviation", "Scores"}
    assert always <= set(titles)
    paths = images.save(tmp_path / "images", "f0")
    assert paths[0].name == "f0_panel.png"
    assert {path.name for path in paths} == {p.name for p in (tmp_path / "images").iterdir()}
    panel = cv2.imread(str(paths[0]))
    assert panel is not None and panel.shape[1] == 3 * panels.CARD_WIDTH + 4 * panels.MARGIN
    metric = cv2.imread(str(tmp_path / "images" / "f0_metric_depth.png"))
    scale = colours.depth_scale(depth, depth[rows, cols])
    assert np.array_equal(metric[..., ::-1], scale.colours(depth))


def test_a_picture_of_nothing_is_still_a_picture(tmp_path: Path) -> None:
    """Without points, depth and truth every card shows unknown and nothing raises."""
    image, _ = room()
    unknown = np.full((120, 160), np.nan, np.float32)
    cards = panels.frame_cards(
        image, CAMERA, SparseDepth.from_arrays([], [], []), np.empty(0, bool),
        np.zeros((120, 160), np.int32), unknown, Gates(unknown, unknown), truth=unknown,
    )  # fmt: skip
    images = panels.FrameImages("Nothing", "", tuple(cards))
    assert images.panel().ndim == 3


@pytest.mark.parametrize("size", [(16, 320), (4, 320), (1, 64), (320, 16), (640, 1), (1, 1)])
@pytest.mark.parametrize("with_truth", [True, False])
def test_a_strip_of_an_image_has_a_panel_of_bounded_size(
    size: tuple[int, int], with_truth: bool
) -> None:
    """A low image leaves room for the bar's labels; a tall one does not fill the memory."""
    depth, image = np.full(size, 4.0, np.float32), np.zeros((*size, 3), np.uint8)
    camera = Camera(size[1], size[0], 100.0, 100.0, (size[1] - 1) / 2, (size[0] - 1) / 2)
    cards = panels.frame_cards(
        image, camera, SparseDepth.from_arrays([0], [0], [4.0]), np.zeros(1, bool), None, depth,
        Gates(depth, 0.01 * depth), truth=depth if with_truth else None,
    )  # fmt: skip
    panel = panels.compose("A strip", "", cards)
    assert panel.shape[0] < 3 * 2.5 * panels.CARD_WIDTH
    assert panel.shape[1] == 3 * panels.CARD_WIDTH + 4 * panels.MARGIN


def test_write_picture_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sample_image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        panels.write_image(tmp_path / "file" / "a.png", sample_image)
