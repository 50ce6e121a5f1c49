# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import cv2
import numpy as np
import pytest

from depth_node.regions.label_maps import (
    adjacency,
    border_lengths,
    labels_from_ids,
    labels_from_masks,
    merge_small,
    relabel,
    scaled_px,
)
from depth_node.regions.settings import SegmentationConfig
from tests.helpers.region_scenes import connected


def image_of(text: str) -> np.ndarray:
    return np.array([[int(c) for c in line] for line in text.split()], np.int32)


def blobs(seed: int, height: int = 60, width: int = 80, kinds: int = 6) -> np.ndarray:
    """Return a map of random connected regions of all sizes, many of them tiny."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    cuts = np.quantile(smooth, np.linspace(0, 1, kinds + 1)[1:-1])
    return connected(np.digitize(smooth, cuts).astype(np.int32) + 1)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).shape[1]
    return pairs == len(np.unique(a)) == len(np.unique(b))


def is_one_piece(mask: np.ndarray) -> bool:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] == 2


# --- numbering -----------------------------------------------------------------------------------


def test_relabel_closes_gaps_in_order() -> None:
    assert relabel(image_of("037 770")).tolist() == [[0, 1, 2], [2, 2, 0]]


def test_relabel_of_huge_ids_equals_that_of_small_ones() -> None:
    small = image_of("0359 9953")
    huge = np.where(small > 0, small.astype(np.int64) + 2_000_000_000, 0)
    assert np.array_equal(relabel(huge), relabel(small))
    assert relabel(huge).dtype == np.int32


def test_relabel_of_ids_without_zero_starts_at_one() -> None:
    assert relabel(np.array([[9_000_000, 8_000_000]])).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((3, 3)), "integers"),
        (np.zeros(3, int), "shape"),
        (np.zeros((0, 3), int), "shape"),
        (np.full((3, 3), -1), "negative"),
    ],
)
def test_what_is_no_label_map_is_refused(labels: np.ndarray, words: str) -> None:
    for function in (relabel, adjacency):
        with pytest.raises(ValueError, match=words):
            function(labels)


def test_connected_splits_what_does_not_touch() -> None:
    parts = connected(image_of("1122 1211 0121 0011"))
    assert same_partition(parts, image_of("1122 1344 0564 0044"))
    assert (parts[2:, 0] == 0).all()


def test_connected_parts_of_random_maps_are_in_one_piece() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (20, 30)).astype(np.int32)
    parts = connected(labels)
    assert np.array_equal(parts > 0, labels > 0)
    for part in range(1, parts.max() + 1):
        assert is_one_piece(parts == part)
        assert len(np.unique(labels[parts == part])) == 1
    touching = border_lengths(parts).tocoo()
    first = np.array([labels[parts == part][0] for part in range(1, parts.max() + 1)])
    assert (first[touching.row - 1] != first[touching.col - 1]).all()


# --- neighbours ----------------------------------------------------------------------------------


def test_borders_count_pixel_pairs() -> None:
    lengths = border_lengths(image_of("112 132 334")).toarray()
    expected = np.zeros((5, 5), int)
    for one, other, pairs in [(1, 2, 1), (1, 3, 3), (2, 3, 1), (2, 4, 1), (3, 4, 1)]:
        expected[one, other] = expected[other, one] = pairs
    assert np.array_equal(lengths, expected)


def test_regions_that_meet_at_a_corner_or_across_unassigned_pixels_are_no_neighbours() -> None:
    assert adjacency(image_of("1003 0200")).nnz == 0


def test_the_end_of_a_row_does_not_touch_the_next_row() -> None:
    assert not adjacency(image_of("1112 3332")).toarray()[2, 2]
    assert adjacency(image_of("1112 3111 4444")).toarray()[2, 3] == 0


@pytest.mark.parametrize("count", [3, 200, 400, 70_000])
def test_neighbours_are_those_with_a_border_however_many_regions(count: int) -> None:
    labels = np.random.default_rng(count).integers(0, count, (40, 50)).astype(np.int32)
    touching = adjacency(labels)
    assert touching.shape == (labels.max() + 1,) * 2
    assert touching.has_sorted_indices
    assert abs(touching.astype(int) - (border_lengths(labels) > 0).astype(int)).nnz == 0


def test_adjacency_of_one_pixel_and_of_nothing() -> None:
    assert adjacency(image_of("1")).shape == (2, 2)
    assert adjacency(image_of("00 00")).shape == (1, 1)


@pytest.mark.parametrize("seed", range(3))
def test_adjacency_agrees_with_a_plain_loop(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 9, (12, 17)).astype(np.int32)
    expected = np.zeros((labels.max() + 1,) * 2, bool)
    for row, col in np.ndindex(labels.shape):
        for other in (
            labels[row + 1 : row + 2, col],
            labels[row, col + 1 : col + 2],
        ):
            if other.size and 0 < labels[row, col] != other[0] > 0:
                expected[labels[row, col], other[0]] = expected[other[0], labels[row, col]] = True
    assert np.array_equal(adjacency(labels).toarray(), expected)


# --- merging -------------------------------------------------------------------------------------


def test_a_small_region_joins_the_longest_border_not_the_largest_neighbour() -> None:
    merged = merge_small(image_of("111111 111122 111132 111122"), 2)
    assert same_partition(merged, image_of("111111 111122 111122 111122"))


def test_equal_borders_are_decided_by_size_then_by_position() -> None:
    for labels, expected in [
        ("11322222", "11222222"),
        ("22222311", "22222211"),
        ("22311", "22211"),
        ("11322", "11122"),
    ]:
        merged = merge_small(image_of(labels), 2)
        assert same_partition(merged, image_of(expected)), labels


def test_a_region_that_grows_enough_on_the_way_stays() -> None:
    # 3 can only join 2, and then 2 is large enough to be nobody's.
    merged = merge_small(image_of("11110 11100 22230"), 4)
    assert same_partition(merged, image_of("11110 11100 22220"))


def test_a_small_region_without_neighbours_stays() -> None:
    assert merge_small(image_of("1000 0022 0022"), 3).tolist() == [
        [1, 0, 0, 0],
        [0, 0, 2, 2],
        [0, 0, 2, 2],
    ]


@pytest.mark.parametrize("seed", range(4))
def test_merging_leaves_nothing_small_keeps_pieces_and_large_regions(seed: int) -> None:
    labels = blobs(seed)
    merged = merge_small(labels, 40)
    assert np.bincount(merged.ravel())[1:].min() >= 40
    assert all(is_one_piece(merged == label) for label in range(1, merged.max() + 1))
    area = np.bincount(labels.ravel())
    for label in np.flatnonzero(area >= 40):
        assert len(np.unique(merged[labels == label])) == 1, "a region was torn"
    assert np.array_equal(merge_small(merged, 40), merged)
    assert np.array_equal(merge_small(labels, 0), labels)


@pytest.mark.parametrize("seed", range(4))
def test_numbering_does_not_change_the_merging(seed: int) -> None:
    labels = blobs(seed)
    order = np.concatenate([[0], 1 + np.random.default_rng(seed).permutation(labels.max())])
    assert same_partition(merge_small(order[labels], 40), merge_small(labels, 40))


# --- masks ---------------------------------------------------------------------------------------


def rectangles(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), 48, 64), bool)
    for mask, (top, bottom, left, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def test_the_smallest_mask_wins_whatever_the_order() -> None:
    masks = rectangles((4, 44, 4, 60), (10, 30, 10, 40), (15, 20, 15, 25))
    labels = labels_from_masks(masks)
    inner, middle, outer, rest = labels[17, 20], labels[12, 12], labels[40, 50], labels[0, 0]
    assert len({inner, middle, outer, rest}) == 4 == labels.max()
    assert np.array_equal(labels == inner, masks[2])
    assert np.array_equal(labels == middle, masks[1] & ~masks[2])
    for order in ([2, 1, 0], [1, 2, 0]):
        assert same_partition(labels_from_masks(masks[order]), labels)


def test_pixels_without_a_mask_become_connected_regions() -> None:
    labels = labels_from_masks(rectangles((0, 48, 30, 34)))
    assert same_partition(labels, np.repeat([[1, 2, 3]], 48, 0).repeat([30, 4, 30], axis=1))


def test_tiny_masks_are_ignored_and_slivers_join_a_neighbour() -> None:
    masks = rectangles((0, 48, 0, 30), (0, 48, 31, 64), (20, 21, 10, 11))
    config = SegmentationConfig(min_region_px=100 * 100)  # 100 px at 64x48
    labels = labels_from_masks(masks, config)
    assert labels.max() == 2, "the sliver of 48 px and the mask of 1 px are no regions"
    assert len(np.unique(labels[:, 30])) == 1
    # With the limit below both they stay.
    assert labels_from_masks(masks, SegmentationConfig(min_region_px=100)).max() == 4


def test_no_mask_at_all_is_one_region() -> None:
    assert (labels_from_masks(np.zeros((0, 48, 64), bool)) == 1).all()
    assert (labels_from_ids(np.zeros((48, 64), np.uint16)) == 1).all()


def test_ids_and_masks_of_the_same_regions_agree() -> None:
    ids = blobs(3, 48, 64)
    ids[ids % 3 == 0] = 0
    masks = np.stack([ids == label for label in range(1, ids.max() + 1)])
    config = SegmentationConfig(min_region_px=2000)
    assert same_partition(labels_from_ids(ids, config), labels_from_masks(masks, config))


def test_masks_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="M, H, W"):
        labels_from_masks(np.zeros((48, 64), bool))


def test_pixel_counts_scale_with_the_area() -> None:
    assert [scaled_px(100, 480, 640), scaled_px(100, 240, 320)] == [100, 25]
