# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG to pixels: looked through before they are decoded, so that a damaged, cut or
monstrous one is refused and does not become a plausible image.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from depth_node.recordings.files import FrameError, read_regular, reason_of

LARGEST_IMAGE_PX = 1 << 27  # 134 million: no camera has more
_MOST_SCANS = 100  # of a progressive JPEG: each is a pass over the whole image
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: what libjpeg decodes
_JPEG_REFUSED = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # lossless and others


class _UnreadableError(ValueError):
    """Why bytes are no whole image, in a few words."""


def read_image(
    path: Path, *, colour: bool = True, size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """The image in a file; as `decode_image`."""
    return decode_image(read_regular(path), str(path), colour=colour, size=size)


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of a JPEG or PNG by its header; the whole file is looked through."""
    return _look_through(data, name)[0]


def decode_image(
    data: bytes | memoryview,
    name: str,
    *,
    colour: bool = True,
    size: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """The pixels of a JPEG or PNG.

    colour: (H, W, 3) uint8 RGB; otherwise as stored, one channel or several (BGR), 8 or 16 bit.
    size: (height, width) it must have. An orientation in EXIF is ignored: the calibration belongs
    to the pixels as they are stored.

    Raises FrameError, a sentence that begins with `name`, before memory is taken for an image of
    another size, a larger one than LARGEST_IMAGE_PX, one that is cut off or damaged.
    """
    (height, width), whole = _look_through(bytes(data), name)
    if size is not None and (height, width) != tuple(size):
        raise FrameError(
            f"{name} is for {width}x{height} but the image is {size[1]}x{size[0]}: resize one of"
            " them (and scale the intrinsics)."
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION if colour else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(whole, np.uint8), flags)
    except (Exception, MemoryError) as error:
        raise FrameError(f"{name} cannot be decoded ({reason_of(error)}): copy it again.") from None
    if image is None or image.shape[:2] != (height, width):
        raise FrameError(f"{name} cannot be decoded: the file is damaged, copy it again.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if colour else image)


def _look_through(data: bytes, name: str) -> tuple[tuple[int, int], bytes]:
    """(height, width) and the bytes that are the image, without what may hang on it."""
    try:
        if data.startswith(_PNG):
            (height, width), whole = _png(data)
        elif data.startswith(b"\xff\xd8"):
            (height, width), whole = _jpeg(data)
        else:
            raise _UnreadableError(f"{len(data)} bytes that are neither JPEG nor PNG")
    except _UnreadableError as error:
        raise FrameError(
            f"{name} cannot be decoded ({error}): the file is damaged, copy it again."
        ) from None
    if height < 1 or width < 1:
        raise FrameError(f"{name} has {width}x{height} pixels: the file is damaged, copy it again.")
    if height * width > LARGEST_IMAGE_PX:
        raise FrameError(
            f"{name} is {width}x{height}, more than {LARGEST_IMAGE_PX} pixels: give a smaller one."
        )
    return (height, width), whole


def _png(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Every chunk that matters, its checksum verified; the others (EXIF among them) dropped."""
    place, pieces, size = len(_PNG), [_PNG], None
    while True:
        if place + 12 > len(data):
            raise _UnreadableError("a PNG that is cut off")
        (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
        end = place + 12 + length
        if end > len(data):
            raise _UnreadableError("a PNG that is cut off")
        if kind in _PNG_KEPT:
            (checksum,) = struct.unpack_from(">I", data, end - 4)
            if zlib.crc32(data[place + 4 : end - 4]) != checksum:
                raise _UnreadableError("a PNG with a wrong checksum")
            if kind == b"IHDR" and size is None and length == 13 and len(pieces) == 1:
                width, height = struct.unpack_from(">II", data, place + 8)
                size = height, width
            pieces.append(data[place:end])
        elif not kind.isalpha() or not kind[0] & 0x20:
            raise _UnreadableError("a PNG with an unknown chunk")
        if size is None:
            raise _UnreadableError("a PNG without a header")
        if kind == b"IEND":
            return size, b"".join(pieces)
        place = end


def _jpeg(data: bytes) -> tuple[tuple[int, int], bytes]:
    """From marker to marker to the end of the image; what follows (the film of a Motion Photo) is
    not looked at. Without an end the file is cut off.
    """
    place, size, scans = 2, None, 0
    restart = -1  # the last one of this scan
    while True:
        after = data.find(b"\xff", place)
        if after > place and not scans:
            raise _UnreadableError("a JPEG with bytes between its segments")
        place = after
        while 0 <= place < len(data) - 1 and data[place + 1] == 0xFF:  # fill bytes
            place += 1
        if place < 0 or place + 1 >= len(data):
            raise _UnreadableError("a JPEG that is cut off")
        marker = data[place + 1]
        place += 2
        if marker == 0xD9:
            if size is None or not scans:
                raise _UnreadableError("a JPEG without an image")
            return size, data[:place]
        if marker == 0x00 and scans:
            continue  # a byte of the image
        if 0xD0 <= marker <= 0xD7 and scans:
            if restart >= 0 and marker - 0xD0 != (restart + 1) % 8:
                raise _UnreadableError("a JPEG of which a part is missing")
            restart = marker - 0xD0
            continue
        if marker <= 0x01 or 0xD0 <= marker <= 0xD8:
            raise _UnreadableError("a JPEG with a marker where none may be")
        if place + 2 > len(data):
            raise _UnreadableError("a JPEG that is cut off")
        (length,) = struct.unpack_from(">H", data, place)
        if length < 2 or place + length > len(data):
            raise _UnreadableError("a JPEG that is cut off")
        if marker in _JPEG_REFUSED or (marker in _JPEG_FRAMES and (size or length < 8)):
            raise _UnreadableError("a JPEG of a kind that cannot be read")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            size = height, width
        scans += marker == 0xDA
        restart = -1
        if scans > _MOST_SCANS:
            raise _UnreadableError(f"a JPEG of more than {_MOST_SCANS} scans")
        place += length
