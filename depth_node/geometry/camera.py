# SPDX-License-Identifier: Apache-2.0
"""The camera: pixels to rays and back, for the pinhole, Brown-Conrady and fisheye models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.rigid import FloatArray

CAMERA_MODELS = ("pinhole", "plumb_bob", "equidistant")
_MODEL_ALIASES = {
    "": "pinhole",
    "none": "pinhole",
    "rational_polynomial": "plumb_bob",  # the same formula with its denominator
    "fisheye": "equidistant",
    "kannala_brandt4": "equidistant",
}
_COEFFICIENTS = {"pinhole": (0,), "plumb_bob": (4, 5, 8), "equidistant": (4,)}


@dataclass(frozen=True)
class Camera:
    """An intrinsic calibration: size, focal lengths and principal point in pixels, distortion.

    ``distortion`` is empty for "pinhole"; (k1, k2, p1, p2[, k3[, k4, k5, k6]]) for "plumb_bob"
    (Brown-Conrady; with eight values OpenCV's and ROS's rational polynomial); (k1, k2, k3, k4) for
    "equidistant" (Kannala-Brandt, OpenCV's fisheye).

    Raises ValueError for a calibration that cannot be used.
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
        """Camera from K, (3, 3) or nine values row by row, D and a distortion model of ROS or ours.

        A polynomial model whose coefficients are all zero is a pinhole (a rectified image); an
        equidistant model is not, because it distorts with zero coefficients too. Raises ValueError
        for a calibration that cannot be used.
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
        """The camera of the same image scaled to another size (pixel centres at integers)."""
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

        NaN for points with z <= 0 and for points beyond the monotonic range of the distortion
        model, where the polynomial folds directions back into the image. Points outside the image
        are not removed.
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

        NaN where the distortion model has no inverse (corners of some fisheye images). Computed
        once per camera.
        """
        return _rays(self)

    def backproject(self, depth: FloatArray) -> npt.NDArray[np.float32]:
        """(H, W) depth in metres -> (H, W, 3) float32 points in the camera frame, NaN unknown.

        Raises ValueError if the depth does not have the size of the camera.
        """
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
        # In pieces that fit in a core's cache: three times as fast as the whole image at once.
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
    """Distorted plane -> ideal plane. NaN where no point of the monotonic range is projected."""
    limit = _monotonic_range(camera)
    r_d = np.hypot(x_d, y_d)
    # A table over the monotonic range inverts the radial part; its solution is close enough that
    # Newton's method does not converge to a folded-back solution.
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
    # Without a fold the range is unbounded; no pinhole image reaches beyond tan = 20 (87 degrees).
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
