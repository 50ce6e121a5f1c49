# SPDX-License-Identifier: Apache-2.0
"""Obstacles: the parts of a depth map that stand on the ground, for a robot's costmap.

The ground is the plane z = 0 of the robot's base frame, corrected in every frame by a robust plane
fitted to the points near it (a moving suspension, a wrong pitch). A pixel is an obstacle if it
passes the gates, if it is higher than the least height, than the standard deviation of its height
and than a seventh of the camera's height (beyond 3 m the limit grows with the square of the
distance), and if enough of its neighbours are obstacles too: one false cell blocks a path. Measured
points that the fit accepts as inliers count by themselves where they are higher than their noise,
which is estimated on the ground: they are the only evidence of a low object that the LiDAR hits and
the network does not see.
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
