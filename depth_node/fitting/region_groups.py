# SPDX-License-Identifier: Apache-2.0
"""The points to which each region is fitted: its own and, if these are too few, its neighbours'.

A group is a region with the points of its fit. All groups are stored as (group, point) pairs, so
that no step loops over regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from depth_node.regions.label_maps import adjacency

TINY = float(np.finfo(np.float64).tiny)

_MAX_VISITED = 1 << 24  # entries of the table of borrowing regions x all regions


@dataclass(frozen=True)
class Regions:
    """The label map of a frame, and the regions of its points.

    labels: (H, W), None: the image is region 0. present: (K+1,) bool, labels that have pixels.
    of_point: (n,) labels of the points.
    """

    labels: NDArray[np.integer] | None
    present: NDArray[np.bool_]
    of_point: NDArray[np.intp]

    @classmethod
    def of(
        cls, labels: NDArray[np.integer] | None, rows: NDArray[np.int32], cols: NDArray[np.int32]
    ) -> Regions:
        """Return the regions of a label map (H, W) and of the points at rows, cols, (n,) each.

        Raises ValueError for negative labels.
        """
        if labels is None:
            return cls(None, np.ones(1, dtype=bool), np.zeros(len(rows), np.intp))
        lowest, highest = int(labels.min()), int(labels.max())
        if lowest < 0:
            raise ValueError("Labels below 0 mean nothing: use 0 for unassigned pixels.")
        # Small integer types are faster to look up and to compare.
        small = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int64
        compact: NDArray[np.integer] = labels.astype(small)
        present = np.zeros(highest + 1, dtype=bool)
        present[compact[::4, ::8]] = True  # usually finds all labels, in a fraction of the time
        present[0] = lowest == 0
        if not present[1:].all():
            present[compact] = True
        return cls(compact, present, compact[rows, cols].astype(np.intp))


@dataclass(frozen=True)
class Groups:
    """The points of each fit: S groups over M (group, point) pairs, sorted by group.

    label: (S,) region, -1 = all points of the image (always the last group). rings: (S,) rings of
    neighbours borrowed, -1 = all points. group, point: (M,). start: (S,) first pair of each group.
    No group is empty.
    """

    label: NDArray[np.intp]
    rings: NDArray[np.int32]
    group: NDArray[np.intp]
    point: NDArray[np.intp]
    start: NDArray[np.intp]

    def sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum in each group (S,) of values (M,) of the pairs."""
        return np.add.reduceat(values, self.start)

    def only(self, chosen: NDArray[np.bool_]) -> Groups:
        """Return only the groups that are True in chosen (S,)."""
        pairs = chosen[self.group]
        group = (np.cumsum(chosen) - 1)[self.group[pairs]]
        start = np.searchsorted(group, np.arange(np.count_nonzero(chosen)))
        return Groups(self.label[chosen], self.rings[chosen], group, self.point[pairs], start)

    def median(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the median in each group (S,) of values (M,) >= 0 of the pairs.

        For an even number of values it is the mean of the middle two.
        """
        # One sort of group + value / largest value is six times faster than a sort by two keys.
        top = float(values.max()) * (1 + 1e-9) + TINY
        ranked = np.sort(self.group + values / top)
        low, high, number = self._middles
        medians: NDArray[np.float64] = (0.5 * (ranked[low] + ranked[high]) - number) * top
        return medians

    @cached_property
    def _middles(self) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """The lower and upper middle pair of every sorted group, and its number, (S,) each."""
        size = np.diff(np.append(self.start, len(self.group)))
        return self.start + (size - 1) // 2, self.start + size // 2, np.arange(len(size))


def group_points(regions: Regions, enough: int) -> tuple[Groups, NDArray[np.intp]]:
    """Return the group of each region, with borrowed points, and the numbers of own points (K+1,).

    A ring is all regions that touch those gathered so far; it is borrowed as a whole. A region
    whose connected neighbours do not have enough points has no group.
    """
    count, point_labels = len(regions.present), regions.of_point
    own = np.bincount(point_labels, minlength=count)
    order = np.argsort(point_labels, kind="stable")
    first = np.concatenate([[0], np.cumsum(own)[:-1]])
    present = np.flatnonzero(regions.present[1:]) + 1
    full, short = present[own[present] >= enough], present[own[present] < enough]
    heads, members, rings = [full], [full], np.zeros(count, np.int32)
    if regions.labels is not None and short.size and own[present].any():
        links = adjacency(regions.labels)
        at_once = max(_MAX_VISITED // count, 1)
        for first_short in range(0, len(short), at_once):
            some = short[first_short : first_short + at_once]
            head, member, rings[some] = _borrow(some, links, own, enough)
            heads.append(head)
            members.append(member)
    head, member = np.concatenate(heads), np.concatenate(members)
    by_region = np.argsort(head, kind="stable")
    head, member = head[by_region], member[by_region]
    size = own[member]
    pairs = order[_ranges(first[member], size)]
    everything = np.arange(len(point_labels))
    label = np.append(np.unique(head), -1)
    group_of = np.zeros(count, np.intp)
    group_of[label[:-1]] = np.arange(len(label) - 1)
    group = np.concatenate(
        [np.repeat(group_of[head], size), np.full(len(everything), len(label) - 1)]
    )
    groups = Groups(
        label=label,
        rings=np.append(rings[label[:-1]], np.int32(-1)),
        group=group,
        point=np.concatenate([pairs, everything]),
        start=np.searchsorted(group, np.arange(len(label))),
    )
    return groups, own


def _borrow(
    short: NDArray[np.intp], links: sparse.csr_matrix, own: NDArray[np.intp], enough: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Grow all short regions together, a ring of neighbours per step, until points are enough.

    Returns (region, member) pairs, including the region itself, and the number of rings of every
    short region; regions that cannot get enough points have no pair and -1 rings.
    """
    degree = np.diff(links.indptr)
    visited = np.zeros((len(short), len(own)), dtype=bool)
    row, member = np.arange(len(short)), short
    visited[row, member] = True
    gathered = own[short].astype(np.float64)
    rings = np.full(len(short), -1, np.int32)
    ring = 0
    while row.size:
        ring += 1
        size = degree[member]
        new_row = np.repeat(row, size)
        new_member = links.indices[_ranges(links.indptr[member], size)]
        unseen = ~visited[new_row, new_member]
        new = np.unique(new_row[unseen] * len(own) + new_member[unseen])
        row, member = np.divmod(new, len(own))
        visited[row, member] = True
        gathered += np.bincount(row, own[member], minlength=len(short))
        rings[(rings < 0) & (gathered >= enough)] = ring
        going = rings[row] < 0
        row, member = row[going], member[going]
    visited[rings < 0] = False
    done, members = np.nonzero(visited)
    return short[done], members, rings


def _ranges(start: NDArray[np.integer], size: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return start[0], start[0] + 1, ... (size[0] of them), start[1], ..."""
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
