# SPDX-License-Identifier: Apache-2.0
"""Random outdoor scenes: reproducible, with a far sky, near ground and objects on it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from depth_node.geometry.camera import Camera
from depth_node.simulation.outdoors import OUTDOORS, SKY_M, lay_out
from depth_node.simulation.renderer import ALL_STYLES, STYLE_GROUPS, Scene
from depth_node.simulation.rooms import STYLES
from depth_node.simulation.viewpoints import look_at, random_view

CAMERA = Camera(80, 60, 60.0, 60.0, 39.5, 29.5)
GROUND, CEILING = 5, 6  # labels of the world's faces


@pytest.mark.parametrize("style", OUTDOORS)
def test_every_style_follows_from_its_seed(style: str) -> None:
    def look(seed: int) -> tuple:
        scene = Scene.random(seed, style, shadow_px=24)
        camera, pose = random_view(scene, np.random.default_rng(seed), 64, 48)
        seen = scene.render(camera, pose)
        return seen.image, seen.depth, seen.labels

    first, again, other = look(3), look(3), look(4)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("style", OUTDOORS)
def test_sky_is_far_ground_is_flat_and_things_stand_between(style: str) -> None:
    shares = []
    for seed in range(6):
        scene = Scene.random(seed, style, shadow_px=24)
        pose = look_at(np.array([0.0, 0.0, 1.5]), np.array([20.0, 0.0, 1.5]))
        depth, primitive = scene.probe(CAMERA, pose)
        up = CAMERA.rays()[..., 1] < -0.02
        sky = (primitive == 0) & up
        assert (depth[sky] >= SKY_M / 2).all()  # the walls are SKY_M away, the camera at 0
        ground = (primitive == 0) & (CAMERA.rays()[..., 1] > 0.02)
        np.testing.assert_allclose(
            depth[ground], 1.5 / CAMERA.rays()[..., 1][ground], rtol=1e-4, atol=0
        )
        shares.append([sky.mean(), (primitive > 0).mean()])
    sky_share, things = np.mean(shares, axis=0)
    assert 0.1 < sky_share < 0.6
    assert things > 0.15


def test_groups_draw_from_what_they_name() -> None:
    drawn = {
        group: {Scene.random(seed, group, shadow_px=8).style for seed in range(12)}
        for group in STYLE_GROUPS
    }
    assert drawn["outdoors"] == set(OUTDOORS)
    assert drawn["mixed"] <= set(STYLES) and len(drawn["mixed"]) > 1
    with pytest.raises(ValueError, match=f"use one of .*{ALL_STYLES[-1]}"):
        Scene.random(0, "beach")


def test_haze_leaves_near_colours_and_covers_far_ones() -> None:
    room = dataclasses.replace(lay_out(np.random.default_rng(5), "country"), haze_m=math.inf)
    white = dataclasses.replace(room, haze_m=25.0, haze=np.full(3, 50.0))
    pose = look_at(np.array([0.0, 0.0, 1.5]), np.array([20.0, 0.0, 1.0]))
    clear, hazy = (Scene(plan, shadow_px=24).render(CAMERA, pose) for plan in (room, white))
    np.testing.assert_array_equal(clear.depth, hazy.depth)
    far, near = clear.depth > 60, clear.depth < 4
    assert far.any() and near.any()
    assert (hazy.image[far] > 240).all()
    none = Scene(dataclasses.replace(white, haze_m=1e9), shadow_px=24).render(CAMERA, pose)
    assert np.abs(none.image[near].astype(int) - clear.image[near]).max() <= 1


def test_a_view_shows_several_things_and_none_too_near() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        scene = Scene.random(rng, "outdoors", shadow_px=8)
        camera, pose = random_view(scene, rng, 64, 48)
        depth, primitive = scene.probe(camera, pose)
        assert len(np.unique(primitive)) >= 4
        assert np.percentile(depth, 3) > 0.5
        assert scene.contains(pose[:3, 3])[0]
