# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.recordings.frames import (
    FrameError,
    find_frames,
    is_bag,
    read_frame,
    split_lines,
    split_scan,
    split_uniform,
)
from tests.helpers.mutants import in_a_child

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a complete frame: left half red, depth 1 m with holes, LiDAR, masks, a prediction."""
    folder = tmp_path / "source" / "frame_1"
    folder.mkdir(parents=True)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2] = (255, 0, 0)
    cv2.imwrite(str(folder / "rgb.png"), image[..., ::-1])
    depth = np.full((HEIGHT, WIDTH), 1000, np.uint16)
    depth[:2] = 0
    cv2.imwrite(str(folder / "depth.png"), depth)
    intrinsics = {"fx": 30.0, "fy": 31.0, "cx": 15.5, "cy": 11.5, "width": WIDTH, "height": HEIGHT}
    (folder / "intrinsics.json").write_text(json.dumps(intrinsics))
    np.save(folder / "lidar.npy", np.ones((5, 3), np.float32))
    (folder / "calib.json").write_text(json.dumps({"T_cam_lidar": np.eye(4).tolist()}))
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[:, : WIDTH // 2] = 300
    cv2.imwrite(str(folder / "segmentation_objects.png"), ids)
    np.savez(
        folder / "prediction_net.npz",
        prediction=np.ones((HEIGHT, WIDTH), np.float32),
        kind="disparity_affine_invariant",
    )
    return folder


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", "a" * 5000, "a\0b"):
        assert not is_bag(Path(path))
        for read in (find_frames, read_frame):
            with pytest.raises(FrameError, match=r"is not a folder|check the path"):
                read(path)


def test_a_complete_frame_is_read(folder: Path) -> None:
    frame = read_frame(folder)
    assert (frame.source, frame.name) == ("source", "frame_1")
    assert frame.image.dtype == np.uint8 and frame.image[0, 0].tolist() == [255, 0, 0]
    assert (frame.camera.fx, frame.camera.fy, frame.camera.height) == (30.0, 31.0, HEIGHT)
    assert frame.truth.dtype == np.float32
    assert np.isnan(frame.truth[:2]).all() and (frame.truth[2:] == 1).all()
    assert frame.points_lidar is not None and frame.points_lidar.shape == (5, 3)
    assert frame.T_camera_lidar is not None and np.array_equal(frame.T_camera_lidar, np.eye(4))
    assert frame.labels is not None and frame.labels.max() == 2
    assert len(np.unique(frame.labels[:, : WIDTH // 2])) == 1
    assert frame.prediction("net").kind == "disparity_affine_invariant"
    assert frame.prediction("net").shape == (HEIGHT, WIDTH)


def test_only_picture_and_intrinsics_are_needed(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name not in ("rgb.png", "intrinsics.json"):
            file.unlink()
    frame = read_frame(folder)
    assert (frame.depth, frame.points_lidar, frame.T_camera_lidar, frame.labels) == (None,) * 4
    with pytest.raises(FrameError, match=r"no depth\.png or depth\.npz"):
        split_uniform(frame, 1, 0)


def test_depth_in_metres_is_read_and_nonsense_is_unknown(folder: Path) -> None:
    (folder / "depth.png").unlink()
    depth = np.full((HEIGHT, WIDTH), 2.5)
    depth[0, :4] = [0, -1, np.inf, np.nan]
    np.savez(folder / "depth.npz", depth=depth)
    truth = read_frame(folder).truth
    assert np.isnan(truth[0, :4]).all() and (truth[0, 4:] == 2.5).all()


def test_distorted_cameras_are_read(folder: Path) -> None:
    file = folder / "intrinsics.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "model": "plumb_bob", "distortion": [0.1, 0, 0, 0]}))
    assert read_frame(folder).camera.distortion == (0.1, 0, 0, 0)


Damage = Callable[[Path], None]


def write_image(name: str, array: np.ndarray) -> Damage:
    def damage(folder: Path) -> None:
        cv2.imwrite(str(folder / name), array)

    return damage


def write_text(name: str, text: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def remove(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()

    return damage


def without_depth_png(**arrays: np.ndarray) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "depth.png").unlink()
        np.savez(folder / "depth.npz", **arrays)

    return damage


def save_lidar(array: np.ndarray) -> Damage:
    def damage(folder: Path) -> None:
        np.save(folder / "lidar.npy", array)

    return damage


INTRINSICS = {"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("damage", "file", "cure"),
    [
        (remove("rgb.png"), "frame_1", "add rgb.jpg"),
        (write_text("rgb.png", "no image"), "rgb.png", "damaged"),
        (remove("intrinsics.json"), "intrinsics.json", "fx, fy, cx, cy"),
        (write_text("intrinsics.json", "{"), "intrinsics.json", "not JSON"),
        (write_text("intrinsics.json", "[]"), "intrinsics.json", "JSON object"),
        (write_text("intrinsics.json", '{"width": 32, "height": 24}'), "intrinsics", "add it"),
        (
            write_text("intrinsics.json", json.dumps({**INTRINSICS, "fx": 0})),
            "intrinsics.json",
            "calibrate",
        ),
        (
            write_text("intrinsics.json", json.dumps({**INTRINSICS, "width": 64})),
            "intrinsics.json is for 64x24 but the image is 32x24",
            "resize",
        ),
        (write_text("depth.png", "no image"), "depth.png", "damaged"),
        (write_image("depth.png", np.ones((HEIGHT, WIDTH), np.uint8)), "depth.png", "uint16"),
        (write_image("depth.png", np.ones((HEIGHT, 9), np.uint16)), "depth.png is for", "resize"),
        (without_depth_png(z=np.ones((HEIGHT, WIDTH))), "depth.npz", "store `depth`"),
        (without_depth_png(depth=np.ones((HEIGHT, WIDTH), int)), "depth.npz", "float32 metres"),
        (without_depth_png(depth=np.ones((9, 9))), "depth.npz", "resize"),
        (write_text("depth.npz", "junk"), "depth.npz", "keep the one"),
        (write_text("lidar.npy", "junk"), "lidar.npy", "numpy.save"),
        (save_lidar(np.ones((5, 4), np.float32)), "lidar.npy", r"\(N, 3\) float32"),
        (save_lidar(np.ones((5, 3), int)), "lidar.npy", r"\(N, 3\) float32"),
        (remove("calib.json"), "calib.json", "T_cam_lidar"),
        (write_text("calib.json", "{}"), "calib.json", "add the 4x4"),
        (write_text("calib.json", '{"T_cam_lidar": [[1]]}'), "calib.json", "4x4"),
        (
            write_text("calib.json", json.dumps({"T_cam_lidar": np.diag([2.0, 1, 1, 1]).tolist()})),
            "calib.json",
            "rotation",
        ),
        (
            write_image("segmentation_objects.png", np.ones((9, 9), np.uint16)),
            "segmentation_objects.png",
            "resize",
        ),
        (
            write_image("segmentation_objects.png", np.ones((HEIGHT, WIDTH, 3), np.uint8)),
            "segmentation_objects.png",
            "one uint16 channel",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_its_cure(
    folder: Path, damage: Damage, file: str, cure: str
) -> None:
    damage(folder)
    with pytest.raises(FrameError, match=file) as caught:
        read_frame(folder)
    caught.match(cure)


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ({"prediction": np.ones((9, 9), np.float32), "kind": "depth_metric"}, "image's size"),
        ({"prediction": np.ones((HEIGHT, WIDTH), int), "kind": "depth_metric"}, "float32"),
        ({"prediction": np.ones((HEIGHT, WIDTH), np.float32)}, "`kind`"),
        ({"prediction": np.ones((HEIGHT, WIDTH), np.float32), "kind": "depth"}, "use one of"),
        ({"prediction": np.array([None]), "kind": "depth_metric"}, "plain arrays"),
    ],
)
def test_predictions_that_cannot_be_used_are_refused(
    folder: Path, content: dict, cure: str
) -> None:
    np.savez(folder / "prediction_bad.npz", **content)
    with pytest.raises(FrameError, match=r"prediction_bad\.npz") as caught:
        read_frame(folder).prediction("bad")
    caught.match(cure)


def test_a_missing_prediction_names_those_that_are_there(folder: Path) -> None:
    with pytest.raises(FrameError, match=r"here: net"):
        read_frame(folder).prediction("other")
    (folder / "prediction_net.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(FrameError, match=r"prediction_net\.npz"):
        read_frame(folder).prediction("net")


def png_of(width: int, height: int, depth: int = 8, kind: int = 2) -> bytes:
    """Return a PNG whose header announces a size that it does not have."""

    def part(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = part(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + data + part(b"IEND", b"")


def test_the_size_of_an_image_is_read_before_the_image(folder: Path) -> None:
    sizes = [(32000, 32000), (40000, 40000), (2**31 - 1, 2**31 - 1), (0, 5)]
    names = ["rgb.png", "depth.png", "segmentation_objects.png"]
    cases = [(name, size) for name in names for size in sizes]
    for number, (name, size) in enumerate(cases):
        damaged = folder.parent / f"frame_{number + 10}"
        shutil.copytree(folder, damaged)
        (damaged / name).write_bytes(png_of(*size, 16 if name != "rgb.png" else 8, 0))
    shutil.rmtree(folder)
    got = in_a_child("read", folder.parent)
    assert got["frames"] == 0
    for (name, size), sentence in zip(cases, got["sentences"], strict=True):
        assert name.partition(".")[0] in sentence or "intrinsics" in sentence
        assert f"{size[0]}x{size[1]}" in sentence


def test_a_large_image_must_fit_its_intrinsics_before_it_is_decoded(folder: Path) -> None:
    (folder / "rgb.png").write_bytes(png_of(10000, 10000))
    with pytest.raises(FrameError, match=r"intrinsics\.json is for 32x24 but the image is 10000x1"):
        read_frame(folder)


def npy_of(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


def test_the_shape_of_an_array_is_read_before_the_array(folder: Path) -> None:
    (folder / "depth.png").unlink()
    shapes: list[tuple[int, ...]] = [(30000, 30000), (2**40, 3), (10**30,), (24, 32)]
    for number, shape in enumerate(shapes):
        damaged = folder.parent / f"frame_{number + 10}"
        shutil.copytree(folder, damaged)
        with zipfile.ZipFile(damaged / "depth.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("depth.npy", npy_of(shape) + bytes(1000))
    shutil.rmtree(folder)
    got = in_a_child("read", folder.parent)
    assert got["frames"] == 0 and len(got["sentences"]) == len(shapes)
    assert all("depth.npz" in sentence for sentence in got["sentences"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy_of((2**40, 3)), "announces"),
        (npy_of((10**30, 3)), "announces"),
        (npy_of((5, 3)) + bytes(59), "the values are cut off"),
        (npy_of((5, 3), "|O") + bytes(60), "no plain array"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': " + b"(" * 108, "cannot be read"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"'" * 118, "cannot be read"),
        (b"\x93NUMPY\x09\x09", "version"),
        (b"", "cannot be read"),
        (b"PK\x03\x04", "is an npz archive"),
    ],
)
def test_broken_heads_of_lidar_files_end_in_a_sentence(
    folder: Path, content: bytes, words: str
) -> None:
    (folder / "lidar.npy").write_bytes(content)
    with pytest.raises(FrameError, match=words) as caught:
        read_frame(folder)
    caught.match("lidar.npy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fx": True}, "`fx` is True: write a number"),
        ({"width": 96.9}, "whole pixels"),
        ({"width": True}, "`width` is True"),
        ({"fx": "30"}, "`fx` is '30'"),
        ({"cx": None}, "`cx` is None"),
        ({"fx": 10**400}, "not finite"),
        ({"width": 10**400}, "not finite"),
        ({"height": -24}, "whole number of pixels above 0"),
        ({"model": 5}, "write a name"),
        ({"model": "x" * 100_000}, "not known"),
        ({"distortion": "0.1"}, "list of numbers"),
        ({"distortion": [True] * 4, "model": "plumb_bob"}, "list of numbers"),
        ({"distortion": [0.1] * 100_000, "model": "plumb_bob"}, "distortion coefficients"),
    ],
)
def test_only_numbers_are_taken_for_numbers(folder: Path, change: dict, words: str) -> None:
    content = json.loads((folder / "intrinsics.json").read_text())
    (folder / "intrinsics.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(FrameError, match=words) as caught:
        read_frame(folder)
    assert len(str(caught.value)) <= 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["intrinsics.json", "calib.json"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"fx": 1e999, "T_cam_lidar": [1e999]}',
     '{"T_cam_lidar": [[true]], "fx": 1}', "\udc00", '{"T_cam_lidar": {"a": 1}, "width": 1}'],
)  # fmt: skip
def test_json_of_any_kind_ends_in_a_sentence(folder: Path, name: str, text: str) -> None:
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FrameError, match=name) as caught:
        read_frame(folder)
    assert len(str(caught.value)) <= 1000 and str(caught.value).isprintable()


def jpeg_of(folder: Path, progressive: bool = False) -> bytes:
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive), cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    (folder / "rgb.png").unlink(missing_ok=True)
    return cv2.imencode(".jpg", image, options)[1].tobytes()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_and_one_with_a_tail_is_whole(
    folder: Path, progressive: bool
) -> None:
    whole = jpeg_of(folder, progressive)
    (folder / "rgb.jpg").write_bytes(whole)
    want = read_frame(folder).image
    film = b"\x00\x00\x00\x18ftypmp42" + bytes(500) + b"\xff\xd8\xff\xe0 another"
    (folder / "rgb.jpg").write_bytes(whole + film)
    assert np.array_equal(read_frame(folder).image, want)
    for share in (0.1, 0.3, 0.5, 0.9, 0.999):
        (folder / "rgb.jpg").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(FrameError, match=r"cut off|without an image"):
            read_frame(folder)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_orientation_in_exif_does_not_turn_the_pixels(folder: Path, orientation: int) -> None:
    whole = jpeg_of(folder)
    (folder / "rgb.jpg").write_bytes(whole)
    want = read_frame(folder).image
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01" + entry + bytes(4)
    # A thumbnail inside it has its own end marker.
    exif += b"\xff\xd8\xff\xd9"
    part = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (folder / "rgb.jpg").write_bytes(whole[:2] + part + whole[2:])
    assert np.array_equal(read_frame(folder).image, want)


def test_hidden_files_are_no_frames_and_no_images(folder: Path) -> None:
    for name in ("._rgb.png", ".DS_Store", "._segmentation_objects.png", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    for hidden in (folder.parent / ".frame_0", folder.parent.parent / "._source"):
        hidden.mkdir()
        (hidden / "rgb.png").write_bytes(b"x")
    assert find_frames(folder.parent) == [folder]
    assert find_frames(folder.parent.parent) == [folder]
    assert read_frame(folder).labels is not None


def test_pipes_and_devices_are_not_opened(folder: Path) -> None:
    target = folder / "segmentation_objects.png"
    target.unlink()
    os.mkfifo(target)
    with pytest.raises(FrameError, match="no regular file"):
        read_frame(folder)
    target.unlink()
    target.symlink_to("/dev/zero")
    with pytest.raises(FrameError, match="no regular file"):
        read_frame(folder)


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    text = str(FrameError("\x1b[31mred\n" + "x" * 10_000 + " cure."))
    assert text.isprintable() and len(text) <= 1000
    assert text.startswith("\\x1b[31mred ") and text.endswith(" cure.")


def test_frames_are_found_from_every_level(folder: Path) -> None:
    other = folder.parent.parent / "another" / "frame_0"
    other.mkdir(parents=True)
    (other / "intrinsics.json").write_text("{}")  # incomplete, but found too
    assert find_frames(folder) == [folder]
    assert find_frames(folder.parent) == [folder]
    assert find_frames(folder.parent.parent) == [other, folder]
    with pytest.raises(FrameError, match="no image"):
        read_frame(other)


def test_where_no_frames_are_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(FrameError, match="holds no frames"):
        find_frames(tmp_path)
    for function in (find_frames, read_frame):
        with pytest.raises(FrameError, match="is not a folder"):
            function(tmp_path / "nowhere")


@pytest.mark.parametrize("seed", range(3))
def test_measured_pixels_are_known_true_and_never_scored(folder: Path, seed: int) -> None:
    frame = read_frame(folder)
    known = np.isfinite(frame.truth)
    for split, count in [(split_uniform(frame, 50, seed), 50), (split_lines(frame, 4, seed), None)]:
        rows, cols = split.points.rows, split.points.cols
        assert count is None or len(split.points) == count
        assert len(set(zip(rows.tolist(), cols.tolist(), strict=True))) == len(split.points)
        assert known[rows, cols].all()
        assert np.array_equal(split.points.depth, frame.truth[rows, cols])
        assert not split.scored[rows, cols].any()
        assert split.scored.sum() + len(split.points) == known.sum()
        assert not split.scored[~known].any()


def test_lines_are_bands_of_three_rows_one_of_k(folder: Path) -> None:
    for seed in range(4):
        rows = np.unique(split_lines(read_frame(folder), 4, seed).points.rows)
        bands = np.unique(rows // 3)
        assert len({band % 4 for band in bands.tolist()}) == 1
        whole = [row for band in bands for row in range(3 * band, 3 * band + 3) if row >= 2]
        assert rows.tolist() == whole  # rows 0 and 1 have no depth


def test_splits_repeat_with_the_seed_and_differ_between_seeds_and_frames(folder: Path) -> None:
    frame = read_frame(folder)
    chosen = [split_uniform(frame, 40, seed).scored for seed in (0, 0, 1)]
    assert np.array_equal(chosen[0], chosen[1]) and not np.array_equal(chosen[0], chosen[2])
    other = folder.rename(folder.parent / "frame_2")
    assert not np.array_equal(split_uniform(read_frame(other), 40, 0).scored, chosen[0])


def test_a_split_that_leaves_nothing_to_score_is_refused(folder: Path) -> None:
    frame = read_frame(folder)
    with pytest.raises(FrameError, match="fewer points"):
        split_uniform(frame, int(np.isfinite(frame.truth).sum()), 0)
    with pytest.raises(ValueError, match="2 or more"):
        split_lines(frame, 1, 0)
    assert frame.depth is not None
    frame.depth[3:] = np.nan
    with pytest.raises(FrameError, match="too few rows"):
        split_lines(frame, 4, 0)


def test_the_real_frames_are_read(shared: Path) -> None:
    folders = find_frames(shared / "data")
    assert len(folders) == 17
    road = [folder for folder in folders if folder.parent.name == "opencalib_road"]
    for folder in (folders[0], road[-1]):
        frame = read_frame(folder)
        assert np.isfinite(frame.truth).any()
        assert frame.labels is not None and frame.labels.min() == 1
    assert frame.points_lidar is not None and len(frame.points_lidar) > 50_000


def test_a_planar_scan_hits_what_is_at_its_height(tmp_path: Path) -> None:
    """Return a floor 1 m below the camera, and a wall at 4 m with a box in front of it."""
    rows, cols = np.mgrid[:60, :80]
    with np.errstate(divide="ignore"):
        floor = np.where(rows > 30, 60.0 / (rows - 30), np.inf)
    depth = np.minimum(floor, 4.0).astype(np.float32)
    box = (cols > 30) & (cols < 50) & (rows > 20)
    depth[box] = np.minimum(depth, 2.0)[box]
    folder = tmp_path / "room/frame"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "rgb.png"), np.zeros((60, 80, 3), np.uint8))
    np.savez(folder / "depth.npz", depth=depth)
    intrinsics = {"fx": 60, "fy": 60, "cx": 40, "cy": 30, "width": 80, "height": 60}
    (folder / "intrinsics.json").write_text(json.dumps(intrinsics))
    frame = read_frame(folder)
    points = split_scan(frame, 0.5).points
    assert len(np.unique(points.cols)) == len(points) == 80, "one in each column"
    seen = np.where((points.cols > 30) & (points.cols < 50), 2.0, 4.0)
    np.testing.assert_allclose(points.depth, seen)
    height = (points.rows - 30) / 60 * points.depth
    np.testing.assert_allclose(height, 0.5, atol=4.0 / 60)
    with pytest.raises(FrameError, match="use another height"):
        split_scan(frame, 1.5)
