# SPDX-License-Identifier: Apache-2.0
"""Fewer of the known pixels of a depth image, spread evenly over it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


def spread_pixels(known: npt.NDArray[np.bool_], most: int) -> tuple[Indices, Indices]:
    """Rows and columns (N,) of at most `most` pixels that are True in a map (H, W).

    All of them if they are no more than that; else the image is cut into equal squares and the
    pixel next to the middle of each is taken, so that a regular pattern of known pixels loses no
    part of the image. Raises ValueError if `most` is not above 0.
    """
    if most < 1:
        raise ValueError(f"most is {most} pixels: it must be above 0")
    if np.count_nonzero(known) <= most:
        rows, cols = np.nonzero(known)
        return rows, cols
    height, width = known.shape
    side = math.isqrt(height * width // most)
    while -(-height // side) * -(-width // side) > most:
        side += 1
    middle = (side - 1) / 2
    inside = [(r, c) for r in range(min(side, height)) for c in range(min(side, width))]
    inside.sort(key=lambda place: (place[0] - middle) ** 2 + (place[1] - middle) ** 2)
    chosen: Indices = np.full((-(-height // side), -(-width // side)), -1, np.intp)
    for number, (row, col) in enumerate(inside):
        part = known[row::side, col::side]
        squares = chosen[: part.shape[0], : part.shape[1]]
        squares[part & (squares < 0)] = number
        if chosen.min() >= 0:
            break
    square_rows, square_cols = np.nonzero(chosen >= 0)
    places = np.array(inside, np.intp)[chosen[square_rows, square_cols]]
    return square_rows * side + places[:, 0], square_cols * side + places[:, 1]
