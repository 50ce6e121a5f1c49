# SPDX-License-Identifier: Apache-2.0
"""The region fits written as plainly as the paper puts them: a loop over masks and numpy's lstsq.

An independent check of depth_node.fitting in paper mode, and the rival of the speed benchmark. It
shares no code with the package: a region is a mask, a neighbour is found by comparing pixels, and
one region is solved at a time.
"""

from __future__ import annotations

import numpy as np

RANK_TOLERANCE = 1e-5  # share of a column that the columns before it must leave unexplained


def plain_fit(
    relative: np.ndarray,
    sparse: np.ndarray,
    labels: np.ndarray,
    method: str = "ssf",
    min_depth: float = 0.05,
    max_depth: float = 200.0,
) -> np.ndarray:
    """Metres (H, W) float64 from relative depth (H, W) and sparse metres (H, W), NaN = none.

    labels: (H, W), 0 = unassigned (these pixels get the fit to all points).
    """
    x, y = grid(*labels.shape)
    known = np.isfinite(sparse)
    enough = {"slf": 3, "ssf": 5}[method]
    links: dict[int, set[int]] | None = None
    out = np.full(labels.shape, np.nan)
    for label in np.unique(labels).tolist():
        region = labels == label
        used = known & region if label > 0 else known
        if used.sum() < enough:
            links = links or neighbours(labels)
            used = expand(label, links, labels, known, enough)[0]
        s, a, b, t = solve(relative[used], x[used], y[used], sparse[used], method)
        out[region] = s * relative[region] + a * x[region] + b * y[region] + t
    return np.clip(out, min_depth, max_depth)


def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel, -1..1 (0 where there is only one)."""
    axes = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in (height, width)]
    y, x = np.meshgrid(*axes, indexing="ij")
    return x, y


def neighbours(labels: np.ndarray) -> dict[int, set[int]]:
    """Which regions share a 4-adjacent pixel pair."""
    links: dict[int, set[int]] = {label: set() for label in np.unique(labels).tolist()}
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        edge = (one != other) & (one > 0) & (other > 0)
        for a, b in np.unique(np.stack([one[edge], other[edge]], axis=1), axis=0).tolist():
            links[a].add(b)
            links[b].add(a)
    return links


def expand(
    label: int, links: dict[int, set[int]], labels: np.ndarray, known: np.ndarray, enough: int
) -> tuple[np.ndarray, int]:
    """The measured pixels a short region uses; the rings it borrowed (-1: the whole picture)."""
    members, ring = {label}, 0
    while True:
        grown = members.union(*(links[member] for member in members))
        if grown == members:
            return known, -1
        members, ring = grown, ring + 1
        used = known & np.isin(labels, list(members))
        if used.sum() >= enough:
            return used, ring


def solve(
    d: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, method: str
) -> tuple[float, float, float, float]:
    """s, a, b, t by lstsq on the columns that are not explained by those before them."""
    d, z = d.astype(np.float64), z.astype(np.float64)
    mean, spread = d.mean(), d.std()
    if spread <= 1e-6 * abs(mean):
        return 0.0, 0.0, 0.0, float(np.median(z))
    ones = np.ones(len(z))
    kept: list[np.ndarray] = []
    for column in [(d - mean) / spread] + ([x, y] if method == "ssf" else []):
        base = np.stack([*kept, ones], axis=1)
        rest = column - base @ np.linalg.lstsq(base, column, rcond=None)[0]
        if np.std(rest) <= RANK_TOLERANCE * np.std(column):
            break
        kept.append(column)
    solution = np.linalg.lstsq(np.stack([*kept, ones], axis=1), z, rcond=None)[0]
    s, a, b = [*solution[:-1], 0.0, 0.0, 0.0][:3]
    return s / spread, a, b, solution[-1] - s * mean / spread
