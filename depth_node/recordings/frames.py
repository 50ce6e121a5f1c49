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

Only the image and the intrinsics must be there. Whatever cannot be used raises FrameError, a
sentence that names the file and the cure.

Which of the known pixels are measured and which are scored is decided here too, by split_uniform
and split_lines, so that a replay and a benchmark of the same frame and seed see the same points.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import check_rigid
from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.prediction import Prediction
from depth_node.regions.label_maps import Labels, labels_from_ids

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
IMAGE_FILES = tuple(f"rgb{suffix}" for suffix in IMAGE_SUFFIXES[:3])  # of a recorded frame
LINE_BAND_PX = 3  # rows that one simulated LiDAR line covers


class FrameError(ValueError):
    """A frame on disk that cannot be used; says which file, why, and what to do."""


@dataclass(frozen=True)
class RecordedFrame:
    """One recorded moment.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres, NaN unknown, or None without truth.
    points_lidar: (N, 3) float32 metres in the LiDAR frame or None, then T_camera_lidar is (4, 4).
    labels: (H, W) int32 regions from the stored masks, or None.
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
        """The depth map, or FrameError for a frame that has none."""
        if self.depth is None:
            raise FrameError(f"{self.folder} has no depth.png or depth.npz: add one to score it.")
        return self.depth

    def prediction(self, name: str) -> Prediction:
        """The stored output `prediction_<name>.npz` of a network for this image."""
        path = self.folder / f"prediction_{name}.npz"
        if not path.is_file():
            stored = sorted(self.folder.glob("prediction_*.npz"))
            names = ", ".join(file.stem.split("_", 1)[1] for file in stored) or "none"
            raise FrameError(f"{path} is missing: store it or use a stored name (here: {names}).")
        content = _read_npz(path, ("prediction", "kind"))
        values = content["prediction"]
        if values.dtype.kind != "f" or values.shape != self.image.shape[:2]:
            raise FrameError(
                f"{path} holds `prediction` as {values.dtype} of shape {values.shape}: store "
                f"float32 of the image's size {self.image.shape[:2]}."
            )
        try:
            return Prediction(values.astype(np.float32), str(content["kind"]))
        except ValueError as error:
            raise FrameError(f"{path}: {error}") from None


@dataclass(frozen=True)
class Split:
    """What is measured and what is scored: `scored` (H, W) bool never contains a measured pixel."""

    points: SparseDepth
    scored: NDArray[np.bool_]


def is_bag(path: Path) -> bool:
    """Whether a path looks like a rosbag2: its folder, or one of its .mcap or .db3 files."""
    return (path / "metadata.yaml").is_file() or path.suffix in (".mcap", ".db3", ".bag")


def find_frames(path: str | Path) -> list[Path]:
    """The frame folders under a frame, a source (folder of frames) or a folder of sources."""
    path = Path(path).resolve()
    if not path.is_dir():
        raise FrameError(f"{path} is not a folder: give a frame, a source or a folder of sources.")
    if _is_frame(path):
        return [path]
    below = sorted(folder for folder in path.iterdir() if folder.is_dir())
    frames = []
    for folder in below:
        if _is_frame(folder):
            frames.append(folder)
        else:
            frames += sorted(inner for inner in folder.iterdir() if _is_frame(inner))
    if not frames:
        raise FrameError(
            f"{path} holds no frames: a frame is a folder with rgb.jpg and intrinsics.json."
        )
    return frames


def read_frame(folder: str | Path) -> RecordedFrame:
    """Read and check everything a frame folder holds, except its stored predictions."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise FrameError(f"{folder} is not a folder: a frame is a folder with rgb.jpg in it.")
    image_path = next((folder / name for name in IMAGE_FILES if (folder / name).is_file()), None)
    if image_path is None:
        raise FrameError(f"{folder} has no image: add rgb.jpg or rgb.png.")
    image = cv2.cvtColor(_read_image(image_path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    camera = _read_camera(folder / "intrinsics.json", image)
    points_lidar, T_camera_lidar = _read_lidar(folder)
    return RecordedFrame(
        folder=folder,
        image=np.asarray(image, np.uint8),
        camera=camera,
        depth=_read_depth(folder, image),
        points_lidar=points_lidar,
        T_camera_lidar=T_camera_lidar,
        labels=_read_labels(folder, image),
    )


def frame_seed(frame: RecordedFrame, seed: int, *more: int) -> np.random.Generator:
    """A random stream of its own for each frame, seed and further numbers, the same everywhere."""
    return np.random.default_rng([seed, zlib.crc32(f"{frame.source}/{frame.name}".encode()), *more])


def split_uniform(frame: RecordedFrame, points: int, seed: int) -> Split:
    """Measure `points` known pixels drawn uniformly without replacement, score the other ones."""
    known = np.flatnonzero(np.isfinite(frame.truth))
    if not 0 <= points < len(known):
        raise FrameError(
            f"{frame.folder} has {len(known)} known depths, {points} cannot be measured with some "
            "left to score: ask for fewer points."
        )
    chosen = frame_seed(frame, seed, points).choice(known, points, replace=False)
    return _split(frame.truth, np.sort(chosen))


def split_lines(frame: RecordedFrame, one_of: int, seed: int) -> Split:
    """Measure scan lines: rows in bands of 3, one band of `one_of` measured, the others scored."""
    if one_of < 2:
        raise ValueError(f"one line of {one_of} leaves nothing to score: use 2 or more.")
    known = np.isfinite(frame.truth)
    band = np.arange(len(known)) // LINE_BAND_PX
    # The bands begin anywhere; a seed without known pixels in its bands takes the next bands.
    first = int(frame_seed(frame, seed, 0, one_of).integers(one_of))
    for offset in range(one_of):
        kept = (band + first + offset) % one_of == 0
        chosen = np.flatnonzero(known & kept[:, None])
        if 0 < len(chosen) < known.sum():
            return _split(frame.truth, chosen)
    raise FrameError(f"{frame.folder} knows depth on too few rows to split into lines: use points.")


def _split(truth: NDArray[np.float32], chosen: NDArray[np.intp]) -> Split:
    rows, cols = np.unravel_index(chosen, truth.shape)
    scored = np.isfinite(truth)
    scored[rows, cols] = False
    return Split(SparseDepth.from_arrays(rows, cols, truth[rows, cols]), scored)


def _is_frame(folder: Path) -> bool:
    """Whether a folder means to be a frame; a broken one is found too and refused when read."""
    marks = (*IMAGE_FILES, "intrinsics.json", "depth.png", "depth.npz", "lidar.npy")
    return folder.is_dir() and any((folder / name).is_file() for name in marks)


def _read_image(path: Path, flags: int) -> NDArray[Any]:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise FrameError(f"{path} cannot be decoded: the file is damaged, copy it again.")
    return np.asarray(image)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FrameError(f"{path} is not JSON ({error}): write it again.") from None
    if not isinstance(content, dict):
        raise FrameError(f"{path} holds a {type(content).__name__}: write a JSON object.")
    return content


def _read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    try:
        # numpy does not close a file it fails to read, so the file is opened here.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            missing = [key for key in keys if key not in content]
            if missing:
                raise FrameError(
                    f"{path} has no key `{missing[0]}` (it has: {', '.join(content) or 'none'}): "
                    f"store {' and '.join(f'`{key}`' for key in keys)}."
                )
            return {key: content[key] for key in keys}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise FrameError(f"{path} cannot be read ({error}): write it with numpy.savez.") from None
    except (ValueError, AttributeError, TypeError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError(
            f"{path} is not an npz archive of plain arrays: use numpy.savez."
        ) from None


def _read_camera(path: Path, image: NDArray[Any]) -> Camera:
    if not path.is_file():
        raise FrameError(f"{path} is missing: write {{fx, fy, cx, cy, width, height}} of rgb.")
    content = _read_json(path)
    try:
        camera = Camera(
            width=int(content["width"]),
            height=int(content["height"]),
            fx=float(content["fx"]),
            fy=float(content["fy"]),
            cx=float(content["cx"]),
            cy=float(content["cy"]),
            model=str(content.get("model", "pinhole")),
            distortion=tuple(float(value) for value in content.get("distortion", ())),
        )
    except KeyError as error:
        raise FrameError(f"{path} has no `{error.args[0]}`: add it.") from None
    except (TypeError, ValueError) as error:
        raise FrameError(f"{path}: {error}") from None
    _check_size(path, (camera.height, camera.width), image)
    return camera


def _read_depth(folder: Path, image: NDArray[Any]) -> NDArray[np.float32] | None:
    png, npz = folder / "depth.png", folder / "depth.npz"
    if png.is_file() and npz.is_file():
        raise FrameError(f"{folder} has depth.png and depth.npz: keep the one that is the truth.")
    if png.is_file():
        stored = _read_image(png, cv2.IMREAD_UNCHANGED)
        if stored.dtype != np.uint16 or stored.ndim != 2:
            raise FrameError(
                f"{png} is {stored.dtype} with {stored.ndim} dimensions: store depth as one "
                "uint16 channel in millimetres."
            )
        _check_size(png, stored.shape, image)
        depth = stored.astype(np.float32) / np.float32(1000)
    elif npz.is_file():
        stored = _read_npz(npz, ("depth",))["depth"]
        if stored.dtype.kind != "f" or stored.ndim != 2:
            raise FrameError(
                f"{npz} holds `depth` as {stored.dtype} with {stored.ndim} dimensions: store "
                "(H, W) float32 metres."
            )
        _check_size(npz, stored.shape, image)
        depth = stored.astype(np.float32)
    else:
        return None
    with np.errstate(invalid="ignore"):
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth


def _read_lidar(
    folder: Path,
) -> tuple[NDArray[np.float32] | None, NDArray[np.float64] | None]:
    path, calibration = folder / "lidar.npy", folder / "calib.json"
    if not path.is_file():
        return None, None
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FrameError(f"{path} cannot be read ({error}): write it with numpy.save.") from None
    if points.ndim != 2 or points.shape[1:] != (3,) or points.dtype.kind != "f":
        raise FrameError(
            f"{path} holds {points.dtype} of shape {points.shape}: store (N, 3) float32 metres."
        )
    if not calibration.is_file():
        raise FrameError(f"{calibration} is missing: lidar.npy needs {{T_cam_lidar: 4x4}}.")
    content = _read_json(calibration)
    if "T_cam_lidar" not in content:
        raise FrameError(f"{calibration} has no `T_cam_lidar`: add the 4x4 matrix.")
    try:
        T_camera_lidar = check_rigid(content["T_cam_lidar"], "T_cam_lidar")
    except (TypeError, ValueError) as error:
        raise FrameError(f"{calibration}: {error}") from None
    return points.astype(np.float32), T_camera_lidar


def _read_labels(folder: Path, image: NDArray[Any]) -> Labels | None:
    paths = sorted(folder.glob("segmentation_*.png"))
    if not paths:
        return None
    ids = _read_image(paths[0], cv2.IMREAD_UNCHANGED)
    if ids.ndim != 2 or ids.dtype.kind != "u":
        raise FrameError(
            f"{paths[0]} has shape {ids.shape} {ids.dtype}: store one uint16 channel of ids."
        )
    _check_size(paths[0], ids.shape, image)
    return labels_from_ids(ids.astype(np.int32))


def _check_size(path: Path, size: tuple[int, ...], image: NDArray[Any]) -> None:
    if size != image.shape[:2]:
        raise FrameError(
            f"{path} is for {size[1]}x{size[0]} but the image is "
            f"{image.shape[1]}x{image.shape[0]}: resize one of them (and scale the intrinsics)."
        )
