# SPDX-License-Identifier: Apache-2.0
"""Decoding of image files from bytes: of a camera's message, a bag, a folder or a shard. They are
checked before they are decoded, so that damaged, cut and excessively large images are refused:
100 kB of PNG can expand to 3 GB, and libjpeg fills missing parts with grey without an error.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.sentences import one_line

LARGEST_PX = 1 << 27  # 134 million, 0.4 GB in colour: no camera has more
MOST_SCANS = 100  # in a progressive JPEG: each is a pass over the whole image; 10 is usual
CAMERA_FORMATS = ("JPEG", "PNG")  # what cameras and recorders write
ALL_FORMATS = (*CAMERA_FORMATS, "BMP", "WebP", "TIFF")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what libjpeg decodes
_JPEG_REFUSED = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless and others
_MARKER = re.compile(rb"\xff+([^\x00\xff])")  # after filling; \xff\x00 is a byte of the image


class ImageError(ValueError):
    """Bytes are not a complete image; the message is a phrase such as `a PNG that is cut off`."""


class TooLargeError(ImageError):
    """The header announces more pixels than LARGEST_PX."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__(
            f"its header announces {width}x{height} pixels, more than {LARGEST_PX >> 20} megapixels"
        )
        self.height, self.width = height, width


@dataclass(frozen=True)
class ImageBytes:
    """A checked image: its size from the header, and its bytes without data that is not needed."""

    height: int
    width: int
    content: bytes


def look_through(data: bytes, formats: Collection[str] = CAMERA_FORMATS) -> ImageBytes:
    """Check an image file and read the size in its header; of a JPEG or PNG every part is checked.

    Raises ImageError for a file that is cut off or damaged, of no format in `formats`, or larger
    than LARGEST_PX.
    """
    for name, starts, reader in _READERS:
        if name in formats and starts(data):
            try:
                return reader(data)
            except (struct.error, IndexError):
                raise ImageError(f"a {name} whose header is cut off") from None
    raise ImageError(f"{len(data)} bytes that are no {', '.join(formats)}")


def decode(image: ImageBytes, *, colour: bool = True, upright: bool = False) -> NDArray[Any]:
    """Decode an image that look_through() has checked. Raises ImageError if its pixels are damaged.

    colour: (H, W, 3) RGB, uint8, or uint16 if 16 bits are stored (see scaled_to_8_bits); otherwise
    as stored, one channel or several (BGR), of any type. upright: rotated as EXIF asks for;
    otherwise the pixels stay where the camera's calibration expects them.
    """
    flags = cv2.IMREAD_UNCHANGED  # which ignores EXIF too
    if colour:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        flags |= 0 if upright else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(image.content, np.uint8), flags)
    except (Exception, MemoryError) as error:
        raise ImageError(f"its pixels are damaged: {one_line(error).rstrip('.')}") from None
    if pixels is None:
        raise ImageError("its pixels are damaged")
    turned = upright and pixels.shape[:2] == (image.width, image.height)
    if not turned and pixels.shape[:2] != (image.height, image.width):
        raise ImageError("its pixels are damaged")
    if not colour:
        return np.asarray(pixels)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"its pixels are {pixels.dtype}, which have no white")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def bits_in_use(pixels: NDArray[np.integer]) -> int:
    """Return how many of 16 bits an image uses: 8, 10, 12, 14 or 16.

    Cameras with fewer bits leave the upper ones empty; an image of 12 bits read as 16 would be
    nearly black.
    """
    needed = int(pixels.max(initial=0)).bit_length()
    return max(8, needed + needed % 2)


def scaled_to_8_bits(pixels: NDArray[np.integer], bits: int = 0) -> NDArray[np.uint8]:
    """Return the upper eight of the bits in use. bits: how many; 0: bits_in_use(pixels)."""
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    return np.asarray(pixels >> ((bits or bits_in_use(pixels)) - 8), np.uint8)


# --- formats -------------------------------------------------------------------------------------


def _sized(data: bytes, height: int, width: int) -> ImageBytes:
    if height < 1 or width < 1:
        raise ImageError(f"an image of {width}x{height} pixels")
    if height * width > LARGEST_PX:
        raise TooLargeError(height, width)
    return ImageBytes(height, width, data)


