# SPDX-License-Identifier: Apache-2.0
"""Conversion between ROS messages and arrays.

Arrays are views of the message where its layout allows it, so they live as long as the message and
must not be written to. A message that contradicts itself is refused with a MessageError that names
the field.
"""

from depth_node.ros.messages.camera_info import (
    calibration_warning,
    camera_info_message,
    camera_of,
    is_rectified,
    other_camera,
    rectified_doubt,
)
from depth_node.ros.messages.clouds import (
    cloud_to_points,
    colour_points,
    obstacle_points,
    residual_points,
    table_message,
    table_rows,
)
from depth_node.ros.messages.errors import (
    MessageError,
    OtherSizeError,
    RefusedScanError,
    brief,
    place,
)
from depth_node.ros.messages.fields import stamp_ns, time_of
from depth_node.ros.messages.images import (
    IMAGE_LAYOUTS,
    BitDepth,
    check_size,
    compressed_depth_message,
    compressed_to_rgb,
    image_message,
    image_to_rgb,
    image_view,
    labels_to_pixels,
)
from depth_node.ros.messages.scans import (
    LidarScan,
    depth_image_scan,
    lidar_scan,
    not_registered,
    range_scan,
    scan_message,
    scan_message_to_points,
)

__all__ = [
    "IMAGE_LAYOUTS",
    "BitDepth",
    "LidarScan",
    "MessageError",
    "OtherSizeError",
    "RefusedScanError",
    "brief",
    "calibration_warning",
    "camera_info_message",
    "camera_of",
    "check_size",
    "cloud_to_points",
    "colour_points",
    "compressed_depth_message",
    "compressed_to_rgb",
    "depth_image_scan",
    "image_message",
    "image_to_rgb",
    "image_view",
    "is_rectified",
    "labels_to_pixels",
    "lidar_scan",
    "not_registered",
    "obstacle_points",
    "other_camera",
    "place",
    "range_scan",
    "rectified_doubt",
    "residual_points",
    "scan_message",
    "scan_message_to_points",
    "stamp_ns",
    "table_message",
    "table_rows",
    "time_of",
]
