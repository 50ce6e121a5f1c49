# SPDX-License-Identifier: Apache-2.0
"""From metres to pixels and back: cameras, rigid transforms, LiDAR points in the picture.

Conventions. Pixel centres lie at integers and a coordinate is rounded with floor(x + 0.5). Camera
coordinates are those of an optical frame (x right, y down, z forward; REP 103). Depth is metres
along z. ``T_a_b`` maps coordinates of frame b into frame a: ``p_a = T_a_b @ p_b``.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from depth_node.config import ConfigError, option, validate

FloatArray = npt.NDArray[np.floating]

CAMERA_MODELS = ("pinhole", "plumb_bob", "equidistant")
_MODEL_ALIASES = {
    "": "pinhole",
    "none": "pinhole",
    "rational_polynomial": "plumb_bob",  # the same formula with its denominator
    "fisheye": "equidistant",
    "kannala_brandt4": "equidistant",
}
_COEFFICIENTS = {"pinhole": (0,), "plumb_bob": (4, 5, 8), "equidistant": (4,)}


# --- cameras -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """An intrinsic calibration: size, focal lengths and principal point in pixels, distortion.

    ``distortion`` is empty for "pinhole"; (k1, k2, p1, p2[, k3[, k4, k5, k6]]) for "plumb_bob"
    (Brown-Conrady; with eight values OpenCV's and ROS's rational polynomial); (k1, k2, k3, k4) for
    "equidistant" (Kannala-Brandt, OpenCV's fisheye).

    Raises ValueError, in a sentence, for a calibration that cannot be used.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = "pinhole"
    distortion: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            size = getattr(self, name)
            if int(size) != size or size < 1:
                raise ValueError(
                    f"camera {name} is {size}: it must be a whole number of pixels above 0;"
                    " publish camera_info with the size of the image"
                )
            object.__setattr__(self, name, int(size))
        for name in ("fx", "fy"):
            focal = float(getattr(self, name))
            if not (np.isfinite(focal) and focal > 0):
                raise ValueError(
                    f"camera focal length {name} is {focal:g}: the camera is not calibrated;"
                    " calibrate it and publish camera_info with K[0] and K[4] above 0"
                )
            object.__setattr__(self, name, focal)
        for name in ("cx", "cy"):
            centre = float(getattr(self, name))
            if not np.isfinite(centre):
                raise ValueError(
                    f"camera principal point {name} is {centre}: publish camera_info with finite K"
                )
            object.__setattr__(self, name, centre)
        if self.model not in CAMERA_MODELS:
            raise ValueError(
                f"camera distortion model {self.model!r} is not known: use one of"
                f" {', '.join(CAMERA_MODELS)}, or rectify the image"
            )
        coefficients = tuple(float(value) for value in self.distortion)
        if not all(np.isfinite(value) for value in coefficients):
            raise ValueError("camera distortion has a coefficient that is not finite: recalibrate")
        if len(coefficients) not in _COEFFICIENTS[self.model]:
            counts = " or ".join(str(count) for count in _COEFFICIENTS[self.model])
            raise ValueError(
                f"camera model {self.model} takes {counts} distortion coefficients,"
                f" not {len(coefficients)}: correct D in camera_info"
            )
        object.__setattr__(self, "distortion", coefficients)

    @classmethod
    def from_matrix(
        cls,
        matrix: npt.ArrayLike,
        distortion: Sequence[float] = (),
        model: str = "pinhole",
        width: int = 0,
        height: int = 0,
    ) -> Camera:
        """Camera from K (3x3 or nine values, row by row), D and a distortion model of ROS or ours.

        A polynomial model whose coefficients are all zero is a pinhole (a rectified image); an
        equidistant one is not, its zero coefficients still bend the picture.
        """
        k = np.asarray(matrix, dtype=np.float64)
        if k.size != 9:
            raise ValueError(f"camera matrix K has {k.size} values: it must have nine (3x3)")
        k = k.reshape(3, 3)
        if k[0, 0] > 0 and abs(k[0, 1]) > 1e-6 * k[0, 0]:
            raise ValueError(
                f"camera matrix K has skew {k[0, 1]:g}: only skew 0 is supported; rectify the image"
            )
        name = _MODEL_ALIASES.get(model, model)
        values = tuple(float(value) for value in distortion)
        if name in ("pinhole", "plumb_bob"):
            if not any(values):
                name, values = "pinhole", ()
            elif model in ("", "none"):
                raise ValueError(
                    "camera_info has distortion coefficients but names no distortion model:"
                    " set distortion_model (plumb_bob, rational_polynomial or equidistant)"
                )
            elif len(values) > 8:
                if any(values[8:]):
                    raise ValueError(
                        "camera distortion has thin prism or tilt terms (more than eight non-zero"
                        " coefficients), which are not supported: rectify the image"
                    )
                values = values[:8]
        return cls(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2], name, values)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """K, (3, 3) float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def resized(self, width: int, height: int) -> Camera:
        """The camera of the same picture scaled to another size (pixel centres at integers)."""
        sx, sy = width / self.width, height / self.height
        return Camera(
            width,
            height,
            self.fx * sx,
            self.fy * sy,
            (self.cx + 0.5) * sx - 0.5,
            (self.cy + 0.5) * sy - 0.5,
            self.model,
            self.distortion,
        )

    def project(self, points: FloatArray) -> npt.NDArray[np.float64]:
        """(N, 3) points in the camera frame, metres -> (N, 2) float64 pixel coordinates (u, v).

        NaN for points with z <= 0 and for those beyond the range in which the distortion model is
        monotonic: there the polynomial folds the world back into the picture. The picture's border
        is not applied.
        """
        p = np.asarray(points, dtype=np.float64)
        z = p[:, 2]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            inverse = np.where(z > 0, 1.0, np.nan) / z
            x, y = p[:, 0] * inverse, p[:, 1] * inverse
            if self.model != "pinhole":
                x, y = self._distort(x, y)
        pixels = np.empty((len(p), 2))
        np.multiply(x, self.fx, out=pixels[:, 0])
        np.multiply(y, self.fy, out=pixels[:, 1])
        pixels += (self.cx, self.cy)
        return pixels

    def rays(self) -> npt.NDArray[np.float32]:
        """(height, width, 3) float32 directions with z = 1 through the pixel centres, read-only.

        NaN where the distortion model has no inverse (corners of some fisheye pictures). Computed
        once per camera.
        """
        return _rays(self)

    def backproject(self, depth: FloatArray) -> npt.NDArray[np.float32]:
        """(H, W) depth in metres -> (H, W, 3) float32 points in the camera frame, NaN unknown."""
        if depth.shape != (self.height, self.width):
            raise ValueError(
                f"depth is {depth.shape[1]}x{depth.shape[0]} but the camera"
                f" {self.width}x{self.height}: use Camera.resized() for the size of the depth"
            )
        points: npt.NDArray[np.float32] = self.rays() * depth[..., None].astype(np.float32)
        return points

    def _distort(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Ideal image plane (x/z, y/z) -> distorted plane; NaN beyond the monotonic range."""
        limit = _monotonic_range(self)
        if self.model == "equidistant":
            r = np.hypot(x, y)
            theta = np.arctan(r)
            theta[theta > limit] = np.nan
            ratio = np.ones_like(r)  # theta / r -> 1 on the axis
            np.divide(_fisheye_radius(theta, self.distortion), r, out=ratio, where=r > 1e-12)
            return x * ratio, y * ratio
        p1, p2 = self.distortion[2], self.distortion[3]
        numerator, denominator = _radial_polynomials(self.distortion)
        s = x * x + y * y
        s[s > limit * limit] = np.nan
        radial = _horner(numerator, s)
        if len(denominator) > 1:
            radial = radial / _horner(denominator, s)
        xy = 2.0 * x * y
        return (
            x * radial + p1 * xy + p2 * (s + 2.0 * x * x),
            y * radial + p2 * xy + p1 * (s + 2.0 * y * y),
        )


