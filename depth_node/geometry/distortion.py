# SPDX-License-Identifier: Apache-2.0
"""Lens distortion: maps between the ideal image plane (x/z, y/z) and the distorted one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

# A rational model that was fitted to measurements may have a pole within the image, where
# numerator and denominator nearly cancel. Calibrations of real OAK-D cameras have one: the model
# is smooth except in a thin ring. A pole that displaces points by no more than this, in units of
# tan(angle), is treated as such an artefact of the fit; a stronger one ends the model's range.
_POLE_DISPLACEMENT = 0.03
_LARGEST_RADIUS = 20.0  # tan(87 degrees): a camera with a planar image sees nothing further out

Plane = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
Rational = tuple[tuple[float, ...], tuple[float, ...]]  # coefficients, numerator and denominator


class Distortion(Protocol):
    """The distortion map of a lens; coordinates are two arrays (N,) in focal lengths."""

    def distort(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Plane:
        """Map the ideal plane (x/z, y/z) to the distorted one; NaN beyond the monotonic range."""

    def undistort(self, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]) -> Plane:
        """Map the distorted plane to the ideal one; NaN where no point of that range maps to."""


@functools.lru_cache(maxsize=64)
def lens_of(model: str, coefficients: tuple[float, ...]) -> Distortion:
    """Return the distortion of a model, "plumb_bob" or "equidistant" (see Camera)."""
    return KannalaBrandt(coefficients) if model == "equidistant" else _brown_conrady(coefficients)


# --- equidistant ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class KannalaBrandt:
    """The Kannala-Brandt model (equidistant, OpenCV's fisheye).

    theta_d = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8), with theta the angle
    between a ray and the optical axis. k: (k1, k2, k3, k4). Methods take and return arrays (N,).
    """

    k: tuple[float, ...]

    @functools.cached_property
    def range(self) -> float:
        """The largest angle, rad, before the model folds back: the first zero of its derivative."""
        k = np.polynomial.Polynomial([1.0, *self.k])
        # d/dtheta of theta k(theta^2) = k(s) + 2 s k'(s)
        turning = k + 2 * np.polynomial.Polynomial([0.0, 1.0]) * k.deriv()
        return min([np.pi / 2, *(float(np.sqrt(root)) for root in _positive_roots(turning))])

    def radius(self, theta: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return theta_d of the angles theta (N,), rad."""
        return theta * _horner((1.0, *self.k), theta * theta)

    def distort(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Plane:
        """See Distortion."""
        r = np.hypot(x, y)
        theta = np.arctan(r)
        theta[theta > self.range] = np.nan
        ratio = np.ones_like(r)  # theta / r -> 1 on the axis
        np.divide(self.radius(theta), r, out=ratio, where=r > 1e-12)
        return x * ratio, y * ratio

    def undistort(self, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]) -> Plane:
        """See Distortion."""
        r_d = np.hypot(x_d, y_d)
        # A table over the monotonic range gives a start close enough that Newton's method cannot
        # run to a folded-back solution.
        grid = np.asarray(np.linspace(0.0, self.range, 4097), np.float64)
        theta = np.asarray(np.interp(r_d, self.radius(grid), grid, right=np.nan), np.float64)
        slopes = [(2 * i + 1) * c for i, c in enumerate((1.0, *self.k))]
        for _ in range(4):
            slope = _horner(slopes, theta * theta)
            step = (self.radius(theta) - r_d) / np.maximum(slope, 1e-9)
            theta = np.minimum(np.maximum(theta - step, 0.0), self.range)
        theta[theta > np.pi / 2 - 1e-3] = np.nan  # z <= 0: no depth along the optical axis
        ratio = np.ones_like(r_d)
        np.divide(np.tan(theta), r_d, out=ratio, where=r_d > 1e-12)
        return x_d * ratio, y_d * ratio


