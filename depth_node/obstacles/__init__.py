# SPDX-License-Identifier: Apache-2.0
"""Obstacles: what of a depth map stands on the ground, for a robot's costmap.

The ground is the plane z = 0 of the robot's base frame, put right in every frame by a robust plane
through what lies near it (a suspension, a wrong pitch). A pixel is an obstacle where it passes the
gates, is higher than the least height, than the standard deviation of its height and than a seventh
of the camera's height (beyond 3 m more, as the square of the distance), and where its neighbours
say so too: one false cell blocks a path. Measured points that the fit believes count by themselves,
where they are higher than their noise, which the ground shows: of a low thing that the LiDAR meets
and the network does not see they are all there is.
"""

from depth_node.obstacles.finder import SCAN_STEP_RAD, ObstacleFinder, Obstacles, scan_ranges
from depth_node.obstacles.measured import ground_below
from depth_node.obstacles.settings import ObstacleConfig, camera_above_ground

__all__ = [
    "SCAN_STEP_RAD",
    "ObstacleConfig",
    "ObstacleFinder",
    "Obstacles",
    "camera_above_ground",
    "ground_below",
    "scan_ranges",
]
