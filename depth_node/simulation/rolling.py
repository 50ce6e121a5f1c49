# SPDX-License-Identifier: Apache-2.0
"""Rendering of a rolling-shutter image on a moving robot: every row has a time of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.simulation.renderer import Rendered, Scene


def render_rows(
    scene: Scene,
    camera: Camera,
    T_world_camera: Callable[[float], NDArray[np.float64]],
    readout_s: float,
) -> Rendered:
    """Render the view of a pinhole camera that reads its rows one after another.

    The first row is read at 0 s, the last at readout_s. T_world_camera: (4, 4) by time in s. The
    depth of a row is along the optical axis that the camera has at the row's time.
    """
    rows = []
    for row in range(camera.height):
        # Anti-aliasing of a row needs its neighbours, so three rows are rendered for each.
        shift = camera.cy - row + 1
        three = Camera(camera.width, 3, camera.fx, camera.fy, camera.cx, shift)
        time_s = readout_s * row / max(1, camera.height - 1)
        rows.append(scene.render(three, T_world_camera(time_s)))
    return Rendered(
        *(
            np.concatenate([getattr(one, name)[1:2] for one in rows])
            for name in ("image", "depth", "labels")
        )
    )
