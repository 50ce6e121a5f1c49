# SPDX-License-Identifier: Apache-2.0
"""Protocols (range and crop of the scored pixels) and alignments (the fit to the truth).

A score has no meaning without both. Each has a name here, and every result carries the names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.prediction import Prediction
from depth_node.sentences import nearest
from training.data.samples import F32, F64

Mask = NDArray[np.bool_]

# Lower limit of an aligned disparity for a protocol without a largest depth: 1000 m, as in the
# published code.
SMALLEST_DISPARITY = 1e-3

# KITTI crops of Garg et al. and Eigen et al.: top, bottom, left, right as fractions of the image.
_GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
_EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)
# Top, bottom, left, right of the part of NYUv2's 480x640 images that has depth.
_NYU = (45, 471, 41, 601)
_KITTI_ROWS, _KITTI_COLUMNS = 352, 1216


@dataclass(frozen=True)
class Protocol:
    """Choice of the scored pixels: depth between min_depth_m and max_depth_m (m), inside a crop.

    Aligned depths are clipped to the same range. Sources: Marigold's configuration of each data
    set, Eigen et al. 2014, Garg et al. 2016.
    """

    name: str
    min_depth_m: float
    max_depth_m: float
    crop: str = "none"


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("indoor", 1e-3, 20.0),
        Protocol("outdoor", 1e-3, 80.0),
        Protocol("nyu", 1e-3, 10.0, "nyu"),
        Protocol("kitti_eigen", 1e-5, 80.0, "kitti_eigen"),
        Protocol("kitti_garg", 1e-5, 80.0, "kitti_garg"),
        Protocol("eth3d", 1e-5, math.inf),
        Protocol("diode", 0.6, 350.0),
        Protocol("scannet", 1e-3, 10.0),
        Protocol("void", 0.2, 5.0),
        Protocol("hypersim", 1e-5, 65.0),
    )
}
CROPS = ("none", "nyu", "kitti", "kitti_eigen", "kitti_garg")
ALIGNMENTS = ("none", "median", "scale", "depth_ls", "disp_ls", "sqrt_disp_ls")


def find(name: str) -> Protocol:
    """Return the protocol called `name`. Raises ValueError, with the known names, for another."""
    if name not in PROTOCOLS:
        raise ValueError(_unknown("protocol", name, tuple(PROTOCOLS)))
    return PROTOCOLS[name]


def crop_box(crop: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the box of an image that a crop keeps: top, bottom, left, right.

    nyu is given for 480x640 and scaled to other sizes. kitti is the box of 352x1216 at the bottom
    and in the middle of the columns, or the whole of a smaller image; kitti_eigen and kitti_garg
    are fractions of THAT box, as in Marigold. Raises ValueError for an unknown crop.
    """
    if crop == "none":
        return 0, height, 0, width
    if crop == "nyu":
        top, bottom, left, right = _NYU
        y, x = height / 480, width / 640
        return round(top * y), round(bottom * y), round(left * x), round(right * x)
    if crop not in CROPS:
        raise ValueError(_unknown("crop", crop, CROPS))
    rows, columns = min(height, _KITTI_ROWS), min(width, _KITTI_COLUMNS)
    top, left = height - rows, (width - columns) // 2
    if crop == "kitti":
        return top, height, left, left + columns
    edges = _GARG if crop == "kitti_garg" else _EIGEN
    return (
        top + int(edges[0] * rows),
        top + int(edges[1] * rows),
        left + int(edges[2] * columns),
        left + int(edges[3] * columns),
    )


def counted(protocol: Protocol, truth: F32) -> Mask:
    """Return the mask (H, W) of the scored pixels; truth is (H, W) m with NaN where unknown."""
    known = np.isfinite(truth) & (truth > protocol.min_depth_m) & (truth < protocol.max_depth_m)
    top, bottom, left, right = crop_box(protocol.crop, *truth.shape)
    inside = np.zeros(truth.shape, bool)
    inside[top:bottom, left:right] = True
    return known & inside


def alignments_for(kind: str) -> tuple[str, ...]:
    """Return the alignments that suit a prediction of this kind, the usual one first."""
    if kind.endswith("_metric"):
        return ("none", "median", "scale", "disp_ls", "depth_ls")
    return ("disp_ls", "sqrt_disp_ls") if kind.startswith("disparity") else ("depth_ls",)


def align(prediction: Prediction, truth: F32, mask: Mask, name: str, protocol: Protocol) -> F32:
    """Return the depth (H, W) float32 m of a prediction after one of ALIGNMENTS, NaN unknown.

    All fits but the median are least squares in float64 over `mask`; the result is clipped to the
    protocol's range. none: the metres of a metric network. median: depth times median(truth) /
    median(depth). scale: one factor on depth. depth_ls, disp_ls, sqrt_disp_ls: scale and shift of
    depth, of 1/depth, of the square root of 1/depth; a fitted disparity or root that is too small
    or negative becomes the largest depth (for a negative root this is ours: DepthMaster squares it
    first, which makes it near). Raises ValueError for an unknown alignment, and for one that the
    prediction has no values for.
    """
    if name not in ALIGNMENTS:
        raise ValueError(_unknown("alignment", name, ALIGNMENTS))
    low, high = protocol.min_depth_m, protocol.max_depth_m
    if name == "none":
        depth = prediction.metric_depth().astype(np.float64)  # ValueError where it has no metres
    elif name in ("median", "scale", "depth_ls"):
        relative = (
            prediction.metric_depth() if prediction.is_metric else prediction.relative_depth()
        ).astype(np.float64)
        depth = _scaled(relative, truth, mask, name)
    else:
        least = max(1.0 / high, SMALLEST_DISPARITY)
        disparity = prediction.disparity().astype(np.float64)
        if name == "sqrt_disp_ls":
            root = np.sqrt(np.maximum(disparity, 0))
            fitted = _line(root, truth.astype(np.float64) ** -0.5, mask)
            depth = 1.0 / np.maximum(np.maximum(fitted, 1e-3) ** 2, least)
        else:
            depth = 1.0 / np.maximum(_line(disparity, 1.0 / truth.astype(np.float64), mask), least)
    return np.clip(depth, low, high).astype(np.float32)


def _scaled(relative: F64, truth: F32, mask: Mask, name: str) -> F64:
    usable = mask & np.isfinite(relative)
    if not usable.any():
        return np.full(relative.shape, np.nan)
    p, g = relative[usable], truth[usable].astype(np.float64)
    if name == "depth_ls":
        return _line(relative, truth.astype(np.float64), mask)
    divisor = float(np.median(p)) if name == "median" else float(p @ p)
    if divisor == 0:
        return np.full(relative.shape, np.nan)
    return relative * ((float(np.median(g)) if name == "median" else float(p @ g)) / divisor)


def _line(values: F64, target: F64, mask: Mask) -> F64:
    """Return scale * values + shift, fitted to the target in `mask`; NaN without a usable pixel."""
    usable = mask & np.isfinite(values) & np.isfinite(target)
    if not usable.any():
        return np.full(values.shape, np.nan)
    p, g = values[usable], target[usable]
    centred = p - p.mean()
    square = float(centred @ centred)
    scale = float(centred @ (g - g.mean())) / square if square > 0 else 0.0
    return scale * (values - p.mean()) + g.mean()


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> str:
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}? There are" if guess else "there are"
    return f"No {kind} is called {name!r}; {hint} {', '.join(known)}."
