# SPDX-License-Identifier: Apache-2.0
"""Projection of LiDAR points to pixels with a measured depth; hidden points are dropped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.config import ConfigError, option, validate
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import FloatArray, invert_rigid

# Points that are projected to detect an inverted pose, and how many of them must be in the image.
_POSE_SAMPLES, _FEWEST_BY_INVERSE = 2000, 20


def scan_to_points(
    ranges: FloatArray,
    angle_min: float,
    angle_increment: float,
    range_min: float,
    range_max: float,
) -> npt.NDArray[np.float32]:
    """Convert a planar scan (metres, radians, as LaserScan) to (M, 3) float32 points with z = 0.

    Inf and NaN (REP 117) and ranges outside [range_min, range_max] are dropped.
    """
    returned = valid_ranges(ranges, range_min, range_max)
    angles = angle_min + angle_increment * returned
    valid = np.asarray(ranges, dtype=np.float64).reshape(-1)[returned]
    points = np.zeros((len(valid), 3), np.float32)
    points[:, 0] = valid * np.cos(angles)
    points[:, 1] = valid * np.sin(angles)
    return points


def valid_ranges(ranges: FloatArray, range_min: float, range_max: float) -> npt.NDArray[np.intp]:
    """Return the indices (M,) of the rays of a planar scan with a valid range.

    Many drivers write range_max where nothing returned and range_min where something was too near
    to measure, so that the limits themselves are not valid.
    """
    r = np.asarray(ranges, dtype=np.float64).reshape(-1)
    low, high = np.float32(range_min), np.float32(range_max)  # float32, as in the message
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(np.isfinite(r) & (r > low) & (r < high) & (r > 0))


@dataclass(frozen=True)
class ProjectionCounts:
    """Number of points of one frame by result; ``given`` is the sum of all others."""

    given: int = 0
    invalid: int = 0  # not finite, or (0, 0, 0), with which many drivers mark a missing return
    behind: int = 0  # z <= 0
    out_of_range: int = 0  # nearer than min_depth_m or farther than max_depth_m
    outside: int = 0  # not in the image, or beyond the range of the distortion model
    duplicate: int = 0  # a nearer point has the same pixel
    occluded: int = 0  # hidden behind something nearer
    used: int = 0


@dataclass(frozen=True)
class SparseDepth:
    """Metric measurements at single pixels, at most one per pixel when projected.

    rows, cols: (N,) int32. depth: (N,) float32 metres along the optical axis. age_s: (N,) float32
    seconds between the measurement and the image. noise_m: (N,) float32 m, the declared standard
    deviation of the depth, 0 where none is declared. Raises ValueError if the lengths differ.
    """

    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    depth: npt.NDArray[np.float32]
    age_s: npt.NDArray[np.float32]
    counts: ProjectionCounts = field(default_factory=ProjectionCounts)
    noise_m: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        if not len(self.noise_m):
            object.__setattr__(self, "noise_m", np.zeros(len(self.depth), np.float32))
        arrays = (self.rows, self.cols, self.depth, self.age_s, self.noise_m)
        shapes = {array.shape for array in arrays}
        if shapes != {(len(self.depth),)}:
            raise ValueError(f"sparse depth needs five arrays of one length, not shapes {shapes}")

    def __len__(self) -> int:
        return len(self.depth)

    @classmethod
    def from_arrays(
        cls,
        rows: npt.ArrayLike,
        cols: npt.ArrayLike,
        depth: npt.ArrayLike,
        age_s: npt.ArrayLike | None = None,
        noise_m: npt.ArrayLike = 0.0,
    ) -> SparseDepth:
        """Create from rows, cols and depth in metres, (N,) each; depths not above 0 are dropped.

        Depths that are not finite are dropped too. age_s, noise_m: one number for all points, or
        (N,).
        """
        z = np.asarray(depth, dtype=np.float32)
        age = np.zeros(z.shape, np.float32) if age_s is None else np.asarray(age_s, np.float32)
        sparse = cls(
            np.asarray(rows, dtype=np.int32),
            np.asarray(cols, dtype=np.int32),
            z,
            np.broadcast_to(age, z.shape),
            noise_m=np.broadcast_to(np.asarray(noise_m, np.float32), z.shape),
        )
        valid = np.isfinite(z) & (z > 0)
        used = int(valid.sum())
        counts = ProjectionCounts(given=len(z), invalid=len(z) - used, used=used)
        sparse = sparse if used == len(z) else sparse.subset(valid)
        return replace(sparse, counts=counts)

    @classmethod
    def from_map(cls, depth_map: FloatArray) -> SparseDepth:
        """Create from the known pixels (finite and above 0) of an (H, W) depth map in metres."""
        with np.errstate(invalid="ignore"):
            rows, cols = np.nonzero(np.isfinite(depth_map) & (depth_map > 0))
        return cls.from_arrays(rows, cols, depth_map[rows, cols])

    def to_map(self, height: int, width: int) -> npt.NDArray[np.float32]:
        """Return a (height, width) float32 map, m: NaN without a point, of several the nearest."""
        depth_map = np.full((height, width), np.inf, np.float32)
        np.minimum.at(depth_map, (self.rows, self.cols), self.depth)
        depth_map[np.isinf(depth_map)] = np.nan
        return depth_map

    def with_more(self, other: SparseDepth) -> SparseDepth:
        """Return these points followed by those of another sensor; the counts stay as they are."""
        return SparseDepth(
            np.concatenate([self.rows, other.rows]),
            np.concatenate([self.cols, other.cols]),
            np.concatenate([self.depth, other.depth]),
            np.concatenate([self.age_s, other.age_s]),
            self.counts,
            np.concatenate([self.noise_m, other.noise_m]),
        )

    def subset(self, mask: npt.NDArray[np.bool_] | npt.NDArray[np.integer]) -> SparseDepth:
        """Return the points selected by a mask (N,) bool or by indices (n,).

        The counts stay those of the whole frame.
        """
        return SparseDepth(
            self.rows[mask],
            self.cols[mask],
            self.depth[mask],
            self.age_s[mask],
            self.counts,
            self.noise_m[mask],
        )


@dataclass(frozen=True)
class ProjectionConfig:
    """Which LiDAR points are used: their range, and whether hidden ones are dropped.

    Raises ConfigError if min_depth_m is not below max_depth_m.
    """

    drop_occluded: bool = option(True, "Drop points that a nearer surface hides from the camera.")
    occlusion_radius_px: int = option(
        16,
        "Radius in which nearer points are searched: about the distance in the image between"
        " neighbouring LiDAR lines.",
        unit="px",
        minimum=1,
        maximum=100,
    )
    occlusion_ratio: float = option(
        1.15,
        "A point is hidden if its depth is this many times that of nearer points on all sides.",
        minimum=1.01,
        maximum=10.0,
    )
    min_depth_m: float = option(
        0.05,
        "Nearer points are dropped (the robot itself), and depth is never smaller.",
        unit="m",
        minimum=1e-3,
    )
    max_depth_m: float = option(
        200.0, "Farther points are dropped, and depth is never larger.", unit="m", minimum=0.1
    )

    def __post_init__(self) -> None:
        validate(self)
        if self.min_depth_m >= self.max_depth_m:
            raise ConfigError(
                f"min_depth_m {self.min_depth_m:g} is not below max_depth_m {self.max_depth_m:g}:"
                " no point could be used; lower min_depth_m or raise max_depth_m"
            )

    @property
    def depth_range_m(self) -> tuple[float, float]:
        """(min_depth_m, max_depth_m)."""
        return self.min_depth_m, self.max_depth_m


def project_points(
    points_lidar: FloatArray,
    T_camera_lidar: npt.NDArray[np.float64],
    camera: Camera,
    config: ProjectionConfig | None = None,
    age_s: float | FloatArray = 0.0,
    noise_m: float | FloatArray = 0.0,
) -> SparseDepth:
    """Project LiDAR points (N, 3), metres, to pixels with a metric depth in the camera.

    T_camera_lidar: (4, 4). age_s, noise_m: one number for all points, or (N,). Points are dropped
    if they are not finite, behind the camera, out of range, outside the image, behind a nearer
    point of the same pixel, or hidden (see _hidden). The result is in row-major order, whatever the
    order of the points. Raises ValueError if the points do not have the shape (N, 3).
    """
    config = config or ProjectionConfig()
    points = np.asarray(points_lidar)
    if points.ndim < 2 or points.shape[-1] != 3:
        raise ValueError(f"points have shape {points.shape}: give (N, 3) metres (x, y, z)")
    points = points.reshape(-1, 3)
    in_camera, source, counts = _in_range(points, T_camera_lidar, config)
    rows, cols, inside = _pixels(in_camera, camera)
    depth, source = in_camera[inside, 2].astype(np.float32), source[inside]
    nearest, hidden = _nearest_of_each_pixel(rows, cols, depth, camera, config)
    visible = nearest[~hidden] if hidden.any() else nearest
    return SparseDepth(
        rows[visible].astype(np.int32),
        cols[visible].astype(np.int32),
        depth[visible],
        _of_points(age_s, source[visible]),
        replace(
            counts,
            outside=len(in_camera) - len(rows),
            duplicate=len(rows) - len(nearest),
            occluded=len(nearest) - len(visible),
            used=len(visible),
        ),
        _of_points(noise_m, source[visible]),
    )


def _in_range(
    points: FloatArray, T_camera_lidar: npt.NDArray[np.float64], config: ProjectionConfig
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp], ProjectionCounts]:
    """Return the points in range in the camera's frame (M, 3), m, their indices (M,), and counts.

    The counts are those of the points (N, 3) that are dropped here.
    """
    with np.errstate(invalid="ignore"):  # misread bytes may be a signalling NaN
        x, y, z = np.ascontiguousarray(points.T, dtype=np.float64)
    rotation, shift = T_camera_lidar[:3, :3], T_camera_lidar[:3, 3]
    # Written out, because BLAS would start threads on all cores for a matrix product this thin.
    # Depth first, because most points of a full turn are behind the camera.
    with np.errstate(invalid="ignore", over="ignore"):
        depth = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + shift[2]
    # A point that is not finite has a depth that is not finite, because 0 * Inf is NaN too.
    valid = np.isfinite(depth) & ((x != 0) | (y != 0) | (z != 0))
    front = valid & (depth > 0)
    in_range = front & (depth >= config.min_depth_m) & (depth <= config.max_depth_m)
    source = np.flatnonzero(in_range)
    x, y, z = x[source], y[source], z[source]
    in_camera = np.empty((len(source), 3))
    for row in (0, 1):
        in_camera[:, row] = (
            rotation[row, 0] * x + rotation[row, 1] * y + rotation[row, 2] * z + shift[row]
        )
    in_camera[:, 2] = depth[source]
    n_valid, n_front = int(valid.sum()), int(front.sum())
    counts = ProjectionCounts(
        given=len(points),
        invalid=len(points) - n_valid,
        behind=n_valid - n_front,
        out_of_range=n_front - len(source),
    )
    return in_camera, source, counts


def _pixels(
    in_camera: npt.NDArray[np.float64], camera: Camera
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return rows and columns (M,) of the points (N, 3) inside the image, and a mask (N,) of them.

    in_camera: m, in the camera's frame.
    """
    # Columns and rows in separate contiguous arrays, which NumPy processes fastest.
    u, v = np.ascontiguousarray(camera.project(in_camera).T)
    with np.errstate(invalid="ignore"):
        # the same as floor(u + 0.5) in 0 .. width - 1; NaN compares false
        inside = (u >= -0.5) & (u < camera.width - 0.5)
        inside &= (v >= -0.5) & (v < camera.height - 0.5)
    u, v = u[inside], v[inside]
    return np.floor(v + 0.5).astype(np.int64), np.floor(u + 0.5).astype(np.int64), inside