# --- plumb_bob -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BrownConrady:
    """The parts of a plumb_bob model, and the range in which it can be inverted.

    radial: numerator and denominator in powers of r^2. smooth: the same without the poles that
    nearly cancel. tangential: p1, p2. prism: s1 to s4. tilt: (3, 3) homography of the tilted
    sensor, or None. radius: where the smooth radial part stops growing. limits: (K,) radii at which
    the map folds back, at evenly spaced polar angles.
    """

    radial: Rational
    smooth: Rational
    tangential: tuple[float, float]
    prism: tuple[float, float, float, float]
    tilt: npt.NDArray[np.float64] | None
    radius: float
    limits: npt.NDArray[np.float64]

    @property
    def has_artefact(self) -> bool:
        """Whether poles were removed from the smooth model."""
        return self.smooth != self.radial

    def distort(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Plane:
        """See Distortion."""
        # A NaN in x makes both results NaN.
        return self.formula(np.where(self.within(x, y), x, np.nan), y)

    def formula(self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Plane:
        """Evaluate the model's formula without any check of its range."""
        x, y = self.bend(x, y, self.radial)
        return (x, y) if self.tilt is None else _turned(self.tilt, x, y)

    def bend(
        self,
        x: npt.NDArray[np.float64],
        y: npt.NDArray[np.float64],
        radial: Rational,
    ) -> Plane:
        """Apply everything except the tilt, with the given radial part (real or smooth)."""
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
        radial: Rational,
    ) -> tuple[npt.NDArray[np.float64], ...]:
        """Return the derivatives du/dx, du/dy, dv/dx, dv/dy of bend()."""
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
        """Return how far the poles that nearly cancel move each point, in focal lengths."""
        s = x * x + y * y
        moved: npt.NDArray[np.float64] = np.sqrt(s) * np.abs(self.artefact(s))
        return moved

    def artefact(self, s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return what the poles that nearly cancel add to the radial factor at r^2 = s (N,)."""
        real, smooth = (
            _horner(up, s) / _horner(down, s) for up, down in (self.radial, self.smooth)
        )
        return real - smooth

    def within(
        self, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Return where the model neither folds back nor is displaced too far by a pole."""
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

    def undistort(self, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]) -> Plane:
        """See Distortion."""
        u, v = x_d, y_d
        if self.tilt is not None:
            u, v = _turned(np.asarray(np.linalg.inv(self.tilt), np.float64), u, v)
        # The table gives a start close enough that Newton's method does not run to a folded-back
        # solution.
        r_d = np.hypot(u, v)
        grid, table = self._radial_table
        ratio = np.ones_like(r_d)
        np.divide(np.interp(r_d, table, grid), r_d, out=ratio, where=r_d > 1e-12)
        x, y, missed = _newton(self, u * ratio, v * ratio, u, v, self.smooth)
        missed |= ~self.within(x, y)
        if missed.any() and any((*self.tangential, *self.prism)):
            # With strong tangential terms Newton's method may miss an inverse that exists.
            failed = np.flatnonzero(missed)
            # First a sample: if none of it has an inverse, the others are not tried.
            for chosen in (failed[:: max(1, len(failed) // 32)], failed):
                x[chosen], y[chosen] = _follow(self, u[chosen], v[chosen])
                if not self.within(x[chosen], y[chosen]).any():
                    break
        return _around_poles(self, x, y, u, v) if self.has_artefact else (x, y)

    @functools.cached_property
    def _radial_table(self) -> Plane:
        """Radii in the ideal plane and the same radii after the smooth radial part, both sorted."""
        grid = np.asarray(np.linspace(0.0, min(self.radius, _LARGEST_RADIUS), 8193), np.float64)
        up, down = self.smooth
        with np.errstate(all="ignore"):
            table = grid * _horner(up, grid * grid) / _horner(down, grid * grid)
        finite = np.isfinite(table)
        table = np.maximum.accumulate(np.where(finite, table, 0.0))
        return grid[finite], table[finite]


def _brown_conrady(coefficients: tuple[float, ...]) -> BrownConrady:
    d = (*coefficients, *(0.0,) * (14 - len(coefficients)))
    up: tuple[float, ...] = (1.0, d[0], d[1], d[4])
    down: tuple[float, ...] = (1.0, *d[5:8]) if any(d[5:8]) else (1.0,)
    smooth = _without_poles(up, down)
    tilt = _tilt(d[12], d[13]) if any(d[12:]) else None
    polynomial = np.polynomial.Polynomial
    num, den = polynomial(smooth[0]), polynomial(smooth[1])
    s = polynomial([0.0, 1.0])
    turning = (num + 2 * s * num.deriv()) * den - 2 * s * num * den.deriv()
    ends = [float(np.sqrt(root)) for root in (*_positive_roots(turning), *_positive_roots(den))]
    lens = BrownConrady(
        (up, down), smooth, (d[2], d[3]), (d[8], d[9], d[10], d[11]), tilt,
        min([np.inf, *ends]), np.array([min([np.inf, *ends])]),
    )  # fmt: skip
    if not any((*lens.tangential, *lens.prism)):
        return lens
    # With tangential and prism terms the fold is not a circle: for each of 360 polar angles, find
    # the first radius at which the determinant of the Jacobian is no longer positive.
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


def _without_poles(up: tuple[float, ...], down: tuple[float, ...]) -> Rational:
    """Return numerator and denominator without the poles at which they nearly cancel.

    With down = (s - pole) q and up/down = smooth + c/(s - pole), the remaining model is
    (up - c q)/down, whose numerator has the pole as an exact root. Near the pole the radius r is
    displaced by c r/(s - pole) = c/2/(r - r_pole), at the nearest solution by sqrt(|c|/2).
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


def _turned(
    t: npt.NDArray[np.float64], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> Plane:
    """Apply a homography (3, 3) to the plane; NaN for points behind the tilted sensor."""
    w = t[2, 0] * x + t[2, 1] * y + t[2, 2]
    w[w <= 0] = np.nan
    return (
        (t[0, 0] * x + t[0, 1] * y + t[0, 2]) / w,
        (t[1, 0] * x + t[1, 1] * y + t[1, 2]) / w,
    )


def _tilt(tx: float, ty: float) -> npt.NDArray[np.float64]:
    """Return the homography (3, 3) of a sensor tilted about its axes, as OpenCV defines it."""
    about_x = np.array([[1, 0, 0], [0, np.cos(tx), np.sin(tx)], [0, -np.sin(tx), np.cos(tx)]])
    about_y = np.array([[np.cos(ty), 0, -np.sin(ty)], [0, 1, 0], [np.sin(ty), 0, np.cos(ty)]])
    turn = about_y @ about_x
    to_plane = np.array([[turn[2, 2], 0, -turn[0, 2]], [0, turn[2, 2], -turn[1, 2]], [0, 0, 1.0]])
    tilt: npt.NDArray[np.float64] = to_plane @ turn
    return tilt / tilt[2, 2]


def _newton(
    lens: BrownConrady,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    u: npt.NDArray[np.float64],
    v: npt.NDArray[np.float64],
    radial: Rational,
    reach: float = np.inf,
    iterations: int = 8,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return x, y with bend(x, y) = u, v, and a mask of the points that did not converge.

    reach: the largest step.
    """
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


def _follow(lens: BrownConrady, u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> Plane:
    """Follow the solution from the axis outwards with Newton's method; NaN where it is lost."""
    x, y = np.zeros_like(u), np.zeros_like(v)
    for share in np.linspace(0.0, 1.0, 33)[1:]:
        x, y, missed = _newton(lens, x, y, share * u, share * v, lens.smooth, iterations=4)
    x[missed], y[missed] = np.nan, np.nan
    return x, y


def _around_poles(
    lens: BrownConrady,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    u: npt.NDArray[np.float64],
    v: npt.NDArray[np.float64],
) -> Plane:
    """Move from the smooth model's solution to the nearest solution of the model itself."""
    moved = np.flatnonzero(lens.displacement(x, y) > 1e-7)
    if not len(moved):
        return x, y
    xs, ys, us, vs = x[moved], y[moved], u[moved], v[moved]
    xn, yn, missed = _newton(lens, xs, ys, us, vs, lens.radial, _POLE_DISPLACEMENT / 4)
    # A solution on the other side of the pole belongs to another point.
    sides = [np.sign(lens.artefact(one * one + two * two)) for one, two in ((xs, ys), (xn, yn))]
    missed |= (np.hypot(xn - xs, yn - ys) > 2 * _POLE_DISPLACEMENT) | (sides[0] != sides[1])
    # Within the ring around the pole: try many radii and take the one that fits best.
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


# --- polynomials ---------------------------------------------------------------------------------


def _horner(coefficients: Sequence[float], s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate c[0] + c[1] s + c[2] s^2 + ... by Horner's scheme."""
    value = np.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value *= s
        value += coefficient
    return value


def _slope(coefficients: Sequence[float]) -> tuple[float, ...]:
    """Return the coefficients of a polynomial's derivative."""
    return tuple(k * c for k, c in enumerate(coefficients))[1:] or (0.0,)


def _positive_roots(polynomial: np.polynomial.Polynomial) -> list[float]:
    roots = polynomial.trim().roots()
    real = roots.real[np.abs(roots.imag) <= 1e-9 * (1 + np.abs(roots.real))]
    return [float(root) for root in real if root > 0]
