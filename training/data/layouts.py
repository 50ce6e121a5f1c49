# SPDX-License-Identifier: Apache-2.0
"""Readers of published data sets: the folders are used as they are and read sample by sample.

A data set is a sequence of Sample. If its authors or a benchmark publish a list of files (Eigen's
697 of KITTI, Marigold's lists, ScanNet's scenes), give that file as `list`; without it `split`
chooses by the layout itself. Depth is in metres along the optical axis; what a data set marks as
unknown (0, inf, sky, mask) is NaN. A file that cannot be used raises an error of one sentence that
names it.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.image_files import LARGEST_PX
from depth_node.recordings.frames import IMAGE_SUFFIXES, find_frames, read_frame
from training.data.files import below, content, decode, read_image, reading
from training.data.samples import F32, U8, DataError, Item, Sample


def read_depth_png(path: Path, per_metre: float) -> F32:
    """Read depth (H, W) float32 m from a uint16 PNG with `per_metre` steps per metre; 0 is unknown.

    Raises DataError for a missing or damaged file or another type.
    """
    with reading(path):
        stored = decode(content(path))
        if stored.dtype != np.uint16 or stored.ndim != 2:
            raise ValueError(f"{stored.dtype} with {stored.ndim} dimensions instead of one uint16")
        return (stored / np.float32(per_metre)).astype(np.float32)


def _read_npy(path: Path) -> NDArray[Any]:
    with reading(path):
        if not path.is_file():
            raise FileNotFoundError(path) if not path.exists() else ValueError("no regular file")
        # Memory-mapped, so that a header with a wrong size does not allocate memory.
        return np.squeeze(np.array(np.load(path, mmap_mode="r", allow_pickle=False)))


def _hdf5(path: Path) -> Any:
    """Open an HDF5 file. Raises DataError if h5py is missing or the file cannot be read."""
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{path} is an HDF5 file: install h5py (requirements-training.txt) to read it."
        ) from error
    with reading(path):
        return h5py.File(path, "r")


class ListLine(list[str]):
    """Words of a line of a list, with the whole line as `text`."""

    def __init__(self, text: str) -> None:
        self.text = text
        quoted = '"' in text or "'" in text
        try:
            words = text.split("\t") if "\t" in text else shlex.split(text) if quoted else None
        except ValueError:  # an apostrophe in a name
            words = None
        super().__init__(text.split() if words is None else [w.strip() for w in words if w.strip()])


def listed_lines(path: Path) -> list[ListLine]:
    """Read the non-empty lines of a list.

    Words are separated by blanks, or by tabs in a line that has some; quoted words may contain
    blanks. Names need not be UTF-8. Raises DataError for an unreadable file.
    """
    with reading(path):
        text = content(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return [ListLine(line.strip()) for line in text.splitlines() if line.split()]


def _first(*paths: Path) -> Path:
    """Return the first path that exists, else the first path, for the error message."""
    return next((path for path in paths if path.exists()), paths[0])


def _listed(folder: Path, lines: Sequence[ListLine]) -> list[tuple[str, str]]:
    """Return (image, depth) of each line `image depth ...` whose depth is not "None".

    "None" stands for a depth that was not published.
    """
    return [_two_files(folder, line) for line in lines if len(line) > 1 and line[1] != "None"]


def _pairs(folder: Path, lines: Sequence[ListLine]) -> list[Item]:
    """Return an item per line `image depth ...`, but none where depth is "None"."""
    pairs = _listed(folder, lines)
    return [Item(image, folder / image, folder / depth) for image, depth in pairs]


def _two_files(folder: Path, line: ListLine) -> tuple[str, str]:
    """Return the image and the depth that a line names.

    They are the line's first two words. If these are no files, names may contain blanks without
    tabs or quotes: then they are the first two consecutive parts of the line that are files.
    """
    first = line[0], line[1]
    if len(line) == 2 or all((folder / name).exists() for name in first):
        return first
    gaps = [gap.span() for gap in re.finditer(r"\s+", line.text)]
    for k, (end, begin) in enumerate(gaps):
        if (folder / line.text[:end]).is_file():
            for stop in (*(after for after, _ in gaps[k + 1 :]), len(line.text)):
                if (folder / line.text[begin:stop]).is_file():
                    return line.text[:end], line.text[begin:stop]
    return first


def _one_file(folder: Path, line: ListLine) -> str:
    """Return the image of a line: the whole line, or its first word if only that is a file."""
    whole = line.text.strip("\"'") if len(line) == 1 else line.text
    return line[0] if not (folder / whole).exists() and (folder / line[0]).exists() else whole


def _above(file: Path, levels: int) -> Path:
    """Return file.parents[levels], or the root: a list may name files that lie less deep."""
    parents = file.absolute().parents
    return parents[min(levels, len(parents) - 1)]


def _part(folder: Path, split: str) -> Path:
    return folder / split if split else folder


def _named(root: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose path ends with the pattern; none without the folder."""
    return below(root, lambda path: path.match(pattern)) if root.is_dir() else []


