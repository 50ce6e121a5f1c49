# SPDX-License-Identifier: Apache-2.0
"""Video clips, read from folders as they are published: KITTI raw, ScanNet, TUM RGB-D.

ScanNet is read as its own tool exports it. Frames are (H, W, 3) uint8 RGB, K (3, 3) in pixels with
centres at integers, T_world_camera (4, 4) in metres, depth (H, W) float32 m with NaN where unknown.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import rigid_transform
from depth_node.sentences import one_line
from training.data.files import read_counts, read_image, reading
from training.data.samples import F32, F64, U8, DataError

EARTH_RADIUS_M = 6_378_137.0
KITTI_CAMERA = "02"  # the left colour camera
# The calibration that TUM RGB-D publishes for its three cameras: fx, fy, cx, cy.
TUM_CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}


@dataclass(frozen=True)
class View:
    """One frame of a clip: image, K, pose (None: unknown) and depth (None: unknown)."""

    image: U8
    K: F64
    T_world_camera: F64 | None
    depth: F32 | None


class Clip(ABC):
    """Frames of one moving camera, in order."""

    name: str

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of frames."""

    @abstractmethod
    def view(self, index: int, height: int, width: int) -> View:
        """Return a frame, resized to (height, width)."""

    def usable(self, index: int) -> bool:
        """Return whether the frame may be part of a triplet (some are recorded without a pose)."""
        return True


