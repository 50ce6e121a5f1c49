# SPDX-License-Identifier: Apache-2.0
"""What a depth network's output means.

A network's numbers are named by what they lack (``disparity_affine_invariant``: large is near,
scale and shift unknown). Everything downstream asks :class:`Prediction` for the space it works in
and never guesses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

KINDS = (
    "disparity_affine_invariant",
    "depth_affine_invariant",
    "log_depth_affine_invariant",
    "disparity_metric",
    "depth_metric",
)

# Networks with a ReLU at the end give exactly 0 for sky, and 1/0 is no depth. Inverses are taken no
# closer to zero than this share of the median positive value; .02 to .05 give equal accuracy.
INVERSE_FLOOR_SHARE = 0.02


@dataclass(frozen=True)
class Prediction:
    """A network's output in image coordinates, with its meaning.

    ``values``: (H, W) float32, the unit given by ``kind`` (one of :data:`KINDS`); non-finite = the
    network gave nothing there. The spaces derived from it are computed once and read-only: do not
    write into ``values`` after construction.
    """

    values: NDArray[np.float32]
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(
                f"The prediction kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}."
            )
        values = np.asarray(self.values)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(
                f"A prediction is one (H, W) map, not an array of shape {values.shape}: "
                "drop the batch and channel axes first."
            )
        if values.dtype != np.float32:
            object.__setattr__(self, "values", values.astype(np.float32))

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (int(self.values.shape[0]), int(self.values.shape[1]))

    @property
    def is_metric(self) -> bool:
        """Whether the network claims absolute scale (metres or 1/metres)."""
        return self.kind.endswith("_metric")

    @property
    def is_disparity(self) -> bool:
        """Whether large values mean near."""
        return self.kind.startswith("disparity")

    def relative_depth(self) -> NDArray[np.float32]:
        """(H, W) float32, proportional to depth up to the scale and shift the network lacks.

        Disparity becomes ``1 / max(inv, e)`` with ``e = 0.02 median(inv > 0)`` (the paper's d_rel),
        log depth ``exp``, depth stays. NaN = unknown. Read-only.
        """
        return self._relative_depth

    def disparity(self) -> NDArray[np.float32]:
        """(H, W) float32, proportional to 1/depth up to scale and shift; NaN unknown; read-only."""
        return self._disparity

    def metric_depth(self) -> NDArray[np.float32]:
        """(H, W) float32 metres as the network states them, NaN where it states none above zero."""
        if not self.is_metric:
            raise ValueError(
                f"A prediction of kind {self.kind!r} has no metres: fit it to measured points."
            )
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            depth = np.float32(1) / self.values if self.is_disparity else self.values
            return np.where((depth > 0) & np.isfinite(depth), depth, np.float32(np.nan))

    @cached_property
    def _relative_depth(self) -> NDArray[np.float32]:
        if self.is_disparity:
            return _frozen(_floored_inverse(self.values))
        return _frozen(_exp(self.values) if self.kind.startswith("log") else _finite(self.values))

    @cached_property
    def _disparity(self) -> NDArray[np.float32]:
        if self.is_disparity:
            return _frozen(_finite(self.values))
        if self.kind.startswith("log"):
            return _frozen(_exp(-self.values))
        return _frozen(_floored_inverse(self.values))


def _frozen(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A read-only view: the map is shared by everyone who asks."""
    view = array.view()
    view.flags.writeable = False
    return view


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``values`` with everything non-finite turned into NaN; no copy when nothing needs turning."""
    if np.isfinite(values.min()) and np.isfinite(values.max()):  # both are NaN if a member is
        return values
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.exp(_finite(values)))


def _floored_inverse(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """``1 / max(values, e)``; all NaN when nothing is above zero, as then no floor can be told."""
    finite = _finite(values)
    share, tiny = np.float32(INVERSE_FLOOR_SHARE), np.finfo(np.float32).tiny
    lowest = finite.min()
    # Most often the floor is below all values, which is seen without the median: more than half of
    # them are less than 50 times the lowest (0.99: safely, whatever the rounding).
    if lowest >= tiny:
        reach = np.float32(0.99) * (lowest / share)
        if 2 * np.count_nonzero(finite < reach) > finite.size:
            return np.reciprocal(finite)
    positive = finite[finite > 0]
    if positive.size == 0:
        return np.full(values.shape, np.nan, dtype=np.float32)
    # The lower middle for even counts; one partition is seven times faster than np.median.
    middle = (positive.size - 1) // 2
    median = np.partition(positive, middle)[middle]
    floor = max(share * median, tiny)
    out: NDArray[np.float32] = np.maximum(finite, floor)  # NaN stays NaN
    np.reciprocal(out, out=out)
    return out
