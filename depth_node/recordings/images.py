# SPDX-License-Identifier: Apache-2.0
"""Images of recordings: `depth_node.image_files` with errors that name the file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from depth_node.image_files import (
    CAMERA_FORMATS,
    ImageBytes,
    ImageError,
    TooLargeError,
    decode,
    look_through,
    scaled_to_8_bits,
)
from depth_node.recordings.files import FrameError, read_regular


def read_image(
    path: Path,
    *,
    colour: bool = True,
    size: tuple[int, int] | None = None,
    formats: Collection[str] = CAMERA_FORMATS,
) -> NDArray[Any]:
    """Read the image in a file; see `decode_image`. Raises FrameError."""
    return decode_image(checked_image(read_regular(path), path, formats), path, colour, size)


def checked_image(data: bytes, name: Path, formats: Collection[str] = CAMERA_FORMATS) -> ImageBytes:
    """Check the bytes of an image file. Raises FrameError, a sentence that begins with `name`."""
    try:
        return look_through(data, formats)
    except ImageError as error:
        raise _refusal(name, error) from None


def decode_image(
    image: ImageBytes, name: Path, colour: bool = True, size: tuple[int, int] | None = None
) -> NDArray[Any]:
    """Decode an image that `checked_image` has checked.

    colour: (H, W, 3) uint8 RGB, the upper eight of the bits in use if 16 are stored; otherwise as
    stored, one channel or several (BGR), 8 or 16 bit. size: (height, width) that it must have.
    Raises FrameError.
    """
    if size is not None and (image.height, image.width) != tuple(size):
        raise FrameError(
            f"{name} is for {image.width}x{image.height} but the image is {size[1]}x{size[0]}:"
            " resize one of them (and scale the intrinsics)."
        )
    try:
        pixels = decode(image, colour=colour)
    except ImageError as error:
        raise _refusal(name, error) from None
    return scaled_to_8_bits(pixels) if colour else pixels


def _refusal(name: Path, error: ImageError) -> FrameError:
    if isinstance(error, TooLargeError):
        return FrameError(f"{name} is too large ({error}): give a smaller one.")
    return FrameError(f"{name} cannot be decoded ({error}): the file is damaged, copy it again.")
