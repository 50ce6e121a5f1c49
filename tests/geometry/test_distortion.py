# SPDX-License-Identifier: Apache-2.0
"""Every distortion model of OpenCV: a ray is right, or NaN where the model has no inverse."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from tests.helpers.cameras import undistorted

# The calibration of a real OAK-D: at r = 0.674 numerator and denominator nearly cancel.
OAK_D = (-4.86082888, 17.2819767, 2.0376e-4, 1.0251e-3, -25.1722507, -4.94364738, 17.5144253,
         -25.29076)  # fmt: skip
NO_TURN = np.zeros(3)


def some_now(count: int) -> list[Any]:
    """Return seeds; the second half of them is used only by the whole suite."""
    return [
        pytest.param(seed, marks=[pytest.mark.slow] if seed >= count // 2 else [])
        for seed in range(count)
    ]


def oak_d(distortion: tuple[float, ...] = OAK_D) -> Camera:
    return Camera(250, 250, 196.505, 196.505, 126.867, 125.848, "plumb_bob", distortion)


def wide(distortion: tuple[float, ...], model: str = "plumb_bob") -> Camera:
    return Camera(160, 120, 90.0, 92.0, 81.3, 58.2, model, distortion)


def opencv_pixels(camera: Camera, rays: np.ndarray) -> np.ndarray:
    d = np.array(camera.distortion)
    if camera.model == "equidistant":
        return cv2.fisheye.projectPoints(rays[None], NO_TURN, NO_TURN, camera.matrix, d)[0][0]
    return cv2.projectPoints(rays, NO_TURN, NO_TURN, camera.matrix, d)[0].reshape(-1, 2)


def errors_px(camera: Camera) -> np.ndarray:
    """Return how far from its pixel OpenCV's formula maps each ray (H, W); NaN without a ray."""
    rays = camera.rays()
    known = np.isfinite(rays).all(-1)
    assert np.array_equal(known, np.isfinite(rays).any(-1)), "a ray is there or it is not"
    errors = np.full(known.shape, np.nan)
    if known.any():
        rows, cols = np.nonzero(known)
        found = opencv_pixels(camera, rays[known].astype(np.float64))
        errors[known] = np.hypot(*(found - np.column_stack((cols, rows))).T)
    return errors


def invertible(camera: Camera) -> np.ndarray:
    """Return (H, W) where OpenCV's own iteration inverts the model to less than 0.1 px."""
    rows, cols = np.mgrid[: camera.height, : camera.width]
    pixels = np.column_stack((cols.ravel(), rows.ravel())).astype(np.float64)
    rays = np.column_stack((undistorted(camera, pixels, 200), np.ones(len(pixels))))
    return (np.hypot(*(opencv_pixels(camera, rays) - pixels).T) < 0.1).reshape(rows.shape)


def followed(camera: Camera, pixels: np.ndarray, steps: int = 200) -> np.ndarray:
    """(N, 2) the directions of pixels, followed from the principal point out in small steps: the
    physical branch of the model. NaN where the way ends before the pixel.
    """

    def image(xy: np.ndarray) -> np.ndarray:
        rays = np.column_stack((xy, np.ones(len(xy))))
        return (opencv_pixels(camera, rays) - (camera.cx, camera.cy)) / (camera.fx, camera.fy)

    assert camera.distortion
    target = (pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy)
    xy, h = np.zeros_like(target), 1e-6
    steps_xy = np.array([[0, 0], [h, 0], [0, h]])
    lost = np.zeros(len(xy), bool)
    for k in range(1, steps + 1):
        for _ in range(3):
            at, right, below = np.split(image(np.concatenate([xy + step for step in steps_xy])), 3)
            (a, c), (b, d) = ((right - at) / h).T, ((below - at) / h).T  # [[a, b], [c, d]]
            determinant = a * d - b * c
            lost |= ~(determinant > 1e-3)
            determinant[lost] = 1.0
            u, v = (at - target * (k / steps)).T
            step = np.column_stack((d * u - b * v, a * v - c * u)) / determinant[:, None]
            step[lost] = 0
            xy = xy - step
    xy[lost | ~(np.hypot(*(image(xy) - target).T) < 1e-5)] = np.nan
    return xy


def test_a_pole_that_nearly_cancels_does_not_end_the_image() -> None:
    camera = oak_d()
    errors = errors_px(camera)
    assert np.isfinite(errors).all()
    assert errors.max() < 0.1
    pixels = camera.project(2.0 * camera.rays().reshape(-1, 3))
    rows, cols = np.mgrid[:250, :250]
    np.testing.assert_allclose(pixels, np.column_stack((cols.ravel(), rows.ravel())), atol=0.1)


