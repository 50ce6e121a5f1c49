# SPDX-License-Identifier: Apache-2.0
"""Alignments, crops and ranges against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from depth_node.prediction import Prediction
from training.data import layouts
from training.evaluation import protocols

H, W = 24, 32

INDOOR = protocols.PROTOCOLS["indoor"]


@pytest.fixture
def truth() -> np.ndarray:
    depth = np.random.default_rng(0).uniform(1, 5, (H, W)).astype(np.float32)
    depth[:3] = np.nan
    return depth


def aligned(values: np.ndarray, kind: str, truth: np.ndarray, name: str) -> np.ndarray:
    prediction = Prediction(values.astype(np.float32), kind)
    return protocols.align(prediction, truth, np.isfinite(truth), name, INDOOR)


@pytest.mark.parametrize(
    ("name", "kind", "distort"),
    [
        ("disp_ls", "disparity_affine_invariant", lambda z: 7 / z + 3),
        ("sqrt_disp_ls", "disparity_affine_invariant", lambda z: (2 / np.sqrt(z) + 1) ** 2),
        ("depth_ls", "depth_affine_invariant", lambda z: 0.3 * z - 2),
        ("scale", "depth_metric", lambda z: 4 * z),
        ("median", "depth_metric", lambda z: 4 * z),
        ("median", "disparity_metric", lambda z: 4 / z),
        ("none", "depth_metric", lambda z: z),
        ("none", "disparity_metric", lambda z: 1 / z),
    ],
)
def test_an_alignment_forgives_what_its_name_says(name, kind, distort, truth) -> None:
    depth = aligned(distort(np.nan_to_num(truth, nan=2.0)), kind, truth, name)
    np.testing.assert_allclose(depth[3:], truth[3:], rtol=1e-4)


def test_an_alignment_forgives_no_more_than_that(truth: np.ndarray) -> None:
    whole = np.nan_to_num(truth, nan=2.0)
    assert np.abs(aligned(2 * whole, "depth_metric", truth, "none") / truth - 2)[3:].max() < 1e-5
    shifted = aligned(whole + 3, "depth_metric", truth, "scale")
    assert np.nanmean(np.abs(shifted - truth) / truth) > 0.1


def test_fits_agree_with_numpy_and_by_hand(truth: np.ndarray) -> None:
    values = np.random.default_rng(1).uniform(1, 3, (H, W))
    known = np.isfinite(truth)
    terms = np.stack([values[known], np.ones(known.sum())], axis=1)
    scale, shift = np.linalg.lstsq(terms, 1 / truth[known].astype(float), rcond=None)[0]
    depth = aligned(values, "disparity_affine_invariant", truth, "disp_ls")
    np.testing.assert_allclose(depth[known], 1 / (scale * values + shift)[known], rtol=1e-4)
    # p = 1, 2, 6 against 2, 2, 3: medians 2 and 2; least squares 24 / 41.
    p, g = np.array([[1.0, 2.0, 6.0]]), np.array([[2.0, 2.0, 3.0]], np.float32)
    assert aligned(p, "depth_metric", g, "median")[0].tolist() == pytest.approx([1, 2, 6])
    expected = [24 / 41, 48 / 41, 144 / 41]
    assert aligned(p, "depth_metric", g, "scale")[0].tolist() == pytest.approx(expected)


def test_alignments_clip_to_the_range_of_the_protocol() -> None:
    truth = np.array([[1.0, 2.0, 4.0, 19.0]], np.float32)
    values = np.array([[1.0, 0.5, 0.25, -3.0]])
    clipped = aligned(values, "disparity_affine_invariant", truth, "disp_ls")
    assert clipped.max() <= 20
    far = protocols.align(
        Prediction(values.astype(np.float32), "disparity_affine_invariant"),
        truth,
        np.array([[True, True, True, False]]),
        "disp_ls",
        protocols.PROTOCOLS["eth3d"],
    )
    assert far[0, 3] == pytest.approx(1 / protocols.SMALLEST_DISPARITY)


def test_what_a_prediction_does_not_have_is_refused(truth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no metres"):
        aligned(np.ones((H, W)), "disparity_affine_invariant", truth, "none")
    with pytest.raises(ValueError, match="did you mean 'disp_ls'"):
        aligned(np.ones((H, W)), "disparity_affine_invariant", truth, "disp_l")


def test_a_constant_prediction_is_the_mean_and_nothing_known_is_nan(truth: np.ndarray) -> None:
    depth = aligned(np.full((H, W), 3.0), "disparity_affine_invariant", truth, "disp_ls")
    np.testing.assert_allclose(depth, 1 / np.nanmean(1 / truth.astype(float)), rtol=1e-5)
    nothing = np.full((H, W), np.nan, np.float32)
    for name in ("median", "scale", "depth_ls", "disp_ls"):
        assert np.isnan(aligned(np.ones((H, W)), "depth_metric", nothing, name)).all()


def test_crops_by_hand() -> None:
    assert protocols.crop_box("nyu", 480, 640) == (45, 471, 41, 601)
    assert protocols.crop_box("nyu", 240, 320) == (22, 236, 20, 300)
    # At the bottom and in the middle: rows 375 - 352 = 23, columns (1242 - 1216) / 2 = 13.
    assert protocols.crop_box("kitti", 375, 1242) == (23, 375, 13, 1229)
    # Garg: 0.40810811 * 352 = 143.65, 0.99189189 * 352 = 349.1; 0.03594771 * 1216 = 43.7,
    # 0.96405229 * 1216 = 1172.3. Eigen: 117.01, 321.6.
    assert protocols.crop_box("kitti_garg", 375, 1242) == (166, 372, 56, 1185)
    assert protocols.crop_box("kitti_eigen", 375, 1242) == (140, 344, 56, 1185)
    assert protocols.crop_box("kitti_garg", 352, 1216) == (143, 349, 43, 1172)
    with pytest.raises(ValueError, match="kitti_garg"):
        protocols.crop_box("kitti_grag", 352, 1216)


def test_a_protocol_counts_its_range_and_its_crop() -> None:
    truth = np.full((480, 640), 3.0, np.float32)
    truth[100, 100], truth[100, 101], truth[100, 102] = 11.0, np.nan, 0.0
    mask = protocols.counted(protocols.PROTOCOLS["nyu"], truth)
    assert mask.sum() == (471 - 45) * (601 - 41) - 3
    near = protocols.counted(protocols.PROTOCOLS["diode"], truth * 0.1)
    assert np.argwhere(near).tolist() == [[100, 100]]  # only 1.1 m exceeds 0.6 m


def test_every_data_set_names_a_protocol() -> None:
    named = {layout.protocol for layout in layouts.LAYOUTS.values()} - {"none"}
    assert named <= set(protocols.PROTOCOLS)


@pytest.mark.parametrize("name", ["disp_ls", "sqrt_disp_ls"])
def test_without_a_far_end_a_pixel_of_negative_fit_is_a_kilometre(name: str) -> None:
    truth = np.array([[1.0, 2.0, 4.0, 19.0]], np.float32)
    values = np.array([[1.0, 0.5, 0.25, 0.0]], np.float32)
    fitted = np.array([[True, True, True, False]])
    made = Prediction(values - np.float32(0.2), "disparity_affine_invariant")
    depth = protocols.align(made, truth, fitted, name, protocols.PROTOCOLS["eth3d"])
    assert 9 < depth[0, 3] <= 1000
