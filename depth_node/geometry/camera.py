# SPDX-License-Identifier: Apache-2.0
"""The camera: pixels to rays and back."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from depth_node.geometry.distortion import Plane, lens_of
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

# Range of focal lengths of real lenses, relative to the larger side of the image: from fisheyes
# (0.16 shows 360 degrees) to telescopes. A K that was divided by the image's size by mistake is
# below the range (2 / 320).
_FOCAL_SIDES = (7e-3, 1e5)
_CENTRE_SIDES = 1e3  # a crop of a larger image may lie off the lens's axis, but not this far
_RAY_TOLERANCE_PX = 0.05  # a pixel has a ray only if the model maps the ray back this close to it


def model_name(model: str) -> str:
    """Return the name in CAMERA_MODELS of a ROS distortion model; an unknown name is returned."""
    return _MODEL_ALIASES.get(model, model)


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
        """Create a camera from K, D and the name of a distortion model (of ROS or this package).

        matrix: K, (3, 3) or nine values row by row. A polynomial model whose coefficients are all
        zero becomes a pinhole (a rectified image); an equidistant model does not, because it
        distorts with zero coefficients too. Raises ValueError for a calibration that cannot be
        used.
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
        name = model_name(model)
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
        """Return the camera of the image scaled to another size (pixel centres at integers)."""
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
        """Project points (N, 3), metres in the camera frame, to (N, 2) float64 pixels (u, v).

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
                x, y = lens_of(self.model, self.distortion).distort(x, y)
        pixels = np.empty((len(p), 2))
        np.multiply(x, self.fx, out=pixels[:, 0])
        np.multiply(y, self.fy, out=pixels[:, 1])
        pixels += (self.cx, self.cy)
        return pixels

    def rays(self) -> npt.NDArray[np.float32]:
        """Return (height, width, 3) float32 rays with z = 1 through the pixel centres, read-only.

        NaN where the distortion model has no inverse (corners of some fisheye images). Computed
        once per camera.
        """
        return _rays(self)

    def backproject(self, depth: FloatArray) -> npt.NDArray[np.float32]:
        """Turn a depth map (H, W), metres, into (H, W, 3) float32 points; NaN = unknown.

        The points are in the camera frame, metres.

        Raises ValueError if the depth does not have the size of the camera.
        """
        if depth.shape != (self.height, self.width):
            raise ValueError(
                f"depth is {depth.shape[1]}x{depth.shape[0]} but the camera"
                f" {self.width}x{self.height}: use Camera.resized() for the size of the depth"
            )
        points: npt.NDArray[np.float32] = self.rays() * depth[..., None].astype(np.float32)
        return points


@functools.lru_cache(maxsize=4)  # 11 MB each at 1280x720
def _rays(camera: Camera) -> npt.NDArray[np.float32]:
    u = (np.arange(camera.width) - camera.cx) / camera.fx
    v = (np.arange(camera.height) - camera.cy) / camera.fy
    x, y = np.meshgrid(u, v)
    if camera.model != "pinhole":
        # In pieces that fit a core's cache: three times as fast as the whole image at once.
        pieces = max(1, x.size >> 14)
        with np.errstate(all="ignore"):
            parts = [
                _undistorted(camera, *part)
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


def _undistorted(
    camera: Camera, x_d: npt.NDArray[np.float64], y_d: npt.NDArray[np.float64]
) -> Plane:
    """Return the rays of distorted coordinates; NaN where the model does not map them back.

    The test is made with the rays rounded to float32, as rays() stores them.
    """
    lens = lens_of(camera.model, camera.distortion)
    x, y = lens.undistort(x_d, y_d)
    u, v = lens.distort(*(values.astype(np.float32).astype(float) for values in (x, y)))
    miss = np.hypot((u - x_d) * camera.fx, (v - y_d) * camera.fy)
    wrong = ~(miss <= _RAY_TOLERANCE_PX)
    x[wrong] = np.nan
    y[wrong] = np.nan
    return x, y
