# SPDX-License-Identifier: Apache-2.0
"""Results of a replay as a rosbag2 (MCAP) with the topics, stamps and frames of the live node.

It is written message by message, in bounded memory, beside the final name, and renamed when it is
complete. The file contains the definition of every message type, so Foxglove, PlotJuggler and `ros2
bag` read it without this package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from std_msgs.msg import Header

from depth_node.calibration.monitor import Verdict
from depth_node.monitor import Monitor, Situation
from depth_node.pipeline import DepthResult
from depth_node.recordings.files import FrameError, UnfinishedFile, reason_of
from depth_node.recordings.sources import ScoredFrame
from depth_node.ros import messages
from depth_node.ros.outputs.results import (
    CAMERA_INFO,
    CONFIDENCE,
    DIAGNOSTICS,
    EXTRINSICS,
    FIT,
    OBSTACLE_SCAN,
    OBSTACLES,
    POINTS,
    REJECTED,
    depth_topic,
    diagnostics_message,
    extrinsics_report,
    frame_record,
    message_makers,
    pose_message,
)
from depth_node.ros.transforms.ground import Ground, ObstacleView

NODE = "/depth_node"
FRAME_PERIOD_NS = 100_000_000
"""Interval of the stamps given to frames without stamps."""
WRITTEN = (CAMERA_INFO, CONFIDENCE, POINTS, FIT, REJECTED, OBSTACLES, OBSTACLE_SCAN)
"""Topics that are written for every image, besides its depth and the diagnostics; obstacles if the
ground is known."""


@dataclass(frozen=True)
class BagConfig:
    """The values of the node's parameters of these names in the bag."""

    depth_encoding: str = "32FC1"
    points_decimation: int = 2


class ResultBag:
    """A bag to which results are added one by one; a context manager.

    A path that ends in .mcap gives one file, another path a folder with metadata.yaml. After an
    exception, or without a result, nothing is kept. Raises FrameError if the path exists already or
    cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: BagConfig | None = None,
        hardware_id: str = "",
        ground: Ground | None = None,
    ) -> None:
        """ground: finds the obstacles; without it none are written."""
        self.path = path
        self._ground = ground
        self._proposed: dict[str, Verdict] = {}
        self._config = config or BagConfig()
        self._hardware_id = hardware_id
        self._monitor = Monitor()
        self._connections: dict[str, Any] = {}
        self._count = 0
        self._file = UnfinishedFile(path, "--out-bag")

    def __enter__(self) -> ResultBag:
        try:
            from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
            from rosbags.typesys import Stores, get_typestore
        except ImportError:
            raise FrameError("Writing a bag needs rosbags: pip install rosbags.") from None
        self._store = get_typestore(Stores.ROS2_JAZZY)
        self._part = self._file.__enter__() / self.path.name.removesuffix(".mcap")
        self._writer = Writer(self._part, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        made: Path | None = None
        try:
            if kind is None and self._count:
                self._writer.close()
                one_file = self.path.suffix == ".mcap"
                made = self._part / f"{self._part.name}.mcap" if one_file else self._part
            else:
                with contextlib.suppress(Exception):
                    self._writer.abort()
        finally:
            self._file.finish(made)

    def add(self, frame: ScoredFrame, result: DepthResult, verdicts: Mapping[str, Verdict]) -> None:
        """Write the messages of a result, with the stamp, frame and recording time of its image.

        verdicts: on the extrinsics of each LiDAR; new ones are written to ~/extrinsics. Raises
        FrameError if the disk is full.
        """
        observed = frame.input
        stamp_ns = observed.stamp_ns
        if stamp_ns is None:
            stamp_ns = (self._count + 1) * FRAME_PERIOD_NS
        origin = observed.origin
        recorded_ns = stamp_ns if origin.recorded_ns is None else origin.recorded_ns
        header = Header(frame_id=origin.frame_id or "camera")
        header.stamp = messages.time_of(stamp_ns)
        camera, frame_id, ground = observed.camera, header.frame_id, self._ground

        def obstacle_view() -> ObstacleView | None:
            return None if ground is None else ground.view(result, camera, frame_id, stamp_ns)

        make = message_makers(result, observed.image, camera, header, self._config, obstacle_view)
        try:
            for topic in (depth_topic(camera), *WRITTEN):
                self._write(topic, recorded_ns, make[topic]())
            for name, verdict in verdicts.items():
                if verdict is not self._proposed.get(name) and verdict.T_camera_lidar is not None:
                    self._write(EXTRINSICS, recorded_ns, pose_message(verdict, header))
            self._proposed = dict(verdicts)
            diagnostics = self._diagnostics(header, recorded_ns, result, verdicts)
            self._write(DIAGNOSTICS, recorded_ns, diagnostics)
        except OSError as error:
            raise FrameError(
                f"{self.path} cannot be written on ({reason_of(error)}): free some space."
            ) from None
        self._count += 1

    def _diagnostics(
        self,
        header: Header,
        recorded_ns: int,
        result: DepthResult,
        verdicts: Mapping[str, Verdict],
    ) -> Any:
        """Return the monitor's report by the clock of the recording; latencies are the replay's."""
        now_s = recorded_ns * 1e-9
        self._monitor.image(now_s)
        trouble = result.message if result.fit.status == 0 else result.fit.message
        record = frame_record(
            result, node_ms=result.stage_ms["total"], stage_ms=result.stage_ms, trouble=trouble
        )
        self._monitor.published(now_s, record)
        lines, misplaced = extrinsics_report(verdicts)
        situation = Situation(
            backend="replay", image_topic="image", extrinsics=lines, misplaced=misplaced
        )
        report = self._monitor.report(now_s, situation)
        message = diagnostics_message(report, NODE, self._hardware_id)
        message.header.stamp = header.stamp
        return message

    def _write(self, topic: str, recorded_ns: int, message: Any) -> None:
        if message is None:  # there is no message for this image
            return
        topic = topic.replace("~", NODE)
        kind = _type_of(message)
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store
            )
        data = self._store.serialize_cdr(self._plain(message), kind)
        self._writer.write(self._connections[topic], recorded_ns, data)

    def _plain(self, value: Any) -> Any:
        """Return a ROS message as one of `rosbags`, which needs NumPy arrays and integers."""
        if hasattr(value, "get_fields_and_field_types"):
            kind = self._store.types[_type_of(value)]
            names = value.get_fields_and_field_types()
            return kind(**{name: self._plain(getattr(value, name)) for name in names})
        if isinstance(value, bytes):  # a field of type octet
            return value[0]
        if hasattr(value, "typecode"):  # array.array, without a copy
            return np.frombuffer(value, np.dtype(value.typecode))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [self._plain(item) for item in value]
        return value


def _type_of(message: Any) -> str:
    package, folder, *_ = type(message).__module__.split(".")
    return f"{package}/{folder}/{type(message).__name__}"