def _horner(coefficients: Sequence[float], s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """c[0] + c[1] s + c[2] s^2 + ..."""
    value = np.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= s
        value += coefficient
    return value


def _radial_polynomials(d: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numerator and denominator, in powers of r^2, of the radial factor of a plumb_bob model."""
    numerator = (1.0, d[0], d[1], d[4] if len(d) > 4 else 0.0)
    return numerator, ((1.0, d[5], d[6], d[7]) if len(d) == 8 else (1.0,))


def _fisheye_radius(
    theta: npt.NDArray[np.float64], d: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)."""
    return theta * _horner((1.0, *d), theta * theta)


@functools.lru_cache(maxsize=64)
def _monotonic_range(camera: Camera) -> float:
    """Largest r = hypot(x, y)/z (plumb_bob) or angle (equidistant) before the model folds back.

    That is the first positive zero of the derivative of the distorted radius, or the pole of the
    rational model if that comes first; inf (pi/2 for equidistant) without one.
    """
    polynomial = np.polynomial.Polynomial
    s = polynomial([0.0, 1.0])
    candidates: list[float] = []
    if camera.model == "equidistant":
        k = polynomial([1.0, *camera.distortion])
        # d/dtheta of theta k(theta^2) = k(s) + 2 s k'(s)
        turning, poles, largest = k + 2 * s * k.deriv(), polynomial([1.0]), np.pi / 2
    else:
        up, down = (polynomial(c) for c in _radial_polynomials(camera.distortion))
        turning = (up + 2 * s * up.deriv()) * down - 2 * s * up * down.deriv()
        poles, largest = down, np.inf
    for roots in (turning.trim().roots(), poles.trim().roots()):
        real = roots.real[np.abs(roots.imag) <= 1e-9 * (1 + np.abs(roots.real))]
        candidates.extend(float(np.sqrt(root)) for root in real if root > 0)
    return min([largest, *candidates])


@functools.lru_cache(maxsize=4)  # 11 MB each at 1280x720
def _rays(camera: Camera) -> npt.NDArray[np.float32]:
    u = (np.arange(camera.width) - camera.cx) / camera.fx
    v = (np.arange(camera.height) - camera.cy) / camera.fy
    x, y = np.meshgrid(u, v)
    if camera.model != "pinhole":
        # In pieces that fit a core's cache: three times as fast as the whole picture at once.
        pieces = max(1, x.size >> 14)
        parts = [
            _undistort(camera, *part)
            for part in zip(
                np.array_split(x.ravel(), pieces), np.array_split(y.ravel(), pieces), strict=True
            )
        ]
        x, y = (np.concatenate(values) for values in zip(*parts, strict=True))
    rays = np.ones((camera.height, camera.width, 3), np.float32)
    rays[..., 0] = x.reshape(camera.height, camera.width)
    rays[..., 1] = y.reshape(camera.height, camera.width)
    rays[np.isnan(rays[..., 0]), 2] = np.nan
    rays.setflags(write=False)
    return rays


def _undistort(
    camera: Camera, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distorted plane -> ideal plane. NaN where no point of the monotonic range arrives there."""
    limit = _monotonic_range(camera)
    r_d = np.hypot(x_d, y_d)
    # The radial part is inverted by a table over the monotonic range, which gives a start close
    # enough that Newton's method cannot run to a folded-back solution.
    if camera.model == "equidistant":
        grid = np.asarray(np.linspace(0.0, limit, 4097), np.float64)
        table = _fisheye_radius(grid, camera.distortion)
        theta = np.asarray(np.interp(r_d, table, grid, right=np.nan), np.float64)
        for _ in range(4):
            k = (1.0, *camera.distortion)
            slope = _horner([(2 * i + 1) * c for i, c in enumerate(k)], theta * theta)
            step = (_fisheye_radius(theta, camera.distortion) - r_d) / np.maximum(slope, 1e-9)
            theta = np.minimum(np.maximum(theta - step, 0.0), limit)
        theta[theta > np.pi / 2 - 1e-3] = np.nan  # z <= 0: no depth along the optical axis
        ratio = np.ones_like(r_d)
        np.divide(np.tan(theta), r_d, out=ratio, where=r_d > 1e-12)
        return x_d * ratio, y_d * ratio

    numerator, denominator = _radial_polynomials(camera.distortion)
    # Without a fold the range is unbounded; a picture beyond tan = 20 (87 degrees) is no pinhole.
    grid = np.asarray(np.linspace(0.0, min(limit, 20.0), 8193), np.float64)
    square = grid * grid
    table = grid * _horner(numerator, square) / _horner(denominator, square)
    start = np.interp(r_d, table, grid)
    ratio = np.ones_like(r_d)
    np.divide(start, r_d, out=ratio, where=r_d > 1e-12)
    x, y = x_d * ratio, y_d * ratio
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for _ in range(8):
            fx, fy = camera._distort(x, y)
            ex, ey = fx - x_d, fy - y_d
            miss = ~(np.abs(ex) + np.abs(ey) < 1e-7)  # a float32 step at 1
            if not miss.any():
                break
            # The tangential part is small: the radial factor's Jacobian is enough to converge.
            s = x * x + y * y
            up, down = _horner(numerator, s), _horner(denominator, s)
            d_up = _horner([i * c for i, c in enumerate(numerator)][1:], s)
            d_down = _horner([i * c for i, c in enumerate(denominator)][1:] or [0.0], s)
            factor = up / down
            slope = (d_up * down - up * d_down) / (down * down)
            a, b, c = factor + 2 * x * x * slope, 2 * x * y * slope, factor + 2 * y * y * slope
            determinant = a * c - b * b
            x = x - (c * ex - b * ey) / determinant
            y = y - (a * ey - b * ex) / determinant
    x[miss] = np.nan
    y[miss] = np.nan
    return x, y


# --- rigid transforms ----------------------------------------------------------------------------


def rigid_transform(
    translation_xyz: Sequence[float] | FloatArray, quaternion_xyzw: Sequence[float] | FloatArray
) -> npt.NDArray[np.float64]:
    """(4, 4) float64 transform from a translation in metres and a unit quaternion (x, y, z, w)."""
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
    transform_ = np.eye(4)
    transform_[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    transform_[:3, 3] = translation
    return transform_


def check_rigid(T: npt.ArrayLike, name: str = "transform") -> npt.NDArray[np.float64]:
    """T as (4, 4) float64; sixteen values are taken row by row. Raises ValueError if not rigid."""
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
    """T_b_a of a rigid T_a_b."""
    inverse = np.eye(4)
    inverse[:3, :3] = T_a_b[:3, :3].T
    inverse[:3, 3] = -T_a_b[:3, :3].T @ T_a_b[:3, 3]
    return inverse


def transform(T_a_b: npt.NDArray[np.float64], points: FloatArray) -> npt.NDArray[np.float64]:
    """(N, 3) points of frame b -> (N, 3) float64 points of frame a."""
    moved: npt.NDArray[np.float64] = points @ T_a_b[:3, :3].T + T_a_b[:3, 3]
    return moved


def scan_to_points(
    ranges: FloatArray,
    angle_min: float,
    angle_increment: float,
    range_min: float,
    range_max: float,
) -> npt.NDArray[np.float32]:
    """A planar scan (metres, radians, as LaserScan) -> (M, 3) float32 points with z = 0.

    Inf and NaN (REP 117) and everything outside [range_min, range_max] is dropped.
    """
    r = np.asarray(ranges, dtype=np.float64).reshape(-1)
    with np.errstate(invalid="ignore"):
        keep = np.isfinite(r) & (r >= range_min) & (r <= range_max) & (r > 0)
    angles = angle_min + angle_increment * np.flatnonzero(keep)
    kept = r[keep]
    points = np.zeros((len(kept), 3), np.float32)
    points[:, 0] = kept * np.cos(angles)
    points[:, 1] = kept * np.sin(angles)
    return points


# --- sparse depth --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProjectionCounts:
    """What became of the points of one frame; ``given`` is the sum of all the others."""

    given: int = 0
    invalid: int = 0  # not finite, or (0, 0, 0): how many drivers mark a missing return
    behind: int = 0  # z <= 0
    out_of_range: int = 0  # nearer than min_depth_m or farther than max_depth_m
    outside: int = 0  # not in the picture, or beyond the range of the distortion model
    duplicate: int = 0  # a nearer point has the same pixel
    occluded: int = 0  # hidden behind something nearer
    used: int = 0


@dataclass(frozen=True)
class SparseDepth:
    """Metric measurements at single pixels, at most one per pixel when projected.

    rows, cols: (N,) int32. depth: (N,) float32 metres along the optical axis. age_s: (N,) float32
    seconds between the measurement and the picture.
    """

    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    depth: npt.NDArray[np.float32]
    age_s: npt.NDArray[np.float32]
    counts: ProjectionCounts = field(default_factory=ProjectionCounts)

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.rows, self.cols, self.depth, self.age_s)}
        if shapes != {(len(self.depth),)}:
            raise ValueError(f"sparse depth needs four arrays of one length, not shapes {shapes}")

    def __len__(self) -> int:
        return len(self.depth)

    @classmethod
    def from_arrays(
        cls,
        rows: npt.ArrayLike,
        cols: npt.ArrayLike,
        depth: npt.ArrayLike,
        age_s: npt.ArrayLike | None = None,
    ) -> SparseDepth:
        """From pixel rows, columns and metres; points without finite positive depth are dropped."""
        z = np.asarray(depth, dtype=np.float32)
        age = np.zeros(z.shape, np.float32) if age_s is None else np.asarray(age_s, np.float32)
        sparse = cls(
            np.asarray(rows, dtype=np.int32),
            np.asarray(cols, dtype=np.int32),
            z,
            np.broadcast_to(age, z.shape),
        )
        valid = np.isfinite(z) & (z > 0)
        used = int(valid.sum())
        counts = ProjectionCounts(given=len(z), invalid=len(z) - used, used=used)
        kept = sparse if used == len(z) else sparse.subset(valid)
        return cls(kept.rows, kept.cols, kept.depth, kept.age_s, counts)

    @classmethod
    def from_map(cls, depth_map: FloatArray) -> SparseDepth:
        """The known pixels (finite and above 0) of an (H, W) depth map in metres."""
        with np.errstate(invalid="ignore"):
            rows, cols = np.nonzero(np.isfinite(depth_map) & (depth_map > 0))
        return cls.from_arrays(rows, cols, depth_map[rows, cols])

    def to_map(self, height: int, width: int) -> npt.NDArray[np.float32]:
        """(height, width) float32 metres, NaN where there is no point; the nearest wins."""
        depth_map = np.full((height, width), np.inf, np.float32)
        np.minimum.at(depth_map, (self.rows, self.cols), self.depth)
        depth_map[np.isinf(depth_map)] = np.nan
        return depth_map

    def subset(self, mask: npt.NDArray[np.bool_] | npt.NDArray[np.integer]) -> SparseDepth:
        """The points of a mask or of indices. The counts stay those of the whole frame."""
        return SparseDepth(
            self.rows[mask], self.cols[mask], self.depth[mask], self.age_s[mask], self.counts
        )


@dataclass(frozen=True)
class ProjectionConfig:
    """Which LiDAR points count as seen by the camera."""

    drop_occluded: bool = option(
        True, "drop points that the camera cannot see because something nearer covers them"
    )
    occlusion_radius_px: int = option(
        16,
        "how far around a point nearer points are looked for; about the distance in the picture"
        " between neighbouring LiDAR lines",
        unit="px",
        minimum=1,
        maximum=100,
    )
    occlusion_ratio: float = option(
        1.15,
        "a point is hidden if it is this many times as far as nearer points on all sides of it",
        minimum=1.01,
        maximum=10.0,
    )
    min_depth_m: float = option(
        0.05, "nearer points are not used (the robot itself)", unit="m", minimum=0.0
    )
    max_depth_m: float = option(200.0, "farther points are not used", unit="m", minimum=0.1)

    def __post_init__(self) -> None:
        validate(self)
        if self.min_depth_m >= self.max_depth_m:
            raise ConfigError(
                f"min_depth_m {self.min_depth_m:g} is not below max_depth_m {self.max_depth_m:g}:"
                " no point could be used; lower min_depth_m or raise max_depth_m"
            )


def project_points(
    points_lidar: FloatArray,
    T_camera_lidar: npt.NDArray[np.float64],
    camera: Camera,
    config: ProjectionConfig | None = None,
    age_s: float | FloatArray = 0.0,
) -> SparseDepth:
    """LiDAR points (N, 3) in metres -> the pixels at which the camera has a metric depth.

    Points that are not finite, behind the camera, out of range or outside the picture go; of
    several points in one pixel the nearest stays; hidden points go (see _hidden). The result is in
    row-major order, whatever the order of the points.
    """
    config = config or ProjectionConfig()
    points = np.asarray(points_lidar)
    if points.ndim < 2 or points.shape[-1] != 3:
        raise ValueError(f"points have shape {points.shape}: give (N, 3) metres (x, y, z)")
    points = points.reshape(-1, 3)
    given = len(points)
    x, y, z = np.ascontiguousarray(points.T, dtype=np.float64)
    rotation, shift = T_camera_lidar[:3, :3], T_camera_lidar[:3, 3]
    # Written out: a matrix product this thin makes BLAS wake every core for nothing. Depth first,
    # for of a full turn most points are behind the camera.
    with np.errstate(invalid="ignore", over="ignore"):
        depth = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + shift[2]
    # Whatever is not finite in a point is not finite in its depth, for 0 * Inf is NaN too.
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
    pixels = camera.project(in_camera)
    with np.errstate(invalid="ignore"):
        # floor(u + 0.5) in 0 .. width - 1, written without rounding; NaN compares false
        inside = (pixels[:, 0] >= -0.5) & (pixels[:, 0] < camera.width - 0.5)
        inside &= (pixels[:, 1] >= -0.5) & (pixels[:, 1] < camera.height - 0.5)
    source, pixels = source[inside], pixels[inside]
    rounded = np.floor(pixels + 0.5).astype(np.int64)
    cols, rows = rounded[:, 0], rounded[:, 1]
    depth = depth[source].astype(np.float32)

    # The z-buffer is padded to the right and below for the windows of _hidden.
    pad = config.occlusion_radius_px if config.drop_occluded else 0
    z_buffer = np.full((camera.height + pad, camera.width + pad), np.inf, np.float32)
    cell = rows * z_buffer.shape[1] + cols
    flat = z_buffer.reshape(-1)
    np.minimum.at(flat, cell, depth)
    nearest = np.flatnonzero(depth == flat[cell])
    _, first = np.unique(cell[nearest], return_index=True)  # equal depth in one pixel: one of them
    nearest = nearest[first]
    rows, cols, depth, source = rows[nearest], cols[nearest], depth[nearest], source[nearest]
    duplicate = len(inside.nonzero()[0]) - len(nearest)

    occluded = 0
    if config.drop_occluded and len(depth):
        seen = ~_hidden(z_buffer, rows, cols, depth, pad, config.occlusion_ratio)
        occluded = len(seen) - int(seen.sum())
        rows, cols, depth, source = rows[seen], cols[seen], depth[seen], source[seen]

    n_valid, n_front, n_range = int(valid.sum()), int(front.sum()), int(in_range.sum())
    n_inside = int(inside.sum())
    ages = np.asarray(age_s, dtype=np.float32)
    return SparseDepth(
        rows.astype(np.int32),
        cols.astype(np.int32),
        depth,
        np.full(len(depth), ages, np.float32) if ages.ndim == 0 else ages[source],
        ProjectionCounts(
            given=given,
            invalid=given - n_valid,
            behind=n_valid - n_front,
            out_of_range=n_front - n_range,
            outside=n_range - n_inside,
            duplicate=duplicate,
            occluded=occluded,
            used=len(depth),
        ),
    )


def _hidden(
    z_buffer: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    cols: npt.NDArray[np.int64],
    depth: npt.NDArray[np.float32],
    radius: int,
    ratio: float,
) -> npt.NDArray[np.bool_]:
    """Which points something nearer covers: (N,) bool.

    A LiDAR beside the camera sees past a foreground object onto what is hidden from the camera;
    these points land amid those of the object. A point is hidden if in each of the four quadrants
    around it, ``radius`` pixels wide and high, some point is nearer by ``ratio``. A slanted floor
    has nearer points only below, a wall beside an object only on one side: both stay.
    """
    # One running minimum over (radius + 1)^2 windows that end at a pixel serves all four
    # quadrants: read at the pixel, and shifted by the radius to the right, below, and both.
    kernel = np.ones((radius + 1, radius + 1), np.uint8)
    window_min = cv2.erode(z_buffer, kernel, anchor=(radius, radius))
    limit = depth / np.float32(ratio)
    hidden: npt.NDArray[np.bool_] = window_min[rows, cols] < limit
    for down, right in ((0, radius), (radius, 0), (radius, radius)):
        hidden &= window_min[rows + down, cols + right] < limit
    return hidden


# --- several scans -------------------------------------------------------------------------------


class ScanBuffer:
    """The recent scans of one or several LiDARs, to be collected for the stamp of a picture.

    Scans go in as points of one common frame, under a key per source. Safe to fill from one thread
    and to collect from another.
    """

    def __init__(self, max_scan_age_s: float) -> None:
        if not max_scan_age_s > 0:
            raise ValueError(f"max_scan_age is {max_scan_age_s:g} s: it must be above 0")
        self._max_age_ns = round(max_scan_age_s * 1e9)
        # A picture that is processed late still finds the scans around its own stamp.
        self._keep_ns = 2 * self._max_age_ns + 1_000_000_000
        self._scans: dict[str, dict[int, npt.NDArray[np.float32]]] = {}
        self._lock = threading.Lock()
        self.jumps_back = 0

    def add(self, stamp_ns: int, points: FloatArray, key: str = "points") -> bool:
        """Store an (N, 3) scan. True if time had jumped back (a bag that loops): all was cleared.

        A scan somewhat older than its forerunner is kept, one with the same stamp replaces it.
        """
        with self._lock:
            scans = self._scans.get(key, {})
            jumped = bool(scans) and stamp_ns < max(scans) - self._keep_ns
            if jumped:
                self._scans.clear()
                self.jumps_back += 1
            scans = self._scans.setdefault(key, {})
            scans[stamp_ns] = np.asarray(points, dtype=np.float32).reshape(-1, 3)
            oldest = max(scans) - self._keep_ns
            for stamp in [stamp for stamp in scans if stamp < oldest]:
                del scans[stamp]
            return jumped

    def collect(
        self, stamp_ns: int, key: str | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Points (N, 3) of the scans within max_scan_age before or after the stamp, of all sources
        or of one, and their ages (N,) in seconds: how far each scan is from the stamp in time."""
        chosen = self.scans(stamp_ns, key)
        if not chosen:
            return np.empty((0, 3), np.float32), np.empty(0, np.float32)
        ages = [
            np.full(len(points), abs(stamp_ns - stamp) * 1e-9, np.float32)
            for stamp, points in chosen
        ]
        return np.concatenate([points for _, points in chosen]), np.concatenate(ages)

    def scans(
        self, stamp_ns: int, key: str | None = None
    ) -> list[tuple[int, npt.NDArray[np.float32]]]:
        """The same scans one by one: their stamps and points (N, 3)."""
        with self._lock:
            sources = self._scans.values() if key is None else [self._scans.get(key, {})]
            return [
                (stamp, points)
                for scans in sources
                for stamp, points in scans.items()
                if abs(stamp_ns - stamp) <= self._max_age_ns
            ]

    def newest_stamp_ns(self, key: str | None = None) -> int | None:
        """Stamp of the newest scan held, of all sources or of one; None without any."""
        with self._lock:
            sources = self._scans.values() if key is None else [self._scans.get(key, {})]
            return max((stamp for scans in sources for stamp in scans), default=None)

    def clear(self) -> None:
        """Forget every scan."""
        with self._lock:
            self._scans.clear()
