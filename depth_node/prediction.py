# SPDX-License-Identifier: Apache-2.0
"""The meaning of a depth network's output.

The kind of an output is named by what is unknown (``disparity_affine_invariant``: large is near,
scale and shift are unknown). :class:`Prediction` converts it to the space that a module needs.
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

POINTS = "points_affine_invariant"
# Outputs that become metres with the camera's focal length -> their kind without it.
NEEDS_FOCAL = {
    "depth_metric_focal": "depth_affine_invariant",  # metres x focal_px of the manifest / focal
    POINTS: "depth_affine_invariant",  # (h, w, 3): x, y, z + an unknown shift
}
DEPTH_MEANINGS = (*KINDS, *NEEDS_FOCAL)

# Networks with a final ReLU give exactly 0 for sky, which has no inverse. Values are floored at
# this ratio to the median positive value before they are inverted; 0.02 to 0.05 give equal
# accuracy.
INVERSE_FLOOR_RATIO = 0.02


@dataclass(frozen=True)
class Prediction:
    """A network's output in image coordinates, with its meaning.

    ``values``: (H, W) float32 in the unit of ``kind`` (one of :data:`KINDS`); a value that is not
    finite is unknown. ``sky``: (H, W) bool, pixels without a surface, whose values are NaN; None
    if the network does not detect sky. ``confidence``: (H, W) float32 in the network's own unit,
    larger is more certain; None if it gives none. Derived maps are computed once and are read-only:
    do not write into ``values`` after construction. Raises ValueError for an unknown kind or an
    array that is not one map.
    """

    values: NDArray[np.float32]
    kind: str
    sky: NDArray[np.bool_] | None = None
    confidence: NDArray[np.float32] | None = None

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
        for name in ("sky", "confidence"):
            other = getattr(self, name)
            if other is None:
                continue
            if other.shape != values.shape or (name == "sky" and other.dtype != bool):
                raise ValueError(
                    f"{name} is {other.dtype} {other.shape} but the prediction {values.shape}: give"
                    f" a {'bool map' if name == 'sky' else 'map'} of the same size."
                )

    @property
    def nearness(self) -> NDArray[np.float32]:
        """A map (H, W) by which pixels can be ordered: larger is nearer, not finite if unknown."""
        return self.values if self.kind.startswith("disparity") else -self.values

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return (int(self.values.shape[0]), int(self.values.shape[1]))

    @property
    def is_metric(self) -> bool:
        """Whether the values have an absolute scale (metres or 1/metres)."""
        return self.kind.endswith("_metric")

    @property
    def is_disparity(self) -> bool:
        """Whether large values mean near."""
        return self.kind.startswith("disparity")

    def relative_depth(self) -> NDArray[np.float32]:
        """Return a map (H, W), float32, that is linear in depth up to the unknown scale and shift.

        Disparity becomes ``1 / max(inv, e)`` with ``e = 0.02 median(inv > 0)`` (d_rel of
        Region-aware Depth Scale Adaptation, arXiv 2507.14879), log depth its ``exp``; depth stays.
        NaN = unknown. Read-only.
        """
        return self._relative_depth

    def disparity(self) -> NDArray[np.float32]:
        """Return a map (H, W), float32, linear in 1/depth up to scale and shift.

        NaN = unknown. Read-only.
        """
        return self._disparity

    def metric_depth(self) -> NDArray[np.float32]:
        """Return depth (H, W), float32 metres, NaN where the network gives none above zero.

        Raises ValueError if the kind is not metric.
        """
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
    """Return a read-only view, because all callers share the map."""
    view = array.view()
    view.flags.writeable = False
    return view


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``values`` with NaN for values that are not finite; no copy if all are finite."""
    if np.isfinite(values.min()) and np.isfinite(values.max()):  # min and max are NaN if a value is
        return values
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _exp(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.exp(_finite(values)))


def _floored_inverse(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``1 / max(values, e)``, see Prediction.relative_depth.

    All NaN if no value is above zero, because then e is unknown.
    """
    finite = _finite(values)
    ratio, tiny = np.float32(INVERSE_FLOOR_RATIO), np.finfo(np.float32).tiny
    lowest = finite.min()
    # The floor is usually below all values, which can be seen without the median: more than half of
    # them are less than 50 times the lowest (0.99 covers rounding).
    if lowest >= tiny:
        reach = np.float32(0.99) * (lowest / ratio)
        if 2 * np.count_nonzero(finite < reach) > finite.size:
            return np.reciprocal(finite)
    positive = finite[finite > 0]
    if positive.size == 0:
        return np.full(values.shape, np.nan, dtype=np.float32)
    # For even counts the lower middle value; one partition is seven times faster than np.median.
    middle = (positive.size - 1) // 2
    median = np.partition(positive, middle)[middle]
    floor = max(ratio * median, tiny)
    out: NDArray[np.float32] = np.maximum(finite, floor)  # NaN stays NaN
    np.reciprocal(out, out=out)
    return out
