# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.regions.label_maps import labels_from_masks, labels_from_painting
from depth_node.regions.prompted_masks import (
    PromptConfig,
    batches,
    box_overlap,
    edges_to_ids,
    mask_overlap,
    paint,
    point_grid,
    select,
    suppressed,
)
from depth_node.regions.settings import SegmentationConfig

EVERYTHING = PromptConfig(min_iou=0.0, min_stability=0.0, nms_iou=1.0)


def discs(count: int, height: int, width: int, seed: int = 0) -> tuple[list, np.ndarray]:
    """Return maps that are above 0 inside random discs, and the boxes of the discs."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[0:height, 0:width].astype(np.float32)
    maps, boxes = [], []
    while len(maps) < count:
        row, col, radius = rng.random(3) * [height, width, height / 3]
        mask = (radius - np.hypot(rows - row, cols - col)).astype(np.float32)
        inside = np.argwhere(mask > 0)
        if len(inside):
            maps.append(mask)
            boxes.append([*inside.min(axis=0)[::-1], *inside.max(axis=0)[::-1]])
    return maps, np.array(boxes, np.float32)


# --- points


def test_points_lie_in_the_middle_of_cells() -> None:
    points = point_grid(4, 60, 80)
    assert points.shape == (16, 2)
    np.testing.assert_allclose(points[0], [10, 7.5])
    np.testing.assert_allclose(points[1], [30, 7.5])  # row after row
    np.testing.assert_allclose(points[-1], [70, 52.5])


def test_batches_are_all_of_one_size() -> None:
    points = point_grid(4, 60, 80)
    found = batches(points, 7)
    assert [batch.shape for batch in found] == [(7, 2)] * 3
    np.testing.assert_array_equal(np.concatenate(found)[:16], points)
    np.testing.assert_array_equal(found[-1][2:], np.repeat(points[-1:], 5, axis=0))
    assert len(batches(points, 16)) == 1


# --- choosing


def test_masks_below_a_limit_are_dropped_and_the_best_come_first() -> None:
    iou = np.array([0.9, 0.5, 0.95, 0.88, 0.99], np.float32)
    stability = np.array([1.0, 1.0, 0.95, 1.0, 0.9], np.float32)
    boxes = np.array([[0, 0, 1, 1], [4, 0, 5, 1], [8, 0, 9, 1], [12, 0, 13, 1], [16, 0, 17, 1]])
    # 0.5 is too bad, 0.88 is not better than min_iou, the last is not stable
    kept = select(iou, stability, boxes.astype(np.float32), [], PromptConfig())
    assert kept.tolist() == [2, 0]


def test_order_of_the_masks_changes_nothing() -> None:
    maps, boxes = discs(60, 64, 64)
    rng = np.random.default_rng(1)
    iou = rng.permutation(60).astype(np.float32) / 60
    stability = rng.uniform(0.5, 1, 60).astype(np.float32)
    turn = rng.permutation(60)
    for nms in ("box", "mask"):
        config = PromptConfig(min_iou=0.2, min_stability=0.6, nms=nms, nms_iou=0.4)
        kept = select(iou, stability, boxes, maps, config)
        turned = [maps[index] for index in turn]
        again = select(iou[turn], stability[turn], boxes[turn], turned, config)
        np.testing.assert_array_equal(turn[again], kept)
        assert 5 < len(kept) < 48
        assert (np.diff(iou[kept]) < 0).all()


def test_nothing_survives_and_nothing_to_choose_from() -> None:
    maps, boxes = discs(3, 32, 32)
    low = np.full(3, 0.1, np.float32)
    for nms in ("box", "mask"):
        assert len(select(low, low, boxes, maps, PromptConfig(nms=nms))) == 0
    nothing = np.zeros(0, np.float32)
    assert len(select(nothing, nothing, np.zeros((0, 4), np.float32), [], EVERYTHING)) == 0


def test_overlaps_of_boxes_and_masks() -> None:
    boxes = np.array([[0, 0, 3, 3], [2, 0, 5, 3], [10, 10, 10, 10], [0, 0, 3, 3]], np.float32)
    found = box_overlap(boxes)
    np.testing.assert_allclose(np.diagonal(found), 1)
    assert found[0, 1] == pytest.approx(8 / 24)
    assert found[0, 2] == 0
    assert found[0, 3] == 1
    maps = [np.full((64, 64), -1, np.float32) for _ in range(3)]
    maps[0][:, :32], maps[1][:, 16:48] = 1, 1
    found = mask_overlap(maps)
    assert found[0, 1] == pytest.approx(1 / 3)
    assert found[2].max() == 0  # an empty mask is like none


def test_what_a_dropped_mask_would_have_dropped_stays() -> None:
    """The first mask drops the second, so the third, which only the second overlaps, stays."""
    overlap = np.array([[1, 0.8, 0.1], [0.8, 1, 0.8], [0.1, 0.8, 1]], np.float32)
    assert suppressed(overlap, 0.7).tolist() == [0, 2]
    assert suppressed(overlap, 0.9).tolist() == [0, 1, 2]
    assert suppressed(np.zeros((0, 0), np.float32), 0.5).tolist() == []


# --- painting


@pytest.mark.parametrize("size", [(96, 128), (240, 320), (61, 83), (300, 300)])
def test_painting_is_that_of_whole_masks(size: tuple[int, int]) -> None:
    """Enlarging only each mask's window gives the same as enlarging every mask whole."""
    height, width = size
    maps, boxes = discs(25, 64, 64)
    painted = paint(maps, boxes, (64, 64), height, width)
    whole = np.stack([cv2.resize(mask, (width, height)) > 0 for mask in maps])
    config = SegmentationConfig(min_region_px=0)
    np.testing.assert_array_equal(
        labels_from_painting(painted, config), labels_from_masks(whole, config)
    )


