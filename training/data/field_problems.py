# SPDX-License-Identifier: Apache-2.0
"""Training examples for the field's refinement: rendered scenes, simulated sensors and networks.

A problem consists of a view as an RGB-D camera would record it (image and depth slightly shifted,
holes at edges), measured points of it, and a network's map: that of the embedded network, one made
from the truth (blurred, bent, objects at wrong scales, texture instead of shape), or a constant
one. The field is run on the problem; the example holds the input of its refiner and the correct
answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node import config
from depth_node.fitting import FitConfig, fit
from depth_node.fitting.field.lattice import Map
from depth_node.fitting.field.refine import CHANNELS, in_fours
from depth_node.geometry.camera import Camera
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.simulation.renderer import Rendered, Scene
from depth_node.simulation.viewpoints import random_view
from training.data.augmentation import ViewConfig, recolour
from training.data.samples import F32, F64, U8, DataError, unit_range

HEIGHT, WIDTH = 240, 320  # as many pixels as the field has cells for an image of 640x480
VIEWS_PER_SCENE = 3
SHADOW_PX = 96
STYLES = {"mixed": 0.8, "outdoors": 0.2}  # probabilities
FIELD = FitConfig(method="field", threads=1)
COLOURS = ViewConfig(colour=0.3, gamma=0.25, grey=0.05, blur=0.4, noise=0.05)

# --- probabilities and limits of problems --------------------------------------------------------

SHIFTED = 0.6  # probability that the image is shifted against the depth, by up to SHIFT_CELLS
SHIFT_CELLS = 1.6  # largest shift along rows and columns, in cells of the field
HOLED = 0.5  # probability that depth is unknown beside edges and in patches
NOISY = 0.35  # probability of range noise and wrong points
SCANNED = 0.35  # probability that the points lie on lines
FARTHEST_M = 90.0  # range of the sensor
FEWEST, MOST, MOST_SCANNED = 100, 10_000, 16_000  # numbers of points, the last one on lines
TRIES = 4  # draws of a network until one is so weak that the field is blended

Network = Callable[[U8], Prediction]


@dataclass(frozen=True)
class Example:
    """Input of the refiner for one problem, and its correct answer.

    maps: (CHANNELS, h, w) float16. target: (4, h, w) float16, the logarithm of the truth over the
    field's answer, NaN where unknown.
    """

    maps: NDArray[np.float16]
    target: NDArray[np.float16]


def view_of(seed: int, index: int) -> Rendered:
    """Render view `index` of a seed."""
    scene, camera, pose = _seen(seed, index)
    return scene.render(camera, pose)


def depth_of(seed: int, index: int) -> F32:
    """Return only the depth (H, W) m of that view, which is ten times faster."""
    scene, camera, pose = _seen(seed, index)
    return scene.probe(camera, pose)[0]


def _seen(seed: int, index: int) -> tuple[Scene, Camera, F64]:
    scene_index, number = divmod(index, VIEWS_PER_SCENE)
    rng = np.random.default_rng([seed, scene_index])
    scene = Scene.random(rng, str(rng.choice(list(STYLES), p=list(STYLES.values()))), SHADOW_PX)
    for _ in range(number + 1):
        camera, pose = random_view(scene, rng, WIDTH, HEIGHT)
    return scene, camera, pose


def example(image: U8, depth: F32, network: Network, rng: np.random.Generator) -> Example | None:
    """Make one example of a view: image (H, W, 3) uint8 and depth (H, W) m.

    Returns None if too little of the depth is measured, or if no network that was drawn is so weak
    that the field is blended.
    """
    if rng.random() < 0.5:
        image, depth = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(depth[:, ::-1])
    seen = (recolour(unit_range(image), COLOURS, rng) * 255).astype(np.uint8)
    measured = _measured(depth, rng)
    shift = np.eye(2, 3, dtype=np.float32)
    if rng.random() < SHIFTED:
        shift[:, 2] = rng.uniform(-SHIFT_CELLS, SHIFT_CELLS, 2)
        seen = _moved(seen, shift)
    if np.isfinite(measured).sum() < 4 * FEWEST:
        return None
    rows, cols, z = _points(measured, rng)
    points = SparseDepth.from_arrays(rows, cols, z)
    for _ in range(TRIES):
        prediction = _prediction(image, depth, seen, shift, network, rng)
        captured: list[Map] = []

        def keep(maps: Map, captured: list[Map] = captured) -> Map:
            captured.append(maps)
            return np.zeros((4, *maps.shape[1:]), np.float32)

        result = fit(prediction, points, image=seen, config=FIELD, refiner=keep)
        if captured:
            target = np.log(measured) - np.log(result.depth)
            return Example(captured[0].astype(np.float16), in_fours(target).astype(np.float16))
    return None


def _moved(values: NDArray[Any], shift: F32) -> NDArray[Any]:
    size = values.shape[1], values.shape[0]
    return cv2.warpAffine(values, shift, size, borderMode=cv2.BORDER_REPLICATE)


# --- the depth camera ----------------------------------------------------------------------------


def _measured(depth: F32, rng: np.random.Generator) -> F32:
    """Return the depth (H, W) m as a depth camera measures it, with its holes and edges.

    NaN is unknown; depth beyond FARTHEST_M always is.
    """
    measured = np.where(depth <= FARTHEST_M, depth, np.float32(np.nan))
    if rng.random() >= HOLED:
        return measured
    if rng.random() < 0.5:  # disparity in steps, as a stereo camera quantises it
        step = np.float32(rng.uniform(0.002, 0.015) / np.median(depth))
        disparity = np.maximum(np.round(1 / depth / step), np.float32(0.5)) * step
        depth = (1 / disparity).astype(np.float32)
    if rng.random() < 0.6:
        depth = np.asarray(cv2.medianBlur(depth, int(rng.choice([3, 5]))), np.float32)
    measured = np.where(depth <= FARTHEST_M, depth, np.float32(np.nan))
    low, high = cv2.erode(depth, np.ones((3, 3))), cv2.dilate(depth, np.ones((3, 3)))
    edge = (high > 1.08 * low).astype(np.uint8)
    width = int(rng.integers(1, 6))  # width of the occluded band on one side of an edge, px
    band = np.zeros((1, 2 * width + 1), np.uint8)
    band[0, :width] = 1
    lost = cv2.dilate(edge, band if rng.random() < 0.5 else band[:, ::-1].copy()) > 0
    lost &= depth > cv2.blur(depth, (9, 9))
    share = rng.uniform(0, 0.25)  # fraction of the image that is lost in patches
    coarse = rng.random((8, 10)).astype(np.float32)
    cloud = np.asarray(
        cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), np.float32
    )
    lost |= cloud > np.quantile(cloud, 1 - share)
    measured[lost] = np.nan
    return measured


# --- points --------------------------------------------------------------------------------------


def _points(
    measured: F32, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], F64]:
    known = np.isfinite(measured)
    if rng.random() < SCANNED:
        spacing = int(rng.choice([4, 6, 8, 12, 16]))
        lines = np.zeros_like(known)
        slope, start = rng.normal(0, 0.02), rng.integers(spacing)
        columns = np.arange(WIDTH)
        for first in range(int(start) - 20, HEIGHT + 20, spacing):
            at = np.round(first + slope * columns).astype(int)
            for thick in range(int(rng.integers(1, 3))):
                inside = (at + thick >= 0) & (at + thick < HEIGHT)
                lines[at[inside] + thick, columns[inside]] = True
        lines &= rng.random(known.shape) < rng.uniform(0.25, 1.0)
        if (known & lines).sum() >= FEWEST:
            known = known & lines
        rows, cols = np.nonzero(known)
        count = min(len(rows), MOST_SCANNED)
    else:
        rows, cols = np.nonzero(known)
        count = int(np.exp(rng.uniform(np.log(FEWEST), np.log(MOST))))
        count = min(count, len(rows) // 2)
    chosen = rng.choice(len(rows), count, replace=False)
    rows, cols = rows[chosen], cols[chosen]
    z = measured[rows, cols].astype(np.float64)
    if rng.random() < NOISY:
        z *= 1 + rng.uniform(0.003, 0.03) * rng.standard_normal(count)
        wrong = rng.random(count) < rng.uniform(0, 0.07)
        z[wrong] *= rng.uniform(0.4, 2.0, int(wrong.sum()))
    return rows, cols, np.maximum(z, 0.06)


# --- networks ------------------------------------------------------------------------------------


def _prediction(
    image: U8, depth: F32, seen: U8, shift: F32, network: Network, rng: np.random.Generator
) -> Prediction:
    kind = rng.random()
    if kind < 0.1:
        flat = np.full(depth.shape, 2, np.float32)
        return Prediction(flat, "depth_affine_invariant")
    if kind < 0.4:
        prediction = network(seen)
        if rng.random() < 0.5:
            return prediction
        values = np.maximum(prediction.values, 1e-3) * _bend(rng, rng.uniform(0.05, 0.3))
        return Prediction(values.astype(np.float32), prediction.kind)
    log = np.log(np.minimum(depth, 2 * FARTHEST_M)) + np.log(
        _bend(rng, np.exp(rng.uniform(np.log(0.03), np.log(0.5))))
    )
    size = rng.uniform(0, 0.35) if rng.random() < 0.7 else 0.0
    if size:  # objects at wrong scales: regions between quantiles of depth get a factor each
        layers = np.quantile(depth, np.linspace(0, 1, int(rng.integers(4, 9))))
        pick = np.searchsorted(layers, depth)
        _, thing = cv2.connectedComponents((pick % 2).astype(np.uint8))
        number = pick.astype(np.int64) + 10 * thing.astype(np.int64)
        number -= number.min()
        log += rng.normal(0, size, int(number.max()) + 1)[number]
    if rng.random() < 0.5:  # texture that is mistaken for shape
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        log += rng.uniform(-0.3, 0.3) * cv2.GaussianBlur(grey, (0, 0), rng.uniform(1, 5))
    contrast = rng.uniform(0.3, 1.1)
    log = contrast * log
    disparity = rng.random() < 0.4
    values = np.exp(-log if disparity else log)
    sigma = rng.uniform(0, 10) if rng.random() < 0.8 else 0.0
    if sigma > 0.3:
        values = cv2.GaussianBlur(values, (0, 0), sigma)
    factor = rng.uniform(1, 5)
    if factor > 1.5:
        small = cv2.resize(values, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
        values = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    values = _moved(values.astype(np.float32), shift)
    kind_name = "disparity_affine_invariant" if disparity else "depth_affine_invariant"
    return Prediction(values, kind_name)


def _bend(rng: np.random.Generator, size: float) -> F32:
    """Return smoothly changing factors (H, W) whose logarithm has the standard deviation `size`."""
    cells = int(rng.integers(2, 9))
    bend = cv2.resize(
        rng.normal(0, 1, (cells, cells + 1)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    return np.exp(size * bend / max(bend.std(), 1e-6)).astype(np.float32)


# --- examples on disk ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ExamplesConfig:
    """Folder, number and seed of the examples."""

    folder: str = config.option("refine", "Folder of the examples (outside the repository).")
    views: int = config.option(4000, "Rendered views.", minimum=1)
    per_view: int = config.option(4, "Examples of each view.", minimum=1)
    seed: int = config.option(-1, "Seed of views and examples; must be set.")

    def __post_init__(self) -> None:
        config.validate(self)


class Examples:
    """Memory-mapped examples; each depends on the seed and its number only.

    maps: (N, CHANNELS, h, w) float16. target: (N, 4, h, w) float16. Raises DataError without a
    seed, and for a file that is cut or missing beside the others.
    """

    def __init__(self, cfg: ExamplesConfig) -> None:
        if cfg.seed < 0:
            raise DataError("The examples have no seed: set examples.seed to 0 or more.")
        self.cfg = cfg
        folder = Path(cfg.folder)
        folder.mkdir(parents=True, exist_ok=True)
        count = cfg.views * cfg.per_view
        size = HEIGHT // 2, WIDTH // 2

        def named(name: str) -> Path:
            return folder / f"{name}-{cfg.seed}-{cfg.views}x{cfg.per_view}"

        complete = named("done.u8").exists()  # it is made last

        def mapped(name: str, shape: tuple[int, ...], dtype: type) -> Any:
            path = named(name)
            found = path.stat().st_size if path.exists() else None
            size = math.prod(shape) * np.dtype(dtype).itemsize
            # If it were opened, zeros would replace what is missing.
            if complete and found != size:
                raise DataError(
                    f"{path} has {found or 0} bytes and needs {size}: copy the examples again, or"
                    f" delete {named('done.u8')} to make them again."
                )
            mode = "r+" if found is not None else "w+"
            return np.memmap(path, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload]

        self.maps = mapped("maps.f16", (count, CHANNELS, *size), np.float16)
        self.target = mapped("target.f16", (count, 4, *size), np.float16)
        self._done = mapped("done.u8", (cfg.views,), np.uint8)

    def __len__(self) -> int:
        return len(self.target)

    def missing(self) -> list[int]:
        """Return the views whose examples have not been made yet."""
        return [int(k) for k in np.flatnonzero(self._done == 0)]

    def ready(self) -> NDArray[np.int64]:
        """Return the numbers of the examples that can be read."""
        return np.flatnonzero(np.repeat(self._done[:] == 1, self.cfg.per_view))

    def fill(
        self, views: Sequence[int], network: Network, image: Callable[[int], U8] | None = None
    ) -> Iterator[int]:
        """Make the examples of these views, and yield each view when it is done.

        A view for which too few examples can be made is marked and not tried again. image: returns
        the image (H, W, 3) of a view that was rendered before; None renders it.
        """
        cfg = self.cfg
        for view in views:
            if image is None:
                rendered = view_of(cfg.seed, view)
                colours, depth = rendered.image, rendered.depth
            else:
                colours, depth = image(view), depth_of(cfg.seed, view)
            number, attempt = 0, 0
            while number < cfg.per_view and attempt < 4 * cfg.per_view:
                rng = np.random.default_rng([cfg.seed, view, attempt, 1])
                attempt += 1
                made = example(colours, depth.astype(np.float32), network, rng)
                if made is not None:
                    slot = view * cfg.per_view + number
                    self.maps[slot], self.target[slot] = made.maps, made.target
                    number += 1
            self._done[view] = 1 if number == cfg.per_view else 2
            yield view