@dataclass
class Recording(Clip):
    """Frames on disk. poses None: all unknown; a depth None: that frame has no depth file."""

    name: str
    images: list[Path]
    K: F64
    poses: list[F64] | None
    depths: list[Path | None]
    units_per_m: float
    """Stored value of a depth of 1 m; a stored 0 means unknown"""

    def __len__(self) -> int:
        return len(self.images)

    def usable(self, index: int) -> bool:
        """Return whether the pose is finite; True if the clip has no poses."""
        return self.poses is None or bool(np.isfinite(self.poses[index]).all())

    def view(self, index: int, height: int, width: int) -> View:
        """Return a frame, resized to (height, width). Raises DataError for an unreadable file."""
        image = read_image(self.images[index])
        rows, columns = image.shape[:2]
        camera = Camera.from_matrix(self.K, width=columns, height=rows).resized(width, height)
        shrinks = height <= rows and width <= columns
        small = cv2.resize(
            image,
            (width, height),
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
        return View(
            np.asarray(small, np.uint8),
            camera.matrix,
            None if self.poses is None else self.poses[index],
            self._depth(index, height, width),
        )

    def _depth(self, index: int, height: int, width: int) -> F32 | None:
        path = self.depths[index]
        if path is None:
            return None
        stored = read_counts(path)
        if stored.ndim != 2 or stored.dtype != np.uint16:
            raise DataError(
                f"{path} is {stored.dtype} of shape {stored.shape}: depth must be a PNG of one"
                " 16 bit channel."
            )
        near = cv2.resize(stored, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        metres = near.astype(np.float32) / np.float32(self.units_per_m)
        metres[near == 0] = np.nan
        return metres


def _numbers(path: Path, content: str) -> F64:
    """Read a text file of numbers with rows of equal length, as (rows, columns).

    content: what the file holds, for the error message. Raises DataError if it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path} with the {content} is missing: copy it from the data set.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file, which is an error here
            numbers = np.loadtxt(path, dtype=np.float64, ndmin=2, comments="#")
        if not numbers.size:
            raise ValueError("it holds no numbers")
        return numbers
    except Exception as error:  # numpy's readers raise more than ValueError
        raise DataError(
            f"{path} with the {content} cannot be read ({one_line(error)}): copy it again."
        ) from error


def kitti(folder: Path, need_poses: bool) -> list[Recording]:
    """Open KITTI raw: <date>/<date>_drive_<n>_sync/image_02/data and <date>/calib_cam_to_cam.txt.

    Poses come from oxts/data and calib_{imu_to_velo,velo_to_cam}.txt, depth from
    proj_depth/groundtruth/image_02 where it exists. folder: that of the data set, of a date or of a
    drive. Raises DataError for missing or unreadable files.
    """
    data = sorted(folder.glob(f"**/image_{KITTI_CAMERA}/data"))
    if not data:
        raise DataError(
            f"{folder} holds no image_{KITTI_CAMERA}/data: give the folder of KITTI's raw data, of"
            " a date or of a drive."
        )
    recordings = []
    for image_folder in data:
        drive = image_folder.parent.parent
        calibration = _kitti_calibration(drive.parent / "calib_cam_to_cam.txt")
        if f"P_rect_{KITTI_CAMERA}" not in calibration:
            raise DataError(
                f"{drive.parent / 'calib_cam_to_cam.txt'} has no P_rect_{KITTI_CAMERA}: without the"
                " intrinsics of that camera its frames cannot be warped."
            )
        with reading(drive.parent / "calib_cam_to_cam.txt"):
            projection = calibration[f"P_rect_{KITTI_CAMERA}"].reshape(3, 4)
        images = sorted(image_folder.glob("*.png")) or sorted(image_folder.glob("*.jpg"))
        truth = drive / "proj_depth" / "groundtruth" / f"image_{KITTI_CAMERA}"
        depths = [truth / f"{image.stem}.png" for image in images]
        poses = _kitti_poses(drive, images, calibration, projection) if need_poses else None
        recordings.append(
            Recording(
                drive.name,
                images,
                projection[:, :3],
                poses,
                [path if path.is_file() else None for path in depths],
                256.0,
            )
        )
    return recordings


def _kitti_calibration(path: Path) -> dict[str, F64]:
    """Read the rows `name: numbers` of a calibration file."""
    if not path.is_file():
        raise DataError(f"{path} with the calibration is missing: copy it from KITTI's raw data.")
    rows = {}
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        name, _, text = line.partition(":")
        try:
            rows[name.strip()] = np.array(text.split(), np.float64)
        except ValueError:
            continue  # a row of text, such as calib_time
    return rows


def _kitti_rigid(path: Path) -> F64:
    """Read R and T of a calibration file as one transform (4, 4)."""
    rows = _kitti_calibration(path)
    if not {"R", "T"} <= rows.keys():
        raise DataError(f"{path} lacks R or T: copy it from KITTI's raw data.")
    matrix = np.eye(4)
    with reading(path):
        matrix[:3, :3], matrix[:3, 3] = rows["R"].reshape(3, 3), rows["T"]
    return matrix


def _kitti_poses(
    drive: Path, images: list[Path], calibration: dict[str, F64], projection: F64
) -> list[F64]:
    """Return T_world_camera of every image, from GPS and IMU on a Mercator plane (KITTI devkit)."""
    files = [drive / "oxts" / "data" / f"{image.stem}.txt" for image in images]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{missing[0]} with the pose is missing: copy oxts/ of that drive, or learn the poses"
            " (poses: network)."
        )
    rectify, shift = np.eye(4), np.eye(4)
    with reading(drive.parent / "calib_cam_to_cam.txt"):
        rectify[:3, :3] = calibration["R_rect_00"].reshape(3, 3)
        shift[0, 3] = projection[0, 3] / projection[0, 0]
    T_camera_imu = (
        shift
        @ rectify
        @ _kitti_rigid(drive.parent / "calib_velo_to_cam.txt")
        @ _kitti_rigid(drive.parent / "calib_imu_to_velo.txt")
    )
    T_imu_camera = np.linalg.inv(T_camera_imu)
    rows = [_kitti_oxts(path) for path in files]
    scale = math.cos(math.radians(float(rows[0][0])))
    return [_kitti_imu(row, scale) @ T_imu_camera for row in rows]


def _kitti_oxts(path: Path) -> F64:
    """Return the row of a file of oxts/data. Raises DataError if it has no pose."""
    row: F64 = _numbers(path, "pose")[0]
    if len(row) < 6:
        raise DataError(f"{path} has {len(row)} numbers and a pose needs 6: copy it again.")
    return row


def _kitti_imu(row: F64, scale: float) -> F64:
    """Return T_world_imu (4, 4) of a row of oxts/data.

    The row holds latitude and longitude in degrees, altitude in m, and roll, pitch and yaw in rad.
    scale: the cosine of the first frame's latitude, with which the Mercator plane is in metres.
    """
    latitude, longitude, altitude, roll, pitch, yaw = row[:6]
    x = scale * EARTH_RADIUS_M * math.radians(longitude)
    y = scale * EARTH_RADIUS_M * math.log(math.tan(math.radians(90 + latitude) / 2))
    turns = np.eye(3)
    for axis, angle in ((2, yaw), (1, pitch), (0, roll)):
        vector = np.zeros(3)
        vector[axis] = angle
        turns = turns @ cv2.Rodrigues(vector)[0]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turns, (x, y, altitude)
    return matrix


def scannet(folder: Path, need_poses: bool) -> list[Recording]:
    """Open ScanNet as SensReader exports it: <scene>/{color,depth,pose,intrinsic}/, depth in mm.

    Raises DataError for missing or unreadable files.
    """
    scenes = sorted(path.parent for path in folder.glob("**/color") if path.is_dir())
    if not scenes:
        raise DataError(
            f"{folder} holds no <scene>/color: export the .sens files with SensReader and give the"
            " folder of the scenes."
        )
    recordings = []
    for scene in scenes:
        numbered = (path for path in (scene / "color").glob("*.[jp][pn]g") if path.stem.isdigit())
        images = sorted(numbered, key=lambda path: int(path.stem))
        K = _numbers(scene / "intrinsic" / "intrinsic_color.txt", "intrinsics")[:3, :3]
        if K.shape != (3, 3):
            raise DataError(
                f"{scene / 'intrinsic' / 'intrinsic_color.txt'} holds no matrix of 3x3: copy it"
                " again."
            )
        depths = [scene / "depth" / f"{image.stem}.png" for image in images]
        poses = None
        if need_poses:
            poses = [_scannet_pose(scene / "pose" / f"{image.stem}.txt") for image in images]
        recordings.append(
            Recording(
                scene.name,
                images,
                K,
                poses,
                [path if path.is_file() else None for path in depths],
                1000.0,
            )
        )
    return recordings


def _scannet_pose(path: Path) -> F64:
    """Read T_world_camera (4, 4); it is not finite where ScanNet's authors had no pose."""
    pose = _numbers(path, "pose (or set poses: network)")
    if pose.shape != (4, 4):
        rows, columns = pose.shape
        raise DataError(f"{path} holds {rows}x{columns} numbers, not a 4x4 pose: copy it again.")
    return pose


def tum(folder: Path, need_poses: bool) -> list[Recording]:
    """Open TUM RGB-D: <sequence>/{rgb,depth,groundtruth}.txt with rgb/ and depth/.

    Depth is stored as m x 5000. The intrinsics are those of a file intrinsics.txt (fx fy cx cy) in
    the sequence, or else the published ones of freiburg1, 2 or 3, as the sequence's name says.
    Raises DataError for missing or unreadable files.
    """
    lists = sorted(folder.glob("**/rgb.txt"))
    if not lists:
        raise DataError(f"{folder} holds no <sequence>/rgb.txt: give the folder of TUM sequences.")
    recordings = []
    for file in lists:
        sequence = file.parent
        stamps, images = _tum_list(file)
        depth_stamps, depth_files = (
            _tum_list(sequence / "depth.txt")
            if (sequence / "depth.txt").is_file()
            else (np.empty(0), [])
        )
        depths: list[Path | None] = []
        for stamp in stamps:
            k = _nearest(depth_stamps, float(stamp), 0.02)
            depths.append(None if k is None else depth_files[k])
        poses = _tum_poses(sequence / "groundtruth.txt", stamps) if need_poses else None
        recordings.append(
            Recording(sequence.name, images, _tum_intrinsics(sequence), poses, depths, 5000.0)
        )
    return recordings


def _tum_intrinsics(sequence: Path) -> F64:
    own = sequence / "intrinsics.txt"
    if own.is_file():
        values = _numbers(own, "intrinsics").ravel()
        if len(values) != 4:
            raise DataError(f"{own} has {len(values)} numbers: write fx fy cx cy.")
        fx, fy, cx, cy = (float(value) for value in values)
    else:
        known = next((name for name in TUM_CAMERAS if name in sequence.name), None)
        if known is None:
            raise DataError(
                f"The intrinsics of {sequence} are missing: its name has none of"
                f" {', '.join(TUM_CAMERAS)}, so write fx fy cx cy into {own}."
            )
        fx, fy, cx, cy = TUM_CAMERAS[known]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _tum_list(path: Path) -> tuple[F64, list[Path]]:
    """Read the stamps (s) and files of rgb.txt or depth.txt."""
    with reading(path):
        text = path.read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        stamps = np.array([float(row[0]) for row in rows])
        return stamps, [path.parent / row[1] for row in rows]
    except (ValueError, IndexError) as error:
        raise DataError(f"{path} must have rows `stamp file` ({error}).") from error


def _tum_poses(path: Path, stamps: F64) -> list[F64]:
    """Return T_world_camera (4, 4) at each stamp; NaN if none was measured within 20 ms."""
    rows = _numbers(path, "poses (or set poses: network)")
    if rows.shape[1] != 8:
        raise DataError(f"{path} has {rows.shape[1]} columns: it needs stamp tx ty tz qx qy qz qw.")
    nearest = [_nearest(rows[:, 0], float(stamp), 0.02) for stamp in stamps]
    unknown: F64 = np.full((4, 4), np.nan)
    with reading(path):  # a row may hold no valid quaternion
        return [
            unknown if k is None else rigid_transform(rows[k, 1:4], rows[k, 4:]) for k in nearest
        ]


def _nearest(stamps: F64, stamp: float, tolerance_s: float) -> int | None:
    if not len(stamps):
        return None
    k = int(np.abs(stamps - stamp).argmin())
    return k if abs(stamps[k] - stamp) <= tolerance_s else None


READERS: dict[str, Callable[[Path, bool], list[Recording]]] = {
    "kitti": kitti,
    "scannet": scannet,
    "tum": tum,
}
