# SPDX-License-Identifier: Apache-2.0
"""The sample that recipes learn from and evaluation scores, and the data set that reads samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.recordings.frames import FrameError

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


def unit_range(image: U8) -> F32:
    """The bytes of an image (H, W, 3) as float32 from 0 to 1."""
    return image.astype(np.float32) / np.float32(255)


class DataError(RuntimeError):
    """Training data that is missing or does not fit; the message names cause and cure.

    Its text is one printable line, whatever names and libraries put into it.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


@dataclass(frozen=True)
class Sample:
    """One image for training or evaluation.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres, NaN unknown, or None. camera: of the
    image, or None. masks: (H, W) int32 regions, 0 = none, or None. name: unique within the data
    set, or within the source: images of one source (room, recording) are not independent.
    """

    name: str
    image: U8
    depth: F32 | None = None
    camera: Camera | None = None
    masks: NDArray[np.int32] | None = None
    source: str = ""


class Images(Protocol):
    """Samples by number: a pool, a data set, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Item:
    """One sample on disk; `about` is what its layout needs besides (a mask, an index)."""

    name: str
    image: Path
    depth: Path | None = None
    about: Any = None


class DataSet(Sequence[Sample]):
    """A data set whose samples are read on access.

    protocol: a name of training.evaluation.protocols.PROTOCOLS, or "none" without depth.
    Reading a sample raises DataError where a file cannot be used.
    """

    def __init__(
        self, name: str, protocol: str, items: Sequence[Item], read: Callable[[Item], Sample]
    ) -> None:
        self.name = name
        self.protocol = protocol
        self.items = items
        self._read = read

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> DataSet: ...
    def __getitem__(self, index: int | slice) -> Sample | DataSet:
        if isinstance(index, slice):
            return self.of(self.items[index])
        try:
            return checked(self._read(self.items[index]))
        except FrameError as error:
            raise DataError(str(error)) from error

    def of(self, items: Sequence[Item]) -> DataSet:
        """The data set of these of its items."""
        return DataSet(self.name, self.protocol, items, self._read)


def checked(sample: Sample) -> Sample:
    """The sample with unknown depth as NaN.

    Raises DataError where image and depth differ in size or no pixel has a valid depth.
    """
    if sample.depth is None:
        return sample
    depth = np.array(sample.depth, np.float32)
    if depth.shape != sample.image.shape[:2]:
        raise DataError(
            f"{sample.name}: the depth has {depth.shape[1]}x{depth.shape[0]} pixels and the image"
            f" {sample.image.shape[1]}x{sample.image.shape[0]}: these files do not belong together."
        )
    with np.errstate(invalid="ignore"):
        depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    if np.isnan(depth).all():
        raise DataError(f"{sample.name}: no pixel has a valid depth: take it off the list.")
    return replace(sample, depth=depth)
