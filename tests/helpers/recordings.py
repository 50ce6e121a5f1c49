# SPDX-License-Identifier: Apache-2.0
"""Small recordings of a scene of known depth, written by the tests: frame folders and bags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import invert_rigid, transform

CAMERA = Camera(width=96, height=72, fx=80.0, fy=80.0, cx=47.5, cy=35.5)
# LiDAR x forward, y left, z up; 8 cm above the camera.
T_CAMERA_LIDAR = np.array(
    [[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64
)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Return image and depth of a slanted wall with a box in front, each of another colour."""
    rows, cols = np.mgrid[: CAMERA.height, : CAMERA.width]
    depth = (4.0 + 0.01 * cols).astype(np.float32)
    box = (rows > 25) & (rows < 60) & (cols > 30) & (cols < 60)
    depth[box] = (2.0 + 0.005 * rows[box]).astype(np.float32)
    image = np.full((*depth.shape, 3), (60, 90, 160), np.uint8)
    image[box] = (200, 80, 40)
    image[..., 1] += ((rows + cols) % 7).astype(np.uint8)
    return image, depth


def lidar_of(depth: np.ndarray, every: int = 4) -> np.ndarray:
    """Return points (N, 3) float32 in the LiDAR frame at the centres of every n-th pixel."""
    points = CAMERA.backproject(depth)[2::every, 2::every].reshape(-1, 3)
    return transform(invert_rigid(T_CAMERA_LIDAR), points).astype(np.float32)


def relative_of(depth: np.ndarray) -> np.ndarray:
    """Return a network's prediction: disparity, with another scale and shift on the box."""
    disparity = 3.0 / depth + 0.2
    near = depth < 3
    disparity[near] = 2.0 / depth[near] + 0.5
    return disparity.astype(np.float32)


def write_frame(folder: Path, lidar: bool = True, prediction: bool = True) -> Path:
    """Write a frame folder of the scene and return it."""
    image, depth = scene()
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "rgb.png"), image[..., ::-1])
    np.savez(folder / "depth.npz", depth=depth)
    names = ("fx", "fy", "cx", "cy", "width", "height")
    (folder / "intrinsics.json").write_text(json.dumps({k: getattr(CAMERA, k) for k in names}))
    if lidar:
        np.save(folder / "lidar.npy", lidar_of(depth))
        (folder / "calib.json").write_text(json.dumps({"T_cam_lidar": T_CAMERA_LIDAR.tolist()}))
    if prediction:
        values = relative_of(depth)
        kind = "disparity_affine_invariant"
        np.savez(folder / "prediction_test.npz", prediction=values, kind=kind)
    return folder


