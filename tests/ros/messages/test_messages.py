# SPDX-License-Identifier: Apache-2.0
"""Messages: every layout gives the same array, and inconsistent messages are refused."""

from __future__ import annotations

import array
import time
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("sensor_msgs", reason="ROS 2 messages are not installed")

from sensor_msgs.msg import (
    CameraInfo,
    CompressedImage,
    Image,
    LaserScan,
    PointCloud2,
    PointField,
    RegionOfInterest,
)
from std_msgs.msg import Header

from depth_node.fitting import REGION_FIT_DTYPE
from depth_node.geometry.camera import Camera
from depth_node.geometry.millimetres import depth_to_millimetres
from depth_node.ros import messages
from depth_node.ros.messages import MessageError

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
ENCODED = {
    "rgb8": RGB,
    "bgr8": RGB[..., ::-1],
    "rgba8": np.dstack([RGB, np.full((5, 7), 9, np.uint8)]),
    "bgra8": np.dstack([RGB[..., ::-1], np.full((5, 7), 9, np.uint8)]),
}


def image(
    pixels: npt.NDArray[np.generic], encoding: str, padding: int = 0, big: bool = False
) -> Image:
    pixels = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    rows = [row.tobytes() + b"\xaa" * padding for row in np.ascontiguousarray(pixels)]
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    message.is_bigendian, message.step = int(big), len(rows[0])
    message.data = array.array("B", b"".join(rows))
    return message


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", ENCODED)
def test_colour_encodings_with_and_without_row_padding(encoding: str, padding: int) -> None:
    rgb = messages.image_to_rgb(image(ENCODED[encoding], encoding, padding))
    np.testing.assert_array_equal(rgb, RGB)
    assert rgb.flags.c_contiguous


