# SPDX-License-Identifier: Apache-2.0
"""Arrays from NumPy's files: shape and type in the header are checked before values are read."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from depth_node.recordings.files import FrameError, open_regular, reason_of

LARGEST_ARRAY = 1 << 30  # bytes

# Called with the shape and the type of an array; raises FrameError if they are not as needed.
Judge = Callable[[tuple[int, ...], np.dtype[Any]], None]


def read_npy(path: Path, judge: Judge) -> NDArray[Any]:
    """Return the array of an .npy file. Raises FrameError if it cannot be read."""
    with open_regular(path) as file:
        try:
            if file.read(2) == b"PK":
                raise FrameError(f"{path} is an npz archive: write one array with numpy.save.")
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            return _read_array(file, judge, size)
        except FrameError:
            raise
        except (Exception, RecursionError, MemoryError) as error:
            raise FrameError(
                f"{path} cannot be read ({reason_of(error)}): write it with numpy.save."
            ) from None


def read_npz(path: Path, judges: Mapping[str, Judge]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz archive for which `judges` has an entry.

    Raises FrameError if one of them is missing or cannot be read.
    """
    with open_regular(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                missing = [key for key in judges if key not in names]
                if missing:
                    stored = ", ".join(list(names)[:8]) or "none"
                    raise FrameError(
                        f"{path} has no key `{missing[0]}` (it has: {stored}): store"
                        f" {' and '.join(f'`{key}`' for key in judges)}."
                    )
                arrays = {}
                for key, judge in judges.items():
                    size = archive.getinfo(names[key]).file_size
                    with archive.open(names[key]) as member:
                        arrays[key] = _read_array(member, judge, size)
                        if member.read(1):  # reading to the end also verifies the checksum
                            raise ValueError("an array is longer than its shape")
                return arrays
        except FrameError:
            raise
        except zipfile.BadZipFile as error:
            raise FrameError(
                f"{path} cannot be read ({reason_of(error)}): write it with numpy.savez."
            ) from None
        except (Exception, RecursionError, MemoryError) as error:
            raise FrameError(
                f"{path} is not an npz archive of plain arrays ({reason_of(error)}): use"
                " numpy.savez."
            ) from None


def _read_array(file: BinaryIO | Any, judge: Judge, size: int) -> NDArray[Any]:
    """Read an array, from its header on; header and values together have `size` bytes."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject or dtype.names or min(shape, default=0) < 0:
        raise ValueError("no plain array")
    judge(shape, dtype)
    count = math.prod(shape)
    needed = count * dtype.itemsize
    if needed > min(size, LARGEST_ARRAY):
        raise ValueError(f"the header announces {needed} bytes, the file has {size}")
    content = file.read(needed)
    if len(content) != needed:
        raise ValueError("the values are cut off")
    values: NDArray[Any] = np.frombuffer(content, dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")
