# SPDX-License-Identifier: Apache-2.0
"""Unusual and malicious image files, folders with links, lists with unusual names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from tests.helpers.data_sets import noise, opened, put, sample_image
from tests.test_image_files import bombs
from training.data.files import read_image
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError


def jpeg(seed: int = 0, **settings: int) -> bytes:
    flags = [item for name, value in settings.items() for item in (getattr(cv2, name), value)]
    done, data = cv2.imencode(".jpg", noise() + np.uint8(seed), flags)
    assert done
    return data.tobytes()


TAILS = {
    "a video that holds the marker of a scan": b"\x00\x00\x00\x18ftypmp42" + b"\xff\xda\x01" * 40,
    "another image, cut": jpeg(3)[:400],
    "another image": jpeg(3),
    "zeros": bytes(4000),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "form", [{}, {"IMWRITE_JPEG_PROGRESSIVE": 1}, {"IMWRITE_JPEG_RST_INTERVAL": 2}]
)
def test_what_follows_the_end_of_a_jpeg_is_not_looked_at(
    tmp_path: Path, tail: str, form: dict[str, int]
) -> None:
    whole = jpeg(**form)
    (tmp_path / "a.jpg").write_bytes(whole + TAILS[tail])
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.jpg"), read_image(put_bytes(tmp_path, whole))
    )
    for length in (len(whole) // 3, len(whole) // 2, len(whole) - 2):
        (tmp_path / "a.jpg").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.jpg cannot be read .*damaged or cut"):
            read_image(tmp_path / "a.jpg")


def put_bytes(folder: Path, data: bytes) -> Path:
    path = folder / "whole.jpg"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("bits", [8, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_bits_that_a_camera_leaves_empty_do_not_darken(
    tmp_path: Path, bits: int, channels: int
) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64 * 48).reshape(48, 64)
    stored = (
        np.repeat(ramp[..., None], channels, 2)
        .squeeze()
        .astype(np.uint8 if bits == 8 else np.uint16)
    )
    assert cv2.imwrite(str(tmp_path / "a.png"), stored)
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.uint8 and image.shape == (48, 64, 3)
    assert image.max() == 255 and image.mean() == pytest.approx(127, abs=1)


def test_floats_have_no_white(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.tiff"), np.ones((8, 8), np.float32))
    with pytest.raises(DataError, match=r"a\.tiff cannot be read"):
        read_image(tmp_path / "a.tiff")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bombs()["PNG"])
    with pytest.raises(DataError, match="32000x32000 pixels, more than"):
        opened("images", tmp_path)[0]


def test_a_portable_map_that_announces_the_moon_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"P6 40000 40000 255\n" + bytes(100))
    with pytest.raises(DataError, match="no JPEG, PNG"):
        opened("images", tmp_path)[0]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    samples = opened("images", tmp_path)
    for k in range(2):
        reader = threading.Thread(target=pytest.raises, args=(DataError, samples.__getitem__, k))
        reader.start()
        reader.join(10)
        assert not reader.is_alive()
        with pytest.raises(DataError, match="no regular file"):
            samples[k]


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1.png", sample_image())
    for name in ("._1.png", ".hidden.jpg", ".DS_Store"):
        (tmp_path / "a" / name).write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    put(tmp_path / ".trash" / "2.png", sample_image())
    assert [item.name for item in opened("images", tmp_path).items] == ["a/1.png"]


def test_linked_folders_are_part_of_the_data_and_circles_end(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "disk", tmp_path / "images"
    put(elsewhere / "deep" / "1.png", sample_image())
    put(root / "own" / "2.png", sample_image())
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "again").symlink_to(root / "own")
    (root / "dead").symlink_to(tmp_path / "nothing")
    names = [item.name for item in opened("images", root).items]
    assert names == ["linked/deep/1.png", "own/2.png"]
    through = tmp_path / "through"
    through.symlink_to(root)
    assert len(opened("images", through)) == 2


def test_linked_folders_of_published_layouts(tmp_path: Path) -> None:
    put(tmp_path / "disk" / "rgb_1.png", sample_image())
    put(tmp_path / "disk" / "depth_1.png", np.full((12, 16), 1000, np.uint16))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "room").symlink_to(tmp_path / "disk")
    assert opened("nyuv2", tmp_path / "set")[0].name == "room/rgb_1.png"


def test_lists_with_blanks_tabs_quotes_and_bytes(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    for name in ("a  b.png", "it's.png", odd, "plain.png"):
        put(tmp_path / name, sample_image())
        put(tmp_path / "depth of" / name, np.full((12, 16), 1000, np.uint16))
    listed = tmp_path / "list.txt"
    listed.write_bytes(
        b"\xef\xbb\xbfa  b.png\nit's.png\r\ncaf\xe9.png\nplain.png depth_of_nothing\n"
    )
    names = [sample.name for sample in opened("images", tmp_path, list=str(listed))]
    assert names == ["a  b.png", "it's.png", odd, "plain.png"]
    listed.write_bytes(
        b'"a  b.png" "depth of/a  b.png"\n'
        b"plain.png\tdepth of/plain.png\n"
        b"a  b.png depth of/a  b.png\n"
        b"caf\xe9.png depth of/caf\xe9.png 721.5\n"
        b"it's.png None\n"
    )
    pairs = opened("nyuv2", tmp_path, list=str(listed))
    assert [sample.name for sample in pairs] == ["a  b.png", "plain.png", "a  b.png", odd]
    assert all(sample.depth is not None for sample in pairs)


def test_names_that_are_no_utf8_are_printable_in_sentences(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\n\x1b[31m.png")).write_bytes(b"nothing")
    with pytest.raises(DataError) as caught:
        open_samples(DataConfig(folder=str(tmp_path)))[0]
    assert str(caught.value).isprintable() and str(caught.value).encode()


def test_an_array_that_announces_more_than_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "a.png", sample_image())
    put(tmp_path / "a_depth_mask.npy", np.ones((12, 16)))
    header = (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n"
    )
    (tmp_path / "a_depth.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header + bytes(64))
    with pytest.raises(DataError, match=r"a_depth\.npy cannot be read"):
        opened("diode", tmp_path)[0]


@pytest.mark.parametrize("row", ["1 2", "", "a b c", "nan " * 12, "1 " * 13])
def test_a_calibration_of_too_few_numbers(tmp_path: Path, row: str) -> None:
    drive = tmp_path / "2011_09_26" / "2011_09_26_drive_0002_sync"
    put(drive / "image_02" / "data" / "1.png", sample_image())
    truth = tmp_path / drive.name / "proj_depth/groundtruth/image_02/1.png"
    put(truth, np.full((12, 16), 256, np.uint16))
    (drive.parent / "calib_cam_to_cam.txt").write_text(f"P_rect_02: {row}\n")
    with pytest.raises(DataError, match=r"calib_cam_to_cam\.txt cannot be read"):
        opened("kitti", tmp_path)[0]