@pytest.mark.parametrize("big", [False, True])
def test_grey_encodings_in_both_byte_orders(big: bool) -> None:
    grey = RGB[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(messages.image_to_rgb(image(grey, "mono8", 3)), expected)
    deep = grey.astype(np.uint16) * 256 + 17
    message = image(deep, "mono16", 2, big)
    np.testing.assert_array_equal(messages.image_view(message), deep)
    np.testing.assert_array_equal(messages.image_to_rgb(message), expected)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(("encoding", "kind"), [("32FC1", "f4"), ("16UC1", "u2")])
def test_depth_images_are_read_as_numbers_and_refused_as_pictures(
    encoding: str, kind: str, big: bool
) -> None:
    numbers = RNG.uniform(0, 9, (5, 7)).astype(kind)
    message = image(numbers, encoding, 4, big)
    np.testing.assert_array_equal(messages.image_view(message), numbers)
    with pytest.raises(MessageError, match="no image"):
        messages.image_to_rgb(message)


def test_image_view_copies_nothing() -> None:
    message = image(RGB, "rgb8")
    view = messages.image_view(message)
    message.data[0] ^= 0xFF
    assert view[0, 0, 0] == RGB[0, 0, 0] ^ 0xFF


GREY = RGB[..., 0]
SMOOTH = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("8UC1", GREY),
        ("8UC3", RGB[..., ::-1]),
        ("8UC4", np.dstack([RGB[..., ::-1], np.full((5, 7), 9, np.uint8)])),
    ],
)
def test_untyped_images_are_read_in_opencv_order_with_a_warning(
    encoding: str, pixels: npt.NDArray[np.uint8]
) -> None:
    warned: list[str] = []
    depth = messages.BitDepth(lambda kind, text: warned.append(text))
    rgb = messages.image_to_rgb(image(pixels, encoding), depth)
    expected = np.repeat(GREY[..., None], 3, axis=2) if encoding == "8UC1" else RGB
    np.testing.assert_array_equal(rgb, expected)
    assert encoding in warned[0]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16", "mono16"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bits_are_scaled_by_those_in_use(encoding: str, bits: int, big: bool) -> None:
    """The message does not state how many bits the camera uses."""
    warned: list[str] = []
    depth = messages.BitDepth(lambda kind, text: warned.append(text))
    pixels = ENCODED.get(encoding.replace("16", "8"), GREY)
    deep = (pixels.astype(np.uint16) << (bits - 8)) + 1
    deep.flat[0] = (1 << bits) - 1
    if "a" in encoding:
        deep[..., 3] = 65535
    found = messages.image_to_rgb(image(deep, encoding, 4, big), depth)
    expected = np.repeat(GREY[..., None], 3, axis=2) if encoding == "mono16" else RGB
    np.testing.assert_array_equal(found.reshape(-1, 3)[1:], expected.reshape(-1, 3)[1:])
    dark = messages.image_to_rgb(image(deep // 8, encoding, 4, big), depth)
    assert dark.max() <= 32, "the brightness of a stream does not flicker"
    assert len(warned) == (bits < 16)
    assert all(f"{bits} of their 16 bits" in text for text in warned)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns_are_read_without_cv_bridge(pattern: str, bits: int) -> None:
    colour = dict(r=200, g=120, b=40)
    tile = np.array(
        [[colour[pattern[0]], colour[pattern[1]]], [colour[pattern[2]], colour[pattern[3]]]]
    )
    mosaic = np.tile(tile, (4, 5)).astype(np.uint16 if bits == 16 else np.uint8)
    mosaic = mosaic << (bits - 8)
    rgb = messages.image_to_rgb(image(mosaic, f"bayer_{pattern}{bits}"))
    np.testing.assert_array_equal(rgb[2:-2, 2:-2].reshape(-1, 3), [[200, 120, 40]] * 24)


@pytest.mark.parametrize(
    "encoding", ["nv12", "nv21", "nv24", "uyvy", "yuv422", "yuyv", "yuv422_yuy2"]
)
def test_yuv_is_read_without_cv_bridge(encoding: str) -> None:
    luma, blue, red = 120, 90, 180
    height, width = 6, 8
    ones = np.ones((height, width), np.uint8)
    if encoding.startswith("nv"):
        pair = [red, blue] if encoding == "nv21" else [blue, red]
        rows = height if encoding == "nv24" else height // 2
        columns = width if encoding == "nv24" else width // 2
        planes = [
            (ones * luma).tobytes(),
            np.tile(pair, (rows, columns)).astype(np.uint8).tobytes(),
        ]
        message = Image(height=height, width=width, step=width, encoding=encoding)
        message.data = array.array("B", b"".join(planes))
    else:
        group = (
            [blue, luma, red, luma] if encoding in ("uyvy", "yuv422") else [luma, blue, luma, red]
        )
        pixels = np.tile(group, (height, width // 2)).astype(np.uint8).reshape(height, width, 2)
        message = image(pixels, encoding, 6)
    rgb = messages.image_to_rgb(message)
    assert rgb.shape == (height, width, 3)
    r = luma + 1.4 * (red - 128)
    b = luma + 1.77 * (blue - 128)
    np.testing.assert_allclose(rgb[..., 0], r, atol=16)
    np.testing.assert_allclose(rgb[..., 2], b, atol=16)
    assert rgb.std(axis=(0, 1)).max() == 0
    message.data = message.data[:-1]
    with pytest.raises(MessageError, match="data has"):
        messages.image_to_rgb(message)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "32FC3", "16SC1", "64FC4", "8SC3", "16UC3"])
def test_plain_numbers_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(MessageError, match=f"{encoding} is no image but plain numbers"):
        messages.image_to_rgb(Image(encoding=encoding, height=2, width=2))


def test_a_long_encoding_makes_no_long_sentence() -> None:
    with pytest.raises(MessageError) as caught:
        messages.image_to_rgb(Image(encoding="x" * 100_000, height=2, width=2))
    assert len(str(caught.value)) < 300


def compressed(pixels: npt.NDArray[np.generic], suffix: str, form: str = "jpeg") -> CompressedImage:
    return CompressedImage(format=form, data=cv2.imencode(suffix, pixels)[1].tobytes())


def test_a_huge_compressed_image_is_refused_by_its_header() -> None:
    """0.9 MB that would become 2.7 GB."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    side = 30_000
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(side + 1)) for _ in range(side // 100)) + rows.flush()
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    message = CompressedImage(format="png", data=png)
    start = time.perf_counter()
    with pytest.raises(MessageError, match="the image is 30000x30000 but camera_info is for 64x48"):
        messages.compressed_to_rgb(message, size=(64, 48))
    with pytest.raises(MessageError, match="more than 128 megapixels"):
        messages.compressed_to_rgb(message)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".webp", ".ppm", ".hdr", ".jp2"])
def test_only_jpeg_and_png_are_opened(suffix: str) -> None:
    pixels = SMOOTH.astype(np.float32) / 255 if suffix == ".hdr" else SMOOTH
    with pytest.raises(MessageError, match="not readable as JPEG or PNG"):
        messages.compressed_to_rgb(compressed(pixels, suffix))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_turns_nothing(orientation: int) -> None:
    jpeg = bytes(compressed(SMOOTH[..., ::-1], ".jpg").data)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation])
    exif += b"\0\0\0\0\0\0"
    tagged = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    plain = messages.compressed_to_rgb(CompressedImage(format="jpeg", data=jpeg))
    turned = messages.compressed_to_rgb(CompressedImage(format="jpeg", data=tagged))
    np.testing.assert_array_equal(turned, plain)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_sixteen_bits_is_scaled_by_those_in_use(channels: int) -> None:
    pixels = SMOOTH[..., ::-1] if channels == 3 else SMOOTH[..., 0]
    deep = pixels.astype(np.uint16) << 4
    deep[0, 0] = 4095
    found = messages.compressed_to_rgb(compressed(deep, ".png", "mono16; png compressed mono16"))
    expected = SMOOTH if channels == 3 else np.repeat(SMOOTH[..., :1], 3, axis=2)
    np.testing.assert_array_equal(found[1:], expected[1:])
    with pytest.raises(MessageError, match="plain numbers"):
        messages.compressed_to_rgb(compressed(deep, ".png", "16UC1; png compressed"))


def broken(**changes: object) -> Image:
    message = image(RGB, "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (broken(step=20), "step is 20 bytes, but 7 pixels of rgb8 take 21"),
        (broken(step=22), "data has 105 bytes, but step 22 x height 5 is 110"),
        (broken(data=array.array("B", b"123")), "data has 3 bytes"),
        (broken(height=0), "7x0"),
        (broken(encoding="colourful"), "'colourful'"),
    ],
)
def test_images_that_contradict_themselves(message: Image, words: str) -> None:
    with pytest.raises(MessageError, match=words):
        messages.image_to_rgb(message)


def test_compressed_pictures() -> None:
    smooth = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)
    _, png = cv2.imencode(".png", smooth[..., ::-1])
    message = CompressedImage(format="rgb8; png compressed bgr8", data=png.tobytes())
    np.testing.assert_array_equal(messages.compressed_to_rgb(message), smooth)
    with pytest.raises(MessageError, match="not readable as JPEG or PNG"):
        messages.compressed_to_rgb(CompressedImage(format="jpeg", data=b"\xff\xd8 nonsense"))
    with pytest.raises(MessageError, match="0 bytes"):
        messages.compressed_to_rgb(CompressedImage(format="jpeg"))
    with pytest.raises(MessageError, match="is a depth image"):
        messages.compressed_to_rgb(
            CompressedImage(format="32FC1; compressedDepth png", data=png.tobytes())
        )


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(("pattern", "bits"), [("rggb", 8), ("gbrg", 8), ("bggr", 16)])
def test_a_compressed_bayer_mosaic_is_read_in_colour(pattern: str, bits: int, suffix: str) -> None:
    """image_transport compresses the mosaic as it is, as a grey image of format bayer_..."""
    if bits == 16 and suffix == ".jpg":
        pytest.skip("a JPEG has 8 bits")
    colour = dict(r=200, g=120, b=40)
    tile = np.array([[colour[letter] for letter in pattern[k : k + 2]] for k in (0, 2)])
    mosaic = (np.tile(tile, (8, 12)) << (bits - 8)).astype(f"u{bits // 8}")
    quality = [cv2.IMWRITE_JPEG_QUALITY, 100] if suffix == ".jpg" else []
    data = cv2.imencode(suffix, mosaic, quality)[1].tobytes()
    name = f"bayer_{pattern}{bits}; {'jpeg' if suffix == '.jpg' else 'png'} compressed "
    rgb = messages.compressed_to_rgb(CompressedImage(format=name, data=data))
    np.testing.assert_allclose(rgb[2:-2, 2:-2].mean(axis=(0, 1)), [200, 120, 40], atol=3)


def test_colours_that_a_driver_made_of_a_mosaic_before_it_compressed_stay() -> None:
    smooth = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)
    data = cv2.imencode(".png", smooth[..., ::-1])[1].tobytes()
    message = CompressedImage(format="bayer_rggb8; png compressed bgr8", data=data)
    np.testing.assert_array_equal(messages.compressed_to_rgb(message), smooth)


@pytest.mark.parametrize("encoding", ["8UC1", "8UC3"])
def test_untyped_compressed_images_are_read_with_a_warning_as_untyped_images_are(
    encoding: str,
) -> None:
    smooth = cv2.resize(RGB, (64, 48), interpolation=cv2.INTER_CUBIC)
    pixels = smooth[..., ::-1] if encoding == "8UC3" else smooth[..., 0]
    data = cv2.imencode(".png", pixels)[1].tobytes()
    warned: list[str] = []
    depth = messages.BitDepth(lambda kind, text: warned.append(text))
    message = CompressedImage(format=f"{encoding}; png compressed bgr8", data=data)
    found = messages.compressed_to_rgb(message, depth)
    expected = smooth if encoding == "8UC3" else np.repeat(smooth[..., :1], 3, axis=2)
    np.testing.assert_array_equal(found, expected)
    assert encoding in warned[0]


def cloud(
    points: npt.NDArray[np.float64],
    kind: str = "f4",
    big: bool = False,
    row_padding: int = 0,
    order: str = "zyx",
) -> PointCloud2:
    """Return an organised cloud whose fields have an unusual order, with gaps between them."""
    height, width = points.shape[:2]
    size = np.dtype(kind).itemsize
    offsets = {name: 4 + index * (size + 3) for index, name in enumerate(order)}
    step = 4 + 3 * (size + 3) + 5
    dtype = np.dtype(
        {
            "names": list(order),
            "formats": [(">" if big else "<") + kind] * len(order),
            "offsets": [offsets[name] for name in order],
            "itemsize": step,
        }
    )
    rows = np.zeros((height, width), dtype)
    for axis, name in enumerate("xyz"):
        if name in order:
            rows[name] = points[..., axis]
    data = b"".join(row.tobytes() + b"\xaa" * row_padding for row in rows)
    datatype = PointField.FLOAT32 if kind == "f4" else PointField.FLOAT64
    message = PointCloud2(height=height, width=width, is_bigendian=big, point_step=step)
    message.fields = [
        PointField(name=name, offset=offset, datatype=datatype, count=1)
        for name, offset in offsets.items()
    ]
    message.row_step = step * width + row_padding
    message.data = array.array("B", data)
    return message


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("row_padding", [0, 7])
def test_clouds_are_read_by_field_name_in_every_layout(
    kind: str, big: bool, row_padding: int
) -> None:
    points = RNG.normal(size=(2, 3, 3))
    points[1, 1] = np.nan
    found = messages.cloud_to_points(cloud(points, kind, big, row_padding))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, points.reshape(-1, 3).astype(np.float32))


def test_an_empty_cloud_is_no_error() -> None:
    assert messages.cloud_to_points(cloud(np.zeros((1, 0, 3)))).shape == (0, 3)
    assert messages.cloud_to_points(PointCloud2()).shape == (0, 3), "a driver that saw nothing"


def test_a_cloud_whose_height_was_forgotten_is_not_empty() -> None:
    message = cloud(np.ones((1, 5, 3)))
    message.height = 0
    with pytest.raises(MessageError, match=r"5x0 points has .* set width and height"):
        messages.cloud_to_points(message)


def test_clouds_that_contradict_themselves() -> None:
    points = np.ones((2, 3, 3))
    with pytest.raises(MessageError, match=r"no field 'z', only y, x"):
        messages.cloud_to_points(cloud(points, order="yx"))
    message = cloud(points)
    message.point_step = 10
    with pytest.raises(MessageError, match="beyond point_step 10"):
        messages.cloud_to_points(message)
    message = cloud(points)
    message.row_step = 4
    with pytest.raises(MessageError, match="row_step is 4 bytes"):
        messages.cloud_to_points(message)
    message = cloud(points)
    message.data = message.data[:-1]
    with pytest.raises(MessageError, match="data has"):
        messages.cloud_to_points(message)
    message = cloud(points)
    message.fields[0].datatype = PointField.INT16
    with pytest.raises(MessageError, match="integer type INT16, whose unit is not known"):
        messages.cloud_to_points(message)
    message.fields[0].datatype = 99
    with pytest.raises(MessageError, match="datatype 99"):
        messages.cloud_to_points(message)
    message = cloud(points)
    message.fields[2].offset = message.fields[1].offset + 2
    with pytest.raises(MessageError, match="fields 'y' and 'x' share bytes"):
        messages.cloud_to_points(message)
    message = cloud(points)
    message.fields.append(PointField(name="x", offset=0, datatype=PointField.FLOAT32, count=1))
    with pytest.raises(MessageError, match="two fields named 'x'"):
        messages.cloud_to_points(message)


def test_laser_scan() -> None:
    scan = LaserScan(angle_min=0.0, angle_increment=np.pi / 2, range_min=0.1, range_max=10.0)
    scan.ranges = [1.0, 2.0, float("inf"), float("nan"), 0.05, 11.0]
    found = messages.scan_message_to_points(scan)
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 2, 0]], atol=1e-6)
    scan.range_max = 0.0
    with pytest.raises(MessageError, match="range_max"):
        messages.scan_message_to_points(scan)


@pytest.mark.parametrize(
    ("increment", "rays", "read"),
    [
        (np.radians(0.5), 721, True),  # a turn, its ends twice
        (-np.radians(1.0), 360, True),
        (0.0, 1, True),  # one beam
        (1.0, 360, False),  # degrees
        (-0.25, 61, False),  # 15 degrees
        (0.0, 360, False),
        (3e38, 2, False),
    ],
)
def test_angles_of_a_scan_that_are_no_radians_are_refused(
    increment: float, rays: int, read: bool
) -> None:
    scan = LaserScan(angle_increment=increment, range_min=0.1, range_max=10.0)
    scan.ranges = [1.0] * rays
    if read:
        assert len(messages.scan_message_to_points(scan)) == rays
    else:
        with pytest.raises(MessageError, match=f"{rays} rays .* in radians"):
            messages.scan_message_to_points(scan)


def info(**changes: object) -> CameraInfo:
    message = CameraInfo(width=640, height=480, distortion_model="plumb_bob", d=[0.1, 0, 0, 0, 0])
    message.k = [500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
    message.p = [400.0, 0.0, 310.0, 0.0, 0.0, 410.0, 230.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_camera_info() -> None:
    raw = messages.camera_of(info())
    assert (raw.model, raw.fx, raw.fy, raw.cx, raw.cy) == ("plumb_bob", 500, 510, 320, 240)
    rectified = messages.camera_of(info(), rectified=True)
    assert (rectified.model, rectified.fx, rectified.cx) == ("pinhole", 400, 310)
    assert messages.camera_of(info(p=[0.0] * 12), rectified=True).fx == 500, "P unset: K"


def test_what_camera_info_says_of_a_stereo_pair_is_warned_about() -> None:
    message = info()
    assert messages.calibration_warning(message, rectified=True) == ""
    message.p[3] = -40.0
    assert "second camera of a stereo pair (0.100 m" in messages.calibration_warning(message, True)
    assert messages.calibration_warning(message, rectified=False) == ""
    turn = cv2.Rodrigues(np.radians([0.0, 1.0, 0.0]))[0]
    message = info(r=turn.reshape(-1).tolist())
    assert "rotates the image by 1.00 degrees" in messages.calibration_warning(
        message, rectified=True
    )
    nothing = info(r=[float("nan")] * 9, p=[0.0] * 12, d=[0.0] * 5)
    assert messages.calibration_warning(nothing, rectified=True) == ""


def test_a_calibration_of_another_size_of_image_is_warned_about() -> None:
    larger = [1500.0, 0.0, 960.0, 0.0, 1500.0, 540.0, 0.0, 0.0, 1.0]
    assert "(960, 540) lies beside its image of 640x480" in messages.calibration_warning(
        info(k=larger), rectified=False
    )
    assert messages.calibration_warning(info(k=larger), rectified=True) == "", "P counts"
    part = info(k=larger, roi=RegionOfInterest(x_offset=900, y_offset=500, width=64, height=48))
    assert messages.calibration_warning(part, rectified=False) == ""


def test_camera_info_with_region_of_interest_and_binning() -> None:
    message = info(binning_x=2, binning_y=2)
    message.roi.x_offset, message.roi.y_offset = 100, 40
    message.roi.width, message.roi.height = 400, 300
    camera = messages.camera_of(message)
    assert (camera.width, camera.height, camera.fx, camera.cx) == (200, 150, 250, 110)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (info(k=[0.0] * 9), "not calibrated"),
        (info(distortion_model="swirl"), "'swirl' is not known"),
        (info(width=0), "width is 0"),
        (info(roi=RegionOfInterest(x_offset=2**32 - 1, width=64, height=48)), "principal point"),
        (info(k=[1e300, 0.0, 31.5, 0.0, 1e300, 23.5, 0.0, 0.0, 1.0]), "no lens"),
        (info(k=[50.0, 0.0, 31.5, 0.0, 1e-30, 23.5, 0.0, 0.0, 1.0]), "no lens"),
        (info(k=[0.8, 0.0, 0.5, 0.0, 0.8, 0.5, 0.0, 0.0, 1.0]), "no lens .* K in pixels"),
        (info(k=[500.0, 0.0, 0.0, 0.0, 510.0, 0.0, 320.0, 240.0, 1.0]), "row by row"),
        (info(k=[500.0, 0.0, 320.0, 0.0, 510.0, 240.0, 0.0, 0.0, 2.0]), "must end with 0, 0, 1"),
    ],
)
def test_camera_info_that_cannot_be_used(message: CameraInfo, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        messages.camera_of(message)


@pytest.mark.parametrize(
    "camera",
    [
        Camera(64, 48, 50.0, 51.0, 31.5, 23.5),
        Camera(64, 48, 50.0, 51.0, 31.5, 23.5, "plumb_bob", (0.1, 0.01, 0.0, 0.0, 0.001)),
        Camera(64, 48, 50.0, 51.0, 31.5, 23.5, "plumb_bob", (0.1,) * 8),
        Camera(64, 48, 50.0, 51.0, 31.5, 23.5, "equidistant", (0.1, 0.0, 0.0, 0.0)),
    ],
)
def test_camera_info_round_trip(camera: Camera) -> None:
    assert messages.camera_of(messages.camera_info_message(camera, Header())) == camera


@pytest.mark.parametrize(
    ("count", "model"),
    [(4, "plumb_bob"), (5, "plumb_bob"), (8, "rational_polynomial"), (12, "rational_polynomial"),
     (14, "rational_polynomial")],
)  # fmt: skip
def test_more_than_five_coefficients_are_a_rational_polynomial(count: int, model: str) -> None:
    camera = Camera(640, 480, 500, 500, 320, 240, "plumb_bob", (0.01,) * count)
    message = messages.camera_info_message(camera, Header())
    assert (message.distortion_model, len(message.d)) == (model, count)
    assert messages.camera_of(message) == camera


@pytest.mark.parametrize(("encoding", "kind"), [("32FC1", "f4"), ("16UC1", "u2"), ("rgb8", "u1")])
def test_image_round_trip(encoding: str, kind: str) -> None:
    shape = (5, 7, 3) if encoding == "rgb8" else (5, 7)
    pixels = RNG.uniform(0, 200, shape).astype(kind)
    header = Header(frame_id="camera")
    message = messages.image_message(pixels[::-1], encoding, header)
    assert message.header.frame_id == "camera"
    np.testing.assert_array_equal(messages.image_view(message), pixels[::-1])
    with pytest.raises(ValueError, match="is no"):
        messages.image_message(pixels.astype("i8"), encoding, header)


def test_millimetres_never_turn_unknown_into_a_number_or_wrap_around() -> None:
    depth = np.array([[np.nan, 0.0004, 0.0006, 1.2345, 65.534, 65.535, np.inf, -1.0]], np.float32)
    found = depth_to_millimetres(depth)
    np.testing.assert_array_equal(found, [[0, 0, 1, 1235, 65534, 0, 0, 0]])


def test_labels_that_do_not_fit_are_refused() -> None:
    labels = np.array([[0, 65535]], np.int32)
    np.testing.assert_array_equal(messages.labels_to_pixels(labels), labels)
    with pytest.raises(ValueError, match="65536"):
        messages.labels_to_pixels(labels + 1)


@pytest.mark.parametrize("rows", [0, 4])
def test_the_table_of_the_fit_survives(rows: int) -> None:
    table = np.zeros(rows, REGION_FIT_DTYPE)
    for index, name in enumerate(REGION_FIT_DTYPE.names or ()):
        table[name] = np.arange(rows) + index
    message = messages.table_message(table, Header())
    assert [field.name for field in message.fields] == list(REGION_FIT_DTYPE.names or ())
    found = messages.table_rows(message)
    assert len(found) == rows
    for name in REGION_FIT_DTYPE.names or ():
        np.testing.assert_array_equal(found[name], table[name])


@pytest.mark.parametrize("decimation", [1, 2, 3])
def test_coloured_points_leave_out_the_unknown_and_carry_their_colour(decimation: int) -> None:
    camera = Camera(7, 5, 4.0, 4.0, 3.0, 2.0)
    depth = RNG.uniform(1, 9, (5, 7)).astype(np.float32)
    depth[0, 0] = np.nan
    rows = messages.colour_points(depth, camera, RGB, decimation)
    every = (slice(None, None, decimation),) * 2
    known = np.isfinite(depth[every])
    expected = camera.backproject(depth)[every][known]
    np.testing.assert_array_equal(np.column_stack([rows[name] for name in "xyz"]), expected)
    packed = rows["rgb"].view(np.uint32)
    colours = np.column_stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255])
    np.testing.assert_array_equal(colours, RGB[every][known])


def test_a_large_image_becomes_a_message_in_milliseconds() -> None:
    """Plain bytes would take 0.4 s, for rclpy then checks every element."""
    depth = np.zeros((720, 1280), np.float32)
    messages.image_message(depth, "32FC1", Header())
    start = time.perf_counter()
    messages.image_message(depth, "32FC1", Header())
    assert time.perf_counter() - start < 0.1


# --- times of points -----------------------------------------------------------------------------


def timed_cloud(name: str, values: npt.NDArray[Any], stamp_s: int = 1_700_000_000) -> PointCloud2:
    rows = np.zeros(len(values), [("x", "f4"), ("y", "f4"), ("z", "f4"), (name, values.dtype)])
    rows["z"], rows[name] = 1.0, values
    header = Header(frame_id="lidar")
    header.stamp.sec = stamp_s
    return messages.table_message(rows, header)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("time", np.linspace(0, 0.1, 50, dtype="f4")),
        ("t", np.linspace(0, 1e8, 50).astype("u4")),
        ("timestamp", 1_700_000_000 + np.linspace(0, 0.1, 50)),
        ("offset_time", np.linspace(0, 1e8, 50).astype("u4")),
    ],
)
def test_times_of_points(name: str, values: npt.NDArray[Any]) -> None:
    scan = messages.lidar_scan(timed_cloud(name, values))
    assert scan.points.shape == (50, 3) and not scan.unknown_times
    assert scan.offset_s is not None
    np.testing.assert_allclose(scan.offset_s, np.linspace(0, 0.1, 50), atol=1e-6)


def test_infinite_times_are_none() -> None:
    values = 1000.0 + np.linspace(0, 0.1, 50)
    values[::7] = np.inf
    message = timed_cloud("timestamp", values)
    message.header.stamp.sec, message.header.stamp.nanosec = 1000, 0
    offset_s = messages.lidar_scan(message).offset_s
    assert offset_s is not None and not offset_s[::7].any()
    np.testing.assert_allclose(offset_s[1:7], values[1:7] - 1000, atol=1e-6)


def test_times_that_mean_nothing_leave_the_points_alone() -> None:
    for values, why in (
        (np.linspace(0, 4e9, 50).astype("u4"), "'t' of the points"),
        (1_700_000_037 + np.linspace(0, 0.1, 50), "one clock"),
    ):
        scan = messages.lidar_scan(timed_cloud("t", values))
        assert len(scan.points) == 50 and scan.offset_s is None and why in scan.unknown_times
    message = timed_cloud("t", np.linspace(0, 1e8, 50).astype("u4"))
    message.fields[3].offset = 4000
    assert "beyond point_step" in messages.lidar_scan(message).unknown_times
    message.fields[3].datatype = 77
    assert "datatype 77" in messages.lidar_scan(message).unknown_times
    plain = timed_cloud("intensity", np.zeros(50, "f4"))
    assert messages.lidar_scan(plain).offset_s is None
    assert not messages.lidar_scan(plain).unknown_times


@pytest.mark.parametrize("first", ["timestamp_sec", "timestamp_nsec"])
@pytest.mark.parametrize("start_s", [0.05, 0.4, 0.95])
def test_seconds_and_nanoseconds_in_two_fields_are_one_time(first: str, start_s: float) -> None:
    ns = 1_700_000_000_000_000_000 + np.rint(1e9 * (start_s + np.linspace(0, 0.1, 50))).astype(int)
    parts = {"timestamp_sec": ns // 10**9, "timestamp_nsec": ns % 10**9}
    names = sorted(parts, key=lambda name: name != first)
    rows = np.zeros(50, [(name, "f4") for name in "xyz"] + [(name, "u4") for name in names])
    for name, values in parts.items():
        rows[name] = values
    header = Header(frame_id="lidar")
    header.stamp.sec, header.stamp.nanosec = int(ns[0] // 10**9), int(ns[0] % 10**9)
    scan = messages.lidar_scan(messages.table_message(rows, header))
    assert scan.offset_s is not None and not scan.unknown_times
    np.testing.assert_allclose(scan.offset_s, np.linspace(0, 0.1, 50), atol=1e-6)


def test_whole_seconds_are_no_times_of_points() -> None:
    """All points would be moved to where the LiDAR was up to a second before."""
    late = timed_cloud("timestamp", np.full(50, 1_700_000_000, "u4"))
    late.header.stamp.nanosec = 400_000_000
    scan = messages.lidar_scan(late)
    assert scan.offset_s is None and "whole seconds" in scan.unknown_times
    at_stamp = messages.lidar_scan(timed_cloud("timestamp", np.full(50, 1.7e9)))
    assert at_stamp.offset_s is not None and not at_stamp.offset_s.any()


def test_rays_of_a_laser_scan_have_times_of_their_own() -> None:
    scan = LaserScan(angle_min=-1.0, angle_increment=0.1, range_min=0.1, range_max=30.0)
    scan.header.stamp.sec = 5
    scan.ranges = [1.0, float("inf"), 2.0, 0.01, 3.0]
    assert messages.lidar_scan(scan).offset_s is None
    scan.time_increment = 0.01
    read = messages.lidar_scan(scan)
    assert len(read.points) == 3 and read.offset_s is not None
    np.testing.assert_allclose(read.offset_s, [0.0, 0.02, 0.04], atol=1e-7)
    scan.header.stamp.sec = 0
    read = messages.lidar_scan(scan)
    assert read.offset_s is not None
    np.testing.assert_allclose(read.offset_s, [-0.04, -0.02, 0.0], atol=1e-7)
    scan.time_increment = 0.5  # 2.5 s
    assert messages.lidar_scan(scan).offset_s is None


@pytest.mark.parametrize(
    ("topic", "setting", "d", "rectified"),
    [
        ("/cam/image_rect", "auto", 0.1, True),
        ("image_rect", "auto", 0.1, True),
        ("/cam/image_rect_color/compressed", "auto", 0.1, True),
        ("/cam/image_rect/theora", "auto", 0.1, True),
        ("/cam/image_rect_raw/compressed", "auto", 0.1, True),
        ("/image_rect/image_raw", "auto", 0.1, False),
        ("/image_rect_node/image_raw", "auto", 0.1, False),
        ("/rect/compressed", "auto", 0.1, False),
        ("", "auto", 0.1, False),
        ("/cam/image_raw/compressed", "auto", 0.1, False),
        ("/cam/image_raw", "auto", 0.0, True),
        ("/cam/image_raw", "yes", 0.1, True),
        ("/cam/image_rect", "no", 0.0, False),
    ],
)
def test_what_is_rectified(topic: str, setting: str, d: float, rectified: bool) -> None:
    k = np.array([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]])
    p = np.hstack([k, np.zeros((3, 1))])
    info = CameraInfo(
        d=[d] * 5, k=k.ravel(), r=np.eye(3).ravel(), p=p.ravel(), distortion_model="plumb_bob"
    )
    assert messages.is_rectified(topic, info, setting) is rectified
    info.distortion_model = "equidistant"
    assert not messages.is_rectified("/cam/image_raw", info, "auto")


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("/cam/image_color_rect", True),
        ("/cam/color/rect/image", True),
        ("/cam/color/rect/image/compressed", True),
        ("/cam/rectified/image", True),
        ("/cam/image_rect", False),  # believed
        ("/rect_node/image_raw", False),
        ("/cam/direct/image", False),
    ],
)
def test_a_name_that_speaks_of_a_rectified_image_and_is_not_believed_is_told(
    topic: str, told: bool
) -> None:
    k = np.array([[80.0, 0, 40], [0, 80, 30], [0, 0, 1]])
    p = np.hstack([k * [[0.9], [0.9], [1]], np.zeros((3, 1))])
    calibration = CameraInfo(
        d=[0.1] * 5, k=k.ravel(), r=np.eye(3).ravel(), p=p.ravel(), distortion_model="plumb_bob"
    )
    doubt = messages.rectified_doubt(topic, calibration, "auto")
    assert ("image_rectified to yes" in doubt) is told
    assert not messages.rectified_doubt(topic, calibration, "no")
    calibration.d = [0.0] * 5
    calibration.p = np.hstack([k, np.zeros((3, 1))]).ravel()
    assert not messages.rectified_doubt(topic, calibration, "auto")
