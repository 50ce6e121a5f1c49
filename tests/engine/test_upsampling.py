# SPDX-License-Identifier: Apache-2.0
"""Depth maps enlarged with their edges kept."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.engine import upsampling
from depth_node.engine.preprocess import InputSpec, to_image
from depth_node.engine.upsampling import enlarged
from depth_node.metrics import boundary_f1
from tests.helpers.golden_metrics import frames

Map = NDArray[np.float32]


def bilinear(values: Map, image: NDArray[np.uint8]) -> Map:
    size = image.shape[1], image.shape[0]
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), np.float32)


def network(depth: Map, divisor: int, blur_px: float) -> Map:
    """The disparity of a depth map, blurred, every divisor-th pixel."""
    disparity = (1 / depth).astype(np.float32)
    if blur_px:
        disparity = np.asarray(cv2.GaussianBlur(disparity, (0, 0), blur_px), np.float32)
    size = depth.shape[1] // divisor, depth.shape[0] // divisor
    return np.asarray(cv2.resize(disparity, size, interpolation=cv2.INTER_NEAREST_EXACT))


def scene(shift: float = 0.0) -> tuple[Map, NDArray[np.uint8]]:
    """A disc before a slanted wall: depth (120, 160), its image."""
    y, x = np.mgrid[:120, :160].astype(np.float32)
    near = (x - 70 - shift) ** 2 + (y - 55) ** 2 < 32**2
    depth = np.where(near, np.float32(1.5), 3 + 0.01 * x).astype(np.float32)
    image = np.where(near[..., None], (200, 90, 60), (60, 120, 130)).astype(np.uint8)
    return depth, image


@pytest.mark.parametrize("divisor", [2, 3])
@pytest.mark.parametrize(("blur_px", "most"), [(0.0, 0.8), (1.0, 0.8)])
def test_edges_of_rendered_views_are_kept(divisor: int, blur_px: float, most: float) -> None:
    """Beside edges, where bilinear interpolation is wrong by half the edge."""
    ours, theirs, sharper = [], [], []
    for frame in frames().values():
        small = network(frame.depth, divisor, blur_px)
        kept, plain = enlarged(small, frame.image), bilinear(small, frame.image)
        truth = 1 / frame.depth
        around = cv2.morphologyEx(truth, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8))
        edge = around > 0.1 * truth
        ours.append(np.abs(kept - truth)[edge].mean())
        theirs.append(np.abs(plain - truth)[edge].mean())
        scores = [boundary_f1(1 / each, frame.depth) for each in (kept, plain)]
        sharper.append(scores[0] / scores[1])
    ratios = np.array(ours) / theirs
    assert ratios.mean() < most
    assert ratios.max() < 1
    assert min(sharper) > 1.05


def test_an_edge_goes_where_the_colours_change() -> None:
    """The map's cells leave a pixel or two open, the image does not."""
    errors = []
    for shift in (0.0, 0.5, 1.0):
        depth, image = scene(shift)
        small = network(depth, 3, 0)
        grey = np.full_like(image, 128)
        with_image, without = (
            np.abs(enlarged(small, of) - 1 / depth).mean() for of in (image, grey)
        )
        errors.append(with_image / without)
    assert max(errors) < 0.75


def test_a_slope_is_no_edge() -> None:
    y, x = np.mgrid[:48, :64].astype(np.float32)
    slope = 0.3 * x + 0.1 * y
    image = np.random.default_rng(0).integers(0, 256, (144, 192, 3), np.uint8)
    np.testing.assert_allclose(enlarged(slope, image), bilinear(slope, image), atol=1e-4)


@pytest.mark.parametrize(("scale", "shift"), [(3.0, -2.0), (-1.0, 0.0), (0.1, 10.0)])
def test_scale_shift_and_sign_of_the_network_do_not_matter(scale: float, shift: float) -> None:
    depth, image = scene()
    small = network(depth, 2, 1.0)
    other = (scale * small.astype(np.float64) + shift).astype(np.float32)
    expected = scale * enlarged(small, image).astype(np.float64) + shift
    np.testing.assert_allclose(enlarged(other, image), expected, atol=3e-3 * np.ptp(other))


