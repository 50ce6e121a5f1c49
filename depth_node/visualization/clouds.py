# SPDX-License-Identifier: Apache-2.0
"""Point clouds drawn as images: in perspective and from above."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.gates import flying_pixels
from depth_node.geometry.camera import Camera
from depth_node.visualization.colours import ACCENT, MUTED
from depth_node.visualization.text import put_text

_LEAST_EXTENT = 1e-3  # smallest extent of a cloud to fit into the view: a tangent, or metres


def _cloud(
    depth: npt.NDArray[Any], image: npt.NDArray[Any], camera: Camera
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return points (N, 3) in the camera frame and their colours (N, 3), without flying pixels at
    depth edges and without far outliers.
    """
    keep = np.isfinite(depth) & ~flying_pixels(depth)
    if not keep.any():
        return np.empty((0, 3)), np.empty((0, 3), dtype=np.uint8)
    keep &= depth <= 1.2 * np.quantile(depth[keep], 0.95)
    points = camera.backproject(depth)
    keep &= np.isfinite(points).all(axis=2)  # pixels in the corners of a fisheye image have no ray
    return points[keep].astype(np.float64), image[keep]


def point_cloud_view(
    depth: npt.NDArray[Any],
    image: npt.NDArray[Any],
    camera: Camera,
    height: int,
    width: int,
    *,
    orbit_deg: float = -24.0,
    tilt_deg: float = 18.0,
) -> npt.NDArray[Any]:
    """Draw the metric point cloud in perspective, seen from beside and above the camera.

    depth (H, W) m, image (H, W, 3) RGB and a camera of that size -> (height, width, 3) RGB. The
    view turns about the middle of the cloud by orbit_deg (negative: to the left) and tilt_deg
    (positive: upwards).
    """
    over = 2  # draw at twice the size and shrink, for soft edges of the splats
    size = np.array([width * over, height * over])
    canvas = _ground_gradient(height * over, width * over)
    points, colours = _cloud(depth, image, camera)
    if len(points):
        rotation, eye = _orbit(np.median(points, axis=0), orbit_deg, tilt_deg)
        in_view = (points - eye) @ rotation
        in_front = in_view[:, 2] > 1e-6
        in_view, colours = in_view[in_front], colours[in_front]
        low, high = np.quantile(in_view[:, :2] / in_view[:, 2:], (0.02, 0.98), axis=0)
        # A cloud of one point, or in a line, has no extent that could fill the canvas.
        focal = 0.92 * float(np.min(size / np.maximum(high - low, _LEAST_EXTENT)))
        centre = size / 2 - focal * (low + high) / 2
        haze = np.clip(1.2 - 0.4 * in_view[:, 2:] / np.median(in_view[:, 2]), 0.5, 1.0)
        _splat(canvas, in_view, (colours * haze).astype(np.uint8), focal, centre, 1.0 / camera.fx)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def top_view(
    depth: npt.NDArray[Any], image: npt.NDArray[Any], camera: Camera, height: int, width: int
) -> npt.NDArray[Any]:
    """Draw the point cloud seen along the camera's y axis on a grid in metres: a floor plan.

    depth (H, W) m, image (H, W, 3) RGB -> (height, width, 3) RGB. Points well above the camera
    (a ceiling) are left out. The camera is at the bottom; two lines show its field of view.
    """
    over = 2
    canvas = _ground_gradient(height * over, width * over)
    points, colours = _cloud(depth, image, camera)
    if not len(points):
        return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    low_enough = points[:, 1] > -0.25 * np.median(points[:, 2])
    if low_enough.mean() > 0.2:
        points, colours = points[low_enough], colours[low_enough]
    reach = max(1.06 * float(np.quantile(points[:, 2], 0.995)), _LEAST_EXTENT)
    half_width = max(1.06 * float(np.quantile(np.abs(points[:, 0]), 0.99)), _LEAST_EXTENT)
    foot = 26 * over
    per_metre = min((height * over - foot) / reach, width * over / 2 / half_width)
    origin = np.array([width * over / 2, height * over - foot])

    span = max(height, width) * over / per_metre
    # Up to the largest float32, because max_depth_m has no upper limit.
    steps = (factor * 10.0**power for power in range(-1, 39) for factor in (1, 2, 5))
    step = next(step for step in steps if span / step <= 12)
    lines = [k * step for k in range(-13, 14)]
    for metres in lines:
        x, y = (int(v) for v in (origin[0] + metres * per_metre, origin[1] - metres * per_metre))
        cv2.line(canvas, (x, 0), (x, canvas.shape[0]), (50, 55, 66), over)
        cv2.line(canvas, (0, y), (canvas.shape[1], y), (50, 55, 66), over)
    # An orthographic view equals a perspective view from very far away.
    away = 1e3 * reach
    in_view = np.stack([points[:, 0], -points[:, 2], points[:, 1] + away], axis=1)
    _splat(
        canvas,
        in_view,
        colours,
        per_metre * away,
        origin,
        float(np.median(points[:, 2])) / camera.fx / away,
    )
    for x_pixel in (0, camera.width - 1):
        slope = (x_pixel - camera.cx) / camera.fx
        end = origin + np.array([slope, -1.0]) * per_metre * reach
        start, stop = ((int(v[0] * 16), int(v[1] * 16)) for v in (origin, end))
        cv2.line(canvas, start, stop, ACCENT, 2, cv2.LINE_AA, 4)
    cv2.circle(canvas, (int(origin[0]), int(origin[1])), 5 * over, ACCENT, -1, cv2.LINE_AA)
    rendered = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    for metres in lines:
        y = round((origin[1] - metres * per_metre) / over)
        if metres > 0 and y > 6:
            put_text(rendered, f"{metres:g} m", (5, y - 14), 8, MUTED)
    return rendered


