# SPDX-License-Identifier: Apache-2.0
"""Drawing of LiDAR edges on the edges of the image, before and after a calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from depth_node.calibration.image_edges import edge_strength
from depth_node.calibration.lidar_edges import depth_edges
from depth_node.frame import FrameInput
from depth_node.geometry.rigid import transform
from depth_node.visualization.colours import depth_scale
from depth_node.visualization.panels import ImageCard, compose
from depth_node.visualization.points import draw_points


def edges_on_image(frame: FrameInput, T_camera_lidar: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Draw LiDAR edges as discs, coloured by depth, on the image's edges -> (H, W, 3) RGB.

    T_camera_lidar: (4, 4), used instead of the frame's own.
    """
    strength = edge_strength(frame.image)[..., None]
    ground = np.asarray(0.25 * frame.image + 150 * strength, np.float32)
    image = np.clip(ground, 0, 255).astype(np.uint8)
    if frame.points is None:
        return image
    edges = depth_edges(frame.points, T_camera_lidar[:3, :3])
    seen = transform(T_camera_lidar, edges.points)
    pixels = frame.camera.project(seen)
    height, width = image.shape[:2]
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    if not inside.any():
        return image
    depth = seen[inside, 2].astype(np.float32)
    colours = depth_scale(depth).colours(depth)
    return draw_points(image, pixels[inside, 1], pixels[inside, 0], colours, width / 500)


def before_and_after(
    frame: FrameInput, before: npt.NDArray[Any], after: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Draw the LiDAR edges with both poses T_camera_lidar (4, 4), side by side -> (H, W, 3) RGB."""
    cards = [
        ImageCard("Before", edges_on_image(frame, before), "LiDAR edges, stated extrinsics"),
        ImageCard("After", edges_on_image(frame, after), "LiDAR edges, calibrated"),
    ]
    return compose("LiDAR edges on image edges", "coloured by depth", cards, columns=2)
