# SPDX-License-Identifier: Apache-2.0
"""Pictures for people: depth, points, regions and errors as labelled panels.

Every picture is (H, W, 3) uint8 RGB. Depth is metres along the optical axis, NaN unknown. An
unknown pixel is always drawn as the hatched dark ground, never in a colour of the scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from depth_node.geometry.camera import Camera

BACKGROUND = (17, 19, 24)
CARD = (27, 30, 37)
TEXT = (232, 234, 239)
MUTED = (146, 152, 165)
ACCENT = (255, 196, 84)
UNKNOWN = (41, 44, 53)
UNKNOWN_LINE = (52, 56, 67)
REJECTED = (255, 45, 60)

FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT_OVERSAMPLING = 4  # Hershey strokes have no hinting: draw large, shrink, and they read well

ERROR_STOPS = ((0.0, (58, 118, 221)), (0.5, (240, 241, 244)), (1.0, (214, 69, 65)))


# ---------------------------------------------------------------------------------- colour scales


def _table_of_stops(stops: Sequence[tuple[float, tuple[int, int, int]]]) -> np.ndarray:
    """Piecewise linear colour table (256, 3) uint8 RGB through (position 0..1, colour) stops."""
    at = np.linspace(0.0, 1.0, 256)
    places = [place for place, _ in stops]
    channels = [np.interp(at, places, [colour[c] for _, colour in stops]) for c in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


@lru_cache(maxsize=8)
def colour_table(name: str) -> np.ndarray:
    """The (256, 3) uint8 RGB table of one of our scales: depth, relative, error or deviation."""
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    if name == "depth":  # near is warm: reversed turbo, its darkest ends cut off
        table = cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO)[:, 0, ::-1]
        positions = np.linspace(0.95, 0.07, 256) * 255
        table = np.stack([np.interp(positions, np.arange(256), table[:, c]) for c in range(3)], 1)
        return table.round().astype(np.uint8)
    if name == "relative":
        return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_MAGMA)[::-1, 0, ::-1])
    if name == "deviation":
        return np.ascontiguousarray(cv2.applyColorMap(ramp, cv2.COLORMAP_VIRIDIS)[:, 0, ::-1])
    if name == "error":
        return _table_of_stops(ERROR_STOPS)
    raise ValueError(f"No colour table is called '{name}'; use depth, relative, deviation or error")


@dataclass(frozen=True)
class Scale:
    """How values become colours and what the bar beside the picture says.

    `logarithmic` gives equal ratios equal steps, which suits depth: 1 m matters at 3 m, not at 80.
    """

    table: str
    low: float
    high: float
    logarithmic: bool = False
    unit: str = "m"
    low_word: str = ""
    high_word: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"A scale needs low < high, both finite, not {self.low}..{self.high}")
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"A logarithmic scale needs low > 0, not {self.low}")

    def position(self, values: np.ndarray) -> np.ndarray:
        """Place of each value on the bar, 0 at low and 1 at high, clipped; NaN stays NaN."""
        values = np.asarray(values, dtype=np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.logarithmic:
                span = math.log(self.high / self.low)
                place = np.log(np.maximum(values, 1e-9) / self.low) / span
            else:
                place = (values - self.low) / (self.high - self.low)
        return np.clip(place, 0.0, 1.0)

    def colours(self, values: np.ndarray) -> np.ndarray:
        """(...,) values -> (..., 3) uint8 RGB; a value that is not finite takes UNKNOWN."""
        place = self.position(values)
        known = np.isfinite(place) & ~np.isnan(np.asarray(values, dtype=np.float32))
        index = np.where(known, place, 0.0) * 255 + 0.5
        picture = colour_table(self.table)[index.astype(np.int32)]
        picture[~known] = UNKNOWN
        return picture

    def ticks(self, most: int = 6) -> list[float]:
        """Round values for the bar, `most` at the most, within [low, high]."""
        if self.logarithmic:
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
                decades = range(
                    math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
                )
                found = [s * 10.0**d for d in decades for s in steps]
                found = [t for t in found if self.low <= t * (1 + 1e-6) and t <= self.high]
                if len(found) <= most:
                    break
            if len(found) >= 3:
                return found
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        for factor in (1, 2, 2.5, 5, 10, 20):
            first = math.ceil(self.low / (step * factor) - 1e-9)
            last = math.floor(self.high / (step * factor) + 1e-9)
            if last - first + 1 <= most:
                return [k * step * factor for k in range(first, last + 1)]
        return [self.low, self.high]


def depth_scale(*maps: np.ndarray) -> Scale:
    """One scale in metres that suits all the given depth maps or depth lists together.

    The ends are the 2 % and 98 % quantiles, so that one stray point does not wash out a picture.
    """
    finite = [np.asarray(m)[np.isfinite(m) & (np.asarray(m) > 0)] for m in maps]
    values = np.concatenate(finite) if finite else np.empty(0)
    if values.size == 0:
        return Scale("depth", 0.5, 10.0, logarithmic=True)
    low, high = (float(v) for v in np.quantile(values, (0.02, 0.98)))
    if high < low * 1.2:  # a wall seen face on: keep some room around it
        low, high = low / 1.2, high * 1.2
    return Scale("depth", low, high, logarithmic=True)


def relative_scale(values: np.ndarray) -> Scale:
    """Scale without a unit for a network's relative depth (large = far)."""
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if finite.size == 0 else np.quantile(finite, (0.01, 0.99))
    if not high > low:
        high = low + 1.0
    return Scale(
        "relative", float(low), float(high), unit="", low_word="nearer", high_word="farther"
    )


