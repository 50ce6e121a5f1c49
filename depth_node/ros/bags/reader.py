# SPDX-License-Identifier: Apache-2.0
"""Recorded frames from a rosbag2 (SQLite3 or MCAP).

Messages are taken in the order of the recording, as a live node would receive them.

A message that cannot be used is left out and counted (`Bag.left_out`), the others are replayed. A
bag without any usable image raises BagError, a sentence with the cure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.frame import FrameInput, Origin
from depth_node.geometry.camera import Camera
from depth_node.geometry.point_times import BelievedTimes
from depth_node.geometry.rigid import check_rigid, invert_rigid
from depth_node.geometry.rolling_shutter import RollingShutter
from depth_node.geometry.scan_buffer import Scan, ScanBuffer
from depth_node.geometry.seen_points import Exposure, SeenPoints, SensorKind
from depth_node.geometry.sparse_depth import if_inverted, none_in_image, project_points
from depth_node.geometry.transform_tree import TransformError
from depth_node.pipeline import DepthPipeline
from depth_node.recordings.bag_files import BagError, BagFiles, RawMessage
from depth_node.recordings.files import reason_of
from depth_node.recordings.held_out import Sampling, hold_out_points
from depth_node.recordings.sources import LeftOut, ScoredFrame
from depth_node.ros import messages
from depth_node.ros.bags.topics import (
    COMPRESSED,
    KNOWN,
    TF,
    BagTopics,
    TopicChooser,
    namespace,
)
from depth_node.ros.bags.transforms import BagTransforms
from depth_node.ros.inputs.source_clock import (
    SourceClock,
    SourceKey,
    clock_sentence,
    standing_sentence,
)
from depth_node.ros.outputs.diagnostics import body_frame_hint
from depth_node.ros.transforms.extrinsics import far_apart, one_pose_for_all
from depth_node.ros.transforms.motion import CameraMotion
from depth_node.sentences import both_ends

_LARGEST_OFFSET_S = 4e9  # between a clock that counts from 1900 and the present


class _UnusableError(ValueError):
    """Why a message cannot be used. damaged: it contradicts itself; else something is missing."""

    def __init__(self, why: object, damaged: bool = True) -> None:
        super().__init__(both_ends(str(why), 600))
        self.damaged = damaged


@dataclass
class Bag:
    """A rosbag2 opened for reading; a context manager.

    Then `topics` has the topics in use, and `transforms` the TF of the whole bag. T_camera_lidar:
    overrides the bag's TF. rectified: "yes", "no" or "auto", as the node's `image_rectified`:
    whether the camera is P (an image without distortion) and not K with D. noise: of landmarks,
    depth and range, as the node's `<name>_noise`. left_out: what could not be used. The others are
    the node's parameters of these names.
    """

    path: Path
    topics: BagTopics = field(default_factory=BagTopics)
    T_camera_lidar: NDArray[np.float64] | None = None
    max_scan_age_s: float = 0.3
    scans_per_image: int = 0
    scan_wait_s: float = 0.0
    lidar_time_offset_s: float = 0.0
    rectified: str = "auto"
    world_frame: str = ""
    camera_readout_time_s: float = 0.0
    noise: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    def __enter__(self) -> Bag:
        if self.camera_readout_time_s > 0 and not self.world_frame:
            raise BagError(
                "--camera-readout-time does nothing without the camera's motion: name a frame that"
                " stands still with --world-frame."
            )
        self._check_settings()
        self._store = _type_store()
        self._files = BagFiles(self.path, KNOWN)
        self._files.__enter__()
        try:
            self._types = self._files.topics
            self.topics = TopicChooser(self.path, self._types).choose(self.topics)
            self._info_frame = ""
            self._depth_bits = messages.BitDepth()
            self._frames_fit = False  # points have been in an image
            self.transforms = BagTransforms(self.left_out)
            self._read_transforms()
        except BaseException:
            self._files.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def _check_settings(self) -> None:
        """Raise BagError for an invalid setting, by the name of its option."""
        from_0 = {
            "--max-scan-age": self.max_scan_age_s,
            "--scans-per-image": self.scans_per_image,
            "--scan-wait": self.scan_wait_s,
            "--camera-readout-time": self.camera_readout_time_s,
            **{f"--{name}-noise": share for name, share in self.noise.items()},
        }
        for name, value in from_0.items():
            if not 0 <= value < np.inf or (name == "--max-scan-age" and value == 0):
                least = "above" if name == "--max-scan-age" else "from"
                raise BagError(f"{name} is {value:g}: give a number {least} 0.")
        if not abs(self.lidar_time_offset_s) < _LARGEST_OFFSET_S:
            raise BagError(f"--lidar-time-offset is {self.lidar_time_offset_s:g}: give seconds.")
        if self.T_camera_lidar is not None:
            try:
                check_rigid(self.T_camera_lidar, "--t-camera-lidar")
            except ValueError as error:
                raise BagError(f"{error}.") from None

    def __len__(self) -> int:
        """Return the number of images in the bag."""
        return self._files.counts[self.topics.image]

    def frames(self) -> Iterator[FrameInput]:
        """Yield every image with the scans that a live node would have had for it.

        Images before the first calibration get that one. Raises BagError if no image can be used.
        """
        scans = ScanBuffer(self.max_scan_age_s)
        camera = self._first_camera()
        sources: dict[SourceKey, SourceClock] = {}  # of sources with scans
        times: dict[SourceKey, BelievedTimes] = {}
        waiting: list[tuple[int, int, Any]] = []  # (recorded, stamp, image), oldest first
        given = 0
        names = [name for name in vars(self.topics).values() if name]
        for topic, recorded_ns, message in self._read(names):
            stamp = messages.stamp_ns(message.header.stamp) or recorded_ns
            try:
                if topic == self.topics.camera_info:
                    camera = self._camera(message)
                elif topic == self.topics.image:
                    waiting.append((recorded_ns, stamp, message))
                else:
                    scan = self._scan(topic, message, camera)
                    source = (topic, message.header.frame_id)
                    if messages.stamp_ns(message.header.stamp) and topic != self.topics.depth:
                        stamp += round(self.lidar_time_offset_s * 1e9)
                    clock = sources.setdefault(source, SourceClock())
                    if clock.scan(stamp, recorded_ns * 1e-9):
                        scans.forget(source)
                        self.left_out.warn(standing_sentence(source[1]))
                    believed = times.setdefault(source, BelievedTimes())
                    offset_s = believed.of(stamp, scan.offset_s, scan.unknown_times)
                    scans.add(stamp, scan.points, source, offset_s, scan.noise_m)
            except _UnusableError as error:
                self._leave_out(topic, error)
            newest = scans.newest_stamp_ns()
            while waiting:
                scan_is_there = newest is not None and newest >= waiting[0][1]
                if not scan_is_there and recorded_ns < waiting[0][0] + self.scan_wait_s * 1e9:
                    break
                for frame in self._frame_input(*waiting.pop(0), camera, scans, sources):
                    given += 1
                    yield frame
        for recorded_ns, stamp, message in waiting:
            for frame in self._frame_input(recorded_ns, stamp, message, camera, scans, sources):
                given += 1
                yield frame
        for sentence, count in self._files.damage.counted():
            self.left_out.add(sentence, count=count)
        if not given:
            first = self.left_out.first() or f"{self.topics.image} has no message"
            raise BagError(f"{self.path}: no image can be used: {first}")

    def _leave_out(self, topic: str, error: _UnusableError) -> None:
        what = {self.topics.image: "images", self.topics.camera_info: "calibrations"}
        self.left_out.add(f"{topic}: {error}", kind=what.get(topic, "scans"), damaged=error.damaged)

    def _first_camera(self) -> Camera:
        """Return the first calibration of the bag that can be used. Raises BagError."""
        first = ""
        counts = Counter(
            self._files.damage.counts
        )  # frames() reads and counts these messages again
        for _, _, message in self._read([self.topics.camera_info], count=False):
            try:
                camera = self._camera(message, count=False)
            except _UnusableError as error:
                first = first or str(error)
                continue
            self._files.damage.counts = counts
            return camera
        if first:
            raise BagError(f"{self.path}: {self.topics.camera_info}: {first}")
        raise BagError(
            f"{self.path}: {self.topics.camera_info} has no message that can be read, so none of"
            f" {len(self)} images can be used: record it too, or name another --camera-info-topic."
        )

    def _frame_input(
        self,
        recorded_ns: int,
        stamp: int,
        message: Any,
        camera: Camera,
        scans: ScanBuffer,
        sources: Mapping[SourceKey, SourceClock],
    ) -> Iterator[FrameInput]:
        """Yield the observation, or nothing if the image is left out."""
        try:
            for clock in sources.values():
                clock.image(stamp, recorded_ns * 1e-9)
            frame = self._observation(stamp, message, camera, scans, sources)
            origin = Origin(message.header.frame_id, recorded_ns)
            yield dataclasses.replace(frame, origin=origin)
        except _UnusableError as error:
            self._leave_out(self.topics.image, error)

    def _image(self, message: Any, camera: Camera) -> NDArray[np.uint8]:
        size = (camera.width, camera.height)
        try:
            if self._types[self.topics.image] == COMPRESSED:
                if "compressedDepth" in message.format:
                    raise _UnusableError(
                        "it is a depth image: name the camera's with --image-topic"
                    )
                return messages.compressed_to_rgb(message, self._depth_bits, size)
            if message.height:
                messages.check_size(message.width, message.height, size)
            image = messages.image_to_rgb(message, self._depth_bits)
            messages.check_size(image.shape[1], image.shape[0], size)
            return image
        except messages.OtherSizeError as error:
            raise _UnusableError(self._other_size(error, camera)) from None
        except _UnusableError:
            raise
        except (Exception, MemoryError) as error:
            why = error if isinstance(error, ValueError) else reason_of(error)
            raise _UnusableError(why) from None

    def _other_size(self, found: messages.OtherSizeError, camera: Camera) -> str:
        return (
            f"{self.topics.image} is {found.width}x{found.height} but {self.topics.camera_info}"
            f" {camera.width}x{camera.height} by its size, binning and roi:"
            " name the camera_info that belongs to the image with --camera-info-topic."
        )

    def _observation(
        self,
        stamp: int,
        message: Any,
        camera: Camera,
        scans: ScanBuffer,
        sources: Mapping[SourceKey, SourceClock],
    ) -> FrameInput:
        image = self._image(message, camera)
        camera_frame = message.header.frame_id
        if doubt := messages.other_camera(self._info_frame, camera_frame):
            self.left_out.warn(doubt)
        lidars = [key for key in sources if self._kind(key) is not SensorKind.DEPTH_IMAGE]
        frames = sorted({frame for _, frame in lidars})
        if self.T_camera_lidar is not None and len(frames) > 1:
            cure = "leave --t-camera-lidar out and let TF tell each"
            self.left_out.warn(one_pose_for_all(frames, cure))
        since = self._motion(camera_frame, stamp) if self.world_frame else None
        readout_s = self.camera_readout_time_s
        shutter = RollingShutter(camera, readout_s) if readout_s > 0 else None
        seen = SeenPoints(Exposure(stamp, since, shutter))
        lost: dict[str, tuple[str, bool]] = {}  # frame -> why its pose is unknown
        for key in sorted(sources):
            kind = self._kind(key)
            limit = seen.exposure.most_scans(kind, self.scans_per_image)
            chosen = scans.nearest(stamp, key, limit)
            if self._clock_differs(key, kind, sources[key], chosen) or not chosen:
                continue
            try:
                T = self._pose(kind, camera_frame, key[1], stamp)
            except _UnusableError as error:
                lost[key[1]] = str(error), error.damaged
                continue
            if doubt := far_apart(T, messages.brief(key[1])):
                self.left_out.warn(doubt)
            for scan in chosen:
                try:
                    placed = seen.exposure.by_rows(seen.exposure.moved(scan, T), kind)
                except TransformError as error:
                    raise self._no_transform(error, self.world_frame, camera_frame) from None
                share, nearest = self._noise.get(key[0], 0.0), scan.stamp_ns == chosen[0].stamp_ns
                seen.add(scan, placed, T, "/".join(key), kind, share, nearest)
        for frame, (why, damaged) in lost.items():
            if not seen:
                raise _UnusableError(why, damaged)
            self.left_out.add(why, kind=f"scans of {both_ends(frame, 100)}", damaged=damaged)
        pose = None
        if self.world_frame:
            pose = self._look_up(self.world_frame, camera_frame, stamp)
            if doubt := CameraMotion(self.world_frame, self.transforms, 0.0).doubt(camera_frame):
                self.left_out.warn(doubt)
        points, T_camera_lidar, age_s, noise_m = seen.joined()
        self._look_at_frames(points, T_camera_lidar, camera, camera_frame)
        return FrameInput(
            image, camera, points, T_camera_lidar, age_s, stamp, pose, noise_m=noise_m,
            sources=tuple(seen.sources), echoes=tuple(seen.echoes),
        )  # fmt: skip

    def _kind(self, key: SourceKey) -> SensorKind:
        if key[0] == self.topics.depth:
            return SensorKind.DEPTH_IMAGE
        return SensorKind.RANGE if key[0] == self.topics.range else SensorKind.LIDAR

    def _clock_differs(
        self, key: SourceKey, kind: SensorKind, clock: SourceClock, scans: Sequence[Scan]
    ) -> bool:
        """Return whether scans are not used because of their clock; they count as left out."""
        offset_s = clock.offset_s()
        if offset_s is None or not SourceClock.refuses(offset_s, len(scans)):
            return False
        setting = "" if kind is SensorKind.DEPTH_IMAGE else "give --lidar-time-offset"
        self.left_out.add(
            clock_sentence(key[1], offset_s, self.lidar_time_offset_s, setting),
            kind=f"scans of {both_ends(key[0], 100)}",
            damaged=False,
        )
        return True

    def _look_at_frames(
        self,
        points: NDArray[np.floating],
        T_camera_lidar: NDArray[np.float64],
        camera: Camera,
        camera_frame: str,
    ) -> None:
        """Warn if the points miss the image as if a frame had other axes, until some are in it."""
        if not self._frames_fit and len(points):
            sparse = project_points(points, T_camera_lidar, camera)
            used = len(sparse)
            hint = body_frame_hint(points, T_camera_lidar, camera, used, camera_frame)
            self._frames_fit = not hint and used > 0
            if not used:
                hint = hint or (
                    none_in_image(sparse.counts) + if_inverted(points, T_camera_lidar, camera)
                )
            if hint:
                self.left_out.add(hint, kind="scans beside the image", damaged=False)

    @functools.cached_property
    def _noise(self) -> dict[str, float]:
        """Return topic -> stated standard deviation of its points, relative to their distance."""
        named = vars(self.topics)
        return {named[name]: share for name, share in self.noise.items() if named[name]}

    def _motion(self, camera_frame: str, now_ns: int) -> Callable[[int], NDArray[np.float64]]:
        """Return a function of a time in ns that gives T_now_then (4, 4) of the camera.

        The function raises TransformError.
        """
        now = invert_rigid(self._look_up(self.world_frame, camera_frame, now_ns))

        def since(then_ns: int) -> NDArray[np.float64]:
            if then_ns == now_ns:
                return np.eye(4)
            return now @ self.transforms.tree.look_up(self.world_frame, camera_frame, then_ns)

        return since

    def _pose(
        self, kind: SensorKind, camera_frame: str, frame: str, stamp_ns: int
    ) -> NDArray[np.float64]:
        """Return T_camera_source (4, 4). Raises _UnusableError if it is unknown."""
        if kind is SensorKind.DEPTH_IMAGE:
            if frame.lstrip("/") != camera_frame.lstrip("/"):
                raise _UnusableError(messages.not_registered(frame, camera_frame), damaged=False)
            return np.eye(4)
        if self.T_camera_lidar is not None:
            return check_rigid(self.T_camera_lidar, "T_camera_lidar")
        return self._look_up(camera_frame, frame, stamp_ns)

    def _read(self, names: Iterable[str], count: bool = True) -> Iterator[tuple[str, int, Any]]:
        """Yield (topic, time of recording in ns, message) in the order of the recording."""
        for raw in self._files.messages(names):
            if raw.kind != self._types[raw.topic]:
                continue  # two types on one topic
            try:
                yield raw.topic, raw.recorded_ns, self._deserialized(raw)
            except _UnusableError as error:
                if count:
                    self._leave_out(raw.topic, error)

    def _deserialized(self, raw: RawMessage) -> Any:
        try:
            return self._store.deserialize_cdr(raw.data, raw.kind)
        except (Exception, RecursionError, MemoryError) as error:
            raise _UnusableError(
                f"a message of {len(raw.data)} bytes is no {raw.kind} ({reason_of(error)})"
            ) from None

    def _camera(self, message: Any, count: bool = True) -> Camera:
        try:
            with np.errstate(all="ignore"):
                rectified = messages.is_rectified(self.topics.image, message, self.rectified)
                camera: Camera = messages.camera_of(message, rectified)
                doubts = [
                    messages.calibration_warning(message, rectified),
                    messages.rectified_doubt(self.topics.image, message, self.rectified),
                ]
        except (Exception, MemoryError) as error:
            raise _UnusableError(error) from None
        self._info_frame = message.header.frame_id
        for doubt in doubts if count else ():
            if doubt:
                self.left_out.warn(doubt)
        return camera

    def _scan(self, topic: str, message: Any, camera: Camera) -> messages.LidarScan:
        try:
            with np.errstate(all="ignore"):
                if topic == self.topics.depth:
                    scan: messages.LidarScan = messages.depth_image_scan(message, camera)
                elif topic == self.topics.range:
                    scan = messages.range_scan(message)
                else:
                    scan = messages.lidar_scan(message)
        except (Exception, MemoryError) as error:
            raise _UnusableError(error) from None
        if scan.doubt:
            self.left_out.warn(f"{topic}: {scan.doubt}")
        if scan.unknown_times and self.world_frame:
            why = f"{topic}: the points count as measured at the scan's stamp: {scan.unknown_times}"
            self.left_out.add(why, kind=f"times of points of {topic}", damaged=False)
        return scan

    def _read_transforms(self) -> None:
        """Read all TF topics.

        If several robots have frames of the same names, only those of the image's namespace are
        read.
        """
        topics = sorted(topic for topic, kind in self._types.items() if kind == TF)
        ours = [topic for topic in topics if self.topics.image.startswith(namespace(topic))]
        for chosen in (ours, [topic for topic in topics if topic not in ours]):
            if chosen:
                self.transforms.add(self._read(chosen))

    def _look_up(self, target: str, source: str, stamp_ns: int) -> NDArray[np.float64]:
        try:
            return self.transforms.tree.look_up(target, source, stamp_ns)
        except TransformError as error:
            raise self._no_transform(error, target, source) from None

    def _no_transform(self, error: TransformError, target: str, source: str) -> _UnusableError:
        bad = ", ".join(both_ends(frame, 60) for frame in sorted(self.transforms.skipped)[:5])
        hint = f" (transforms of {bad} were skipped, as they cannot be)" if bad else ""
        cure = (
            "leave --world-frame out, or record its TF too"
            if self.world_frame and self.world_frame in (target, source)
            else "give the extrinsics with --t-camera-lidar"
        )
        return _UnusableError(f"its TF: {error}{hint}: {cure}.", damaged=False)


@functools.cache
def _type_store() -> Any:
    """Return the types with which `rosbags` decodes CDR: those of ROS itself.

    Definitions in the bag are not needed, and types foreign to this package are not read.
    """
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise BagError("Reading a bag needs rosbags: pip install rosbags.") from None
    return get_typestore(Stores.ROS2_JAZZY)


class BagFrames:
    """The images of an opened bag; some of the LiDAR points are held out for scoring."""

    def __init__(self, bag: Bag, sampling: Sampling, pipeline: DepthPipeline) -> None:
        self.bag = bag
        self.sampling = sampling
        self.pipeline = pipeline

    def __len__(self) -> int:
        return len(self.bag)

    @property
    def left_out(self) -> LeftOut:
        """What in the bag could not be used."""
        return self.bag.left_out

    def __iter__(self) -> Iterator[ScoredFrame]:
        for number, frame in enumerate(self.bag.frames()):
            rng = np.random.default_rng([self.sampling.seed, number])
            projection = self.pipeline.config.projection
            observed, truth, scored = hold_out_points(frame, self.sampling, projection, rng)
            name = f"{number:05d}_{frame.stamp_ns}"
            yield ScoredFrame(self.bag.path.stem, name, observed, truth, scored)
