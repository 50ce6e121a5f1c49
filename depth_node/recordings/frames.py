# SPDX-License-Identifier: Apache-2.0
"""Recorded frames on disk: an image with its calibration, depth, LiDAR, regions and predictions.

A frame is a folder, a source is a folder of frames::

    <source>/<frame>/rgb.jpg              or rgb.png
                     intrinsics.json      {fx, fy, cx, cy, width, height[, model, distortion]}
                     depth.png            uint16 millimetres, 0 = unknown
                     or depth.npz         key `depth`: float metres, 0 or non-finite = unknown
                     lidar.npy            (N, 3) float metres, LiDAR frame; with
                     calib.json           {T_cam_lidar: 4x4}, p_camera = T @ p_lidar
                     segmentation_*.png   ids of masks, 0 = none; of several the first by name
                     prediction_NAME.npz  keys `prediction` (H, W) float, `kind`

Only the image and the intrinsics are required. A file that cannot be used raises FrameError, a
sentence that names the file and the cure.

This module also decides which of the known pixels are measured and which are scored (split_uniform,
split_lines), so that a replay and a benchmark of the same frame and seed use the same points.
"""

from __future__ import annotations

import math
import os
import reprlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import check_rigid
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.recordings.arrays import read_npy, read_npz
from depth_node.recordings.files import FrameError, read_json, read_regular, reason_of
from depth_node.recordings.images import checked_image, decode_image, read_image
from depth_node.regions.label_maps import Labels, labels_from_ids

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FILES = tuple(f"rgb{suffix}" for suffix in IMAGE_SUFFIXES[:3])  # names in a recorded frame
LINE_BAND_PX = 3  # rows that one simulated LiDAR line covers
MOST_POINTS = 20_000_000  # in one LiDAR file
_BAG_FILES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd", ".mcap.zst", ".db3.zst")

__all__ = [
    "FrameError",
    "RecordedFrame",
    "Split",
    "find_frames",
    "frame_seed",
    "is_bag",
    "read_frame",
    "read_image",
    "split_lines",
    "split_uniform",
]