class BagWriter:
    """Writer of a rosbag2 of the scene by rosbags; times in s, messages in the order of calls."""

    def __init__(self, path: Path, mcap: bool = False, **compression: Any) -> None:
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore

        plugin = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
        self.writer = Writer(path, version=9, storage_plugin=plugin)
        if compression:
            self.writer.set_compression(**compression)
        self.store = get_typestore(Stores.ROS2_JAZZY)
        self.connections: dict[str, Any] = {}
        self.types = self.store.types
        self.writer.open()

    def close(self) -> None:
        self.writer.close()

    def write(self, topic: str, kind: str, time_s: float, message: Any) -> None:
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        raw = self.store.serialize_cdr(message, kind)
        self.writer.write(self.connections[topic], round(time_s * 1e9), raw)

    def header(self, time_s: float, frame: str) -> Any:
        time_type = self.types["builtin_interfaces/msg/Time"]
        sec, nanosec = divmod(round(time_s * 1e9), 1_000_000_000)
        stamp = time_type(sec=sec, nanosec=nanosec)
        return self.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)

    def image(self, time_s: float, topic: str = "/camera/image_raw", **changes: Any) -> None:
        image = np.ascontiguousarray(scene()[0])
        fields = {
            "header": self.header(time_s, "camera"),
            "height": image.shape[0],
            "width": image.shape[1],
            "encoding": "rgb8",
            "is_bigendian": 0,
            "step": image.shape[1] * 3,
            "data": image.reshape(-1),
        }
        kind = "sensor_msgs/msg/Image"
        self.write(topic, kind, time_s, self.types[kind](**{**fields, **changes}))

    def compressed(self, time_s: float, topic: str = "/camera/image_raw/compressed") -> None:
        kind = "sensor_msgs/msg/CompressedImage"
        data = cv2.imencode(".png", scene()[0][..., ::-1])[1].reshape(-1)
        message = self.types[kind](
            header=self.header(time_s, "camera"), format="rgb8; png compressed", data=data
        )
        self.write(topic, kind, time_s, message)

    def info(self, time_s: float, topic: str = "/camera/camera_info", **changes: Any) -> None:
        roi = self.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        k = CAMERA.matrix.reshape(-1)
        fields = {
            "header": self.header(time_s, "camera"),
            "height": CAMERA.height,
            "width": CAMERA.width,
            "distortion_model": "plumb_bob",
            "d": np.zeros(5),
            "k": k,
            "r": np.eye(3).reshape(-1),
            "p": np.hstack([CAMERA.matrix, np.zeros((3, 1))]).reshape(-1),
            "binning_x": 0,
            "binning_y": 0,
            "roi": roi,
        }
        kind = "sensor_msgs/msg/CameraInfo"
        self.write(topic, kind, time_s, self.types[kind](**{**fields, **changes}))

    def cloud(
        self,
        time_s: float,
        points: np.ndarray | None = None,
        topic: str = "/lidar/points",
        frame: str = "lidar",
        ticks: np.ndarray | None = None,
        recorded_s: float | None = None,
    ) -> None:
        """Write a PointCloud2.

        ticks: (N,) uint32, the times of the points as a field t. recorded_s: time of recording, if
        it differs from the stamp.
        """
        points = lidar_of(scene()[1]) if points is None else points.astype(np.float32)
        field_type = self.types["sensor_msgs/msg/PointField"]
        fields = [
            field_type(name=name, offset=4 * k, datatype=7, count=1) for k, name in enumerate("xyz")
        ]
        rows = np.ascontiguousarray(points).view(np.uint8).reshape(len(points), -1)
        if ticks is not None:
            fields.append(field_type(name="t", offset=12, datatype=6, count=1))
            rows = np.hstack([rows, ticks.astype(np.uint32)[:, None].view(np.uint8)])
        kind = "sensor_msgs/msg/PointCloud2"
        message = self.types[kind](
            header=self.header(time_s, frame),
            height=1,
            width=len(points),
            fields=fields,
            is_bigendian=False,
            point_step=rows.shape[1],
            row_step=rows.size,
            data=rows.reshape(-1),
            is_dense=True,
        )
        self.write(topic, kind, time_s if recorded_s is None else recorded_s, message)

    def scan(self, time_s: float, ranges: np.ndarray, topic: str = "/scan") -> None:
        kind = "sensor_msgs/msg/LaserScan"
        message = self.types[kind](
            header=self.header(time_s, "lidar"),
            angle_min=-0.5,
            angle_max=0.5,
            angle_increment=1.0 / (len(ranges) - 1),
            time_increment=0.0,
            scan_time=0.1,
            range_min=0.1,
            range_max=30.0,
            ranges=ranges.astype(np.float32),
            intensities=np.empty(0, np.float32),
        )
        self.write(topic, kind, time_s, message)

    def static_tf(self, links: list[tuple[str, str, np.ndarray]]) -> None:
        """Write static transforms (parent, child, T_parent_child)."""
        self.tf(0.0, links, "/tf_static")

    def tf(
        self, time_s: float, links: list[tuple[str, str, np.ndarray]], topic: str = "/tf"
    ) -> None:
        """Write transforms (parent, child, T_parent_child (4, 4)) of a time."""
        from scipy.spatial.transform import Rotation

        types = self.types
        transforms = []
        for parent, child, T in links:
            x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat()
            pose = types["geometry_msgs/msg/Transform"](
                translation=types["geometry_msgs/msg/Vector3"](*T[:3, 3]),
                rotation=types["geometry_msgs/msg/Quaternion"](x, y, z, w),
            )
            stamped = types["geometry_msgs/msg/TransformStamped"]
            transforms.append(
                stamped(header=self.header(time_s, parent), child_frame_id=child, transform=pose)
            )
        kind = "tf2_msgs/msg/TFMessage"
        self.write(topic, kind, time_s, types[kind](transforms=transforms))
