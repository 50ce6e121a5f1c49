# SPDX-License-Identifier: Apache-2.0
"""The sample, which recipes learn from and evaluation scores, and the data set, which reads it."""

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
    """Return the bytes of an image (H, W, 3) as float32 in 0..1."""
    return image.astype(np.float32) / np.float32(255)


class DataError(RuntimeError):
    """Error for training data that is missing or does not fit; the message names cause and cure.

    Its text is one line: characters that cannot be printed, for instance in the name of a file, are
    escaped.
    """

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


@dataclass(frozen=True)
class Sample:
    """One image for training or evaluation.

    image: (H, W, 3) uint8 RGB. depth: (H, W) float32 metres, NaN unknown, or None. camera: of the
    image, or None. masks: (H, W) int32 regions, 0 = none, or None. source: the room or recording;
    images of one source are not independent. name: unique within the source, or within the data set
    if that has no sources.
    """

    name: str
    image: U8
    depth: F32 | None = None
    camera: Camera | None = None
    masks: NDArray[np.int32] | None = None
    source: str = ""


class Images(Protocol):
    """Interface of samples that are read by number: a pool, a data set, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Item:
    """One sample on disk; `about` is what its layout needs in addition (a mask, an index)."""

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
        """Return the data set with only these of its items."""
        return DataSet(self.name, self.protocol, items, self._read)


def checked(sample: Sample) -> Sample:
    """Return the sample with NaN for depth that is not finite or not above 0.

    Raises DataError if image and depth or masks differ in size, or if no pixel has a valid depth.
    """
    if sample.masks is not None and sample.masks.shape != sample.image.shape[:2]:
        raise DataError(
            f"{sample.name}: the masks have the shape {sample.masks.shape} and the image"
            f" {sample.image.shape[:2]}: these files do not belong together."
        )
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