def _nearest_of_each_pixel(
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    depth: npt.NDArray[np.float32],
    camera: Camera,
    config: ProjectionConfig,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the index (M,) of the nearest point of every pixel, row by row, and a mask (M,) of
    those that are hidden."""
    # The z-buffer covers only the part of the image that the points reach, because scan lines
    # seldom fill it. It is padded to the right and below for the windows of _hidden.
    pad = config.occlusion_radius_px if config.drop_occluded else 0
    top, left = rows.min(initial=camera.height), cols.min(initial=camera.width)
    height, width = rows.max(initial=top) - top + 1, cols.max(initial=left) - left + 1
    z_buffer = np.full((height + pad, width + pad), np.inf, np.float32)
    cell = (rows - top) * z_buffer.shape[1] + (cols - left)
    flat = z_buffer.reshape(-1)
    np.minimum.at(flat, cell, depth)
    nearest = _one_of_each(cell, np.flatnonzero(depth == flat.take(cell)))  # depths may be equal
    if not config.drop_occluded or not len(nearest):
        return nearest, np.zeros(len(nearest), bool)
    hidden = _hidden(z_buffer, cell[nearest], depth[nearest], pad, config.occlusion_ratio)
    return nearest, hidden


def _one_of_each(
    cell: npt.NDArray[np.int64], candidates: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the first of the candidates (M,) of each cell, sorted by cell.

    cell: (N,) of all points. The result is that of numpy.unique with return_index. Cell and index
    are sorted as one number, ten times as fast as an argsort, which would take most of the time of
    a projection.
    """
    count = max(1, len(cell))
    key = cell[candidates] * count + candidates
    key.sort()
    sorted_cell = key // count
    first = np.ones(len(key), bool)
    np.not_equal(sorted_cell[1:], sorted_cell[:-1], out=first[1:])
    chosen: npt.NDArray[np.int64] = key[first] - sorted_cell[first] * count
    return chosen


def _of_points(
    values: float | FloatArray, source: npt.NDArray[np.integer]
) -> npt.NDArray[np.float32]:
    """Return (n,) values of the points `source`, from one number for all or from (N,) numbers."""
    given = np.asarray(values, np.float32)
    return np.full(len(source), given, np.float32) if given.ndim == 0 else given[source]


def _hidden(
    z_buffer: npt.NDArray[np.float32],
    cell: npt.NDArray[np.int64],
    depth: npt.NDArray[np.float32],
    radius: int,
    ratio: float,
) -> npt.NDArray[np.bool_]:
    """Return which points a nearer surface hides from the camera: (N,) bool.

    z_buffer: (H, W) m, with `radius` empty rows and columns at its end. cell: (N,) flat indices of
    the points in it. depth: (N,) m.

    A LiDAR beside the camera measures surfaces behind a foreground object that the camera cannot
    see; their points are projected between those of the object. A point is hidden if each of the
    four quadrants around it, ``radius`` pixels wide and high, has a point that is nearer by
    ``ratio``. A slanted floor has nearer points only below, a wall beside an object only on one
    side: both stay.
    """
    # One running minimum over (radius + 1)^2 windows that end at a pixel serves all four
    # quadrants: it is read at the pixel and shifted by the radius to the right, below, and both.
    kernel = np.ones((radius + 1, radius + 1), np.uint8)
    window_min = cv2.erode(z_buffer, kernel, anchor=(radius, radius)).reshape(-1)
    limit = depth / np.float32(ratio)
    width = z_buffer.shape[1]
    # Each quadrant is tested only for the points that passed those before: few points pass one.
    which = np.flatnonzero(window_min.take(cell) < limit)
    for shift in (radius, radius * width, radius * width + radius):
        which = which[window_min.take(cell[which] + shift) < limit[which]]
    hidden = np.zeros(len(cell), bool)
    hidden[which] = True
    return hidden


def none_in_image(counts: ProjectionCounts) -> str:
    """Return the sentence for a scan without a point in the image: why, and what to check."""
    where = "check T_camera_lidar or the TF tree"
    losses = {
        "not finite": (counts.invalid, "check the LiDAR, which measures nothing"),
        "behind the camera": (counts.behind, where),
        "out of range": (
            counts.out_of_range,
            "check that points and transforms are in metres, not millimetres, and"
            " projection.min_depth_m and max_depth_m",
        ),
        "outside": (counts.outside, where),
        "hidden": (counts.occluded, where),
    }
    lost = ", ".join(f"{count} {why}" for why, (count, _) in losses.items() if count)
    _, cure = max(losses.values(), key=lambda item: item[0])
    return f"none of {counts.given} LiDAR points is in the image: {lost}; {cure}"


def if_inverted(
    points: npt.NDArray[np.floating], T_camera_lidar: npt.NDArray[np.float64], camera: Camera
) -> str:
    """Return an addition to that sentence if the inverse pose would put points into the image.

    points: (N, 3) m, in the LiDAR's frame. T_camera_lidar: (4, 4). The result is "" if it would
    not.
    """
    some = points[:: max(1, len(points) // _POSE_SAMPLES)]
    seen = len(project_points(some, invert_rigid(T_camera_lidar), camera))
    if seen < _FEWEST_BY_INVERSE:
        return ""
    return (
        "; with the inverse of the pose there would be: T_camera_lidar maps LiDAR coordinates into"
        " the camera's optical frame"
    )
