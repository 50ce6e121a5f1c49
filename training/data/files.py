# SPDX-License-Identifier: Apache-2.0
"""Files of data sets: what lies below a folder, and images from their bytes, or one sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from depth_node import image_files
from depth_node.sentences import one_line
from training.data.samples import U8, DataError

LARGEST_BYTES = 2**30  # of a file that is read whole


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


def finite_number(value: object) -> float:
    """A number of JSON, where a bool is none. Raises ValueError for all that is no finite one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer of 400 digits
            if math.isfinite(value):
                return float(value)
    raise ValueError(f"{value!r:.40} is no finite number")


def below(root: Path, matches: Callable[[Path], bool]) -> list[Path]:
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
            elif matches(path):
                files.append(path)
    return sorted(files)


def decode(data: bytes, *, colour: bool = False) -> NDArray[Any]:
    """The image in the bytes of a file, as stored; colour: as `decode_rgb`.

    Raises ValueError for a cut or damaged file, for one of no known format, and for one of more
    than image_files.LARGEST_PX pixels.
    """
    try:
        looked_through = image_files.look_through(data, image_files.ALL_FORMATS)
        return image_files.decode(looked_through, colour=colour, upright=colour)
    except image_files.TooLargeError:
        raise
    except image_files.ImageError as error:
        raise ValueError(f"the file is damaged or cut: {error}") from None


def decode_rgb(data: bytes) -> U8:
    """An image (H, W, 3) uint8 RGB, turned as EXIF says; of 16 bits those in use.

    Raises ValueError as decode does, and for floats, which have no white.
    """
    return image_files.scaled_to_8_bits(decode(data, colour=True))


def read_image(path: Path) -> U8:
    """An image (H, W, 3) uint8 RGB. Raises DataError for a damaged file."""
    with reading(path):
        return decode_rgb(content(path))


def read_counts(path: Path) -> NDArray[Any]:
    """The numbers of an image file as they are stored. Raises DataError for a damaged file."""
    with reading(path):
        return decode(content(path))
