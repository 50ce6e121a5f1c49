# SPDX-License-Identifier: Apache-2.0
"""Thinning of depth images: fewer known pixels, spread evenly over the image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


def spread_pixels(known: npt.NDArray[np.bool_], most: int) -> tuple[Indices, Indices]:
    """Return rows and columns (N,) of at most `most` of the pixels that are True in a map (H, W).

    If there are no more, all are returned. Otherwise the image is divided into equal squares and
    the known pixel nearest to the centre of each is taken, so that no part of the image is lost,
    even if the known pixels form a regular pattern. Raises ValueError if `most` is not above 0.
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
