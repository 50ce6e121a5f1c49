# SPDX-License-Identifier: Apache-2.0
"""Files of data sets: what lies below a folder, and images from their bytes, or one sentence.

Sizes are read from an image's header before anything is decoded, as 100 kB of PNG can hold 3 GB.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.config import one_line
from training.data.samples import U8, DataError

LARGEST_PX = 2**27  # of an image: 134 million, 0.4 GB in colour
LARGEST_BYTES = 2**30  # of a file that is read whole
# Brightest value of a 16-bit image -> what white is: cameras of 12 and 14 bits leave the top empty.
WHITE = ((4095, 4095), (16383, 16383))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a library says of a damaged or missing file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: copy it there, or take it off the list.") from error
    except Exception as error:  # a damaged file raises what no library documents
        raise DataError(f"{path} cannot be read ({one_line(error)}): copy it again.") from error


def content(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises FileNotFoundError, and ValueError for a pipe, a device or a file of more than 1 GiB.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise ValueError("it is no regular file")
    if path.stat().st_size > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES >> 20} MiB")
    return path.read_bytes()


def below(root: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """Files below a folder, through linked folders too, sorted; none that are hidden.

    A folder that several ways lead to is entered once, by the way without links if there is one.
    Hidden are names with a leading dot, as a Mac's companions `._x.png` of every file.
    """
    files: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        try:
            about = folder.stat()
            inside = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"The folder {folder} cannot be read ({one_line(error)}): repair it, or take it"
                " out."
            ) from error
        if (about.st_dev, about.st_ino) in entered:
            continue
        entered.add((about.st_dev, about.st_ino))
        for entry in inside:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_dir():
                linked.append(path)
            elif wanted(path):
                files.append(path)
    return sorted(files)


def check_size(path: Path) -> None:
    """Raise DataError for an image file whose header announces more than LARGEST_PX pixels."""
    with reading(path):
        _check_header(content(path))


def _check_header(data: bytes) -> None:
    size = header_size(data)
    if size is None:
        raise ValueError("the file is damaged or cut, or no JPEG, PNG, BMP, WebP or TIFF")
    width, height = size
    if width * height > LARGEST_PX:
        raise ValueError(
            f"its header announces {width}x{height} pixels, more than {LARGEST_PX >> 20} million"
        )


def decode(data: bytes, flags: int) -> NDArray[Any]:
    """The image in the bytes of a file.

    Raises ValueError for a cut or damaged file, for one of no known format, and for one of more
    than LARGEST_PX pixels.
    """
    _check_header(data)
    # libjpeg fills the missing part of a cut file with grey and says nothing.
    cut = data[:2] == b"\xff\xd8" and not jpeg_is_whole(data)
    stored = None if cut else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if stored is None:
        raise ValueError("the file is damaged or cut")
    return np.asarray(stored)


def decode_rgb(data: bytes) -> U8:
    """An image (H, W, 3) uint8 RGB; of 12, 14 or 16 bits a colour the upper eight.

    Bits are those that the brightest pixel needs: one of 12 in a file of 16 would else be nearly
    black. Raises ValueError as decode does, and for floats, which have no white.
    """
    bgr = decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if bgr.dtype == np.uint16:
        brightest = int(bgr.max(initial=0))
        white = next((white for most, white in WHITE if brightest <= most), 65535)
        # Truncated as libpng does it: 16 bits are the same as ever.
        bgr = (bgr >> np.uint16(white.bit_length() - 8)).astype(np.uint8)
    if bgr.dtype != np.uint8:
        raise ValueError(f"its pixels are {bgr.dtype}; write 8 or 16 bits a colour")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_image(path: Path) -> U8:
    """An image (H, W, 3) uint8 RGB. Raises DataError for a damaged file."""
    with reading(path):
        return decode_rgb(content(path))


def read_counts(path: Path, flags: int = cv2.IMREAD_UNCHANGED) -> NDArray[Any]:
    """The numbers of an image file as they are stored. Raises DataError for a damaged file."""
    with reading(path):
        return decode(content(path), flags)


# --- headers -------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # what ends a scan: neither stuffing nor restart
_ALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}  # JPEG markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers with the size


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its content begins) until the end of the image; stops where it is cut.

    What follows the end is not looked at: cameras append videos and other images.
    """
    at = 2
    while at + 2 <= len(data):
        if data[at] != 0xFF:  # bytes of no segment, which decoders pass over
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        yield marker, at + 2
        if marker == 0xD9:
            return
        at += 2
        if marker in _ALONE:
            continue
        if at + 2 > len(data):
            return
        at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        if marker == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                return
            at = found.start()


def jpeg_is_whole(data: bytes) -> bool:
    """Whether a JPEG has a scan and the marker of its own end, by walking its markers."""
    markers = [marker for marker, _ in _jpeg_segments(data)]
    return 0xDA in markers and markers[-1] == 0xD9


def header_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) that the header of a JPEG, PNG, BMP, WebP or TIFF announces, else None."""
    try:
        if data[:2] == b"\xff\xd8":
            for marker, at in _jpeg_segments(data):
                if marker in _FRAMES:
                    height, width = struct.unpack_from(">HH", data, at + 3)
                    return width, height
            return None
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data[:2] == b"BM":
            if struct.unpack_from("<I", data, 14)[0] == 12:
                width, height = struct.unpack_from("<HH", data, 18)
            else:
                width, height = struct.unpack_from("<ii", data, 18)
            return abs(width), abs(height)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:4] in (b"II*\x00", b"MM\x00*"):
            return _tiff_size(data)
    except struct.error:  # the header itself is cut
        return None
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[k : k + 3], "little") + 1 for k in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0]
    sides: dict[int, int] = {}
    for k in range(struct.unpack_from(f"{order}H", data, at)[0]):
        tag, kind = struct.unpack_from(f"{order}HH", data, at + 2 + 12 * k)
        if tag in (256, 257):
            form = "H" if kind == 3 else "I"
            sides[tag] = struct.unpack_from(order + form, data, at + 10 + 12 * k)[0]
    return (sides[256], sides[257]) if len(sides) == 2 else None
