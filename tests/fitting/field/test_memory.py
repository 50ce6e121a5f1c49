# SPDX-License-Identifier: Apache-2.0
"""The field's memory: steady where the scene is static, quick where it changes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from depth_node.config import replace
from depth_node.fitting import FitConfig
from depth_node.fitting import fit as fit_with_refiner
from depth_node.fitting.field.memory import FieldState, Pose
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.recordings.frames import find_frames, read_frame
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import camera_path
from tests.helpers.fits import fit

CONFIG = FitConfig(method="field")
FRAME_NS = 100_000_000
HEIGHT, WIDTH = 120, 160
Depth = NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A camera's view. warp: (H, W), factor by which the network is wrong."""

    image: NDArray[np.uint8]
    depth: Depth
    warp: NDArray[np.float64]

    def prediction(self) -> Prediction:
        values = 3 / (self.depth * self.warp) + 0.4
        return Prediction(values.astype(np.float32), "disparity_affine_invariant")


def bend(shape: tuple[int, ...], seed: int = 0, amplitude: float = 0.08) -> NDArray[np.float64]:
    coarse = np.random.default_rng(seed).normal(0, amplitude, (5, 6))
    return np.exp(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def room(box_col: int = 30, textured: bool = True) -> View:
    """A wall and a floor with a box that begins at a column."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    depth = np.minimum(1.2 / np.maximum((rows - 45) / HEIGHT, 1e-3), 5 + 0.8 * cols / WIDTH)
    image = np.full((HEIGHT, WIDTH, 3), 150) + 20 * (rows // 12 % 2)[..., None]
    inside = (slice(35, 85), slice(box_col, box_col + 45))
    depth[inside] = 2.0
    if textured:
        image[inside] = (190, 70, 40)
    return View(image.astype(np.uint8), depth.astype(np.float32), bend(depth.shape))


def measure(view: View, count: int, rng: np.random.Generator, noise: float = 0.02) -> SparseDepth:
    known = np.flatnonzero(np.isfinite(view.depth))
    rows, cols = np.divmod(rng.choice(known, count, replace=False), view.depth.shape[1])
    depth = view.depth[rows, cols] * (1 + noise * rng.standard_normal(count))
    return SparseDepth.from_arrays(rows, cols, depth)


class Twins:
    """The same frames processed with and without a memory."""

    def __init__(self, config: FitConfig = CONFIG, count: int = 300, seed: int = 1) -> None:
        self.state = FieldState()
        self.config, self.count = config, count
        self.rng = np.random.default_rng(seed)
        self.time_ns = 0
        self.step_ns = FRAME_NS

    def see(self, view: View, pose: Pose | None = None, predict: Any = None) -> tuple[Depth, Depth]:
        """Return the depth without and with memory."""
        self.time_ns += self.step_ns
        points = measure(view, self.count, self.rng)
        prediction = predict or view.prediction()
        alone = fit(prediction, points, image=view.image, config=self.config)
        self.state.at(self.time_ns, pose)
        both = fit(prediction, points, image=view.image, config=self.config, state=self.state)
        return alone.depth, both.depth


def flicker(one: Depth, other: Depth) -> float:
    """Return the median |log ratio| of two results."""
    return float(np.nanmedian(np.abs(np.log(one / other))))


def error(depth: Depth, truth: Depth, area: Any = None) -> float:
    wrong = np.abs(depth - truth) / truth
    return float(np.nanmean(wrong if area is None else wrong[area]))


@pytest.mark.parametrize("count", [50, 300, 1500])
def test_standing_scene_flickers_a_third_as_much_and_is_not_less_right(count: int) -> None:
    twins, view = Twins(count=count), room()
    answers = [twins.see(view) for _ in range(10)]
    pairs = list(itertools.pairwise(answers[4:]))
    alone = np.mean([flicker(a[0], b[0]) for a, b in pairs])
    both = np.mean([flicker(a[1], b[1]) for a, b in pairs])
    assert both <= alone / 3
    assert error(answers[-1][1], view.depth) <= error(answers[-1][0], view.depth)
    assert twins.state.resets == 0


def test_six_points_are_enough_to_remember() -> None:
    twins, view = Twins(count=6), room()
    answers = [twins.see(view) for _ in range(6)]
    pairs = list(itertools.pairwise(answers[2:]))
    alone = np.mean([flicker(a[0], b[0]) for a, b in pairs])
    assert np.mean([flicker(a[1], b[1]) for a, b in pairs]) < 0.7 * alone


def test_real_standing_scene_flickers_a_third_as_much(shared: Path) -> None:
    frame = read_frame(find_frames(shared / "data" / "rtabmap_lab")[0])
    truth = frame.truth
    known = np.where(np.isfinite(truth), truth, np.nanmedian(truth)).astype(np.float32)
    blurred = cv2.GaussianBlur(known, (0, 0), 4).astype(np.float32)
    view = View(frame.image, truth, bend(truth.shape))
    prediction = View(frame.image, blurred, bend(truth.shape)).prediction()
    twins = Twins(count=500)
    answers = [twins.see(view, predict=prediction) for _ in range(8)]
    pairs = list(itertools.pairwise(answers[4:]))
    alone = np.mean([flicker(a[0], b[0]) for a, b in pairs])
    assert np.mean([flicker(a[1], b[1]) for a, b in pairs]) <= alone / 3
    assert error(answers[-1][1], truth) <= error(answers[-1][0], truth)


def test_moved_box_is_followed_at_once() -> None:
    twins, before, after = Twins(count=400), room(30), room(60)
    moved = before.depth != after.depth
    for _ in range(8):
        twins.see(before)
    twins.see(after)
    alone, both = twins.see(after)
    assert error(both, after.depth, moved) <= 1.2 * error(alone, after.depth, moved)
    assert error(both, after.depth, ~moved) <= error(alone, after.depth, ~moved)


def test_move_that_only_the_points_see_is_followed_in_two_frames() -> None:
    """Neither the image nor the network shows the change."""
    twins = Twins(count=1500)
    before, after = room(30, textured=False), room(60, textured=False)
    blind = Prediction(np.full((HEIGHT, WIDTH), 2, np.float32), "depth_affine_invariant")
    moved = before.depth != after.depth
    for _ in range(8):
        twins.see(before, predict=blind)
    twins.see(after, predict=blind)
    alone, both = twins.see(after, predict=blind)
    assert error(both, after.depth, moved) <= 1.25 * error(alone, after.depth, moved)


def test_new_scene_makes_a_new_beginning() -> None:
    twins, view = Twins(), room()
    for _ in range(4):
        twins.see(view)
    other = View(255 - view.image, view.depth[:, ::-1] * 2, view.warp)
    alone, both = twins.see(other)
    np.testing.assert_allclose(alone, both, rtol=1e-6)
    assert twins.state.resets == 1


@pytest.mark.parametrize("step_ns", [-5 * FRAME_NS, 0, 30 * FRAME_NS])
def test_jump_in_time_makes_a_new_beginning(step_ns: int) -> None:
    twins, view = Twins(), room()
    for _ in range(4):
        twins.see(view)
    twins.step_ns = step_ns
    alone, both = twins.see(view)
    np.testing.assert_allclose(alone, both, rtol=1e-6)
    assert twins.state.resets == 1
    twins.step_ns = FRAME_NS
    alone, both = twins.see(view)
    assert not np.allclose(alone, both, rtol=1e-6)


def test_other_size_and_reset_make_a_new_beginning() -> None:
    twins, view = Twins(), room()
    for _ in range(3):
        twins.see(view)
    small = View(view.image[::2, ::2].copy(), view.depth[::2, ::2], view.warp[::2, ::2])
    alone, both = twins.see(small)
    np.testing.assert_allclose(alone, both, rtol=1e-6)
    twins.see(small)
    twins.state.reset()
    alone, both = twins.see(small)
    np.testing.assert_allclose(alone, both, rtol=1e-6)


def test_memory_can_be_switched_off() -> None:
    twins = Twins(replace(CONFIG, {"field.temporal.enabled": False}))
    for _ in range(3):
        alone, both = twins.see(room())
    np.testing.assert_allclose(alone, both, rtol=1e-6)


def walk(speed: int) -> list[tuple[View, Pose]]:
    """A camera that walks through a procedural room; every speed-th pose of its path."""
    scene = Scene.random(3)
    camera = Camera(WIDTH, HEIGHT, 110.0, 110.0, 79.5, 59.5)
    poses = camera_path(scene, 400, seed=2)[: 12 * speed : speed]
    views = []
    for T_world_camera in poses:
        rendered = scene.render(camera, T_world_camera)
        view = View(rendered.image, rendered.depth, bend((HEIGHT, WIDTH)))
        views.append((view, Pose(camera.matrix, T_world_camera)))
    return views


@pytest.mark.slow
@pytest.mark.parametrize("speed", [1, 3])
def test_moving_camera_gains_with_its_pose_and_loses_nothing_without(speed: int) -> None:
    alone, posed, blind = [], [], []
    with_pose, without = Twins(count=250), Twins(count=250)
    for view, pose in walk(speed):
        one, both = with_pose.see(view, pose)
        alone.append(error(one, view.depth))
        posed.append(error(both, view.depth))
        blind.append(error(without.see(view)[1], view.depth))
    assert np.mean(posed[3:]) <= 0.95 * np.mean(alone[3:])
    assert np.mean(blind[3:]) <= 1.03 * np.mean(alone[3:])


def test_approach_along_the_axis_is_followed_exactly() -> None:
    """Without noise a moved memory is as exact as the frame itself, at every distance."""
    camera = Camera(WIDTH, HEIGHT, 110.0, 110.0, 79.5, 59.5)
    state = FieldState()
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH]
    for step in range(5):
        T_world_camera = np.eye(4)
        T_world_camera[2, 3] = 0.2 * step
        depth = np.full((HEIGHT, WIDTH), 4 - 0.2 * step, np.float32)
        x, y = (cols - camera.cx) / camera.fx * depth, (rows - camera.cy) / camera.fy * depth
        painted = 120 + 30 * np.sin(9 * x) + 30 * np.cos(7 * y)
        image = painted[..., None].repeat(3, axis=2).astype(np.uint8)
        view = View(image, depth, np.ones(depth.shape))
        points = measure(view, 200, rng, noise=0)
        state.at((step + 1) * FRAME_NS, Pose(camera.matrix, T_world_camera))
        flat = Prediction(np.ones_like(depth), "depth_affine_invariant")
        result = fit(flat, points, image=image, config=CONFIG, state=state)
        np.testing.assert_allclose(result.depth, depth, rtol=1e-3)
    assert result.details["remembered"] > 0.4


@pytest.mark.parametrize("shape", [(8, 640), (3, 640), (640, 1)])
def test_narrow_image_is_fitted_in_a_sequence(shape: tuple[int, int]) -> None:
    """Maps of such an image have fewer rows or columns than the steps in which they are sampled."""
    rng = np.random.default_rng(0)
    values = rng.uniform(1, 5, shape).astype(np.float32)
    rows, cols = (rng.integers(0, size, 200) for size in shape)
    points = SparseDepth.from_arrays(rows, cols, rng.uniform(2, 9, 200))
    image = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
    state = FieldState()
    for step in range(2):
        state.at((step + 1) * FRAME_NS)
        result = fit_with_refiner(
            Prediction(values, "depth_affine_invariant"),
            points,
            image=image,
            config=CONFIG,
            state=state,
            refiner=lambda maps: np.zeros((4, *maps.shape[1:]), np.float32),
        )
        assert np.isfinite(result.depth).all()