def _ground_gradient(height: int, width: int) -> npt.NDArray[Any]:
    ramp = np.linspace(1.0, 0.0, height)[:, None, None]
    top, bottom = np.array([33, 37, 46]), np.array([12, 13, 17])
    shades = np.repeat(bottom + ramp * (top - bottom), width, axis=1)
    return np.ascontiguousarray(shades, dtype=np.uint8)


def _orbit(
    middle: npt.NDArray[Any], orbit_deg: float, tilt_deg: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return rotation (3, 3) and position (3,) of an eye that has turned about `middle`.

    point_in_eye = (point - eye) @ rotation.
    """
    turn, tilt = math.radians(orbit_deg), math.radians(tilt_deg)
    about_y = np.array(
        [
            [math.cos(turn), 0, -math.sin(turn)],
            [0, 1, 0],
            [math.sin(turn), 0, math.cos(turn)],
        ]
    )
    about_x = np.array(
        [
            [1, 0, 0],
            [0, math.cos(tilt), -math.sin(tilt)],
            [0, math.sin(tilt), math.cos(tilt)],
        ]
    )
    rotation = about_x @ about_y  # rows are the eye's axes in camera coordinates
    back = np.array([0.0, 0.0, 1.15 * float(np.linalg.norm(middle))])
    return rotation.T, middle - back @ rotation


def _splat(
    canvas: npt.NDArray[Any],
    in_view: npt.NDArray[Any],
    colours: npt.NDArray[Any],
    focal: float,
    centre: npt.NDArray[Any],
    pixel_angle: float,
) -> None:
    """Paint a square splat for each point (N, 3) into `canvas` (H, W, 3).

    pixel_angle: width of a source pixel at unit distance; it gives the size of the splats.
    """
    order = np.argsort(-in_view[:, 2], kind="stable")
    in_view, colours = in_view[order], colours[order]
    u = np.floor(focal * in_view[:, 0] / in_view[:, 2] + centre[0] + 0.5).astype(np.int64)
    v = np.floor(focal * in_view[:, 1] / in_view[:, 2] + centre[1] + 0.5).astype(np.int64)
    side = int(np.clip(math.ceil(focal * pixel_angle * 1.5), 2, 9))
    # One z-buffered pass per offset in the square; the nearest point of all passes wins.
    flat_depth = np.full(canvas.shape[0] * canvas.shape[1], np.inf, dtype=np.float64)
    flat_colour = canvas.reshape(-1, 3)
    for dv in range(side):
        for du in range(side):
            row, col = v + dv - side // 2, u + du - side // 2
            inside = (row >= 0) & (row < canvas.shape[0]) & (col >= 0) & (col < canvas.shape[1])
            at = row[inside] * canvas.shape[1] + col[inside]
            nearest = np.full(flat_depth.shape, -1, dtype=np.int64)
            nearest[at] = np.nonzero(inside)[0]  # sorted far to near: the last write is nearest
            hit = np.nonzero(nearest >= 0)[0]
            source = nearest[hit]
            wins = in_view[source, 2] < flat_depth[hit]
            flat_depth[hit[wins]] = in_view[source[wins], 2]
            flat_colour[hit[wins]] = colours[source[wins]]