def _find_images(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines:
        names = [_one_file(folder, line) for line in lines]
        return [Item(name, folder / name) for name in names]
    root = _part(folder, split)
    paths = below(root, lambda p: p.suffix.lower() in IMAGE_SUFFIXES) if root.is_dir() else []
    return [Item(str(path.relative_to(root)), path) for path in paths]


def _read_image_only(item: Item) -> Sample:
    return Sample(item.name, read_image(item.image))


def _find_frames(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    folders = [folder / line.text for line in lines] or find_frames(_part(folder, split))
    return [Item(f"{frame.parent.name}/{frame.name}", frame) for frame in folders]


def _read_frame(item: Item) -> Sample:
    frame = read_frame(item.image)
    return Sample(item.name, frame.image, frame.depth, frame.camera, frame.labels)


def _camera(image: U8, size: tuple[int, int], fx: float, fy: float, cx: float, cy: float) -> Camera:
    """Return a published calibration for `size` (width, height), scaled to this image's size."""
    height, width = image.shape[:2]
    x, y = width / size[0], height / size[1]
    return Camera(width, height, fx * x, fy * y, (cx + 0.5) * x - 0.5, (cy + 0.5) * y - 0.5)


def _matrix_camera(path: Path, image: U8) -> Camera | None:
    """Return the camera whose matrix K a text file holds; None without the file."""
    if not path.is_file():
        return None
    with reading(path):
        k = np.loadtxt(path)
        return Camera(image.shape[1], image.shape[0], k[0, 0], k[1, 1], k[0, 2], k[1, 2])


def _find_nyuv2(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines:
        return _pairs(folder, lines)
    labelled = folder / "nyu_depth_v2_labeled.mat"
    if labelled.is_file():
        return [Item(f"{k + 1:04d}", labelled, labelled, k) for k in _nyuv2_numbers(folder, split)]
    items = []
    for image in _named(_part(folder, split), "rgb_*.*"):
        number = image.stem.removeprefix("rgb_")
        names = [f"{kind}_{number}.png" for kind in ("depth", "sync_depth")]
        depth = _first(*(image.parent / name for name in names))
        items.append(Item(str(image.relative_to(folder)), image, depth))
    return items


def _nyuv2_numbers(folder: Path, split: str) -> list[int]:
    """Return the indices (from 0) of the official split: 795 to train, 654 to test; "" is all."""
    if not split:
        with _hdf5(folder / "nyu_depth_v2_labeled.mat") as file:
            return list(range(len(file["images"])))
    from scipy.io import loadmat

    path = folder / "splits.mat"
    with reading(path):
        numbers = loadmat(str(path))[f"{split}Ndxs"]
        return [int(number) - 1 for number in numbers.ravel()]


def _read_nyuv2(item: Item) -> Sample:
    assert item.depth is not None
    if item.about is None:
        image, depth = read_image(item.image), read_depth_png(item.depth, 1000)
    else:
        with _hdf5(item.image) as file, reading(item.image):
            # MATLAB's order: (image, channel, column, row). Measured depth, if it is there, is
            # better than inpainted depth.
            if file["images"].shape[1] != 3 or np.prod(file["images"].shape[1:]) > LARGEST_PX:
                raise ValueError(f"its images are {file['images'].shape[1:]}")
            image = np.asarray(file["images"][item.about], np.uint8).transpose(2, 1, 0)
            measured = file["rawDepths" if "rawDepths" in file else "depths"]
            depth = np.asarray(measured[item.about], np.float32).T
    camera = _camera(image, (640, 480), 518.85790, 519.46961, 325.58245, 253.73617)
    return Sample(item.name, np.ascontiguousarray(image), depth, camera)


def _find_kitti(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    roots = [folder, folder / "train", folder / "val", folder / "raw"]
    if lines:  # Eigen's list: raw image, annotated depth (or None), focal length
        return [
            Item(
                image,
                _first(*(root / image for root in roots)),
                _first(*(root / depth for root in roots)),
            )
            for image, depth in _listed(folder, lines)
        ]
    items = []
    pattern = "*/proj_depth/groundtruth/image_0[23]/*.png"
    for depth in sorted(
        {*_part(folder, split).glob(pattern), *folder.glob(f"{split or '*'}/{pattern}")}
    ):
        drive, camera = depth.parents[3].name, depth.parent.name
        raw = Path(drive[:10]) / drive / camera / "data" / depth.name
        image = _first(
            *(root / raw for root in roots), depth.parents[3] / camera / "data" / depth.name
        )
        items.append(Item(f"{drive}/{camera}/{depth.stem}", image, depth))
    return items


def _read_kitti(item: Item) -> Sample:
    assert item.depth is not None
    image = read_image(item.image)
    camera = None
    calibration = _above(item.image, 3) / "calib_cam_to_cam.txt"
    if calibration.is_file():
        with reading(calibration):
            text = content(calibration).decode("utf-8")
            name = _above(item.image, 1).name.removeprefix("image_")
            match = re.search(rf"^P_rect_{name}:(.*)$", text, re.MULTILINE)
            if match is None:
                raise ValueError(f"it has no P_rect_{name}")
            p = [float(word) for word in match.group(1).split()]
            if len(p) != 12:
                raise ValueError(f"P_rect_{name} has {len(p)} numbers instead of 12")
            camera = Camera(image.shape[1], image.shape[0], p[0], p[5], p[2], p[6])
    return Sample(item.name, image, read_depth_png(item.depth, 256), camera)


def _find_diode(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    depths = (
        [item.depth for item in _pairs(folder, lines)]
        if lines
        else _named(_part(folder, split), "*_depth.npy")
    )
    items = []
    for depth in depths:
        assert depth is not None
        stem = depth.name.removesuffix("_depth.npy")
        image = depth.with_name(f"{stem}.png")
        mask = depth.with_name(f"{stem}_depth_mask.npy")
        items.append(Item(str(image.relative_to(folder)), image, depth, mask))
    return items


def _read_diode(item: Item) -> Sample:
    assert item.depth is not None
    image = read_image(item.image)
    depth, mask = _read_npy(item.depth), _read_npy(item.about)
    if depth.shape != mask.shape:
        raise DataError(
            f"{item.about} is {mask.shape} and {item.depth.name} {depth.shape}: fetch both again."
        )
    known = np.where(mask > 0, depth, np.nan).astype(np.float32)
    camera = _camera(image, (1024, 768), 886.81, 927.06, 512.0, 384.0)
    return Sample(item.name, image, known, camera)


def _find_eth3d(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines:
        return _pairs(folder, lines)
    items = []
    for image in _named(_part(folder, split), "images/dslr_images/*.JPG"):
        depth = image.parents[2] / "ground_truth_depth" / "dslr_images" / image.name
        if depth.is_file():
            items.append(Item(str(image.relative_to(folder)), image, depth))
    return items


def _read_eth3d(item: Item) -> Sample:
    assert item.depth is not None
    image = read_image(item.image)
    with reading(item.depth):
        values = np.frombuffer(content(item.depth), "<f4")  # no header, row by row
        if values.size != image.shape[0] * image.shape[1]:
            raise ValueError(
                f"{values.size} numbers for an image of {image.shape[1]}x{image.shape[0]}"
            )
    # The camera is a thin-prism fisheye, a model that Camera does not have.
    return Sample(item.name, image, values.reshape(image.shape[:2]))


def _find_scannet(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines and len(lines[0]) > 1:
        return _pairs(folder, lines)
    scenes = {words[0] for words in lines}
    items = []
    for depth in sorted(_named(_part(folder, split), "depth/*.png"), key=_natural):
        scene = depth.parents[1]
        if scenes and scene.name not in scenes:
            continue
        image = _first(*(scene / "color" / (depth.stem + end) for end in (".jpg", ".png")))
        items.append(Item(f"{scene.name}/{depth.stem}", image, depth))
    return items


def _natural(path: Path) -> tuple[str, int, str]:
    """Return a sort key that puts scene/depth/10.png after scene/depth/9.png."""
    digits = re.sub(r"\D", "", path.stem)
    return str(path.parent), int(digits) if digits else -1, path.stem


def _read_scannet(item: Item) -> Sample:
    assert item.depth is not None
    image, depth = read_image(item.image), read_depth_png(item.depth, 1000)
    size = (depth.shape[1], depth.shape[0])
    if image.shape[:2] != depth.shape:  # images are published at 1296x968, depth at 640x480
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    camera = _matrix_camera(_above(item.depth, 1) / "intrinsic" / "intrinsic_depth.txt", image)
    return Sample(item.name, image, depth, camera)


def _find_void(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if not lines and split:  # the lists of the release: one of images, one of ground truths
        lists = [folder / f"{split}_{name}.txt" for name in ("image", "ground_truth")]
        images, truths = map(listed_lines, lists)
        if len(images) != len(truths):
            raise DataError(
                f"{lists[0]} has {len(images)} lines and {lists[1].name} {len(truths)}: copy both"
                " again."
            )
        lines = [ListLine(f"{a[0]}\t{b[0]}") for a, b in zip(images, truths, strict=True)]
    if lines:
        return [
            Item(item.name, _void(folder, item.image), _void(folder, item.depth))
            for item in _pairs(folder, lines)
            if item.depth is not None
        ]
    return [
        Item(
            f"{image.parents[1].name}/{image.stem}",
            image,
            image.parents[1] / "ground_truth" / image.name,
        )
        for image in sorted(folder.glob("data/*/image/*.png"))
    ]


def _void(folder: Path, path: Path) -> Path:
    """Return the file of a list's path, which may start at another root: below it `data` counts."""
    return _first(path, folder.joinpath("data", *path.parts[-3:]))


def _read_void(item: Item) -> Sample:
    assert item.depth is not None
    image = read_image(item.image)
    camera = _matrix_camera(_above(item.image, 1) / "K.txt", image)
    return Sample(item.name, image, read_depth_png(item.depth, 256), camera)


HYPERSIM_FOCAL_PX, HYPERSIM_WIDTH_PX = 886.81, 1024


def _find_hypersim(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines:
        return _pairs(folder, lines)
    selected = _hypersim_split(folder, split) if split else None
    items = []
    for depth in sorted(folder.glob("*/images/scene_*_geometry_hdf5/frame.*.depth_meters.hdf5")):
        scene = depth.parents[2].name
        camera = depth.parent.name.removeprefix("scene_").removesuffix("_geometry_hdf5")
        number = depth.name.split(".")[1]
        if selected is not None and (scene, camera, int(number)) not in selected:
            continue
        image = depth.parents[1] / f"scene_{camera}_final_preview" / f"frame.{number}.tonemap.jpg"
        items.append(Item(f"{scene}/{camera}/{number}", image, depth))
    return items


def _hypersim_split(folder: Path, split: str) -> set[tuple[str, str, int]]:
    """Return (scene, camera, frame) of the images in the official partition train, val or test."""
    path = folder / "metadata_images_split_scene_v1.csv"
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        return {
            (row["scene_name"], row["camera_name"], int(row["frame_id"]))
            for row in csv.DictReader(file)
            if row["split_partition_name"] == split
            and row["included_in_public_release"].strip().lower() == "true"
        }


def _read_hypersim(item: Item) -> Sample:
    assert item.depth is not None
    image = read_image(item.image)
    height, width = image.shape[:2]
    focal = HYPERSIM_FOCAL_PX * width / HYPERSIM_WIDTH_PX
    if item.depth.suffix == ".png":  # as Marigold's preparation stores it: already planar
        depth = read_depth_png(item.depth, 1000)
    else:
        with _hdf5(item.depth) as file, reading(item.depth):
            if file["dataset"].shape != image.shape[:2]:
                raise ValueError(
                    f"it holds {file['dataset'].shape} and the image is {image.shape[:2]}"
                )
            distance = np.asarray(file["dataset"], np.float32)
        # The published values are distances along the ray.
        v, u = np.mgrid[0 : distance.shape[0], 0 : distance.shape[1]].astype(np.float32)
        x, y = u - (distance.shape[1] - 1) / 2, v - (distance.shape[0] - 1) / 2
        depth = distance * (focal / np.sqrt(focal**2 + x**2 + y**2))
    # This camera is right for most scenes; a few were rendered with a shifted lens.
    camera = Camera(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
    return Sample(item.name, image, depth.astype(np.float32), camera)


def _find_vkitti2(folder: Path, split: str, lines: Sequence[ListLine]) -> list[Item]:
    if lines:
        return _pairs(folder, lines)
    items = []
    for image in _named(folder, "frames/rgb/Camera_*/rgb_*.*"):
        scene, variation, camera = image.parents[4].name, image.parents[3].name, image.parent.name
        if split and split not in (scene, variation):
            continue
        number = image.stem.removeprefix("rgb_")
        inner = Path(scene, variation, "frames", "depth", camera, f"depth_{number}.png")
        # All archives in one folder, or each in its own (vkitti_2.0.3_rgb, vkitti_2.0.3_depth).
        beside = [archive / inner for archive in sorted(folder.glob("*_depth"))]
        depth = _first(image.parents[5] / inner, *beside)
        items.append(Item(f"{scene}/{variation}/{camera}/{number}", image, depth))
    return items


def _read_vkitti2(item: Item) -> Sample:
    assert item.depth is not None
    image, depth = read_image(item.image), read_depth_png(item.depth, 100)
    depth[depth >= 655.35] = np.nan  # 65535 is the sky
    return Sample(
        item.name, image, depth, _camera(image, (1242, 375), 725.0087, 725.0087, 620.5, 187.0)
    )


@dataclass(frozen=True)
class Layout:
    """Layout of a data set: functions that find and read its samples, its protocol, its files.

    protocol: a name of training.evaluation.protocols.PROTOCOLS, or "none" without depth. expects:
    the expected files, for error messages.
    """

    find: Callable[[Path, str, Sequence[ListLine]], list[Item]]
    read: Callable[[Item], Sample]
    protocol: str
    expects: str


LAYOUTS = {
    "images": Layout(
        _find_images, _read_image_only, "none", f"files that end in {', '.join(IMAGE_SUFFIXES)}"
    ),
    "frames": Layout(_find_frames, _read_frame, "indoor", "SOURCE/FRAME/rgb.jpg with depth.png"),
    "nyuv2": Layout(
        _find_nyuv2,
        _read_nyuv2,
        "nyu",
        "nyu_depth_v2_labeled.mat with splits.mat, or SPLIT/SCENE/rgb_N.png with depth_N.png or"
        " sync_depth_N.png",
    ),
    "kitti": Layout(
        _find_kitti,
        _read_kitti,
        "kitti_eigen",
        "DATE/DRIVE/image_02/data/N.png with [train|val/]DRIVE/proj_depth/groundtruth/image_02/"
        "N.png, or Eigen's list",
    ),
    "diode": Layout(
        _find_diode,
        _read_diode,
        "diode",
        "SPLIT/indoors/SCENE/SCAN/NAME.png with NAME_depth.npy and NAME_depth_mask.npy",
    ),
    "eth3d": Layout(
        _find_eth3d,
        _read_eth3d,
        "eth3d",
        "SCENE/images/dslr_images/NAME.JPG with SCENE/ground_truth_depth/dslr_images/NAME.JPG",
    ),
    "scannet": Layout(
        _find_scannet, _read_scannet, "scannet", "SCENE/color/N.jpg with SCENE/depth/N.png"
    ),
    "void": Layout(
        _find_void,
        _read_void,
        "void",
        "data/SEQUENCE/image/T.png with data/SEQUENCE/ground_truth/T.png, and test_image.txt"
        " with test_ground_truth.txt for the split test",
    ),
    "hypersim": Layout(
        _find_hypersim,
        _read_hypersim,
        "hypersim",
        "SCENE/images/scene_CAM_final_preview/frame.N.tonemap.jpg with"
        " scene_CAM_geometry_hdf5/frame.N.depth_meters.hdf5",
    ),
    "vkitti2": Layout(
        _find_vkitti2,
        _read_vkitti2,
        "outdoor",
        "SceneNN/VARIATION/frames/rgb/Camera_0/rgb_N.jpg with frames/depth/Camera_0/depth_N.png",
    ),
}
