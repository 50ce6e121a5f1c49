# SPDX-License-Identifier: Apache-2.0
"""One distance in a cone: the network shows where; echoes from outside the image are ignored."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from depth_node.geometry.echoes import Echo, echo_cap, echo_pixels
from depth_node.geometry.rigid import transform

CAMERA = Camera(160, 120, 120.0, 120.0, 79.5, 59.5)
T_CAMERA_SENSOR = np.array(  # looks where the camera looks, 5 cm below it
    [[0.0, -1, 0, 0], [0, 0, -1, 0.05], [1, 0, 0, 0], [0, 0, 0, 1]]
)


def nearness(box: tuple[slice, slice]) -> np.ndarray:
    """A far wall with a near box, as disparity."""
    values = np.full((120, 160), 0.2, np.float32)
    values[box] = 0.5
    return values


def test_a_cap_is_at_one_distance_within_the_cone_and_even() -> None:
    cap = echo_cap(2.0, 0.6).astype(float)
    assert cap[0] == pytest.approx([2.0, 0.0, 0.0])
    np.testing.assert_allclose(np.linalg.norm(cap, axis=1), 2.0, rtol=1e-6)
    angle = np.arctan2(np.hypot(cap[:, 1], cap[:, 2]), cap[:, 0])
    assert angle.max() == pytest.approx(0.3, rel=1e-5)
    inner = angle < np.arccos((1 + np.cos(0.3)) / 2)  # half of the cap's area
    assert inner.mean() == pytest.approx(0.5, abs=0.02)
    np.testing.assert_allclose(cap[:, 1:].mean(axis=0), 0.0, atol=0.02)


def test_no_echo_and_no_angle() -> None:
    assert echo_cap(None, 0.5).shape == (0, 3)
    np.testing.assert_array_equal(echo_cap(3.0, 0.0), [[3.0, 0.0, 0.0]])
    assert not len(echo_pixels([Echo(echo_cap(None, 0.5))], np.ones((120, 160)), CAMERA))


@pytest.mark.parametrize("left", [60, 78, 90])
def test_the_echo_is_where_the_network_sees_the_nearest(left: int) -> None:
    box = (slice(50, 66), slice(left, left + 14))
    echo = Echo.of(echo_cap(1.5, 0.5), T_CAMERA_SENSOR, 0.1, 0.02)
    found = echo_pixels([echo], nearness(box), CAMERA)
    assert len(found) == 1
    assert box[0].start <= found.rows[0] < box[0].stop
    assert box[1].start <= found.cols[0] < box[1].stop
    ray = CAMERA.rays()[found.rows[0], found.cols[0]] * found.depth[0]
    from_sensor = ray - T_CAMERA_SENSOR[:3, 3]
    assert np.linalg.norm(from_sensor) == pytest.approx(1.5, rel=0.01), "one distance from it"
    assert found.noise_m[0] == pytest.approx(0.15)
    assert found.age_s[0] == pytest.approx(0.02)


def test_a_single_pixel_that_is_wrong_does_not_take_the_echo() -> None:
    values = nearness((slice(50, 66), slice(70, 90)))
    values[52, 60] = 5.0
    echo = Echo(transform(T_CAMERA_SENSOR, echo_cap(1.5, 0.5)))
    found = echo_pixels([echo], values, CAMERA)
    assert 70 <= found.cols[0] < 90


def test_a_cone_that_leaves_the_image_says_nothing() -> None:
    """Its echo may come from something that the camera does not see."""
    flat = np.ones((120, 160), np.float32)

    def used(angle: float, T: np.ndarray, values: np.ndarray) -> int:
        return len(echo_pixels([Echo.of(echo_cap(1.5, angle), T, 0.1, 0.0)], values, CAMERA))

    assert used(0.5, T_CAMERA_SENSOR, flat) == 1
    assert used(1.2, T_CAMERA_SENSOR, flat) == 0
    assert used(0.5, np.diag([1.0, 1.0, -1.0, 1.0]) @ T_CAMERA_SENSOR, flat) == 0, "behind"
    assert used(0.5, T_CAMERA_SENSOR, np.nan * flat) == 0, "the network says nothing"
