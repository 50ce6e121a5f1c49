# SPDX-License-Identifier: Apache-2.0
"""The settings of the node, which include those of the method."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.config import ConfigError, option, section, validate
from depth_node.geometry.rigid import check_rigid
from depth_node.obstacles import ObstacleConfig
from depth_node.pipeline import PipelineConfig

NEEDS_CLEANUP = ("model.", "region_model.", "engine.")
"""Parameters of the engines, which configure opens."""
NEEDS_DEACTIVATE = ("image_transport", "lidar_sources", "bond")
"""Parameters of the subscriptions and the bond, which activate creates."""
RENAMED = {
    "max_width": "max_width_px",
    "max_scan_age": "max_scan_age_s",
    "scan_wait": "scan_wait_s",
    "scans_per_picture": "scans_per_image",
    "fit.min_depth_m": "projection.min_depth_m",
    "fit.max_depth_m": "projection.max_depth_m",
    **{
        f"{network}.{old}": f"engine.{new}"
        for network in ("model", "region_model")
        for old, new in (
            ("fallback", "fallback"),
            ("on_engine_failure", "on_failure"),
            ("build_engines", "build"),
            ("workspace_mb", "workspace_mb"),
            ("cache_dir", "cache_dir"),
            ("cache_mb", "cache_mb"),
        )
    },
    **{
        name: "what it set is fixed now; studies set it from Python"
        for name in (
            "fit.huber_threshold",
            "fit.huber_iterations",
            "fit.range_floor",
            "fit.polarity_guard",
            "segmentation.depth_weight",
            "segmentation.blur_cells",
            "segmentation.edge_gap_px",
            "fit.field.residual",
            "fit.field.detail",
            "fit.field.colour",
            "fit.field.regions",
            "fit.field.outliers",
            "fit.field.node_px",
            "fit.field.neighbours",
        )
    },
    "tf_tolerance": "tf_tolerance_s",
}
"""Former name of a parameter -> its present name, or a sentence if there is none."""
ESSENTIAL = (
    "model.path",
    "fit.method",
    "T_camera_lidar",
    "world_frame",
    "max_scan_age_s",
    "image_transport",
    "image_rectified",
    "max_width_px",
    "depth_encoding",
)
"""Parameters that a user sets; all others have defaults that suit most robots."""
_LEAST_WIDTH_PX = 32  # of a narrower image a network returns something that only looks like depth


@dataclass(frozen=True)
class NodeConfig(PipelineConfig):
    """The settings of the node: those of the method and those of its place on the robot."""

    image_transport: str = option(
        "raw",
        "Message type on `image`: raw (sensor_msgs/Image) or compressed (CompressedImage).",
        choices=("raw", "compressed"),
    )
    image_rectified: str = option(
        "auto",
        "Whether the image is rectified: yes (use P of camera_info, ignore D), no (use K and D),"
        " auto (yes if the topic is called image_rect..., or if D is zero, R the identity and P"
        " equal to K).",
        choices=("auto", "yes", "no"),
    )
    max_width_px: int = option(
        0,
        "Shrink wider images to this width (32 or more) first; all outputs then have the smaller"
        " size. 0 = full size.",
        unit="px",
        minimum=0,
    )
    max_rate_hz: float = option(
        0.0,
        "Largest number of images processed per second; the others are skipped. 0 = all.",
        unit="Hz",
        minimum=0.0,
        maximum=1000.0,
    )
    lidar_sources: tuple[str, ...] = option(
        ("points", "scan"),
        "Inputs of measured points, one or several: points (PointCloud2), scan (LaserScan),"
        " landmarks (PointCloud2 of a noisy sensor: radar, VIO, SLAM), depth (a sparse depth"
        " Image, registered to the camera), range (Range: ultrasonic, infrared).",
        choices=("points", "scan", "landmarks", "depth", "range"),
    )
    landmarks_noise: float = option(
        0.05,
        "Standard deviation of the points on `landmarks`, relative to their distance. It weights"
        " them against other points and is subtracted from the interval. A field std, stddev,"
        " range_std or rangeSTD (m) of the cloud overrides it for each point.",
        minimum=0.001,
        maximum=1.0,
    )
    depth_noise: float = option(
        0.02,
        "Standard deviation of the depth images on `depth`, relative to the distance; see"
        " landmarks_noise. Data sheets give some 0.02 for stereo at 2 m and 0.01 for time of"
        " flight.",
        minimum=0.001,
        maximum=1.0,
    )
    range_noise: float = option(
        0.1,
        "Standard deviation of the distances on `range`, relative to the distance; see"
        " landmarks_noise.",
        minimum=0.001,
        maximum=1.0,
    )
    T_camera_lidar: tuple[float, ...] = option(
        (),
        "Pose of the LiDAR: the 4x4 matrix, row by row (16 numbers), that maps LiDAR coordinates"
        " into the camera's optical frame. If set, it applies to every LiDAR message. Empty: the"
        " pose comes from TF.",
    )
    world_frame: str = option(
        "",
        "A TF frame that stands still, such as odom. If set, the memory of earlier images and"
        " LiDAR scans of other times move with the camera. Empty: motion is not corrected.",
    )
    camera_readout_time_s: float = option(
        0.0,
        "Readout time of a rolling shutter: from the exposure of the first row, at the image's"
        " stamp, to that of the last (15 to 30 ms in many cameras). With world_frame each point is"
        " projected at the time of the row that it falls on. 0 = all rows at once.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    tf_tolerance_s: float = option(
        0.1,
        "If TF has no moving transform for the image's stamp yet, one that is at most this much"
        " older is used.",
        unit="s",
        minimum=0.0,
        maximum=10.0,
    )
    max_scan_age_s: float = option(
        0.3,
        "LiDAR scans are used for an image if their stamps differ from its stamp by at most this.",
        unit="s",
        minimum=0.001,
        maximum=60.0,
    )
    lidar_time_offset_s: float = option(
        0.0,
        "Added to the stamps of LiDAR messages: -37 for a LiDAR whose clock is 37 s ahead (TAI"
        " against UTC).",
        unit="s",
        minimum=-4e9,
        maximum=4e9,
    )
    scans_per_image: int = option(
        0,
        "Number of scans of each LiDAR to accumulate, nearest in time first. 0 = all within"
        " max_scan_age_s if world_frame gives the motion, otherwise one turn, even if the LiDAR"
        " sends it in pieces. More than that without world_frame smears while the robot moves.",
        minimum=0,
    )
    scan_wait_s: float = option(
        0.0,
        "How long an image waits for a scan that is not older than itself, for a LiDAR that is"
        " triggered with the camera; adds to the latency.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    depth_encoding: str = option(
        "32FC1",
        "Depth as 32FC1 (metres, NaN unknown) or 16UC1 (millimetres, 0 unknown, up to 65.5 m).",
        choices=("32FC1", "16UC1"),
    )
    points_decimation: int = option(
        2,
        "Every n-th row and column of the depth is published on `~/points`.",
        minimum=1,
        maximum=64,
    )

    extrinsics_cpu_share: float = option(
        0.03,
        "Largest share of the node's own CPU time for checking the LiDARs' poses and time"
        " offsets; `~/extrinsics` and /diagnostics report the result, nothing is corrected. 0 ="
        " off.",
        minimum=0.0,
        maximum=1.0,
    )
    obstacles: ObstacleConfig = section(ObstacleConfig, "where the ground is and what stands on it")

    bond: bool = option(
        True,
        "Whether an active node offers the bond by which a lifecycle manager (Nav2's) detects"
        " that it died. Needs bondpy; without it set the manager's bond_timeout to 0.0.",
    )

    def __post_init__(self) -> None:
        validate(self)
        self.fixed_extrinsics()
        if not self.lidar_sources:
            raise ConfigError(
                "lidar_sources is empty: name points, scan, landmarks, depth, range or several"
            )
        if 0 < self.max_width_px < _LEAST_WIDTH_PX:
            raise ConfigError(
                f"max_width_px is {self.max_width_px}, and an image that narrow shows nothing: give"
                f" {_LEAST_WIDTH_PX} or more, or 0 for images as they come"
            )
        if self.camera_readout_time_s > 0 and not self.world_frame:
            raise ConfigError(
                "camera_readout_time_s does nothing without the camera's motion: set world_frame, a"
                " TF frame that stands still, or leave it 0"
            )

    def relative_noise(self) -> dict[str, float]:
        """Return topic -> stated standard deviation of its points, relative to their distance."""
        return {
            "landmarks": self.landmarks_noise,
            "depth": self.depth_noise,
            "range": self.range_noise,
        }

    def fixed_extrinsics(self) -> npt.NDArray[np.float64] | None:
        """Return T_camera_lidar (4, 4), or None if it comes from TF. Raises ConfigError."""
        if set(self.lidar_sources) == {"depth"}:  # its points are in the camera's own frame
            return np.eye(4)
        if not self.T_camera_lidar:
            return None
        try:
            return check_rigid(self.T_camera_lidar, "T_camera_lidar")
        except ValueError as error:
            raise ConfigError(str(error)) from error
