# SPDX-License-Identifier: Apache-2.0
"""Files of data sets: search below a folder, and decoding of images, with one-sentence errors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from depth_node import image_files
from depth_node.regular_files import read_bytes
from depth_node.sentences import one_line
from training.data.samples import U8, DataError

LARGEST_BYTES = 2**30  # largest file that is read whole


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any error of a library about a missing or damaged file into a DataError naming it."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: copy it there, or take it off the list.") from error
    except Exception as error:  # libraries do not document all errors of damaged files
        raise DataError(f"{path} cannot be read ({one_line(error)}): copy it again.") from error


def content(path: Path) -> bytes:
    """Return the bytes of a regular file.

    Raises FileNotFoundError, and ValueError for a pipe, a device, a folder or a file of more than
    1 GiB.
    """
    try:
        return read_bytes(path, LARGEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        raise ValueError(error.strerror or one_line(error)) from error


def finite_number(value: object) -> float:
    """Return a JSON value as float. Raises ValueError unless it is a finite number (no bool)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of 400 digits
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{value!r:.40} is no finite number")


def below(root: Path, matches: Callable[[Path], bool]) -> list[Path]:
    """Return the matching files below a folder, sorted, also those in linked folders.

    A folder that can be reached in several ways is entered once, without links if possible. Names
    with a leading dot are left out, such as the files `._x.png` that macOS adds. Raises DataError
    if a folder cannot be read.
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
            elif matches(path):
                files.append(path)
    return sorted(files)


def decode(data: bytes, *, colour: bool = False) -> NDArray[Any]:
    """Decode the bytes of an image file, with the values as they are stored.

    colour: decode to RGB and turn the image as EXIF says. Raises ValueError for a truncated or
    damaged file, for an unknown format, and for more than image_files.LARGEST_PX pixels.
    """
    try:
        looked_through = image_files.look_through(data, image_files.ALL_FORMATS)
        return image_files.decode(looked_through, colour=colour, upright=colour)
    except image_files.TooLargeError:
        raise
    except image_files.ImageError as error:
        raise ValueError(f"the file is damaged or cut: {error}") from None


def decode_rgb(data: bytes) -> U8:
    """Decode the bytes of an image file as (H, W, 3) uint8 RGB, turned as EXIF says.

    16-bit values are scaled by the number of bits in use. Raises ValueError as decode does, and for
    float values, which have no defined white.
    """
    return image_files.scaled_to_8_bits(decode(data, colour=True))


def read_image(path: Path) -> U8:
    """Read an image file as (H, W, 3) uint8 RGB. Raises DataError for a missing or damaged file."""
    with reading(path):
        return decode_rgb(content(path))


def read_counts(path: Path) -> NDArray[Any]:
    """Read an image file's values as stored. Raises DataError for a missing or damaged file."""
    with reading(path):
        return decode(content(path))
