# SPDX-License-Identifier: Apache-2.0
"""Faults around the node, found from the ROS graph and from the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from depth_node.fitting import FitStatus
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import transform
from depth_node.geometry.sparse_depth import if_inverted, none_in_image

if TYPE_CHECKING:
    from rclpy.node import Node

    from depth_node.pipeline import DepthResult
    from depth_node.ros.inputs.lidar import LidarPoints

_IMAGE, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_CURES = {
    (_IMAGE, _COMPRESSED): "set image_transport to compressed",
    (_COMPRESSED, _IMAGE): "set image_transport to raw, or remap `image` to its /compressed",
    ("sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/LaserScan"): "remap `scan` to it",
    ("sensor_msgs/msg/LaserScan", "sensor_msgs/msg/PointCloud2"): "remap `points` to it",
}
_SAMPLES = 2000
_FEW = 0.05  # largest fraction of points in the image at which a body frame is suspected
_FEWEST_SEEN = 20
_LASTING = 5  # consecutive calls

# Body axes (x forward, y left, z up) to optical ones (x right, y down, z forward).
_OPTICAL_FROM_BODY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def type_mismatch(node: Node, inputs: Mapping[str, str]) -> str:
    """Return a sentence if a topic is published with another type than the node subscribes to; or
    "".

    inputs: name in the node -> type of the subscription.
    """
    for name, wanted in inputs.items():
        topic = node.resolve_topic_name(name)
        kinds = {item.topic_type for item in node.get_publishers_info_by_topic(topic)}
        if kinds and wanted not in kinds:
            kind = sorted(kinds)[0]
            cure = _CURES.get((wanted, kind), f"remap `{name}` to a topic of type {wanted}")
            return f"{topic} is published as {kind}, but `{name}` is read as {wanted}: {cure}"
        if kinds or wanted not in (_IMAGE, _COMPRESSED):
            continue
        beside = f"{topic}/compressed"
        others = {item.topic_type for item in node.get_publishers_info_by_topic(beside)}
        if wanted == _IMAGE and others == {_COMPRESSED}:
            return (
                f"nobody publishes {topic}, but there is {beside}: remap `image` to it and set"
                " image_transport to compressed"
            )
    return ""


class SeveralPublishers:
    """Detects inputs with more publishers than can be distinguished.

    Examples are a bag that is played beside the live driver, and two LiDARs with one frame.
    """

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def doubt(self, node: Node, sources: Mapping[str, int]) -> str:
        """Return a sentence if an input has had too many publishers in _LASTING calls in a row; or
        "".

        A driver that restarts appears twice in the graph for a while. sources: input name in the
        node -> how many may publish it: one camera, as many LiDARs as there are frames.
        """
        for name, most in sources.items():
            topic = node.resolve_topic_name(name)
            count = node.count_publishers(topic)
            self._seen[name] = self._seen.get(name, 0) + 1 if count > max(most, 1) else 0
            if self._seen[name] < _LASTING:
                continue
            if name in ("image", "camera_info"):
                return (
                    f"{count} publishers send on {topic}, so images of one may be used with the"
                    " calibration, points and memory of another: stop all but one (a bag beside"
                    " the live driver?), or give each a topic of its own"
                )
            return (
                f"{count} publishers send on {topic}, but with only {max(most, 1)} frame_id(s):"
                " two sensors with one frame_id get the same pose, which is wrong unless both"
                " drivers transform their points to it; give each its own frame_id, or stop the one"
                " that is not meant (a bag beside the live driver?)"
            )
        return ""


def body_frame_hint(
    points: npt.NDArray[np.floating],
    T_camera_lidar: npt.NDArray[np.float64],
    camera: Camera,
    used: int,
    camera_frame: str,
) -> str:
    """Return a sentence if the camera's frame is probably one with body axes (x forward); or "".

    That is so if hardly any point is in the image, and many would be with body axes. points: (N, 3)
    metres in the LiDAR's frame. used: how many of them are in the image.
    """
    if not len(points) or used > _FEW * len(points):
        return ""
    some = points[:: max(1, len(points) // _SAMPLES)]
    in_camera = transform(T_camera_lidar, some).astype(np.float64)
    in_camera = in_camera[np.isfinite(in_camera).all(axis=1)]
    pixels = camera.project(in_camera @ _OPTICAL_FROM_BODY.T)
    with np.errstate(invalid="ignore"):
        inside = (pixels >= 0).all(axis=1) & (pixels < (camera.width, camera.height)).all(axis=1)
    seen = int(inside.sum()) * len(points) // max(1, len(some))
    if seen < max(_FEWEST_SEEN, 4 * used):
        return ""
    return (
        f"only {used} of {len(points)} LiDAR points are in the image, but about {seen} would be if"
        f" the camera's frame {camera_frame!r} had body axes (x forward): it looks like a body"
        " frame, so let the driver stamp images with the optical frame (x right, y down, z"
        " forward), or correct T_camera_lidar"
    )


def frame_trouble(
    points: LidarPoints, result: DepthResult, camera: Camera, camera_frame: str
) -> tuple[str, str]:
    """Return what makes the depth of an image worse than it could be, and the kind of problem; or
    "".

    points: those from which `result` was computed.
    """
    trouble, kind = _lidar_trouble(points, result, camera, camera_frame)
    if result.fit.status == FitStatus.UNANCHORED:
        return f"{result.fit.message} {trouble}".strip(), "unanchored"
    if trouble:
        return trouble, kind
    if result.fit.status != FitStatus.OK:
        return result.fit.message, f"fit {result.fit.status}"
    return result.message, "regions"


def _lidar_trouble(
    points: LidarPoints, result: DepthResult, camera: Camera, camera_frame: str
) -> tuple[str, str]:
    used = len(result.sparse)
    if points.trouble:
        return points.trouble, points.kind
    hint = body_frame_hint(points.points, points.T_camera_lidar, camera, used, camera_frame)
    if hint:
        return hint, "body frame"
    if len(points.points) and not used:
        sentence = none_in_image(result.sparse.counts)
        return sentence + if_inverted(points.points, points.T_camera_lidar, camera), "outside"
    if points.echoes and not used:
        return (
            f"none of {len(points.echoes)} echoes on `range` can be used: the whole cone must"
            " be in the image, and completion networks take no echoes; check its TF and"
            " field_of_view",
            "echoes",
        )
    return "", ""
