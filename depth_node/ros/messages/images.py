# SPDX-License-Identifier: Apache-2.0
"""Image and CompressedImage to arrays, for every encoding of camera drivers, and back."""

from __future__ import annotations

import array
import re
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from depth_node.image_files import (
    ImageError,
    TooLargeError,
    bits_in_use,
    decode,
    look_through,
    scaled_to_8_bits,
)
from depth_node.ros.messages.errors import MessageError, OtherSizeError, brief
from depth_node.ros.messages.fields import IS_BIGENDIAN, message_bytes

IMAGE_LAYOUTS: dict[str, tuple[str, int]] = {  # encoding -> NumPy type, channels
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "mono8": ("u1", 1),
    "rgb16": ("u2", 3),
    "bgr16": ("u2", 3),
    "rgba16": ("u2", 4),
    "bgra16": ("u2", 4),
    "mono16": ("u2", 1),
    "8UC1": ("u1", 1),
    "8UC3": ("u1", 3),
    "8UC4": ("u1", 4),
    "16UC1": ("u2", 1),
    "32FC1": ("f4", 1),
    **{f"bayer_{pattern}8": ("u1", 1) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{pattern}16": ("u2", 1) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **dict.fromkeys(("uyvy", "yuv422", "yuyv", "yuv422_yuy2"), ("u1", 2)),
}
_TO_RGB = {  # encoding without its number of bits -> OpenCV's conversion, None: no conversion
    "rgb": None,
    "bgr": cv2.COLOR_BGR2RGB,
    "rgba": cv2.COLOR_RGBA2RGB,
    "bgra": cv2.COLOR_BGRA2RGB,
    "mono": cv2.COLOR_GRAY2RGB,
    # OpenCV names a pattern by the second row, second and third column.
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
}
_SEMI_PLANAR = {  # encoding -> OpenCV's conversion, rows of bytes per row of the image
    "nv12": (cv2.COLOR_YUV2RGB_NV12, 1.5),
    "nv21": (cv2.COLOR_YUV2RGB_NV21, 1.5),
    "nv24": (None, 3.0),
}
_UNTYPED = {
    "8UC1": "mono8",
    "8UC3": "bgr8",
    "8UC4": "bgra8",
}  # OpenCV's channel order, as in cv_bridge
_PLAIN_NUMBERS = re.compile(r"^(8|16|32|64)[USF]C\d*$")


def image_view(message: Image) -> npt.NDArray[Any]:
    """Return the pixels for an encoding of IMAGE_LAYOUTS: a view (H, W) or (H, W, channels)."""
    if message.encoding not in IMAGE_LAYOUTS:
        known = ", ".join(IMAGE_LAYOUTS)
        raise MessageError(
            f"image encoding {brief(message.encoding)!r} has no fixed layout; use {known}"
        )
    kind, channels = IMAGE_LAYOUTS[message.encoding]
    dtype = np.dtype(kind).newbyteorder(">" if message.is_bigendian else "<")
    height, width, step = message.height, message.width, message.step
    if height < 1 or width < 1:
        raise MessageError(f"image is {width}x{height}: it has no pixels; correct the publisher")
    row = width * channels * dtype.itemsize
    if step < row:
        raise MessageError(
            f"image step is {step} bytes, but {width} pixels of {message.encoding} take {row};"
            " correct step in the publisher"
        )
    if len(message.data) != step * height:
        raise MessageError(
            f"image data has {len(message.data)} bytes, but step {step} x height {height} is"
            f" {step * height}; correct data or step in the publisher"
        )
    shape = (height, width) if channels == 1 else (height, width, channels)
    size = dtype.itemsize
    strides = (step, size) if channels == 1 else (step, channels * size, size)
    return np.ndarray(shape, dtype, buffer=memoryview(message.data), strides=strides)


class BitDepth:
    """How many bits the 16-bit images of one camera use: 8, 10, 12, 14 or 16.

    It is derived from the largest value seen, so it only grows: a 12-bit camera in a dark room may
    count as 10-bit until something bright comes. `warn` is called for each new result below 16.
    """

    def __init__(self, warn: Callable[[str, str], None] | None = None) -> None:
        self.bits = 8
        self.warn = warn or (lambda kind, text: None)
        self._told = 0

    def to_8_bits(self, pixels: npt.NDArray[np.integer], name: str) -> npt.NDArray[np.uint8]:
        """Return the same pixels as uint8, scaled by the bits in use."""
        self.bits = max(self.bits, bits_in_use(pixels))
        if self.bits != self._told:
            self._told = self.bits
            if self.bits < 16:
                self.warn(
                    "bits",
                    f"{name} images use {self.bits} of their 16 bits so far, so they are scaled by"
                    f" {self.bits} bits: let the driver fill 16 bits or publish mono8 or rgb8 if"
                    " the brightness is wrong",
                )
        return scaled_to_8_bits(pixels, self.bits)


def image_to_rgb(message: Image, depth: BitDepth | None = None) -> npt.NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 RGB image of an Image, for every encoding of camera drivers.

    depth: the bits of this camera as far as known; without it each image is judged by itself.
    """
    depth = depth or BitDepth()
    encoding = message.encoding
    if encoding in _UNTYPED:
        _warn_untyped(depth, encoding)
    elif _PLAIN_NUMBERS.match(encoding):
        raise MessageError(
            f"image encoding {encoding} is no image but plain numbers; publish rgb8, bgr8 or"
            " mono8, or mono16 for a 16-bit camera"
        )
    if encoding in _SEMI_PLANAR:
        return _semi_planar_to_rgb(message)
    if encoding not in IMAGE_LAYOUTS:
        raise MessageError(
            f"image encoding {brief(encoding)!r} is not known; publish rgb8, bgr8 or mono8, for"
            " instance with image_proc"
        )
    view = image_view(message)
    encoding = _UNTYPED.get(encoding, encoding)
    if view.dtype.itemsize == 2:
        if view.shape[2:] == (4,):  # alpha uses 16 bits, whatever the bits of the colours
            view, encoding = view[..., :3], encoding.replace("a", "")
        view = depth.to_8_bits(np.asarray(view, np.uint16), encoding)
    code = _TO_RGB[encoding.removesuffix("16").removesuffix("8")]
    if code is None:
        return np.ascontiguousarray(view)
    return _convert(view, code, encoding)


def _warn_untyped(depth: BitDepth, encoding: str) -> None:
    depth.warn(
        "untyped",
        f"image encoding {encoding} does not say its colours and is read as {_UNTYPED[encoding]}:"
        " let the driver name the encoding",
    )


def compressed_to_rgb(
    message: CompressedImage,
    depth: BitDepth | None = None,
    size: tuple[int, int] | None = None,
) -> npt.NDArray[np.uint8]:
    """Return the (H, W, 3) uint8 RGB image of a JPEG or PNG; a Bayer mosaic is demosaiced.

    image_transport compresses mosaics as they are. size: width and height that it must have, else
    OtherSizeError. They are read from the file's header first, so that a small file that claims to
    be a huge image costs nothing.
    """
    depth = depth or BitDepth()
    plain = message.format.partition(";")[0].strip()
    if plain in _UNTYPED:
        _warn_untyped(depth, plain)
    elif "compressedDepth" in message.format or _PLAIN_NUMBERS.match(plain):
        raise MessageError(
            f"compressed image format {brief(message.format)!r} is a depth image or plain numbers;"
            " subscribe to the compressed image of the camera"
        )
    try:
        image = look_through(bytes(message.data))
        if size is not None:
            check_size(image.width, image.height, size)
        pixels = decode(image)
    except ImageError as error:
        if size is not None and isinstance(error, TooLargeError):
            check_size(error.width, error.height, size)
        raise MessageError(
            f"compressed image of {len(message.data)} bytes, format {brief(message.format)!r}, is"
            f" not readable as JPEG or PNG ({error}); check the publisher"
        ) from error
    if pixels.dtype == np.uint16:
        pixels = depth.to_8_bits(np.asarray(pixels, np.uint16), "16-bit PNG")
    return _demosaiced(np.asarray(pixels, np.uint8), plain)


def _demosaiced(pixels: npt.NDArray[np.uint8], encoding: str) -> npt.NDArray[np.uint8]:
    """Return the colours of a mosaic, (H, W, 3) with three equal channels; others unchanged."""
    code = _TO_RGB.get(encoding.removesuffix("16").removesuffix("8"))
    mosaic = pixels[..., 0]
    if not encoding.startswith("bayer_") or code is None or (pixels != mosaic[..., None]).any():
        return pixels
    return _convert(mosaic, code, encoding)


def check_size(width: int, height: int, size: tuple[int, int]) -> None:
    """Raise OtherSizeError unless an image has the size of its camera_info."""
    if (width, height) != size:
        raise OtherSizeError(
            f"the image is {width}x{height} but camera_info is for {size[0]}x{size[1]} by its size,"
            " binning and roi: let both come from one driver at one size, or remap camera_info to"
            " the one of this image",
            width,
            height,
        )


def _semi_planar_to_rgb(message: Image) -> npt.NDArray[np.uint8]:
    """Convert nv12, nv21 and nv24: a plane of luma, and below it the interleaved chroma."""
    code, rows_of_bytes = _SEMI_PLANAR[message.encoding]
    width, height, step = message.width, message.height, message.step
    if len(message.data) == step * height and height * 2 % (2 * rows_of_bytes) == 0:
        height = int(height / rows_of_bytes)  # this driver counts the rows of both planes
    rows = int(height * rows_of_bytes)
    if min(width, height) < 2 or (code is not None and (width % 2 or height % 2)) or step < width:
        raise MessageError(
            f"{message.encoding} image is {message.width}x{message.height} with step {step}: width"
            " and height must be even and step at least the width; correct the publisher"
        )
    if len(message.data) != rows * step:
        raise MessageError(
            f"{message.encoding} image data has {len(message.data)} bytes, but step {step} x"
            f" {rows} rows of both planes is {rows * step}; correct the publisher"
        )
    planes: npt.NDArray[np.uint8] = np.ndarray(
        (rows, step), np.uint8, buffer=memoryview(message.data)
    )
    if code is not None:
        return _convert(planes[:, :width], code, message.encoding)
    # nv24: colours at every pixel, two bytes each, so a row of them takes 2 x width.
    colours = np.ascontiguousarray(planes[height:]).reshape(height, 2 * step)[:, : 2 * width]
    yuv = np.dstack([planes[:height, :width], colours.reshape(height, width, 2)[..., ::-1]])
    return _convert(yuv, cv2.COLOR_YCrCb2RGB, message.encoding)


def _convert(pixels: npt.NDArray[Any], code: int, name: str) -> npt.NDArray[np.uint8]:
    try:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), code), np.uint8)
    except cv2.error as error:
        shape = "x".join(str(side) for side in pixels.shape[1::-1])
        raise MessageError(
            f"{name} of {shape} cannot be read: its width and height do not suit the encoding;"
            " check the publisher"
        ) from error


def image_message(pixels: npt.NDArray[Any], encoding: str, header: Header) -> Image:
    """Return the Image of an (H, W) or (H, W, channels) array whose type fits the encoding."""
    kind, channels = IMAGE_LAYOUTS[encoding]
    expected = pixels.shape[:2] if channels == 1 else (*pixels.shape[:2], channels)
    if pixels.dtype != np.dtype(kind) or pixels.shape != expected:
        raise ValueError(f"{pixels.dtype} {pixels.shape} is no {encoding} image")
    message = Image(header=header, encoding=encoding, is_bigendian=int(IS_BIGENDIAN))
    message.height, message.width = pixels.shape[:2]
    message.step = message.width * channels * pixels.itemsize
    message.data = message_bytes(pixels)
    return message


def compressed_depth_message(pixels: npt.NDArray[Any], header: Header) -> CompressedImage:
    """Return a depth image (H, W) in the format of compressed_depth_image_transport
    (image_transport_plugins).

    uint16 millimetres, 0 unknown, are not changed. For float32 metres, the reader computes the
    depth of a code c as a / (c - b), for c other than 0; a and b, which precede the PNG, are chosen
    so that the nearest and the farthest pixel get the ends of the 16 bits. Values that are not
    finite, or not in front of the camera, are unknown.
    """
    a, b, encoding = 0.0, 0.0, "16UC1"
    if pixels.dtype != np.uint16:
        encoding = "32FC1"
        known = np.isfinite(pixels) & (pixels > 0)
        inverse = np.divide(1.0, pixels, out=np.zeros(pixels.shape), where=known)
        values = inverse[known]
        farthest, nearest = (values.min(), values.max()) if values.size else (1.0, 1.0)
        a = 65534 / (nearest - farthest) if nearest > farthest else 1 / farthest
        # The reader has float32, so the codes are computed with float32 values too.
        a = float(np.float32(a))
        b = float(np.float32(1 - a * farthest))
        codes = np.clip(np.rint(a * inverse + b), 1, 65535)
        pixels = np.where(known, codes, 0).astype(np.uint16)
    # The fastest level: level 6 takes three times as long for 1 % less of a noisy map.
    made, png = cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    if not made:
        raise RuntimeError(f"OpenCV made no PNG of a depth image of {pixels.shape}")
    data = array.array("B", struct.pack("<iff", 0, a, b))  # 0: inverse depth
    data.frombytes(png.tobytes())
    return CompressedImage(header=header, format=f"{encoding}; compressedDepth png", data=data)


def labels_to_pixels(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.uint16]:
    """Return the 16UC1 pixels of a label map, 0 = unassigned."""
    if labels.size and labels.max() > 65535:
        raise ValueError(f"{labels.max()} regions do not fit into a 16UC1 image")
    return labels.astype(np.uint16)
