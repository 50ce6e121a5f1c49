# SPDX-License-Identifier: Apache-2.0
"""The one reader of image files: what it takes, what it refuses before it decodes, and that node,
recordings and training read the same bytes alike.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.image_files import (
    ALL_FORMATS,
    LARGEST_PX,
    ImageError,
    TooLargeError,
    bits_in_use,
    decode,
    look_through,
    scaled_to_8_bits,
)
from tests.helpers.mutants import IMAGE_FORMS, in_a_child, mutants
from tests.helpers.mutation import put

SMOOTH = cv2.resize(
    np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8),
    (53, 37),
    interpolation=cv2.INTER_CUBIC,
)


def encoded(end: str, pixels: np.ndarray = SMOOTH, **settings: int) -> bytes:
    flags = [item for name, value in settings.items() for item in (getattr(cv2, name), value)]
    done, data = cv2.imencode(end, pixels, flags)
    assert done
    return data.tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize(
    ("end", "settings"),
    [
        (".jpg", {}),
        (".jpg", {"IMWRITE_JPEG_PROGRESSIVE": 1}),
        (".jpg", {"IMWRITE_JPEG_RST_INTERVAL": 2}),
        (".png", {}),
        (".bmp", {}),
        (".webp", {"IMWRITE_WEBP_QUALITY": 50}),
        (".webp", {"IMWRITE_WEBP_QUALITY": 101}),
        (".tiff", {}),
    ],
)
def test_the_header_tells_the_size_and_the_pixels_are_opencvs(
    end: str, settings: dict[str, int]
) -> None:
    data = encoded(end, **settings)
    image = look_through(data, ALL_FORMATS)
    assert (image.height, image.width) == (37, 53)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decode(image)[..., ::-1], expected)
    np.testing.assert_array_equal(decode(image, colour=False), expected)


def test_extended_webp_tells_its_size() -> None:
    data = b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\x34\0\0\x24\0\0"
    image = look_through(data, ALL_FORMATS)
    assert (image.height, image.width) == (37, 53)


def test_a_jpeg_with_filling_between_its_segments_is_whole() -> None:
    data = encoded(".jpg")
    second = 2 + 2 + struct.unpack_from(">H", data, 4)[0]
    filled = look_through(data[:second] + b"\xff\xff\xff" + data[second:])
    np.testing.assert_array_equal(decode(filled), decode(look_through(data)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes that are no JPEG, PNG"),
        (b"this is no image", "16 bytes that are no JPEG, PNG"),
        (b"P6 40000 40000 255\n" + bytes(100), "no JPEG, PNG"),
        (encoded(".bmp"), "no JPEG, PNG"),
        (b"\xff\xd8", "a JPEG that is cut off"),
        (b"\xff\xd8\xff\xd9", "a JPEG without an image"),
        (encoded(".jpg")[:-2], "a JPEG that is cut off"),
        (encoded(".jpg")[:700], "a JPEG that is cut off"),
        (encoded(".jpg")[:2] + b"\0" + encoded(".jpg")[2:], "bytes between its segments"),
        (encoded(".png")[:-4], "a PNG that is cut off"),
        (encoded(".png").replace(b"IDAT", b"IDAX"), "a PNG with an unknown chunk"),
        (encoded(".png")[:-20] + b"\0" + encoded(".png")[-19:], "a wrong checksum"),
        (encoded(".png")[:8] + encoded(".png")[33:], "a PNG without a header"),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        look_through(data)


def test_a_jpeg_of_which_a_restart_is_missing_is_refused() -> None:
    data = encoded(".jpg", cv2.resize(SMOOTH, (640, 480)), IMWRITE_JPEG_RST_INTERVAL=2)
    first, third = data.index(b"\xff\xd1"), data.index(b"\xff\xd3")
    with pytest.raises(ImageError, match="a part is missing"):
        look_through(data[:first] + data[third:])


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(".jpg", IMWRITE_JPEG_PROGRESSIVE=1)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 100 scans"):
        look_through(data[:last] + data[last:-2] * 1000 + data[-2:])


def bombs(side: int = 32_000) -> dict[str, bytes]:
    """Small files whose headers announce a billion pixels."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    jpeg = bytearray(encoded(".jpg"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, side, side)
    bmp = bytearray(encoded(".bmp"))
    struct.pack_into("<ii", bmp, 18, side, -side)
    webp = b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\xff\xff\0" * 2
    return {"PNG": png, "JPEG": bytes(jpeg), "BMP": bytes(bmp), "WebP": webp}


@pytest.mark.parametrize("name", bombs())
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    data = bombs()[name]
    assert LARGEST_PX < 32_000**2
    tracemalloc.start()
    with pytest.raises(TooLargeError, match="more than 128 megapixels"):
        look_through(data, ALL_FORMATS)
    assert tracemalloc.get_traced_memory()[1] < 1e5
    tracemalloc.stop()


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_pixels_stay_where_they_are_unless_asked(orientation: int) -> None:
    jpeg = encoded(".jpg")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation])
    exif += b"\0\0\0\0\0\0"
    tagged = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    plain = decode(look_through(jpeg))
    np.testing.assert_array_equal(decode(look_through(tagged)), plain)
    turned = decode(look_through(tagged), upright=True)
    np.testing.assert_array_equal(turned, np.rot90(plain, {3: 2, 6: 3, 8: 1}[orientation]))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_that_a_camera_leaves_empty_do_not_darken(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64 * 48).reshape(48, 64).astype(np.uint16)
    pixels = decode(look_through(encoded(".png", ramp)))
    assert pixels.dtype == np.uint16 and bits_in_use(pixels) == bits
    image = scaled_to_8_bits(pixels)
    assert image.dtype == np.uint8 and image.shape == (48, 64, 3)
    assert image.max() == 255 and image.mean() == pytest.approx(127, abs=1)


def test_floats_have_no_white() -> None:
    data = look_through(encoded(".tiff", np.ones((8, 8, 3), np.float32)), ALL_FORMATS)
    with pytest.raises(ImageError, match="float32, which have no white"):
        decode(data)
    assert decode(data, colour=False).dtype == np.float32


# --- mutants -------------------------------------------------------------------------------------


@pytest.mark.slow  # a process each
@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_mutants_end_in_a_reason_or_in_an_image(form: str, tmp_path: Path) -> None:
    got = in_a_child(form, 2000, 3, tmp_path, timeout_s=300)
    assert got["answers"] + got["sentences"] == 2000 and got["sentences"] > 50
    assert got["peak_bytes"] < 300e6


@pytest.mark.parametrize("end", [".jpg", ".png"])
def test_node_recordings_and_training_read_the_same_bytes_alike(end: str, tmp_path: Path) -> None:
    """The three readers refuse the same mutants, and give the same pixels for the others."""
    pytest.importorskip("sensor_msgs", reason="the ROS message packages are not installed")
    from sensor_msgs.msg import CompressedImage

    from depth_node.recordings.frames import FrameError, read_image
    from depth_node.ros.messages import MessageError, compressed_to_rgb
    from training.data.files import decode_rgb

    path = tmp_path / f"image{end}"
    refused = 0
    for data in mutants(encoded(end), 150, 4):
        put(path, data)
        found = []
        for read in (
            lambda: compressed_to_rgb(CompressedImage(data=data)),  # noqa: B023
            lambda: read_image(path),
            lambda: decode_rgb(data),  # noqa: B023
        ):
            try:
                found.append(read())
            except (MessageError, FrameError, ValueError):
                found.append(None)
        if found[1] is None:
            refused += 1
            assert found[0] is None and found[2] is None
            continue
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[2], found[1])
    assert refused > 20
