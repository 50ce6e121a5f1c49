# SPDX-License-Identifier: Apache-2.0
"""Gates: which pixels of a depth map are reliable.

A robot acts on every point that it gets, so a point is published only if its relative standard
deviation is small, its depth is in range, and it does not lie between two surfaces (a flying
pixel). Depth out of range is marked as REP-118 defines: NaN unknown, +Inf too far (sky too), -Inf
too near. The constants were chosen on recorded frames, one source left out at a time
(docs/obstacles.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import ConfigError, option, validate

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

EDGE_GRID_PX = 320  # larger side of the grid on which edges are detected
BEND_STEP = 2  # pixels of that grid to each side, from which the inverse depth is predicted
# Least deviation of the inverse depth from the straight line at an edge, relative to itself: half
# of a step by 10 % of the nearer surface's inverse depth.
MAX_BEND = 0.05
BEND_WINDOW, NEAR_WINDOW = 5, 7  # pixels of that grid: width of an edge; search for its near side
MAX_BEHIND = 0.06  # relative depth: a pixel less than this behind the near side belongs to it


@dataclass(frozen=True)
class GateConfig:
    """Which depth is published, and which of it counts as reliable."""

    max_std: float = option(
        0.08,
        "Largest standard deviation of points on `~/points` and `~/obstacles`, relative to their"
        " depth; 0 = no limit.",
        minimum=0.0,
        maximum=10.0,
    )
    min_depth_m: float = option(
        0.0,
        "Nearer depth is out of range: -Inf in the depth image, no point. It narrows"
        " projection.min_depth_m.",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    max_depth_m: float = option(
        1000.0,
        "Depth from here on is out of range: +Inf in the depth image, no point. It narrows"
        " projection.max_depth_m.",
        unit="m",
        minimum=0.001,
        maximum=10000.0,
    )
    cut_edges: bool = option(
        True,
        "Whether `~/points` and `~/obstacles` leave out flying pixels: those beside an edge and"
        " behind its near side, which lie between the two surfaces.",
    )
    gate_depth_image: bool = option(
        False,
        "Whether max_std and cut_edges apply to the depth image too (NaN there). The range always"
        " applies to it.",
    )
    infinity: bool = option(
        True,
        "Whether depth out of range is -Inf and +Inf in a 32FC1 depth image, as REP-118 defines;"
        " false: NaN, for subscribers that cannot handle Inf.",
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.min_depth_m >= self.max_depth_m:
            raise ConfigError(
                f"min_depth_m is {self.min_depth_m:g} and max_depth_m {self.max_depth_m:g}: the"
                " first must be smaller"
            )


class Gates:
    """The gates of one depth map; each result is computed once, when it is first used.

    depth, std: (H, W) float32 m, NaN unknown. depth_range_m: nearest and farthest depth that the
    fit can give: the fit clamps to them, so that depth at a limit is not a measurement. sky: (H, W)
    bool or None.
    """

    def __init__(
        self,
        depth: F32,
        std: F32,
        config: GateConfig | None = None,
        depth_range_m: tuple[float, float] = (0.0, np.inf),
        sky: Mask | None = None,
    ) -> None:
        self.depth, self.std, self.sky = depth, std, sky
        self.config = config = config or GateConfig()
        self._nearest = np.float32(max(config.min_depth_m, depth_range_m[0]))
        self._farthest = np.float32(min(config.max_depth_m, depth_range_m[1]))
        self._believed: dict[int, Mask] = {}
        self._thinned: dict[int, tuple[F32, F32]] = {}

    def thinned(self, every: int) -> tuple[F32, F32]:
        """Return depth and std of every n-th row and column, contiguous."""
        if every not in self._thinned:
            depth, std = (np.ascontiguousarray(m[::every, ::every]) for m in (self.depth, self.std))
            self._thinned[every] = depth, std
        return self._thinned[every]

    def believed(self, every: int = 1) -> Mask:
        """Return whether the pixels depth[::every, ::every] pass all gates: (h, w) bool."""
        if every not in self._believed:
            depth, std = self.thinned(every)
            passing = (depth > self._nearest) & (depth < self._farthest)  # NaN is neither
            if self.config.max_std > 0:
                # Where the error is unknown, std is NaN, which fails this test.
                passing &= std <= np.float32(self.config.max_std) * depth
            if self.sky is not None:
                passing &= ~self.sky[::every, ::every]
            if self.config.cut_edges:
                passing &= ~self._flying(every)
            self._believed[every] = passing
        return self._believed[every]

    def believed_depth(self) -> F32:
        """Return the depth (H, W), m, with NaN where it does not pass the gates."""
        return np.where(self.believed(), self.depth, np.float32(np.nan))

    def depth_image(self) -> F32:
        """Return the depth image (H, W), m: NaN unknown, +Inf too far or sky, -Inf too near.

        With gate_depth_image the other gates apply too; an uncertain pixel is then NaN and never
        Inf, because it may be near. Without infinity, NaN takes the place of Inf.
        """
        depth, sky = self.depth, self.sky
        gated = self.config.gate_depth_image
        lowest, highest = float(depth.min()), float(depth.max())  # NaN if a pixel is
        if not gated and sky is None and lowest > self._nearest and highest < self._farthest:
            return depth
        too_near, too_far = depth <= self._nearest, depth >= self._farthest
        if gated:
            known = self.believed()
            if self.config.max_std > 0:
                certain = self.std <= np.float32(self.config.max_std) * depth
                too_near, too_far = too_near & certain, too_far & certain
            image = np.where(known, depth, np.float32(np.nan))
        else:
            image = depth.copy()
        if sky is not None:
            too_far, too_near = too_far | sky, too_near & ~sky
        image[too_near] = -np.inf if self.config.infinity else np.nan
        image[too_far] = np.inf if self.config.infinity else np.nan
        return image

    @cached_property
    def _flying_grid(self) -> tuple[Mask, int]:
        """Flying pixels on the grid on which edges are detected, and its step in pixels."""
        step = max(1, round(max(self.depth.shape) / EDGE_GRID_PX))
        return flying_pixels(self.thinned(step)[0]), step

    def _flying(self, every: int) -> Mask:
        grid, step = self._flying_grid
        if every == step:
            return grid
        rows, cols = (
            np.minimum((np.arange(0, size, every) + step // 2) // step, limit - 1)
            for size, limit in zip(self.depth.shape, grid.shape, strict=True)
        )
        return grid.take(rows, axis=0).take(cols, axis=1)


def flying_pixels(depth: NDArray[Any]) -> Mask:
    """Return which pixels of a depth map (H, W) lie beside an edge and behind its near side.

    An edge is where the inverse depth bends; on a plane, however slanted, it is linear.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.reciprocal(depth, dtype=np.float32)
    bend = np.zeros_like(inverse)
    k = BEND_STEP
    if depth.shape[0] > 2 * k:
        rows = 0.5 * (inverse[: -2 * k] + inverse[2 * k :]) - inverse[k:-k]
        np.abs(rows, out=bend[k:-k])
    if depth.shape[1] > 2 * k:
        cols = 0.5 * (inverse[:, : -2 * k] + inverse[:, 2 * k :]) - inverse[:, k:-k]
        np.maximum(bend[:, k:-k], np.abs(cols), out=bend[:, k:-k])
    cv2.patchNaNs(bend, 0.0)  # beside unknown pixels no edge is detected
    cv2.patchNaNs(inverse, 0.0)
    bend = cv2.dilate(bend, np.ones((BEND_WINDOW, BEND_WINDOW), np.uint8))
    near = cv2.dilate(inverse, np.ones((NEAR_WINDOW, NEAR_WINDOW), np.uint8))
    beside = bend > np.float32(MAX_BEND) * inverse
    return np.asarray(beside & (near > np.float32(1 + MAX_BEHIND) * inverse), bool)