@pytest.mark.parametrize("seed", some_now(24))
def test_a_pole_that_wanders_through_the_image(seed: int) -> None:
    """Coefficients changed by 1e-7 and more: rays are right or NaN, and NaN only on a thin ring."""
    rng = np.random.default_rng(seed)
    change = 10.0 ** rng.uniform(-8, -3.3)
    camera = oak_d(tuple(np.array(OAK_D) * (1 + change * rng.standard_normal(8))))
    errors = errors_px(camera)
    assert np.nanmax(errors) < 0.1
    assert not (np.isnan(errors) & invertible(camera)).any()


@pytest.mark.parametrize("position", np.linspace(0.05, 1.2, 12))
@pytest.mark.parametrize("strength", [-1e-3, -1e-7, 1e-9, 1e-7, 1e-5, 1e-3])
def test_a_pole_of_any_strength_anywhere(position: float, strength: float) -> None:
    """(1 - 0.2 s) (1 - s / s_p + strength) over (1 - s / s_p): rays right, NaN only at the pole."""
    k = 1 / position**2
    up = np.polymul([-0.2, 1], [-k, 1 + strength])[::-1] / (1 + strength)
    # The model is the same in all directions: a quarter of the image is enough.
    camera = Camera(126, 126, 196.5, 196.5, 0.1, 0.2, "plumb_bob",
                    (up[1], up[2], 0, 0, 0, -k, 0, 0))  # fmt: skip
    errors = errors_px(camera)
    if np.isfinite(errors).any():
        assert np.nanmax(errors) < 0.1
    if abs(strength) <= 1e-5:
        # No direction has a solution within a ring at the pole.
        rows, cols = np.mgrid[:126, :126]
        r_d = np.hypot((cols - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy)
        ring = np.abs(r_d - position * (1 - 0.2 * position**2)) < 0.02
        fold = r_d > 0.86  # r (1 - 0.2 r^2) turns at r = 1.29
        assert not (np.isnan(errors) & ~ring & ~fold).any()


@pytest.mark.parametrize(("displacement", "seen"), [(0.02, True), (0.045, False)])
def test_a_weak_pole_is_an_artefact_and_a_strong_one_ends_the_image(
    displacement: float, seen: bool
) -> None:
    """displacement: how far the pole moves directions, in units of tan(angle)."""
    s_pole = 0.49
    strength = 2 * displacement**2 / (s_pole * (1 - 0.2 * s_pole))
    k = 1 / s_pole
    up = np.polymul([-0.2, 1], [-k, 1 + strength])[::-1] / (1 + strength)
    camera = oak_d((up[1], up[2], 0, 0, 0, -k, 0, 0))
    rows, cols = np.mgrid[:250, :250]
    r_d = np.hypot((cols - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy)
    radius = np.hypot(camera.rays()[..., 0], camera.rays()[..., 1])
    assert np.isfinite(radius[r_d < 0.5]).all()
    assert (radius[(r_d > 0.75) & (r_d < 0.83)] > 0.75).all() == seen
    assert (np.nanmax(radius) < 0.7) == (not seen), "what lies behind the pole"


def test_nothing_is_seen_at_a_right_angle_to_the_axis() -> None:
    """tan(86 degrees) is 15, tan(88 degrees) is 30."""
    camera = Camera(161, 3, 2.0, 2.0, 80.0, 1.0, "plumb_bob", (0.0, 0.0, 1e-7, 0.0))
    known = np.isfinite(camera.rays()[1, :, 0])
    assert known[50:111].all()
    assert not known[:21].any() and not known[140:].any()


RANGES = {  # coefficients of real lenses, and beyond
    4: (0.3, 0.15, 3e-3, 3e-3),
    5: (0.3, 0.15, 3e-3, 3e-3, 0.05),
    8: (2.0, 1.0, 2e-3, 2e-3, 0.3, 2.0, 1.0, 0.3),
    12: (0.3, 0.15, 3e-3, 3e-3, 0.05, 0.2, 0.1, 0.05, 5e-3, 5e-3, 5e-3, 5e-3),
    14: (0.3, 0.15, 3e-3, 3e-3, 0.05, 0.2, 0.1, 0.05, 5e-3, 5e-3, 5e-3, 5e-3, 0.05, 0.05),
}


@pytest.mark.parametrize("seed", some_now(6))
@pytest.mark.parametrize("wildness", [0.5, 1.0, 20.0])
@pytest.mark.parametrize("count", RANGES)
def test_random_coefficients(count: int, wildness: float, seed: int) -> None:
    rng = np.random.default_rng([count, seed])
    scale = np.array(RANGES[count]) * np.where(np.arange(count) < 12, wildness, 1)
    camera = wide(tuple(scale * rng.uniform(-1, 1, count)))
    errors = errors_px(camera)
    rays = camera.rays()
    if np.isfinite(errors).any():
        assert np.nanmax(errors) < 0.1
        rows, cols = np.nonzero(np.isfinite(errors))
        chosen = rng.permutation(len(rows))[:60]
        pixels = np.column_stack((cols, rows))[chosen].astype(np.float64)
        truth = followed(camera, pixels)
        there = np.isfinite(truth[:, 0])
        apart = np.hypot(*(rays[rows, cols][chosen, :2] - truth)[there].T) * camera.fx
        # A pole that nearly cancels lies in between: the solution cannot be followed across it.
        assert (apart > 0.1).mean() <= (0.1 if count == 8 else 0.0) if there.any() else True
    if wildness < 1 and count != 8:  # 8: poles lie in between
        pixels = rng.uniform((0, 0), (159, 119), (60, 2)).round()
        truth = followed(camera, pixels)
        reached = np.isfinite(truth[:, 0])
        columns, lines = pixels[reached].astype(int).T
        assert np.isfinite(errors[lines, columns]).all(), "the model can be inverted there"


@pytest.mark.parametrize("seed", range(8))
def test_random_fisheye(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-2, 0)
    camera = wide(tuple(scale * rng.uniform(-1, 1, 4)), "equidistant")
    errors = errors_px(camera)
    assert np.nanmax(errors) < 0.1
    assert np.isfinite(errors[58, 81])


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 40), marks=pytest.mark.slow)])
def test_absurd_coefficients_give_right_rays_or_none(seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        count = int(rng.choice([4, 5, 8, 12, 14]))
        values = rng.standard_normal(count) * 10.0 ** rng.uniform(-6, 12, count)
        values[12:] = 0.1 * rng.standard_normal(max(count - 12, 0))
        errors = errors_px(wide(tuple(values)))
        assert np.isnan(errors).all() or np.nanmax(errors) < 0.1


def test_project_agrees_with_opencv_for_prism_and_tilt() -> None:
    rng = np.random.default_rng(4)
    points = np.column_stack((rng.uniform(-0.5, 0.5, (200, 2)), np.ones(200)))
    for count in (12, 14):
        camera = wide(tuple(0.5 * np.array(RANGES[count])))
        expected = opencv_pixels(camera, points)
        np.testing.assert_allclose(camera.project(points), expected, atol=1e-8)


def test_zeros_behind_the_last_coefficient_belong_to_every_model() -> None:
    k = [90.0, 0, 81.3, 0, 92.0, 58.2, 0, 0, 1]
    plain = Camera.from_matrix(k, (0.1, 0.2, 0, 0), "plumb_bob", 160, 120)
    for zeros in (0, 1, 2, 3, 4, 7, 10, 12):
        padded = Camera.from_matrix(k, (0.1, 0.2, 0, 0, *[0.0] * zeros), "plumb_bob", 160, 120)
        assert np.array_equal(padded.rays(), plain.rays())
    for model in ("equidistant", "fisheye"):
        padded = Camera.from_matrix(k, (0.1, 0.02, 0, 0, 0, 0, 0, 0), model, 160, 120)
        assert padded.distortion == (0.1, 0.02, 0, 0)
    assert Camera(160, 120, 90, 92, 81, 58, "pinhole", (0.0,) * 5).distortion == ()
    with pytest.raises(ValueError, match="or 12 or 14 distortion coefficients, not 13"):
        Camera.from_matrix(k, (0.1,) * 13, "rational_polynomial", 160, 120)
    with pytest.raises(ValueError, match="takes 4 distortion coefficients, not 5"):
        Camera.from_matrix(k, (0.1,) * 5, "equidistant", 160, 120)
    with pytest.raises(ValueError, match="tilts the sensor"):
        Camera.from_matrix(k, (*[0.0] * 12, 1.6, 0.0), "rational_polynomial", 160, 120)


def test_only_pixels_beyond_the_fold_have_no_ray() -> None:
    folded = Camera(640, 480, 190, 190, 320, 240, "equidistant", (-0.25, 0.0, 0.0, 0.0))
    assert 0.2 < np.isnan(folded.rays()[..., 2]).mean() < 0.8
    assert not np.isnan(oak_d().rays()).any()


def test_rays_of_a_large_image_are_quick() -> None:
    d = (-0.3, 0.1, 1e-3, -1e-3, 0.01, 0.1, 0.02, 0.01, 1e-3, 1e-3, 1e-3, 1e-3, 0.01, 0.02)
    for distortion in (OAK_D, d):
        camera = Camera(1280, 720, 1006.0, 1006.0, 640.0, 360.0, "plumb_bob", distortion)
        start = time.process_time()
        camera.rays()
        assert time.process_time() - start < 2.0  # 0.4 s on a quiet core
