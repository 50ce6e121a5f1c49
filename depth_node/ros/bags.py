# SPDX-License-Identifier: Apache-2.0
"""Recorded frames from a rosbag2 (SQLite3 or MCAP) without a running ROS.

Reading goes through `rosbags`; what a message means is known to depth_node.ros.messages alone, so
the ROS message packages must be importable. Messages are taken in the order of the recording, as a
live node would get them. Whatever cannot be used raises BagError, a sentence with the cure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.frame import FrameInput
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import check_rigid, rigid_transform, transform
from depth_node.geometry.scan_buffer import ScanBuffer
from depth_node.geometry.sparse_depth import project_points
from depth_node.geometry.transform_tree import TransformError, TransformTree
from depth_node.pipeline import DepthPipeline
from depth_node.recordings.frames import (
    FrameError,
)
from depth_node.recordings.replay import Sampling, ScoredFrame, measured_points
from depth_node.ros import messages

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
CLOUD = "sensor_msgs/msg/PointCloud2"
SCAN = "sensor_msgs/msg/LaserScan"
TF = "tf2_msgs/msg/TFMessage"

# Words in a topic that say it is no image of the kind a monocular network wants.
_NOT_A_IMAGE = ("depth", "disparity", "confidence", "mask", "label", "infra", "thermal")


class BagError(FrameError):
    """A bag that cannot be used; says what is missing and what to do."""


@dataclass(frozen=True)
class BagTopics:
    """Which topics of a bag are used; an empty name means: find it by its type."""

    image: str = ""
    camera_info: str = ""
    points: str = ""
    scan: str = ""


@dataclass
class Bag:
    """A rosbag2 opened for reading; a context manager. `topics` then says what is used.

    T_camera_lidar: overrules the bag's TF. rectified: take the camera from P (an image without
    distortion) and not from K and D. The others are the node's parameters of these names.
    """

    path: Path
    topics: BagTopics = field(default_factory=BagTopics)
    T_camera_lidar: NDArray[np.float64] | None = None
    max_scan_age_s: float = 0.3
    scans_per_image: int = 0
    scan_wait_s: float = 0.0
    rectified: bool = False
    world_frame: str = ""

    def __enter__(self) -> Bag:
        self._reader = _open(self.path)
        try:
            self._types = {topic: info.msgtype or "" for topic, info in self._reader.topics.items()}
            self.topics = self._choose()
            self._images = self._reader.topics[self.topics.image].msgcount
            self._tree = self._transforms()
        except BaseException:
            self._reader.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def __len__(self) -> int:
        """Images in the bag."""
        return self._images

    def frames(self) -> Iterator[FrameInput]:
        """Every image with the scans that a live node would have had for it."""
        scans = ScanBuffer(self.max_scan_age_s)
        camera: Camera | None = None
        frames: set[str] = set()  # in which there are scans
        waiting: list[tuple[int, int, Any]] = []  # (recorded, stamp, image), oldest first
        early = 0
        names = [name for name in vars(self.topics).values() if name]
        for topic, recorded_ns, message in self._read(names):
            stamp = messages.stamp_ns(message.header.stamp) or recorded_ns
            if topic == self.topics.camera_info:
                camera = self._camera(message)
            elif topic == self.topics.image:
                early += camera is None
                if camera is not None:
                    waiting.append((recorded_ns, stamp, message))
            else:
                frames.add(message.header.frame_id)
                scans.add(stamp, self._points(topic, message), message.header.frame_id)
            newest = scans.newest_stamp_ns()
            while waiting and camera is not None:
                scan_is_there = newest is not None and newest >= waiting[0][1]
                if not scan_is_there and recorded_ns < waiting[0][0] + self.scan_wait_s * 1e9:
                    break
                yield self._frame_input(*waiting.pop(0)[1:], camera, scans, frames)
        if camera is None:
            raise BagError(
                f"{self.path}: {self.topics.camera_info} has no message, so none of {early}"
                " images can be used: record it too, or name another --camera-info-topic."
            )
        for _, stamp, message in waiting:
            yield self._frame_input(stamp, message, camera, scans, frames)

    def _frame_input(
        self, stamp: int, message: Any, camera: Camera, scans: ScanBuffer, frames: set[str]
    ) -> FrameInput:
        compressed = self._types[self.topics.image] == COMPRESSED
        read = messages.compressed_to_rgb if compressed else messages.image_to_rgb
        try:
            image = read(message)
        except ValueError as error:
            raise BagError(f"{self.path}: {self.topics.image}: {error}") from None
        if image.shape[:2] != (camera.height, camera.width):
            raise BagError(
                f"{self.path}: {self.topics.image} is {image.shape[1]}x{image.shape[0]} but"
                f" {self.topics.camera_info} {camera.width}x{camera.height}: name the camera_info"
                " that belongs to the image with --camera-info-topic."
            )
        camera_frame = message.header.frame_id
        found = []
        for frame in sorted(frames):
            held = [scan for scan in scans.scans(stamp, frame) if len(scan[1])]
            nearest = sorted(held, key=lambda scan: abs(stamp - scan[0]))
            # Points that have moved are worse than fewer points: one scan, unless asked for more.
            limit = self.scans_per_image or (None if self.world_frame else 1)
            for scan_ns, points in nearest[:limit]:
                age_s = np.full(len(points), abs(stamp - scan_ns) * 1e-9, np.float32)
                T = self._extrinsics(camera_frame, frame, stamp)
                if self.world_frame:
                    then = self._look_up(self.world_frame, camera_frame, scan_ns)
                    T = self._look_up(camera_frame, self.world_frame, stamp) @ then @ T
                found.append((points, age_s, T))
        pose = self._look_up(self.world_frame, camera_frame, stamp) if self.world_frame else None
        if len(found) == 1:
            points, age_s, T_camera_lidar = found[0]
            return FrameInput(image, camera, points, T_camera_lidar, age_s, stamp, pose)
        in_camera = [transform(T, points).astype(np.float32) for points, _, T in found]
        none = np.empty((0, 3), np.float32)
        ages = np.concatenate([none[:, 0], *(age_s for _, age_s, _ in found)])
        points = np.concatenate([none, *in_camera])
        return FrameInput(image, camera, points, np.eye(4), ages, stamp, pose)

    def _extrinsics(
        self, camera_frame: str, lidar_frame: str, stamp_ns: int
    ) -> NDArray[np.float64]:
        if self.T_camera_lidar is not None:
            return check_rigid(self.T_camera_lidar, "T_camera_lidar")
        return self._look_up(camera_frame, lidar_frame, stamp_ns)

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, int, Any]]:
        """(topic, time of recording in ns, message) in the order of the recording."""
        from rosbags.highlevel import AnyReaderError

        chosen = [c for c in self._reader.connections if c.topic in names]
        try:
            for connection, recorded_ns, raw in self._reader.messages(chosen):
                message = self._reader.deserialize(raw, connection.msgtype)
                yield connection.topic, recorded_ns, message
        except AnyReaderError as error:
            raise BagError(f"{self.path} cannot be read on ({error}): is it cut off?") from None

    def _camera(self, message: Any) -> Camera:
        try:
            camera: Camera = messages.camera_of(message, self.rectified)
        except ValueError as error:
            raise BagError(f"{self.path}: {self.topics.camera_info}: {error}") from None
        return camera

    def _points(self, topic: str, message: Any) -> NDArray[np.float32]:
        scan = topic == self.topics.scan
        read = messages.scan_message_to_points if scan else messages.cloud_to_points
        try:
            points: NDArray[np.float32] = read(message)
        except ValueError as error:
            raise BagError(f"{self.path}: {topic}: {error}") from None
        return points

    # --- topics ------------------------------------------------------------------------------

    def _choose(self) -> BagTopics:
        image = self._named("image", self.topics.image, (IMAGE, COMPRESSED)) or self._only(
            "image",
            [
                topic
                for topic, kind in self._types.items()
                if kind in (IMAGE, COMPRESSED)
                and not any(word in topic.lower() for word in _NOT_A_IMAGE)
            ],
            "image",
        )
        camera_info = self._named("camera-info", self.topics.camera_info, (CAMERA_INFO,))
        if not camera_info:
            candidates = [t for t, kind in self._types.items() if kind == CAMERA_INFO]
            beside = [t for t in candidates if _same_camera(t, image)]
            camera_info = self._only("camera-info", beside or candidates, "camera_info")
        points = self._named("points", self.topics.points, (CLOUD,))
        scan = self._named("scan", self.topics.scan, (SCAN,))
        if not points and not scan:
            clouds = [t for t, kind in self._types.items() if kind == CLOUD]
            scans = [t for t, kind in self._types.items() if kind == SCAN]
            if clouds or not scans:
                points = self._only("points", clouds, "LiDAR (PointCloud2 or LaserScan)")
            else:
                scan = self._only("scan", scans, "LaserScan")
        return BagTopics(image, camera_info, points, scan)

    def _named(self, option: str, name: str, kinds: tuple[str, ...]) -> str:
        """The topic the user named, checked; "" when none was named."""
        if not name:
            return ""
        found = name if name in self._types else f"/{name}"
        if found not in self._types:
            raise BagError(
                f"{self.path} has no topic {name} (--{option}-topic); it has: {self._listing()}."
            )
        if self._types[found] not in kinds:
            raise BagError(
                f"{self.path}: {found} is {self._types[found]}, --{option}-topic needs"
                f" {' or '.join(kinds)}."
            )
        return found

    def _only(self, option: str, candidates: list[str], what: str) -> str:
        """The one candidate; a bag with none or several must be told which."""
        if len(candidates) == 1:
            return candidates[0]
        if not candidates:
            raise BagError(f"{self.path} has no {what} topic; it has: {self._listing()}.")
        raise BagError(
            f"{self.path} has several {what} topics ({', '.join(sorted(candidates))}): choose one"
            f" with --{option}-topic."
        )

    def _listing(self) -> str:
        return ", ".join(f"{t} ({kind})" for t, kind in sorted(self._types.items())) or "nothing"

    # --- transforms --------------------------------------------------------------------------

    def _transforms(self) -> TransformTree:
        """Every transform recorded."""
        tree = TransformTree()
        topics = [topic for topic in ("/tf", "/tf_static") if self._types.get(topic) == TF]
        for topic, recorded_ns, message in self._read(topics) if topics else ():
            for item in message.transforms:
                move, turn = item.transform.translation, item.transform.rotation
                T = rigid_transform((move.x, move.y, move.z), (turn.x, turn.y, turn.z, turn.w))
                stamp = messages.stamp_ns(item.header.stamp) or recorded_ns
                moving = topic == "/tf"
                tree.add(item.header.frame_id, item.child_frame_id, T, stamp if moving else None)
        return tree

    def _look_up(self, target: str, source: str, stamp_ns: int) -> NDArray[np.float64]:
        try:
            return self._tree.look_up(target, source, stamp_ns)
        except TransformError as error:
            cure = (
                "leave --world-frame out, or record its TF too"
                if self.world_frame in (target, source)
                else "give the extrinsics with --t-camera-lidar"
            )
            raise BagError(f"{self.path}, its TF: {error}: {cure}.") from None


def _same_camera(info_topic: str, image_topic: str) -> bool:
    """/a/camera_info belongs to /a/image_raw and to /a/image_raw/compressed."""
    namespace = info_topic.rpartition("/")[0]
    return image_topic.startswith(f"{namespace}/")


def _open(path: Path) -> Any:
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise BagError("Reading a bag needs rosbags: pip install rosbags.") from None
    if path.suffix == ".bag":
        raise BagError(
            f"{path} is a ROS 1 bag: convert it with `rosbags-convert --src {path} --dst NEW`."
        )
    try:
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
        reader.open()
    except (AnyReaderError, FileNotFoundError) as error:
        reason = str(error).rstrip(".")
        cure = (
            "write it again without compression, `ros2 bag convert` does that"
            if "ompress" in reason
            else "check the path, or repair it with `ros2 bag reindex`"
        )
        raise BagError(f"{path} cannot be opened as a rosbag2 ({reason}): {cure}.") from None
    except Exception as error:  # rosbags lets errors of SQLite and of lz4 through as they are
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BagError(
            f"{path} cannot be opened as a rosbag2 ({reason}): is the file whole?"
        ) from None
    return reader


class BagFrames:
    """The images of an opened bag; a share of the LiDAR points is left out for scoring."""

    def __init__(self, bag: Bag, sampling: Sampling, pipeline: DepthPipeline) -> None:
        if sampling.points or sampling.lines:
            raise FrameError("--points and --lines are for folders of frames: use --hold-out.")
        self.bag = bag
        self.sampling = sampling
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.bag)

    def __iter__(self) -> Iterator[ScoredFrame]:
        sampling, projection = self.sampling, self.pipeline.config.projection
        for number, frame in enumerate(self.bag.frames()):
            points, age_s = frame.points, np.asarray(frame.age_s)
            assert points is not None and frame.T_camera_lidar is not None
            rng = np.random.default_rng([sampling.seed, number])
            used = measured_points(len(points), sampling.hold_out, rng)
            truth = scored = None
            if sampling.hold_out > 0 and len(points):
                left_out = np.ones(len(points), dtype=bool)
                left_out[used] = False
                size = frame.image.shape[:2]
                view = (frame.T_camera_lidar, frame.camera, projection)
                truth = project_points(points[left_out], *view).to_map(*size)
                measured = project_points(points[used], *view).to_map(*size)
                scored = np.isfinite(truth) & ~np.isfinite(measured)
            observed = dataclasses.replace(frame, points=points[used], age_s=age_s[used])
            name = f"{number:05d}_{frame.stamp_ns}"
            yield ScoredFrame(self.bag.path.stem, name, observed, truth, scored)
