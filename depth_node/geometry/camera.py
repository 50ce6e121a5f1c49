# SPDX-License-Identifier: Apache-2.0
"""The camera: pixels to rays and back, for every distortion model that OpenCV has."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
_COEFFICIENTS = {"pinhole": (0,), "plumb_bob": (4, 5, 8, 12, 14), "equidistant": (4,)}

# A rational model that was fitted to measurements may have a pole within the image, where
# numerator and denominator nearly cancel. Calibrations of real OAK-D cameras have one: the model
# is smooth but for a thin ring. A pole that displaces no more than this, in units of tan(angle), is
# such an artefact of the fit; a stronger one ends the range of the model.
_POLE_DISPLACEMENT = 0.03
_LARGEST_RADIUS = 20.0  # tan(87 degrees): nothing further out is seen by a camera with a plane
# Focal lengths that there are, in sides of the image: fisheyes (.16 shows a whole turn) and
# telescopes. A K that was divided by an image's size is below (2 / 320).
_FOCAL_SIDES = (7e-3, 1e5)
_CENTRE_SIDES = 1e3  # a region of a larger image may lie off its lens's axis, but not that far
_RAY_TOLERANCE_PX = 0.05  # a ray is given where the model maps it back to its pixel this closely


@dataclass(frozen=True)
class Camera:
    """An intrinsic calibration: size, focal lengths and principal point in pixels, distortion.

    ``distortion`` is empty for "pinhole"; (k1, k2, p1, p2[, k3[, k4, k5, k6[, s1, s2, s3, s4[, tx,
    ty]]]]) for "plumb_bob" (Brown-Conrady; with eight values OpenCV's and ROS's rational
    polynomial, with twelve its thin prism, with fourteen its tilted sensor, angles in radians);
    (k1, k2, k3, k4) for "equidistant" (Kannala-Brandt, OpenCV's fisheye). Zeros behind the last
    coefficient of a model are dropped.

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
        side = max(self.width, self.height)
        for name in ("fx", "fy"):
            focal = float(getattr(self, name))
            if not (np.isfinite(focal) and focal > 0):
                raise ValueError(
                    f"camera focal length {name} is {focal:g}: the camera is not calibrated;"
                    " calibrate it and publish camera_info with K[0] and K[4] above 0"
                )
            if not _FOCAL_SIDES[0] <= focal / side <= _FOCAL_SIDES[1]:
                raise ValueError(
                    f"camera focal length {name} is {focal:g} pixels for an image of {self.width}x"
                    f"{self.height}: no lens is like that; publish camera_info with K in pixels"
                )
            object.__setattr__(self, name, focal)
        for name in ("cx", "cy"):
            centre = float(getattr(self, name))
            if not abs(centre) <= _CENTRE_SIDES * side:
                raise ValueError(
                    f"camera principal point {name} is {centre:g} for an image of {self.width}x"
                    f"{self.height}: publish camera_info with K and roi in pixels of this image"
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
        accepted = _COEFFICIENTS[self.model]
        if len(coefficients) not in accepted:
            # Some drivers fill D up with zeros.
            fits = [n for n in accepted if n <= len(coefficients) and not any(coefficients[n:])]
            if not fits:
                counts = " or ".join(str(count) for count in accepted)
                raise ValueError(
                    f"camera model {self.model} takes {counts} distortion coefficients,"
                    f" not {len(coefficients)}: correct D in camera_info"
                )
            coefficients = coefficients[: max(fits)]
        if len(coefficients) == 14 and not min(np.cos(coefficients[12:])) > 0.1:
            raise ValueError(
                f"camera distortion tilts the sensor by {coefficients[12]:g} and"
                f" {coefficients[13]:g} rad: recalibrate, with angles near 0"
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
        if k[2, :2].any() or k[2, 2] not in (0.0, 1.0):  # some leave the last one out
            raise ValueError(
                f"camera matrix K ends with {', '.join(f'{value:g}' for value in k[2])}, where it"
                " must end with 0, 0, 1: publish it row by row, fx, 0, cx, 0, fy, cy, 0, 0, 1"
            )
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
            elif len(values) > 8 and not any(values[8:]):
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

        NaN for points with z <= 0 and for those beyond the range in which the distortion model is
        monotonic: there the polynomial folds the world back into the image. The image's border
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

        NaN where the distortion model has no inverse (corners of some fisheye images). Computed
        once per camera.
        """
        return _rays(self)

    def fraction_without_ray(self) -> float:
        """Fraction of the pixels, 0 to 1, for which the distortion model has no inverse.

        Such pixels have no point in space and no LiDAR point falls on them. Above a percent or two
        the calibration is worth a look.
        """
        return _fraction_without_ray(self)

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
        if self.model == "equidistant":
            r = np.hypot(x, y)
            theta = np.arctan(r)
            theta[theta > _fisheye_range(self)] = np.nan
            ratio = np.ones_like(r)  # theta / r -> 1 on the axis
            np.divide(_fisheye_radius(theta, self.distortion), r, out=ratio, where=r > 1e-12)
            return x * ratio, y * ratio
        lens = _lens(self)
        # A NaN in x is one in both results.
        return lens.distort(np.where(lens.within(x, y), x, np.nan), y)


def _horner(coefficients: Sequence[float], s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """c[0] + c[1] s + c[2] s^2 + ..."""
    value = np.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= s
        value += coefficient
    return value


def _slope(coefficients: Sequence[float]) -> tuple[float, ...]:
    """The coefficients of a polynomial's derivative."""
    return tuple(k * c for k, c in enumerate(coefficients))[1:] or (0.0,)


def _fisheye_radius(
    theta: npt.NDArray[np.float64], d: tuple[float, ...]
) -> npt.NDArray[np.float64]:
    """theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8)."""
    return theta * _horner((1.0, *d), theta * theta)


def _positive_roots(polynomial: np.polynomial.Polynomial) -> list[float]:
    roots = polynomial.trim().roots()
    real = roots.real[np.abs(roots.imag) <= 1e-9 * (1 + np.abs(roots.real))]
    return [float(root) for root in real if root > 0]


@functools.lru_cache(maxsize=64)
def _fisheye_range(camera: Camera) -> float:
    """Largest angle before the equidistant model folds back: the first zero of its derivative."""
    k = np.polynomial.Polynomial([1.0, *camera.distortion])
    # d/dtheta of theta k(theta^2) = k(s) + 2 s k'(s)
    turning = k + 2 * np.polynomial.Polynomial([0.0, 1.0]) * k.deriv()
    return min([np.pi / 2, *(float(np.sqrt(root)) for root in _positive_roots(turning))])


def is_rectified(topic: str, info: Any, setting: str = "auto") -> bool:
    """Whether the images of a topic are rectified: then P of their CameraInfo holds and D does not.

    topic: the image's, with or without what its transport appends. info: a CameraInfo (its fields
    d, r, k and p). setting: "yes", "no" or "auto"; auto means that the topic is called
    image_rect..., or that nothing is left to rectify: D is zero, R the identity and P equal to K.
    """
    if setting != "auto":
        return setting == "yes"
    *_, before, last = ("", *topic.rstrip("/").split("/"))
    base = last if last.startswith("image") else before  # image_rect/compressed
    if base.startswith("image_rect"):
        return True
    k, r, p = (np.asarray(values, np.float64) for values in (info.k, info.r, info.p))
    fisheye = _MODEL_ALIASES.get(info.distortion_model, info.distortion_model) == "equidistant"
    same = np.array_equal(p.reshape(3, 4)[:, :3], k.reshape(3, 3))
    return bool(
        not fisheye and not any(info.d) and same and np.array_equal(r.reshape(3, 3), np.eye(3))
    )


Plane = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class _Lens:
    """A plumb_bob model taken apart, and the range in which it can be inverted.

    radial: numerator and denominator in powers of r^2. smooth: the same without the poles that
    nearly cancel. tangential: p1, p2. prism: s1 to s4. tilt: (3, 3) homography of the tilted
    sensor, or None. radius: where the smooth radial part stops to grow. limits: at evenly spaced
    polar angles the radius at which the map of the plane folds.
    """

    radial: tuple[tuple[float, ...], tuple[float, ...]]
    smooth: tuple[tuple[float, ...], tuple[float, ...]]
    tangential: tuple[float, float]
    prism: tuple[float, float, float, float]
    tilt: npt.NDArray[np.float64] | None
    radius: float
    limits: npt.NDArray[np.float64]

    @property
    def has_artefact(self) -> bool:
        """Whether poles were taken out of the smooth model."""
        return self.smooth != self.radial

    def distort(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Plane:
        """The model's formula, wherever it leads."""
        x, y = self.bend(x, y, self.radial)
        if self.tilt is None:
            return x, y
        t = self.tilt
        w = t[2, 0] * x + t[2, 1] * y + t[2, 2]
        w[w <= 0] = np.nan  # behind the tilted sensor
        return (
            (t[0, 0] * x + t[0, 1] * y + t[0, 2]) / w,
            (t[1, 0] * x + t[1, 1] * y + t[1, 2]) / w,
        )

    def bend(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        radial: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> Plane:
        """Everything but the tilt, with one or the other radial part."""
        (p1, p2), (s1, s2, s3, s4) = self.tangential, self.prism
        s = x * x + y * y
        factor = _horner(radial[0], s)
        if len(radial[1]) > 1:
            factor = factor / _horner(radial[1], s)
        xy = 2.0 * x * y
        u = x * factor + p1 * xy + p2 * (s + 2.0 * x * x)
        v = y * factor + p2 * xy + p1 * (s + 2.0 * y * y)
        if any(self.prism):
            u += s * (s1 + s2 * s)
            v += s * (s3 + s4 * s)
        return u, v

    def jacobian(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        radial: tuple[tuple[float, ...], tuple[float, ...]],
    ) -> tuple[npt.NDArray[np.float64], ...]:
        """du/dx, du/dy, dv/dx, dv/dy of bend()."""
        (p1, p2), (s1, s2, s3, s4) = self.tangential, self.prism
        s = x * x + y * y
        up, d_up = _horner(radial[0], s), _horner(_slope(radial[0]), s)
        if len(radial[1]) > 1:
            down, d_down = _horner(radial[1], s), _horner(_slope(radial[1]), s)
            factor = up / down
            slope = 2.0 * (d_up - factor * d_down) / down
        else:
            factor, slope = up, 2.0 * d_up
        cross = x * y * slope + 2.0 * (p1 * x + p2 * y)
        a = factor + x * x * slope + 2.0 * p1 * y + 6.0 * p2 * x
        d = factor + y * y * slope + 2.0 * p2 * x + 6.0 * p1 * y
        if not any(self.prism):
            return a, cross, cross, d
        u, v = 2.0 * (s1 + 2.0 * s2 * s), 2.0 * (s3 + 2.0 * s4 * s)
        return a + u * x, cross + u * y, cross + v * x, d + v * y

    def displacement(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """How far the poles that nearly cancel move a direction."""
        s = x * x + y * y
        real, smooth = (
            _horner(up, s) / _horner(down, s) for up, down in (self.radial, self.smooth)
        )
        moved: npt.NDArray[np.float64] = np.sqrt(s) * np.abs(real - smooth)
        return moved

    def within(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Where the model neither folds back nor is thrown off by a pole."""
        s = x * x + y * y
        least, largest = float(self.limits.min()), float(self.limits.max())
        inside: npt.NDArray[np.bool_] = s <= least * least
        if least < largest:
            unclear = np.flatnonzero((s > least * least) & (s <= largest * largest))
            xs, ys = x.reshape(-1)[unclear], y.reshape(-1)[unclear]
            turn = np.arctan2(ys, xs) / (2 * np.pi) * len(self.limits)
            limit = np.interp(
                turn, np.arange(len(self.limits)), self.limits, period=len(self.limits)
            )
            inside.reshape(-1)[unclear] = np.hypot(xs, ys) <= limit
        if self.has_artefact:
            inside &= self.displacement(x, y) <= _POLE_DISPLACEMENT
        return inside


@functools.lru_cache(maxsize=64)
def _lens(camera: Camera) -> _Lens:
    d = (*camera.distortion, *(0.0,) * (14 - len(camera.distortion)))
    up: tuple[float, ...] = (1.0, d[0], d[1], d[4])
    down: tuple[float, ...] = (1.0, *d[5:8]) if any(d[5:8]) else (1.0,)
    smooth = _without_poles(up, down)
    tilt = _tilt(d[12], d[13]) if any(d[12:]) else None
    polynomial = np.polynomial.Polynomial
    num, den = polynomial(smooth[0]), polynomial(smooth[1])
    s = polynomial([0.0, 1.0])
    turning = (num + 2 * s * num.deriv()) * den - 2 * s * num * den.deriv()
    ends = [float(np.sqrt(root)) for root in (*_positive_roots(turning), *_positive_roots(den))]
    lens = _Lens(
        (up, down), smooth, (d[2], d[3]), (d[8], d[9], d[10], d[11]), tilt,
        min([np.inf, *ends]), np.array([min([np.inf, *ends])]),
    )  # fmt: skip
    if not any((*lens.tangential, *lens.prism)):
        return lens
    # With tangential and prism terms the fold is no circle: the first radius, at each of so many
    # polar angles, at which the determinant of the Jacobian is no longer positive.
    poles = [float(np.sqrt(root)) for root in _positive_roots(den)]
    largest = min([_LARGEST_RADIUS, *(pole * (1 - 1e-9) for pole in poles)])
    angle = np.arange(360) * (2 * np.pi / 360)
    radius = np.tan(np.linspace(0.0, np.arctan(largest), 513))
    x, y = np.cos(angle)[:, None] * radius, np.sin(angle)[:, None] * radius
    with np.errstate(all="ignore"):
        a, b, c, e = lens.jacobian(x, y, smooth)
        determinant = a * e - b * c
    bad = ~(determinant > 0)
    first = np.where(bad.any(1), bad.argmax(1), len(radius) - 1)
    before = np.maximum(first - 1, 0)
    rows = np.arange(len(angle))
    good, turned = determinant[rows, before], determinant[rows, first]
    with np.errstate(all="ignore"):
        share = np.where(bad.any(1), np.clip(good / (good - turned), 0.0, 1.0), 1.0)
    share = np.where(np.isfinite(share), share, 0.0)
    limits = radius[before] + share * (radius[first] - radius[before])
    return dataclasses.replace(lens, limits=limits)


def _without_poles(
    up: tuple[float, ...], down: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numerator and denominator without the poles at which they nearly cancel.

    Of up/down = smooth + c/(s - pole) what is left is (up - c q)/down with down = (s - pole) q,
    whose numerator has the pole as an exact root. Near the pole the radius r moves by
    c r/(s - pole) = c/2/(r - r_pole), at the nearest solution by sqrt(|c|/2).
    """
    polynomial = np.polynomial.Polynomial
    num, den = polynomial(np.asarray(up, complex)), polynomial(np.asarray(down, complex))
    for root in den.trim().roots():
        pole = complex(root)
        near_axis = pole.real > 0 and abs(pole.imag) <= 0.02 * abs(pole)
        if not near_axis or abs(pole) > _LARGEST_RADIUS**2:
            continue
        quotient = den // polynomial([-pole, 1.0])
        at_pole = quotient(pole)
        residue = num(pole) / at_pole if at_pole else np.inf
        if not np.sqrt(abs(residue) / 2) <= _POLE_DISPLACEMENT:
            continue
        num = (num - residue * quotient) // polynomial([-pole, 1.0])
        den = quotient
    if len(den.coef) == len(down):
        return up, down
    scale = den.coef[0]  # keeps the first coefficient of the denominator at 1
    return (
        tuple(float(value) for value in (num.coef / scale).real),
        tuple(float(value) for value in (den.coef / scale).real),
    )


def _tilt(tx: float, ty: float) -> npt.NDArray[np.float64]:
    """The homography of a sensor that is tilted about its axes, as OpenCV defines it."""
    about_x = np.array([[1, 0, 0], [0, np.cos(tx), np.sin(tx)], [0, -np.sin(tx), np.cos(tx)]])
    about_y = np.array([[np.cos(ty), 0, -np.sin(ty)], [0, 1, 0], [np.sin(ty), 0, np.cos(ty)]])
    turn = about_y @ about_x
    to_plane = np.array([[turn[2, 2], 0, -turn[0, 2]], [0, turn[2, 2], -turn[1, 2]], [0, 0, 1.0]])
    tilt: npt.NDArray[np.float64] = to_plane @ turn
    return tilt / tilt[2, 2]


@functools.lru_cache(maxsize=64)
def _fraction_without_ray(camera: Camera) -> float:
    return float(np.mean(np.isnan(_rays(camera)[..., 2])))


@functools.lru_cache(maxsize=4)  # 11 MB each at 1280x720
def _rays(camera: Camera) -> npt.NDArray[np.float32]:
    u = (np.arange(camera.width) - camera.cx) / camera.fx
    v = (np.arange(camera.height) - camera.cy) / camera.fy
    x, y = np.meshgrid(u, v)
    if camera.model != "pinhole":
        # In pieces that fit a core's cache: three times as fast as the whole image at once.
        pieces = max(1, x.size >> 14)
        undistort = _undistort_fisheye if camera.model == "equidistant" else _undistort
        with np.errstate(all="ignore"):
            parts = [
                undistort(camera, *part)
                for part in zip(
                    np.array_split(x.ravel(), pieces), np.array_split(y.ravel(), pieces),
                    strict=True,
                )
            ]  # fmt: skip
        x, y = (np.concatenate(values) for values in zip(*parts, strict=True))
    rays = np.ones((camera.height, camera.width, 3), np.float32)
    rays[..., 0] = x.reshape(camera.height, camera.width)
    rays[..., 1] = y.reshape(camera.height, camera.width)
    rays[np.isnan(rays[..., 0]), 2] = np.nan
    rays.setflags(write=False)
    return rays


def _undistort_fisheye(
    camera: Camera, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]
) -> Plane:
    """Distorted plane -> ideal plane of an equidistant model, NaN beyond its range."""
    limit = _fisheye_range(camera)
    r_d = np.hypot(x_d, y_d)
    # A table over the monotonic range gives a start close enough that Newton's method cannot run
    # to a folded-back solution.
    grid = np.asarray(np.linspace(0.0, limit, 4097), np.float64)
    table = _fisheye_radius(grid, camera.distortion)
    theta = np.asarray(np.interp(r_d, table, grid, right=np.nan), np.float64)
    slopes = [(2 * i + 1) * c for i, c in enumerate((1.0, *camera.distortion))]
    for _ in range(4):
        slope = _horner(slopes, theta * theta)
        step = (_fisheye_radius(theta, camera.distortion) - r_d) / np.maximum(slope, 1e-9)
        theta = np.minimum(np.maximum(theta - step, 0.0), limit)
    theta[theta > np.pi / 2 - 1e-3] = np.nan  # z <= 0: no depth along the optical axis
    ratio = np.ones_like(r_d)
    np.divide(np.tan(theta), r_d, out=ratio, where=r_d > 1e-12)
    return _checked(camera, x_d * ratio, y_d * ratio, x_d, y_d)


def _checked(
    camera: Camera,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    x_d: npt.NDArray[np.float64],
    y_d: npt.NDArray[np.float64],
) -> Plane:
    """The directions whose image is their pixel, as float32 will hold them; NaN for the others."""
    u, v = camera._distort(x.astype(np.float32).astype(float), y.astype(np.float32).astype(float))
    miss = np.hypot((u - x_d) * camera.fx, (v - y_d) * camera.fy)
    wrong = ~(miss <= _RAY_TOLERANCE_PX)
    x[wrong] = np.nan
    y[wrong] = np.nan
    return x, y


def _undistort(camera: Camera, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]) -> Plane:
    """Distorted plane -> ideal plane of a plumb_bob model.

    NaN where no point arrives there before the model folds back or is thrown off by a pole.
    """
    lens = _lens(camera)
    u, v = x_d, y_d
    if lens.tilt is not None:
        t = np.linalg.inv(lens.tilt)
        w = t[2, 0] * u + t[2, 1] * v + t[2, 2]
        w[w <= 0] = np.nan
        u, v = (
            (t[0, 0] * u + t[0, 1] * v + t[0, 2]) / w,
            (t[1, 0] * u + t[1, 1] * v + t[1, 2]) / w,
        )
    # The radial part is inverted by a table over its monotonic range, which gives a start close
    # enough that Newton's method does not run to a folded-back solution.
    r_d = np.hypot(u, v)
    grid, table = _radial_table(camera)
    ratio = np.ones_like(r_d)
    np.divide(np.interp(r_d, table, grid), r_d, out=ratio, where=r_d > 1e-12)
    x, y, missed = _newton(lens, u * ratio, v * ratio, u, v, lens.smooth)
    missed |= ~lens.within(x, y)
    if missed.any() and any((*lens.tangential, *lens.prism)):
        # Strong tangential terms lead Newton's method astray, where there is an inverse at all.
        failed = np.flatnonzero(missed)
        for chosen in (failed[:: max(1, len(failed) // 32)], failed):  # a sample, then all
            x[chosen], y[chosen] = _follow(lens, u[chosen], v[chosen])
            if not lens.within(x[chosen], y[chosen]).any():
                break
    if lens.has_artefact:
        x, y = _around_poles(lens, x, y, u, v)
    return _checked(camera, x, y, x_d, y_d)


@functools.lru_cache(maxsize=8)
def _radial_table(camera: Camera) -> Plane:
    """Radii of the ideal plane and where the smooth radial part takes them, both growing."""
    lens = _lens(camera)
    grid = np.asarray(np.linspace(0.0, min(lens.radius, _LARGEST_RADIUS), 8193), np.float64)
    with np.errstate(all="ignore"):
        table = grid * _horner(lens.smooth[0], grid * grid) / _horner(lens.smooth[1], grid * grid)
    finite = np.isfinite(table)
    table = np.maximum.accumulate(np.where(finite, table, 0.0))
    return grid[finite], table[finite]


def _newton(
    lens: _Lens,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    u: npt.NDArray[np.float64],
    v: npt.NDArray[np.float64],
    radial: tuple[tuple[float, ...], tuple[float, ...]],
    reach: float = np.inf,
    iterations: int = 8,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """x, y whose bend() is u, v, and where that was missed; steps of at most `reach`."""
    for _ in range(iterations):
        fx, fy = lens.bend(x, y, radial)
        ex, ey = fx - u, fy - v
        miss = ~(np.abs(ex) + np.abs(ey) < 1e-7)  # a float32 step at 1
        if not miss.any():
            break
        a, b, c, d = lens.jacobian(x, y, radial)
        determinant = a * d - b * c
        dx, dy = (d * ex - b * ey) / determinant, (a * ey - c * ex) / determinant
        if np.isfinite(reach):
            shorter = np.minimum(1.0, reach / np.maximum(np.hypot(dx, dy), 1e-30))
            dx, dy = dx * shorter, dy * shorter
        x, y = x - dx, y - dy
    return x, y, miss


def _follow(lens: _Lens, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> Plane:
    """Newton's method from the axis outwards in small steps; NaN where it gets lost."""
    x, y = np.zeros_like(u), np.zeros_like(v)
    for share in np.linspace(0.0, 1.0, 33)[1:]:
        x, y, missed = _newton(lens, x, y, share * u, share * v, lens.smooth, iterations=4)
    x[missed], y[missed] = np.nan, np.nan
    return x, y


def _around_poles(
    lens: _Lens,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    u: npt.NDArray[np.float64],
    v: npt.NDArray[np.float64],
) -> Plane:
    """From the smooth model's solution to the nearest one of the model itself."""
    moved = np.flatnonzero(lens.displacement(x, y) > 1e-7)
    if not len(moved):
        return x, y
    xs, ys, us, vs = x[moved], y[moved], u[moved], v[moved]
    xn, yn, missed = _newton(lens, xs, ys, us, vs, lens.radial, _POLE_DISPLACEMENT / 4)
    # A solution on the other side of the pole is another one.
    sides = []
    for one, two in ((xs, ys), (xn, yn)):
        real, smooth = (
            _horner(up, one * one + two * two) / _horner(down, one * one + two * two)
            for up, down in (lens.radial, lens.smooth)
        )
        sides.append(np.sign(real - smooth))
    missed |= (np.hypot(xn - xs, yn - ys) > 2 * _POLE_DISPLACEMENT) | (sides[0] != sides[1])
    # Within the ring: of many directions along the radius the nearest one that fits.
    ring = np.flatnonzero(missed & np.isfinite(xs))
    if len(ring):
        steps = np.geomspace(1e-6, _POLE_DISPLACEMENT, 160)
        steps = np.concatenate([-steps[::-1], [0.0], steps])
        r = np.hypot(xs[ring], ys[ring])
        for part in np.array_split(np.arange(len(ring)), max(1, len(ring) >> 10)):
            chosen = ring[part]
            scale = 1.0 + steps / np.maximum(r[part], 1e-9)[:, None]
            xc, yc = xs[chosen, None] * scale, ys[chosen, None] * scale
            fx, fy = lens.bend(xc, yc, lens.radial)
            error = np.hypot(fx - us[chosen, None], fy - vs[chosen, None])
            best = np.argmin(np.where(np.isfinite(error), error, np.inf), axis=1)
            rows = np.arange(len(chosen))
            xb, yb, _ = _newton(
                lens, xc[rows, best], yc[rows, best], us[chosen], vs[chosen], lens.radial, 1e-4
            )
            fx, fy = lens.bend(xb, yb, lens.radial)
            better = np.hypot(fx - us[chosen], fy - vs[chosen]) < error[rows, best]
            xn[chosen] = np.where(better, xb, xc[rows, best])
            yn[chosen] = np.where(better, yb, yc[rows, best])
    x[moved], y[moved] = xn, yn
    return x, y