def error_scale(limit_percent: float = 25.0) -> Scale:
    """Signed relative error in percent: blue is too near, red is too far."""
    return Scale(
        "error",
        -limit_percent,
        limit_percent,
        unit="%",
        low_word="too near",
        high_word="too far",
    )


def deviation_scale(std: np.ndarray) -> Scale:
    """Scale in metres for a map of standard deviations."""
    finite = std[np.isfinite(std)]
    high = float(np.quantile(finite, 0.9)) if finite.size else 1.0
    return Scale("deviation", 0.0, max(high, 1e-3))


# ------------------------------------------------------------------------------ single pictures


@lru_cache(maxsize=8)
def _hatch(height: int, width: int) -> np.ndarray:
    rows, cols = np.ogrid[:height, :width]
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:] = UNKNOWN
    picture[(rows + cols) % 9 == 0] = UNKNOWN_LINE
    return picture


def colour_map(values: np.ndarray, scale: Scale) -> np.ndarray:
    """(H, W) values -> (H, W, 3) RGB picture; unknown pixels hatched."""
    picture = scale.colours(values)
    unknown = ~np.isfinite(values)
    picture[unknown] = _hatch(*values.shape)[unknown]
    return picture


def relative_error_percent(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Signed error in percent of the truth, (H, W) float32; NaN where either is unknown."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 100.0 * (depth - truth) / truth
    return np.where(np.isfinite(error) & (truth > 0), error, np.nan).astype(np.float32)


def region_palette(count: int) -> np.ndarray:
    """(count + 1, 3) uint8 RGB; colours of neighbouring numbers far apart; 0 is UNKNOWN."""
    index = np.arange(count + 1)
    hue = (index * 0.61803398875) % 1.0  # golden ratio: consecutive labels never share a hue
    saturation = np.array([150, 110, 190])[index % 3]
    value = np.array([235, 250, 205])[(index // 3) % 3]
    hsv = np.stack([hue * 179, saturation, value], axis=1).astype(np.uint8)[None]
    palette = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    palette[0] = UNKNOWN
    return palette


def colour_regions(labels: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """Regions in colours over the grey image, their borders as fine dark lines."""
    palette = region_palette(int(labels.max(initial=0)))
    picture = palette[labels].astype(np.float32)
    if image is not None:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        picture = 0.6 * picture * (0.6 + 0.4 * grey / 255.0) + 0.4 * grey
    border = np.zeros(labels.shape, dtype=bool)
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    border[1:] |= labels[1:] != labels[:-1]
    picture[border] = 0.25 * picture[border]
    return picture.astype(np.uint8)


def draw_points(
    picture: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    colours: np.ndarray,
    radius_px: float | None = None,
) -> np.ndarray:
    """Discs with a dark rim at (rows, cols) on a copy of `picture`; far ones first by input order.

    rows, cols: (N,) pixels; colours: (N, 3) uint8 RGB; radius_px: chosen from the count when None.
    """
    picture = picture.copy()
    if radius_px is None:
        spacing = math.sqrt(picture.shape[0] * picture.shape[1] / max(len(rows), 1))
        radius_px = float(np.clip(0.22 * spacing, 0.9, 0.009 * picture.shape[1] + 0.6))
    shift = 4  # cv2 takes positions in 1/16 pixel
    inner = round(radius_px * 16)
    rim = round((radius_px + 1.0) * 16)
    centres = [(int(c) * 16, int(r) * 16) for r, c in zip(rows, cols, strict=True)]
    if radius_px >= 1.6:
        for centre in centres:
            cv2.circle(picture, centre, rim, (12, 13, 16), -1, cv2.LINE_AA, shift)
    for centre, colour in zip(centres, np.asarray(colours).tolist(), strict=True):
        cv2.circle(picture, centre, inner, colour, -1, cv2.LINE_AA, shift)
    return picture


def points_on_image(
    image: np.ndarray, rows: np.ndarray, cols: np.ndarray, depth: np.ndarray, scale: Scale
) -> np.ndarray:
    """Sparse depth as coloured discs over the dimmed, greyed image; the nearest on top."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    dimmed = (0.22 * image + 0.28 * grey).astype(np.uint8)
    order = np.argsort(-np.asarray(depth), kind="stable")
    return draw_points(dimmed, rows[order], cols[order], scale.colours(depth[order]))


def draw_crosses(
    picture: np.ndarray,
    rows: np.ndarray,
    cols: np.ndarray,
    colour: tuple[int, int, int] = REJECTED,
) -> np.ndarray:
    """Crosses with a dark rim at (rows, cols), (N,) pixels, on a copy of `picture`."""
    picture = picture.copy()
    arm = max(2.0, 0.008 * picture.shape[1])
    line = max(1, round(0.35 * arm))
    shift = 4  # cv2 takes positions in 1/16 pixel
    reach = round(arm * 16)
    for ink, thickness in (((12, 13, 16), line + 2), (colour, line)):
        for row, col in zip(rows, cols, strict=True):
            x, y = int(col) * 16, int(row) * 16
            for down in (reach, -reach):
                ends = (x - reach, y - down), (x + reach, y + down)
                cv2.line(picture, *ends, ink, thickness, cv2.LINE_AA, shift)
    return picture


def sparse_map(values: np.ndarray, scale: Scale, image: np.ndarray) -> np.ndarray:
    """A map known at few pixels (e.g. a LiDAR truth) as dots over the dimmed image."""
    rows, cols = np.nonzero(np.isfinite(values))
    most = 30_000  # more dots than this only cover each other
    if len(rows) > most:
        keep = np.linspace(0, len(rows) - 1, most).astype(int)
        rows, cols = rows[keep], cols[keep]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    dimmed = np.repeat(grey * 0.3, 3, axis=2).astype(np.uint8)
    radius = max(0.9, 0.0022 * image.shape[1])
    return draw_points(dimmed, rows, cols, scale.colours(values[rows, cols]), radius)


def smooth_surface(depth: np.ndarray, jump: float = 0.08) -> np.ndarray:
    """Mask of pixels whose depth goes on into all four neighbours: no flying pixels.

    jump: largest relative step to a neighbour that still counts as one surface.
    """
    keep = np.isfinite(depth)
    with np.errstate(invalid="ignore", divide="ignore"):
        for axis in (0, 1):
            step = np.abs(np.diff(depth, axis=axis))
            low = np.minimum(
                depth.take(range(depth.shape[axis] - 1), axis),
                depth.take(range(1, depth.shape[axis]), axis),
            )
            torn = step > jump * low
            first = (slice(None),) * axis + (slice(None, -1),)
            second = (slice(None),) * axis + (slice(1, None),)
            keep[first] &= ~torn
            keep[second] &= ~torn
    return keep


def _cloud(depth: np.ndarray, image: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points in the camera frame and their (N, 3) colours, torn and far pixels left out."""
    keep = smooth_surface(depth)
    if not keep.any():
        return np.empty((0, 3)), np.empty((0, 3), dtype=np.uint8)
    keep &= depth <= 1.2 * np.quantile(depth[keep], 0.95)
    points = camera.backproject(depth)
    keep &= np.isfinite(points).all(axis=2)  # a fisheye picture's corners have no ray
    return points[keep].astype(np.float64), image[keep]


def point_cloud_view(
    depth: np.ndarray,
    image: np.ndarray,
    camera: Camera,
    height: int,
    width: int,
    *,
    orbit_deg: float = -24.0,
    tilt_deg: float = 18.0,
) -> np.ndarray:
    """The metric cloud in perspective from beside and above the camera that took it.

    depth (H, W) metres, image (H, W, 3), camera of that size -> (height, width, 3) RGB. The eye
    turns about the middle of the cloud by orbit_deg (negative: to the left) and tilt_deg
    (positive: upwards).
    """
    over = 2  # drawn at twice the size and shrunk: soft edges for the splats
    size = np.array([width * over, height * over])
    canvas = _ground_gradient(height * over, width * over)
    points, colours = _cloud(depth, image, camera)
    if len(points):
        rotation, eye = _orbit(np.median(points, axis=0), orbit_deg, tilt_deg)
        seen = (points - eye) @ rotation
        seen, colours = seen[seen[:, 2] > 1e-6], colours[seen[:, 2] > 1e-6]
        low, high = np.quantile(seen[:, :2] / seen[:, 2:], (0.02, 0.98), axis=0)
        focal = 0.92 * float(np.min(size / (high - low)))
        centre = size / 2 - focal * (low + high) / 2
        haze = np.clip(1.2 - 0.4 * seen[:, 2:] / np.median(seen[:, 2]), 0.5, 1.0)
        _splat(canvas, seen, (colours * haze).astype(np.uint8), focal, centre, 1.0 / camera.fx)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def top_view(
    depth: np.ndarray, image: np.ndarray, camera: Camera, height: int, width: int
) -> np.ndarray:
    """The cloud along the camera's y axis on a grid in metres: a floor plan for a level camera.

    What is well above the camera (a ceiling) is left out. The camera stands at the bottom, its
    field of view as two lines. Same arguments as point_cloud_view.
    """
    over = 2
    canvas = _ground_gradient(height * over, width * over)
    points, colours = _cloud(depth, image, camera)
    if not len(points):
        return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    low_enough = points[:, 1] > -0.25 * np.median(points[:, 2])
    if low_enough.mean() > 0.2:
        points, colours = points[low_enough], colours[low_enough]
    reach = 1.06 * float(np.quantile(points[:, 2], 0.995))
    half = 1.06 * float(np.quantile(np.abs(points[:, 0]), 0.99))
    foot = 26 * over
    per_metre = min((height * over - foot) / reach, width * over / 2 / half)
    origin = np.array([width * over / 2, height * over - foot])

    span = max(height, width) * over / per_metre
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 1e9) if span / s <= 12)
    lines = [k * step for k in range(-13, 14)]
    for metres in lines:
        x, y = (int(v) for v in (origin[0] + metres * per_metre, origin[1] - metres * per_metre))
        cv2.line(canvas, (x, 0), (x, canvas.shape[0]), (50, 55, 66), over)
        cv2.line(canvas, (0, y), (canvas.shape[1], y), (50, 55, 66), over)
    # an orthographic view is a perspective one from very far away
    away = 1e3 * reach
    seen = np.stack([points[:, 0], -points[:, 2], points[:, 1] + away], axis=1)
    _splat(
        canvas,
        seen,
        colours,
        per_metre * away,
        origin,
        float(np.median(points[:, 2])) / camera.fx / away,
    )
    for x_pixel in (0, camera.width - 1):
        slope = (x_pixel - camera.cx) / camera.fx
        end = origin + np.array([slope, -1.0]) * per_metre * reach
        start, stop = ((int(v[0] * 16), int(v[1] * 16)) for v in (origin, end))
        cv2.line(canvas, start, stop, ACCENT, 2, cv2.LINE_AA, 4)
    cv2.circle(canvas, (int(origin[0]), int(origin[1])), 5 * over, ACCENT, -1, cv2.LINE_AA)
    picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    for metres in lines:
        y = round((origin[1] - metres * per_metre) / over)
        if metres > 0 and y > 6:
            put_text(picture, f"{metres:g} m", (5, y - 14), 8, MUTED)
    return picture


def _ground_gradient(height: int, width: int) -> np.ndarray:
    ramp = np.linspace(1.0, 0.0, height)[:, None, None]
    top, bottom = np.array([33, 37, 46]), np.array([12, 13, 17])
    shades = np.repeat(bottom + ramp * (top - bottom), width, axis=1)
    return np.ascontiguousarray(shades, dtype=np.uint8)


def _orbit(middle: np.ndarray, orbit_deg: float, tilt_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """(rotation, eye): point_in_eye = (point - eye) @ rotation, turning about `middle`."""
    turn, tilt = math.radians(orbit_deg), math.radians(tilt_deg)
    about_y = np.array(
        [
            [math.cos(turn), 0, -math.sin(turn)],
            [0, 1, 0],
            [math.sin(turn), 0, math.cos(turn)],
        ]
    )
    about_x = np.array(
        [
            [1, 0, 0],
            [0, math.cos(tilt), -math.sin(tilt)],
            [0, math.sin(tilt), math.cos(tilt)],
        ]
    )
    rotation = about_x @ about_y  # rows are the eye's axes in camera coordinates
    back = np.array([0.0, 0.0, 1.15 * float(np.linalg.norm(middle))])
    return rotation.T, middle - back @ rotation


def _splat(
    canvas: np.ndarray,
    seen: np.ndarray,
    colours: np.ndarray,
    focal: float,
    centre: np.ndarray,
    pixel_angle: float,
) -> None:
    """Paint square splats into `canvas`, far ones first, each as large as its source pixel."""
    order = np.argsort(-seen[:, 2], kind="stable")
    seen, colours = seen[order], colours[order]
    u = np.floor(focal * seen[:, 0] / seen[:, 2] + centre[0] + 0.5).astype(np.int64)
    v = np.floor(focal * seen[:, 1] / seen[:, 2] + centre[1] + 0.5).astype(np.int64)
    side = int(np.clip(math.ceil(focal * pixel_angle * 1.5), 2, 9))
    # one z-buffered pass per offset of the square; the nearest of all offsets wins
    flat_depth = np.full(canvas.shape[0] * canvas.shape[1], np.inf, dtype=np.float64)
    flat_colour = canvas.reshape(-1, 3)
    for dv in range(side):
        for du in range(side):
            row, col = v + dv - side // 2, u + du - side // 2
            inside = (row >= 0) & (row < canvas.shape[0]) & (col >= 0) & (col < canvas.shape[1])
            at = row[inside] * canvas.shape[1] + col[inside]
            nearest = np.full(flat_depth.shape, -1, dtype=np.int64)
            nearest[at] = np.nonzero(inside)[0]  # sorted far to near: the last write is nearest
            hit = np.nonzero(nearest >= 0)[0]
            source = nearest[hit]
            wins = seen[source, 2] < flat_depth[hit]
            flat_depth[hit[wins]] = seen[source[wins], 2]
            flat_colour[hit[wins]] = colours[source[wins]]


# -------------------------------------------------------------------------------------- text


@lru_cache(maxsize=1024)
def _text_mask(text: str, size_px: int, bold: bool) -> np.ndarray:
    """Coverage 0..1 of a line of text, (h, w) float32; size_px is the height of a capital."""
    over = TEXT_OVERSAMPLING
    scale = size_px * over / 21.0  # a Hershey Simplex capital is 21 units high
    thickness = max(1, round(size_px * over * (0.17 if bold else 0.115)))
    (width, height), below = cv2.getTextSize(text, FONT, scale, thickness)
    pad = thickness + over
    below += pad
    picture = np.zeros((height + below + pad, width + 2 * pad), dtype=np.uint8)
    cv2.putText(picture, text, (pad, height + pad), FONT, scale, 255, thickness, cv2.LINE_AA)
    shape = (max(1, picture.shape[1] // over), max(1, picture.shape[0] // over))
    return cv2.resize(picture, shape, interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def text_width(text: str, size_px: int, bold: bool = False) -> int:
    """Width in pixels that `put_text` takes."""
    return _text_mask(_ascii(text), size_px, bold).shape[1] if text else 0


def put_text(
    picture: np.ndarray,
    text: str,
    at: tuple[int, int],
    size_px: int = 11,
    colour: tuple[int, int, int] = TEXT,
    *,
    bold: bool = False,
    align: str = "left",
) -> None:
    """Draw one line into `picture`; `at` is (x, y) of the top of the capitals.

    align: left, centre or right of x. The font knows ASCII only, other signs are spelled out.
    """
    if not text:
        return
    mask = _text_mask(_ascii(text), size_px, bold)
    x = at[0] - {"left": 0, "centre": mask.shape[1] // 2, "right": mask.shape[1]}[align]
    y = at[1]
    top, left = max(y, 0), max(x, 0)
    bottom = min(y + mask.shape[0], picture.shape[0])
    right = min(x + mask.shape[1], picture.shape[1])
    if bottom <= top or right <= left:
        return
    cover = mask[top - y : bottom - y, left - x : right - x, None]
    area = picture[top:bottom, left:right]
    area[:] = (area * (1 - cover) + np.array(colour, dtype=np.float32) * cover + 0.5).astype(
        np.uint8
    )


def _ascii(text: str) -> str:
    for sign, words in (("±", "+/-"), ("δ", "delta"), ("…", "..."), ("×", "x"), ("–", "-")):
        text = text.replace(sign, words)
    return text.encode("ascii", "replace").decode("ascii")


# ------------------------------------------------------------------------------------- panels


@dataclass(frozen=True)
class Tile:
    """One card of a panel: a titled picture, a line below it, the scale drawn as a bar."""

    title: str
    picture: np.ndarray
    caption: str = ""
    scale: Scale | None = None
    columns: int = 1  # how many columns of the panel it covers


@dataclass(frozen=True)
class Table:
    """One card of a panel holding numbers: the first column left, the others right aligned."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: int | None = None
    notes: Sequence[str] = ()
    columns: int = 1


CARD_WIDTH = 620
MARGIN = 18
PADDING = 12
TITLE_HEIGHT = 34
CAPTION_HEIGHT = 26
BAR_WIDTH = 84


def compose(
    heading: str,
    subheading: str,
    cards: Sequence[Tile | Table],
    *,
    columns: int = 3,
    card_width: int = CARD_WIDTH,
) -> np.ndarray:
    """Cards in rows of `columns` on a dark ground under a heading -> (H, W, 3) RGB.

    Cards of one row share the height of the tallest. A Tile or Table may span several columns.
    """
    rows: list[list[Tile | Table]] = [[]]
    for card in cards:
        if sum(c.columns for c in rows[-1]) + card.columns > columns:
            rows.append([])
        rows[-1].append(card)
    total_width = MARGIN + columns * (card_width + MARGIN)
    strips = [_heading_strip(heading, subheading, total_width)]
    for row in rows:
        widths = [c.columns * card_width + (c.columns - 1) * MARGIN for c in row]
        heights = [_card_height(c, w) for c, w in zip(row, widths, strict=True)]
        single = [h for c, h in zip(row, heights, strict=True) if c.columns == 1]
        height = max(single) if single else max(heights)
        strip = np.empty((height + MARGIN, total_width, 3), dtype=np.uint8)
        strip[:] = BACKGROUND
        x = MARGIN
        for card, width in zip(row, widths, strict=True):
            strip[:height, x : x + width] = _draw_card(card, height, width)
            x += width + MARGIN
        strips.append(strip)
    return np.vstack(strips)


def cloud_size(
    image_size: tuple[int, int], *, columns: int, card_width: int = CARD_WIDTH
) -> tuple[int, int]:
    """(height, width) of a picture that fills a card of `columns` beside one of a picture.

    image_size: (height, width) of the pictures in the single cards of that row.
    """
    single = Tile("", np.zeros((*image_size, 3), np.uint8), scale=Scale("depth", 1, 2))
    height = _card_height(single, card_width) - TITLE_HEIGHT - CAPTION_HEIGHT
    return height, columns * card_width + (columns - 1) * MARGIN - 2 * PADDING


def _heading_strip(heading: str, subheading: str, width: int) -> np.ndarray:
    strip = np.empty((86, width, 3), dtype=np.uint8)
    strip[:] = BACKGROUND
    strip[20:70, MARGIN : MARGIN + 5] = ACCENT
    put_text(strip, heading, (MARGIN + 18, 15), 19, TEXT, bold=True)
    put_text(strip, subheading, (MARGIN + 18, 53), 11, MUTED)
    return strip


def _picture_width(card: Tile, width: int) -> int:
    return width - 2 * PADDING - (BAR_WIDTH if card.columns == 1 else 0)


def _card_height(card: Tile | Table, width: int) -> int:
    if isinstance(card, Table):
        return TITLE_HEIGHT + PADDING + 26 * (len(card.rows) + 1) + 20 * len(card.notes) + PADDING
    height, source_width = card.picture.shape[:2]
    return (
        TITLE_HEIGHT + round(height * _picture_width(card, width) / source_width) + CAPTION_HEIGHT
    )


def _draw_card(card: Tile | Table, height: int, width: int) -> np.ndarray:
    ground = np.empty((height, width, 3), dtype=np.uint8)
    ground[:] = CARD
    put_text(ground, card.title, (PADDING, 10), 12, TEXT, bold=True)
    if isinstance(card, Table):
        _draw_table(ground, card)
        return ground
    room_h = height - TITLE_HEIGHT - CAPTION_HEIGHT
    room_w = width - 2 * PADDING - (BAR_WIDTH if card.scale is not None else 0)
    source_h, source_w = card.picture.shape[:2]
    ratio = min(room_w / source_w, room_h / source_h)
    size = (max(1, round(source_w * ratio)), max(1, round(source_h * ratio)))
    how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(card.picture, size, interpolation=how)
    x = PADDING + (room_w - size[0]) // 2
    y = TITLE_HEIGHT + (room_h - size[1]) // 2
    ground[y : y + size[1], x : x + size[0]] = picture
    put_text(ground, card.caption, (PADDING, height - CAPTION_HEIGHT + 7), 9, MUTED)
    if card.scale is not None:
        _draw_bar(ground, card.scale, (PADDING + room_w + 12, y, 15, size[1]))
    return ground


def _draw_bar(ground: np.ndarray, scale: Scale, place: tuple[int, int, int, int]) -> None:
    """A vertical colour bar with ticks; place is (x, y, width, height); high values on top."""
    x, y, width, height = place
    top, bottom = y, y + height
    if scale.high_word:
        put_text(ground, scale.high_word, (x - 2, y), 8, MUTED)
        top = y + 17
    if scale.low_word:
        put_text(ground, scale.low_word, (x - 2, y + height - 11), 8, MUTED)
        bottom = y + height - 19
    ramp = np.linspace(255, 0, bottom - top).astype(np.uint8)
    ground[top:bottom, x : x + width] = colour_table(scale.table)[ramp][:, None]
    if not scale.unit:
        return
    labels = [(scale.position(np.array(t)), f"{t:g}") for t in scale.ticks()]
    for place_on_bar, label in labels:
        row = bottom - 1 - round(float(place_on_bar) * (bottom - top - 1))
        ground[row, x + width : x + width + 4] = MUTED
        row = int(np.clip(row - 5, top - 3, bottom - 8))
        put_text(ground, f"{label} {scale.unit}", (x + width + 6, row), 9, TEXT)


def _draw_table(ground: np.ndarray, card: Table) -> None:
    width = ground.shape[1]
    count = len(card.head)
    first = max(text_width(r[0], 11, True) for r in (card.head, *card.rows)) + 24
    step = (width - 2 * PADDING - first) / max(count - 1, 1)
    ends = [round(PADDING + first + step * (k + 1)) - 4 for k in range(count - 1)]
    y = TITLE_HEIGHT + PADDING
    for number, row in enumerate((card.head, *card.rows)):
        is_head, strong = number == 0, number - 1 == card.highlight
        colour = MUTED if is_head else ACCENT if strong else TEXT
        size = 9 if is_head else 11
        put_text(ground, row[0], (PADDING, y), size, colour, bold=strong)
        for end, text in zip(ends, row[1:], strict=True):
            put_text(ground, text, (end, y), size, colour, bold=strong, align="right")
        y += 26
        if is_head:
            ground[y - 8, PADDING : width - PADDING] = (60, 65, 78)
    for note in card.notes:
        put_text(ground, note, (PADDING, y + 6), 9, MUTED)
        y += 20


# ----------------------------------------------------------------------------- the frame panel


@dataclass(frozen=True)
class FramePictures:
    """Every picture of one processed frame, ready to be saved one by one or as a panel."""

    heading: str
    subheading: str
    cards: tuple[Tile | Table, ...]

    def panel(self) -> np.ndarray:
        """All cards on one (H, W, 3) RGB picture."""
        return compose(self.heading, self.subheading, self.cards)

    def save(self, folder: Path, stem: str, *, singles: bool = True) -> list[Path]:
        """Write `<stem>_panel.png` and, with `singles`, a PNG per picture card; panel first."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{stem}_panel.png"]
        write_picture(paths[0], self.panel())
        for card in self.cards:
            if singles and isinstance(card, Tile):
                name = "_".join(card.title.lower().replace("-", " ").split())
                paths.append(folder / f"{stem}_{name}.png")
                write_picture(paths[-1], card.picture)
        return paths


def frame_pictures(
    image: np.ndarray,
    camera: Camera,
    rows: np.ndarray,
    cols: np.ndarray,
    points_depth: np.ndarray,
    rejected: np.ndarray,
    labels: np.ndarray | None,
    relative: np.ndarray,
    depth: np.ndarray,
    std: np.ndarray,
    *,
    truth: np.ndarray | None = None,
    heading: str,
    subheading: str = "",
    method: str = "",
    relative_caption: str = "",
    regions_caption: str = "",
    numbers: Table | None = None,
) -> FramePictures:
    """The cards of one frame.

    image (H, W, 3) RGB; rows, cols, points_depth (N,): the metric points used, pixels and metres;
    rejected (N,) bool: those that the fit does not believe, marked by crosses; labels (H, W), None
    without regions; relative (H, W) the network's relative depth, large = far; depth, std, truth
    (H, W) metres. Without truth the standard deviation takes the place of the error.
    """
    if labels is None:
        labels = np.zeros(depth.shape, np.int32)
    trusted = trusted_depth(depth, std)
    scale = depth_scale(trusted, points_depth, *([] if truth is None else [truth]))
    answered = 100.0 * float(np.isfinite(depth).mean())
    lidar = points_on_image(image, rows, cols, points_depth, scale)
    lidar_caption = f"{len(rows)} metric points"
    if rejected.any():
        lidar = draw_crosses(lidar, rows[rejected], cols[rejected])
        lidar_caption += f", {np.count_nonzero(rejected)} rejected (red crosses)"
    cards: list[Tile | Table] = [
        Tile("Camera image", image, f"{image.shape[1]} x {image.shape[0]} px"),
        Tile("LiDAR on image", lidar, lidar_caption, scale),
        Tile(
            "Regions",
            colour_regions(labels, image),
            ", ".join(filter(None, (f"{int(labels.max(initial=0))} regions", regions_caption))),
        ),
        Tile(
            "Relative depth",
            colour_map(relative, relative_scale(relative)),
            relative_caption or "what the network alone says: no metres yet",
            relative_scale(relative),
        ),
        Tile(
            "Metric depth",
            colour_map(depth, scale),
            f"method {method}, {answered:.0f} % of the pixels answered",
            scale,
        ),
    ]
    deviation = deviation_scale(std)
    deviation_tile = Tile(
        "Standard deviation",
        colour_map(std, deviation),
        "what the method believes its own error to be",
        deviation,
    )
    cards.append(deviation_tile if truth is None else _error_tile(depth, truth, image))
    span = 2 if truth is None else 1
    cards.append(
        Tile(
            "Point cloud",
            point_cloud_view(trusted, image, camera, *cloud_size(image.shape[:2], columns=span)),
            "metric depth in 3-D from beside and above, without what is known badly",
            columns=span,
        )
    )
    cards.append(
        Tile(
            "Seen from above",
            top_view(trusted, image, camera, *cloud_size(image.shape[:2], columns=1)),
            "floor plan in the camera's axes, the camera in yellow",
        )
    )
    if truth is not None:
        cards.append(deviation_tile)
    if numbers is not None:
        cards.append(numbers)
    return FramePictures(heading, subheading, tuple(cards))


def trusted_depth(depth: np.ndarray, std: np.ndarray, share: float = 0.25) -> np.ndarray:
    """Depth where its standard deviation is below a share of it, else NaN; all if little is left.

    Sky and other guesses would fill a cloud with things that are not there, and spoil a scale.
    """
    with np.errstate(invalid="ignore"):
        trusted = np.where(std < share * depth, depth, np.float32(np.nan))
    known = np.isfinite(depth).sum()
    return trusted if np.isfinite(trusted).sum() > 0.3 * known else depth


def _error_tile(depth: np.ndarray, truth: np.ndarray, image: np.ndarray) -> Tile:
    error = relative_error_percent(depth, truth)
    known = np.isfinite(error)
    scale = error_scale()
    dense = known.mean() > 0.3
    picture = colour_map(error, scale) if dense else sparse_map(error, scale, image)
    caption = "no pixel with a truth to compare with"
    if known.any():
        metres = float(np.median(np.abs(depth - truth)[known]))
        caption = f"mean {np.abs(error[known]).mean():.1f} %, median {metres:.3g} m off the truth"
    return Tile("Error against the truth", picture, caption, scale)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) RGB as PNG or JPEG by the suffix; raises OSError when it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f"Could not write {path}: check the folder's permissions and the suffix")