@dataclass(frozen=True)
class RecordedFrame:
    """One recorded frame.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres, NaN unknown, or None without truth.
    points_lidar: (N, 3) float32 metres in the LiDAR frame, and T_camera_lidar: (4, 4); both None
    without a LiDAR. labels: (H, W) int32 regions from the stored masks, or None.
    """

    folder: Path
    image: NDArray[np.uint8]
    camera: Camera
    depth: NDArray[np.float32] | None = None
    points_lidar: NDArray[np.float32] | None = None
    T_camera_lidar: NDArray[np.float64] | None = None
    labels: Labels | None = None

    @property
    def name(self) -> str:
        """The frame's folder name."""
        return self.folder.name

    @property
    def source(self) -> str:
        """The name of the folder that holds the frame: frames of one source belong together."""
        return self.folder.parent.name

    @cached_property
    def truth(self) -> NDArray[np.float32]:
        """The depth map (H, W). Raises FrameError if the frame has none."""
        if self.depth is None:
            raise FrameError(f"{self.folder} has no depth.png or depth.npz: add one to score it.")
        return self.depth

    def prediction(self, name: str) -> Prediction:
        """Return the stored output `prediction_<name>.npz` of a network for this image.

        Raises FrameError if it is missing or cannot be used.
        """
        path = self.folder / f"prediction_{name}.npz"
        if not path.is_file():
            stored = sorted(self.folder.glob("prediction_*.npz"))
            names = ", ".join(file.stem.split("_", 1)[1] for file in stored) or "none"
            raise FrameError(f"{path} is missing: store it or use a stored name (here: {names}).")
        size = self.image.shape[:2]

        def judge_values(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
            if dtype.kind != "f" or shape != size:
                raise FrameError(
                    f"{path} holds `prediction` as {dtype} of shape {_short(shape)}: store float32"
                    f" of the image's size {size}."
                )

        def judge_kind(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
            if dtype.kind != "U" or shape or dtype.itemsize > 1000:
                raise FrameError(f"{path} holds `kind` as {dtype}: store a short text.")

        content = read_npz(path, {"prediction": judge_values, "kind": judge_kind})
        values = content["prediction"]
        try:
            return Prediction(_as_float32(values), str(content["kind"]))
        except ValueError as error:
            raise FrameError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Split:
    """Measured points and scored pixels; `scored` (H, W) bool never contains a measured pixel."""

    points: SparseDepth
    scored: NDArray[np.bool_]


def is_bag(path: Path) -> bool:
    """Return whether a path looks like a bag: a rosbag2's folder, or an .mcap, .db3 or .bag file.

    A folder without metadata.yaml (its recorder was killed) is a bag if it has .mcap or .db3 files.
    """
    if not _is_possible(path):
        return False
    # os.path, which does not raise where permissions are missing.
    if path.name.endswith((*_BAG_FILES, ".bag")) and not os.path.isdir(path):
        return True
    if os.path.isfile(path / "metadata.yaml"):
        return True
    return any(entry.name.endswith(_BAG_FILES) for entry in _visible(path) if os.path.isfile(entry))


def _is_possible(path: Path) -> bool:
    """Return whether a path can be looked up: not too long, without NUL and loops of links."""
    try:
        path.resolve().exists()
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def _resolved(path: str | Path) -> Path:
    """Return the absolute path without links. Raises FrameError if it cannot be one."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise FrameError(f"{path} cannot be opened ({reason_of(error)}): check the path.") from None


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder, sorted, without hidden ones (such as those of macOS).

    Raises FrameError if the folder cannot be read; a path that is not a folder has no entries.
    """
    try:
        if not folder.is_dir():
            return []
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise FrameError(
            f"{folder} cannot be read ({error.strerror}): check its permissions."
        ) from None


def find_frames(path: str | Path) -> list[Path]:
    """Return the frame folders of a frame, a source (folder of frames) or a folder of sources.

    Raises FrameError if there are none.
    """
    path = _resolved(path)
    if not os.path.isdir(path):
        raise FrameError(f"{path} is not a folder: give a frame, a source or a folder of sources.")
    if _is_frame(path):
        return [path]
    # os.path.isdir is False, and does not raise, where permissions are missing.
    below = [folder for folder in _visible(path) if os.path.isdir(folder)]
    frames = []
    for folder in below:
        if _is_frame(folder):
            frames.append(folder)
        else:
            frames += [inner for inner in _visible(folder) if _is_frame(inner)]
    if not frames:
        bags = [folder.name for folder in below if is_bag(folder)]
        if bags:
            raise FrameError(f"{path} holds bags ({', '.join(bags[:5])}): give one of them.")
        raise FrameError(
            f"{path} holds no frames: a frame is a folder with rgb.jpg and intrinsics.json."
        )
    return frames


def read_frame(folder: str | Path) -> RecordedFrame:
    """Read and check everything in a frame folder, except its stored predictions.

    Raises FrameError for anything that cannot be used.
    """
    folder = _resolved(folder)
    if not os.path.isdir(folder):
        raise FrameError(f"{folder} is not a folder: a frame is a folder with rgb.jpg in it.")
    image_path = next((folder / name for name in IMAGE_FILES if (folder / name).is_file()), None)
    if image_path is None:
        raise FrameError(f"{folder} has no image: add rgb.jpg or rgb.png.")
    looked_through = checked_image(read_regular(image_path), image_path)
    size = looked_through.height, looked_through.width
    camera = _read_camera(folder / "intrinsics.json", size)
    image = decode_image(looked_through, image_path)
    points_lidar, T_camera_lidar = _read_lidar(folder)
    return RecordedFrame(
        folder=folder,
        image=np.asarray(image, np.uint8),
        camera=camera,
        depth=_read_depth(folder, size),
        points_lidar=points_lidar,
        T_camera_lidar=T_camera_lidar,
        labels=_read_labels(folder, size),
    )


def frame_seed(frame: RecordedFrame, seed: int, *more: int) -> np.random.Generator:
    """Return a random generator for a frame, seed and further numbers, the same on each machine."""
    # A name that the locale C cannot decode has surrogates; its bytes are the same in every locale.
    name = f"{frame.source}/{frame.name}".encode(errors="surrogateescape")
    return np.random.default_rng([seed, zlib.crc32(name), *more])


def split_uniform(frame: RecordedFrame, points: int, seed: int) -> Split:
    """Measure `points` known pixels, drawn uniformly without replacement, and score the others.

    Raises FrameError if there are not more known pixels than that.
    """
    known = np.flatnonzero(np.isfinite(frame.truth))
    if not 0 <= points < len(known):
        raise FrameError(
            f"{frame.folder} has {len(known)} known depths, {points} cannot be measured with some "
            "left to score: ask for fewer points."
        )
    chosen = frame_seed(frame, seed, points).choice(known, points, replace=False)
    return _split(frame.truth, np.sort(chosen))


def split_lines(frame: RecordedFrame, one_of: int, seed: int) -> Split:
    """Measure one of `one_of` scan lines (bands of 3 rows) and score the others.

    Raises ValueError if one_of is below 2, FrameError if no such split leaves pixels on both sides.
    """
    if one_of < 2:
        raise ValueError(f"one line of {one_of} leaves nothing to score: use 2 or more.")
    known = np.isfinite(frame.truth)
    band = np.arange(len(known)) // LINE_BAND_PX
    # The first band is random; if its bands contain no known pixel, the next ones are tried.
    first = int(frame_seed(frame, seed, 0, one_of).integers(one_of))
    for offset in range(one_of):
        measured = (band + first + offset) % one_of == 0
        chosen = np.flatnonzero(known & measured[:, None])
        if 0 < len(chosen) < known.sum():
            return _split(frame.truth, chosen)
    raise FrameError(f"{frame.folder} knows depth on too few rows to split into lines: use points.")


def split_scan(frame: RecordedFrame, below_m: float) -> Split:
    """Measure what a level planar scanner below a level camera would hit, and score the others.

    below_m: the scanner's distance below the camera. In each column the nearest pixel at which the
    truth crosses the scanner's plane is measured. Raises FrameError if there is none.
    """
    camera = frame.camera
    height_m = camera.rays()[..., 1] * frame.truth  # positive below the camera, as y points down
    with np.errstate(invalid="ignore"):
        below = height_m >= below_m
        crosses = np.diff(below.astype(np.int8), axis=0) != 0
    crosses &= np.isfinite(height_m[1:]) & np.isfinite(height_m[:-1])
    nearest = np.where(crosses, frame.truth[1:], np.inf)
    row, col = nearest.argmin(axis=0) + 1, np.arange(frame.truth.shape[1])
    hit = np.isfinite(nearest[row - 1, col])
    if not hit.any():
        raise FrameError(
            f"{frame.folder}: nothing is {below_m:g} m below the camera: use another height."
        )
    return _split(frame.truth, np.ravel_multi_index((row[hit], col[hit]), frame.truth.shape))


def _split(truth: NDArray[np.float32], chosen: NDArray[np.intp]) -> Split:
    rows, cols = np.unravel_index(chosen, truth.shape)
    scored = np.isfinite(truth)
    scored[rows, cols] = False
    return Split(SparseDepth.from_arrays(rows, cols, truth[rows, cols]), scored)


def _is_frame(folder: Path) -> bool:
    """Return whether a folder is meant as a frame; an incomplete one is refused when it is read."""
    marks = (*IMAGE_FILES, "intrinsics.json", "depth.png", "depth.npz", "lidar.npy")
    return os.path.isdir(folder) and any(os.path.isfile(folder / name) for name in marks)


def _short(value: object) -> str:
    return reprlib.repr(value)


def _number(content: dict[str, Any], key: str) -> float:
    """Return a finite number of a JSON object. Raises KeyError or ValueError."""
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{key}` is {_short(value)}: write a number")
    return _finite(value, key)


def _finite(value: float, key: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"`{key}` is not finite: write a number of a usual size")
    return number


def _numbers(values: object, key: str) -> list[float]:
    """Return the numbers of a list or of a list of lists, at most 64 of each. Raises ValueError."""
    rows = values if isinstance(values, list) else [None]
    flat: list[object] = []
    for row in rows[:64]:
        flat += row[:64] if isinstance(row, list) else [row]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in flat):
        raise ValueError(f"`{key}` is {_short(values)}: write a list of numbers")
    return [_finite(value, key) for value in flat]  # type: ignore[arg-type]


def _read_camera(path: Path, size: tuple[int, int]) -> Camera:
    if not path.is_file():
        raise FrameError(f"{path} is missing: write {{fx, fy, cx, cy, width, height}} of rgb.")
    content = read_json(path)
    try:
        width, height = (_number(content, key) for key in ("width", "height"))
        if width != int(width) or height != int(height):
            raise ValueError(f"the size is {width:g}x{height:g}: write whole pixels")
        model = content.get("model", "pinhole")
        if not isinstance(model, str):
            raise ValueError(f"`model` is {_short(model)}: write a name")
        # Checked before its size is compared: an impossible camera is the more helpful message.
        camera = Camera(
            width=int(width),
            height=int(height),
            fx=_number(content, "fx"),
            fy=_number(content, "fy"),
            cx=_number(content, "cx"),
            cy=_number(content, "cy"),
            model=model[:64],
            distortion=tuple(_numbers(content.get("distortion", []), "distortion")),
        )
    except KeyError as error:
        raise FrameError(f"{path} has no `{error.args[0]}`: add it.") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"{path}: {error}") from None
    _check_size(path, (camera.height, camera.width), size)
    return camera


def _read_depth(folder: Path, size: tuple[int, int]) -> NDArray[np.float32] | None:
    png, npz = folder / "depth.png", folder / "depth.npz"
    if png.is_file() and npz.is_file():
        raise FrameError(f"{folder} has depth.png and depth.npz: keep the one that is the truth.")
    if png.is_file():
        stored = read_image(png, colour=False, size=size)
        if stored.dtype != np.uint16 or stored.ndim != 2:
            raise FrameError(
                f"{png} is {stored.dtype} with {stored.ndim} dimensions: store depth as one "
                "uint16 channel in millimetres."
            )
        depth = stored.astype(np.float32) / np.float32(1000)
        depth[stored == 65535] = np.nan  # the largest value means farther, or not measured
    elif npz.is_file():

        def judge(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
            if dtype.kind != "f" or len(shape) != 2:
                raise FrameError(
                    f"{npz} holds `depth` as {dtype} with {len(shape)} dimensions: store (H, W)"
                    " float32 metres."
                )
            _check_size(npz, shape, size)

        depth = _as_float32(read_npz(npz, {"depth": judge})["depth"])
    else:
        return None
    with np.errstate(invalid="ignore"):
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _as_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow gives Inf, which is unknown
        return values.astype(np.float32)


def _read_lidar(
    folder: Path,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float64] | None]:
    path, calibration = folder / "lidar.npy", folder / "calib.json"
    if not path.is_file():
        return None, None

    def judge(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if len(shape) != 2 or shape[1:] != (3,) or dtype.kind != "f":
            raise FrameError(
                f"{path} holds {dtype} of shape {_short(shape)}: store (N, 3) float32 metres."
            )
        if shape[0] > MOST_POINTS:
            raise FrameError(
                f"{path} announces {_short(shape[0])} points, more than {MOST_POINTS}: store one"
                " scan."
            )

    points = read_npy(path, judge)
    if not calibration.is_file():
        raise FrameError(f"{calibration} is missing: lidar.npy needs {{T_cam_lidar: 4x4}}.")
    content = read_json(calibration)
    if "T_cam_lidar" not in content:
        raise FrameError(f"{calibration} has no `T_cam_lidar`: add the 4x4 matrix.")
    try:
        values = np.array(_numbers(content["T_cam_lidar"], "T_cam_lidar"))
        with np.errstate(all="ignore"):
            T_camera_lidar = check_rigid(values, "T_cam_lidar")
    except (TypeError, ValueError, OverflowError) as error:
        raise FrameError(f"{calibration}: {error}") from None
    return _as_float32(points), T_camera_lidar


def _read_labels(folder: Path, size: tuple[int, int]) -> Labels | None:
    paths = sorted(folder.glob("segmentation_*.png"))
    if not paths:
        return None
    ids = read_image(paths[0], colour=False, size=size)
    if ids.ndim != 2 or ids.dtype.kind != "u":
        raise FrameError(
            f"{paths[0]} has shape {ids.shape} {ids.dtype}: store one uint16 channel of ids."
        )
    return labels_from_ids(ids.astype(np.int32))


def _check_size(path: Path, size: Iterable[int], expected: tuple[int, ...]) -> None:
    height, width = size
    if (height, width) != expected:
        raise FrameError(
            f"{path} is for {_short(width)}x{_short(height)} but the image is"
            f" {expected[1]}x{expected[0]}: resize one of them (and scale the intrinsics)."
        )
