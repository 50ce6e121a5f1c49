# SPDX-License-Identifier: Apache-2.0
"""Masks by regions and by Segment Anything with random weights; their cache; layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from tests.helpers.torch_networks import tiny_sam
from training.checkpoints import TrainingError
from training.data import region_masks
from training.data.augmentation import Window
from training.data.region_masks import MaskConfig, MaskMaker, as_layers, sam_masks, stacked
from training.models.segment_anything import open_sam

H, W = 48, 64


def image() -> np.ndarray:
    """Return an image of four areas of different colours."""
    image = np.zeros((H, W, 3), np.uint8)
    image[: H // 2, : W // 2] = (200, 30, 30)
    image[: H // 2, W // 2 :] = (30, 200, 30)
    image[H // 2 :, : W // 3] = (30, 30, 200)
    image[H // 2 :, W // 3 :] = (220, 220, 220)
    return image


def test_classical_regions_are_masks_that_fill_the_picture() -> None:
    masks = MaskMaker(MaskConfig())(image())
    assert masks.dtype == np.bool_
    assert masks.shape[1:] == (H, W)
    assert (masks.sum(axis=0) == 1).all()
    size = masks.sum(axis=(1, 2))
    assert (np.diff(size) <= 0).all()
    assert len(masks) >= 4
    few = MaskMaker(MaskConfig(most=2))(image())
    np.testing.assert_array_equal(few, masks[:2])


def test_masks_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = MaskConfig(folder=str(tmp_path))
    first = MaskMaker(cfg)(image())

    def again(*_: object, **__: object) -> None:
        raise AssertionError("made twice")

    monkeypatch.setattr(region_masks, "segment", again)
    np.testing.assert_array_equal(MaskMaker(cfg)(image()), first)
    with pytest.raises(AssertionError, match="twice"):
        MaskMaker(cfg)(image()[::-1].copy())
    with pytest.raises(AssertionError, match="twice"):
        MaskMaker(MaskConfig(folder=str(tmp_path), most=3))(image())


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_segment_anything_gives_masks_of_the_pictures_size(tmp_path: Path, kind: str) -> None:
    folder = tiny_sam(tmp_path, kind)
    generous = MaskConfig(source=str(folder), grid=4, overlap=0.0, stability=0.0, same=0.9)
    sam = open_sam(generous)
    assert sam.pads == (kind == "sam")
    with torch.no_grad():
        scores = torch.cat([s for _, s in sam(torch.rand(1, 3, H, W), torch.rand(5, 2) * H)])
    assert scores.shape == (15,)
    masks = sam_masks(sam, image(), generous)
    assert masks.dtype == np.bool_
    assert masks.shape[1:] == (H, W)
    assert 1 <= len(masks) <= 4 * 4 * 3
    strict = MaskConfig(source=str(folder), grid=4, overlap=1000.0)
    assert sam_masks(sam, image(), strict).shape == (0, H, W)


def test_of_masks_alike_the_better_stays() -> None:
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4], masks[1, :4, :7], masks[2, 4:] = True, True, True
    selected = region_masks.distinct(masks, np.array([0.5, 0.9, 0.1]), 0.8)
    assert sorted(selected.tolist()) == [1, 2]


def test_layers_hold_every_mask_whole() -> None:
    masks = np.zeros((4, 6, 6), bool)
    masks[0], masks[1, :3], masks[2, 3:], masks[3, 2:4] = True, True, True, True
    layers = as_layers(masks)
    assert layers.shape == (3, 6, 6)
    for number, mask in enumerate(masks, start=1):
        np.testing.assert_array_equal((layers == number).any(axis=0), mask)
    assert as_layers(np.zeros((0, 6, 6), bool)).shape == (1, 6, 6)


def test_layers_of_several_pictures_stand_together() -> None:
    one, three = np.ones((1, 4, 4), np.int32), np.ones((3, 4, 4), np.int32)
    batch = stacked([one, three])
    assert batch.shape == (2, 3, 4, 4)
    assert batch[0].sum() == 16
    with pytest.raises(TrainingError, match="different sizes"):
        stacked([one, np.ones((1, 4, 5), np.int32)])


def test_masks_of_a_photo_are_stored_reduced_and_seen_by_the_same_window(tmp_path: Path) -> None:
    """64 masks of 12 megapixels are 768 MB; the network sees a tenth of the rows."""
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = 200
    image[150:, :200] = (0, 250, 0)
    made = MaskMaker(MaskConfig(folder=str(tmp_path), longest_px=100))
    masks = made(image)
    assert masks.shape[1:] == (75, 100)
    np.testing.assert_array_equal(made(image), masks)
    window = Window(40, 30, 200, 300, 50, 60, flip=True)
    for mask in masks.astype(np.int32):
        whole = mask.repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(window.nearest(mask, image.shape), window.nearest(whole))
    small = image[:75, :100]
    np.testing.assert_array_equal(made(small), MaskMaker(MaskConfig(longest_px=0))(small))