def test_part_of_the_map_that_the_picture_does_not_fill_is_left_out() -> None:
    maps, boxes = discs(25, 64, 64)
    whole = paint(maps, boxes, (64, 64), 256, 256)
    for extent, size in (((48.0, 64.0), (192, 256)), ((40.3, 64.0), (161, 256))):
        painted = paint(maps, boxes, extent, *size)
        assert (painted != whole[: size[0], : size[1]]).mean() < 0.003


def test_small_on_large_and_of_equals_the_better() -> None:
    maps = [np.full((40, 40), -1, np.float32) for _ in range(4)]
    maps[0][10:20, 10:20] = 1
    maps[1][0:40, 0:40] = 1
    maps[2][10:20, 10:20] = 1  # the same again, worse
    maps[3][30:31, 30:31] = 1
    boxes = np.array([[10, 10, 19, 19], [0, 0, 39, 39], [10, 10, 19, 19], [30, 30, 30, 30]])
    painted = paint(maps, boxes.astype(np.float32), (40, 40), 40, 40, min_px=2)
    assert painted[15, 15] == 1
    assert painted[5, 5] == 2
    assert painted[30, 30] == 2  # too small
    assert set(np.unique(painted)) == {1, 2}
    assert (paint([], np.zeros((0, 4), np.float32), (40, 40), 40, 40) == 0).all()


# --- edges


def test_edges_part_the_picture_where_they_are_highest() -> None:
    ridge = np.exp(-((np.arange(80, dtype=np.float32) - 40) ** 2) / 20)
    ridge = np.repeat(ridge[None], 60, axis=0)
    ids = edges_to_ids(ridge, 0.3, 2.0)
    assert len(np.unique(ids)) == 2
    assert (ids[:, :39] == ids[0, 0]).all()
    assert (ids[:, 42:] == ids[0, -1]).all()
    assert ids.min() >= 1


def test_gap_in_an_edge_is_closed_if_it_is_narrow() -> None:
    edges = np.zeros((60, 80), np.float32)
    edges[:, 40] = 1
    edges[28:31, 40] = 0  # three pixels open
    assert len(np.unique(edges_to_ids(edges, 0.3, 2.0))) == 2
    assert len(np.unique(edges_to_ids(edges, 0.3, 0.5))) == 1


def test_places_too_narrow_for_a_seed_keep_a_region() -> None:
    edges = np.zeros((60, 80), np.float32)
    edges[:, [39, 42]] = 1  # two pixels between two edges
    ids = edges_to_ids(edges, 0.3, 4.0)
    assert len({ids[5, 5], ids[5, 40], ids[5, 70]}) == 3


def test_edges_everywhere_nowhere_and_unknown() -> None:
    everywhere = edges_to_ids(np.ones((20, 30), np.float32), 0.3, 2.0)
    np.testing.assert_array_equal(everywhere, 1)
    for flat in (0.0, np.nan):
        ids = edges_to_ids(np.full((20, 30), flat, np.float32), 0.3, 2.0)
        assert len(np.unique(ids)) == 1
        assert ids.min() >= 1


def test_masks_without_a_finite_box_are_none() -> None:
    """A decoder that overflowed in FP16 gives NaN, whose integer cast depends on the CPU."""
    maps, boxes = discs(5, 60, 80)
    boxes[1] = np.nan
    boxes[2, 3] = np.inf
    boxes[3, 0] = -np.inf
    ones = np.ones(5, np.float32)
    chosen = select(ones, ones, boxes, maps, EVERYTHING)
    assert sorted(chosen) == [0, 4]
