# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as 4x4 matrices: T_a_b maps coordinates in frame b to frame a."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


def rigid_transform(
    translation_xyz: Sequence[float] | FloatArray, quaternion_xyzw: Sequence[float] | FloatArray
) -> npt.NDArray[np.float64]:
    """Return a (4, 4) float64 transform from a translation (3,), m, and a quaternion (x, y, z, w).

    Raises ValueError if the quaternion is not a unit one or a value is not finite.
    """
    translation = np.asarray(translation_xyz, dtype=np.float64)
    quaternion = np.asarray(quaternion_xyzw, dtype=np.float64)
    if translation.shape != (3,) or quaternion.shape != (4,):
        raise ValueError("a rigid transform needs 3 values of translation and 4 of quaternion")
    norm = float(np.linalg.norm(quaternion))
    if not (np.isfinite(translation).all() and abs(norm - 1.0) < 1e-2):
        raise ValueError(
            f"transform with quaternion norm {norm:g} and translation {translation.tolist()}:"
            " give a unit quaternion (x, y, z, w) and finite metres"
        )
    x, y, z, w = quaternion / norm
    T = np.eye(4)
    T[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    T[:3, 3] = translation
    return T


def check_rigid(T: npt.ArrayLike, name: str = "transform") -> npt.NDArray[np.float64]:
    """Return T as (4, 4) float64; 16 values are taken row by row.

    Raises ValueError if not rigid.
    """
    array = np.asarray(T, dtype=np.float64)
    if array.size != 16:
        raise ValueError(f"{name} has {array.size} values: give 16, a 4x4 matrix row by row")
    array = array.reshape(4, 4)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a value that is not finite: give 16 finite numbers")
    if np.abs(array[3] - (0.0, 0.0, 0.0, 1.0)).max() > 1e-6:
        raise ValueError(
            f"{name} has {array[3].tolist()} as its last row instead of 0 0 0 1:"
            " give the matrix row by row, translation in the last column"
        )
    rotation = array[:3, :3]
    if np.linalg.det(rotation) < 0 or np.abs(rotation @ rotation.T - np.eye(3)).max() > 5e-3:
        raise ValueError(
            f"{name} has a 3x3 part that is no rotation (determinant"
            f" {np.linalg.det(rotation):.3f}): it must be orthonormal and right-handed"
        )
    return array


def invert_rigid(T_a_b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return T_b_a of a rigid T_a_b, (4, 4) each."""
    inverse = np.eye(4)
    inverse[:3, :3] = T_a_b[:3, :3].T
    inverse[:3, 3] = -T_a_b[:3, :3].T @ T_a_b[:3, 3]
    return inverse


def transform(T_a_b: npt.NDArray[np.float64], points: FloatArray) -> npt.NDArray[np.float64]:
    """Transform points (N, 3) from frame b to frame a, float64; non-finite points stay non-finite.

    T_a_b: (4, 4), or its upper rows.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # some drivers write Inf without an echo
        moved: npt.NDArray[np.float64] = points @ T_a_b[:3, :3].T + T_a_b[:3, 3]
    return moved