def _png(data: bytes) -> ImageBytes:
    """Check a PNG: the needed chunks, with their checksums; others, such as EXIF, are dropped."""
    place, pieces, size = len(_PNG), [_PNG], None
    while True:
        if place + 12 > len(data):
            raise ImageError("a PNG that is cut off")
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        end = place + 12 + length
        if kind == b"IHDR" and length == 13 and len(pieces) == 1 and place + 16 <= len(data):
            width, height = struct.unpack_from(">II", data, place + 8)
            size = height, width
            _sized(b"", *size)  # checked first: too large is a better message than cut off
        if end > len(data):
            raise ImageError("a PNG that is cut off")
        if kind in _PNG_KEPT:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(memoryview(data)[place + 4 : end - 4]) != checksum:
                raise ImageError("a PNG with a wrong checksum")
            pieces.append(data[place:end])
        elif not kind.isalpha() or not kind[0] & 0x20:
            raise ImageError("a PNG with an unknown chunk")
        if size is None:
            raise ImageError("a PNG without a header")
        if kind == b"IEND":
            return _sized(b"".join(pieces), *size)
        place = end


def _jpeg(data: bytes) -> ImageBytes:
    """Check a JPEG from marker to marker up to the end of the image.

    Data that follows (the video of a Motion Photo) is ignored. A file without an end marker is cut
    off.
    """
    place, size, scans = 2, None, 0
    restart = -1  # number of the last restart marker in this scan
    while True:
        match = _MARKER.search(data, place)
        if not scans and place < len(data) and data[place] != 0xFF:
            raise ImageError("a JPEG with bytes between its segments")
        if match is None or (not scans and match.start() != place):
            raise ImageError("a JPEG that is cut off")
        marker, place = match[1][0], match.end()
        if marker == 0xD9:
            if size is None or not scans:
                raise ImageError("a JPEG without an image")
            return _sized(data[:place], *size)
        if 0xD0 <= marker <= 0xD7 and scans:
            if restart >= 0 and marker - 0xD0 != (restart + 1) % 8:
                raise ImageError("a JPEG of which a part is missing")
            restart = marker - 0xD0
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            raise ImageError("a JPEG with a marker where none may be")
        if place + 2 > len(data):
            raise ImageError("a JPEG that is cut off")
        (length,) = struct.unpack_from(">H", data, place)
        if length < 2 or place + length > len(data):
            raise ImageError("a JPEG that is cut off")
        if marker in _JPEG_REFUSED or (marker in _JPEG_FRAMES and (size or length < 8)):
            raise ImageError("a JPEG of a kind that cannot be read")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            size = height, width
            _sized(b"", *size)
        scans += marker == 0xDA
        restart = -1
        if scans > MOST_SCANS:
            raise ImageError(f"a JPEG of more than {MOST_SCANS} scans")
        place += length


def _bmp(data: bytes) -> ImageBytes:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return _sized(data, abs(height), abs(width))


def _webp(data: bytes) -> ImageBytes:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[k : k + 3], "little") + 1 for k in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise ImageError("a WebP without a header")
    return _sized(data, height, width)


def _tiff(data: bytes) -> ImageBytes:
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    sides: dict[int, int] = {}
    for k in range(struct.unpack_from(f"{order}H", data, at)[0]):
        tag, kind = struct.unpack_from(f"{order}HH", data, at + 2 + 12 * k)
        if tag in (256, 257):
            form = "H" if kind == 3 else "I"
            sides[tag] = struct.unpack_from(order + form, data, at + 10 + 12 * k)[0]
    if len(sides) < 2:
        raise ImageError("a TIFF without a size")
    return _sized(data, sides[257], sides[256])


_READERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], ImageBytes]], ...] = (
    ("JPEG", lambda data: data.startswith(b"\xff\xd8"), _jpeg),
    ("PNG", lambda data: data.startswith(_PNG), _png),
    ("BMP", lambda data: data.startswith(b"BM"), _bmp),
    ("WebP", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    ("TIFF", lambda data: data[:4] in (b"II*\x00", b"MM\x00*"), _tiff),
)