def test_nothing_is_invented() -> None:
    """Every pixel lies between the lowest and the highest of the four cells about it."""
    small = np.random.default_rng(1).normal(0, 1, (40, 50)).astype(np.float32)
    image = np.random.default_rng(2).integers(0, 256, (120, 150, 3), np.uint8)
    out = enlarged(small, image)
    nearest = cv2.resize(small, (150, 120), interpolation=cv2.INTER_NEAREST_EXACT)
    around = np.ones((7, 7), np.uint8)
    assert (out <= cv2.dilate(nearest, around) + 1e-6).all()
    assert (out >= cv2.erode(nearest, around) - 1e-6).all()
    assert np.abs(out - bilinear(small, image)).max() > 0.5


def test_a_mirrored_view_gives_the_mirrored_map() -> None:
    depth, image = scene()
    for divisor in (2, 3):
        small = np.asarray(cv2.resize(1 / depth, None, fx=1 / divisor, fy=1 / divisor), np.float32)
        mirrored = enlarged(
            np.ascontiguousarray(small[:, ::-1]), np.ascontiguousarray(image[:, ::-1])
        )
        np.testing.assert_allclose(mirrored[:, ::-1], enlarged(small, image), atol=1e-5)


def test_both_forms_of_the_loop_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    for divisor in (2, 3):
        for frame in frames().values():
            small = network(frame.depth, divisor, 1.0)
            compiled = enlarged(small, frame.image)
            with monkeypatch.context() as patched:
                patched.setattr(upsampling, "sharpener", lambda: upsampling.sharpen_numpy)
                plain = enlarged(small, frame.image)
            np.testing.assert_allclose(plain, compiled, atol=1e-5 * np.ptp(small))


def test_strips_of_rows_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frames()["desk"]
    small = network(frame.depth, 2, 1.0)
    at_once = enlarged(small, frame.image)
    monkeypatch.setattr(upsampling, "STRIP_CELLS", 5 * small.shape[1])
    np.testing.assert_allclose(enlarged(small, frame.image), at_once, atol=1e-6 * np.ptp(small))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_unknown_values_are_interpolated_as_before(value: float) -> None:
    small = network(frames()["room"].depth, 2, 0)
    small[3, 4] = value
    image = frames()["room"].image
    np.testing.assert_array_equal(enlarged(small, image), bilinear(small, image))


def test_flat_and_tiny_maps() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    for shape in ((1, 1), (1, 9), (15, 20)):
        np.testing.assert_array_equal(enlarged(np.full(shape, 2, np.float32), image), 2)


@pytest.mark.parametrize("resize", ["stretch", "letterbox", "corner", "crop"])
def test_every_rule_of_resizing_keeps_edges(resize: str) -> None:
    """The image is cut as the network's view of it is."""
    depth, image = scene()
    disparity = 1 / depth
    spec = InputSpec(80, 80, resize=resize)
    seen = {
        "stretch": cv2.resize(disparity, (80, 80), interpolation=cv2.INTER_NEAREST_EXACT),
        "letterbox": np.zeros((80, 80), np.float32),
        "corner": np.zeros((80, 80), np.float32),
        "crop": cv2.resize(disparity[:, 20:140], (80, 80), interpolation=cv2.INTER_NEAREST_EXACT),
    }[resize]
    small = cv2.resize(disparity, (80, 60), interpolation=cv2.INTER_NEAREST_EXACT)
    if resize == "letterbox":
        seen[10:70] = small
    if resize == "corner":
        seen[:60] = small
    plain = to_image(seen, spec, 120, 160)
    kept = to_image(seen, spec, 120, 160, image=image)
    known = np.isfinite(plain)
    np.testing.assert_array_equal(np.isfinite(kept), known)
    errors = [np.abs(each - disparity)[known].mean() for each in (kept, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_an_image_that_cannot_be_written_to_is_read() -> None:
    """As those of a bag are."""
    depth, image = scene()
    small = network(depth, 3, 1.0)
    frozen = image.copy()
    frozen.flags.writeable = False
    assert np.array_equal(enlarged(small, frozen), enlarged(small, image))
