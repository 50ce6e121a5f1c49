# SPDX-License-Identifier: Apache-2.0
"""An observation: the edges of a frame's image and scan, and the score of a pose by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from depth_node.calibration.image_edges import WORK_WIDTH_PX, edge_strength, spread
from depth_node.calibration.lidar_edges import depth_edges
from depth_node.frame import FrameInput, SourcePoints
from depth_node.geometry.camera import Camera
from depth_node.geometry.rigid import FloatArray, invert_rigid, transform

Floats = npt.NDArray[np.float64]

AXES = ("pitch", "yaw", "roll", "x", "y", "z", "time")
"""The axes of a correction (7,): rad about the camera's x, y and z, m along them, and s."""

FINE_PX = 2.0
"""Reach of the edges by which a pose is judged; larger reaches only guide a search."""
LOCAL_REACHES, LEAST_LOCAL_PX = 12.0, 30.0
"""Size of the window whose mean is subtracted from an edge, in reaches, and at least in px."""


def edge_map(edges: npt.NDArray[np.uint8], reach_px: float) -> npt.NDArray[np.float32]:
    """Return the edges (h, w), spread, minus their mean around each pixel, to score poses with.

    A random pose scores about 0, and scan edges gain nothing on a texture full of edges, just as on
    a blank wall: only on an edge between smooth surfaces.
    """
    wide = spread(np.asarray(edges, np.float32) / np.float32(255), reach_px)
    size = 2 * round(max(LOCAL_REACHES * reach_px, LEAST_LOCAL_PX) / 2) + 1
    return wide - np.asarray(cv2.blur(wide, (size, size)), np.float32)


SAME_VIEW = 0.8
"""Edge maps of one view correlate by more than this; views 0.1 s apart on a walk by less than 0.76
mostly, 0.35 s apart by less than 0.6 (rooms 0, 3 and 5; noise of up to 5 grey values)."""


def same_view(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Return whether two edge maps (h, w) of reach FINE_PX show the same view.

    The same edges again are no new evidence: with a camera at rest, chance alignments would be
    counted many times.
    """
    if one.shape != other.shape:
        return False
    a, b = one[::2, ::2].ravel(), other[::2, ::2].ravel()
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return bool(scale > 0 and (a * b).sum() > SAME_VIEW * scale)


@dataclass(frozen=True)
class Observation:
    """The edges of a frame.

    edges: (h, w) uint8 of the image. camera: of that size. points: (n, 3) m, the scan's edges in
    the camera's frame. weight: (n,). twist: (6,) rad/s and m/s, the camera's own motion in its
    frame (rotation, translation); None if unknown.
    """

    camera: Camera
    edges: npt.NDArray[np.uint8]
    points: Floats
    weight: Floats
    twist: Floats | None = None

    def subset(self, chosen: npt.NDArray[np.intp]) -> Observation:
        """Return the same frame with some of its points. chosen: indices (n,)."""
        return dataclasses.replace(self, points=self.points[chosen], weight=self.weight[chosen])

    def spread(self, reach_px: float) -> npt.NDArray[np.float32]:
        """Return the edge map (h, w) to score with: see edge_map."""
        return edge_map(self.edges, reach_px)

    def score(self, field: npt.NDArray[np.float32], corrections: Floats) -> Floats:
        """Return the sum (K,) of weight * edge over the points, for each correction (K, 7).

        field: (h, w), see edge_map. Points outside the image add 0.
        """
        if not len(self.points):
            return np.zeros(len(corrections))
        c = np.asarray(corrections, np.float64)
        turn, shift = c[:, :3], c[:, 3:6]
        if self.twist is not None and c[:, 6].any():
            # The points were measured c[6] seconds after the image, by a LiDAR that had moved.
            turn = turn + c[:, 6:] * self.twist[:3]
            shift = shift + c[:, 6:] * self.twist[3:]
        R = Rotation.from_rotvec(turn).as_matrix()
        u, v = self._project(R, shift)
        values = cv2.remap(
            field,
            u,
            v,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )
        total: Floats = np.einsum(
            "kn,n->k", np.asarray(values, np.float32), self.weight.astype(np.float32)
        ).astype(np.float64)
        return total

    def _project(
        self, R: Floats, shift: Floats
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return pixels u, v (K, n) of the points after rotations (K, 3, 3) and shifts (K, 3)."""
        camera = self.camera
        x, y, z = (np.ascontiguousarray(column, np.float32) for column in self.points.T)
        r, t = R.astype(np.float32), shift.astype(np.float32)

        def row(k: int) -> npt.NDArray[np.float32]:
            # Written out: BLAS would start threads on all cores for so thin a product.
            moved = np.multiply.outer(r[:, k, 0], x)
            moved += np.multiply.outer(r[:, k, 1], y)
            moved += np.multiply.outer(r[:, k, 2], z)
            moved += t[:, k, None]
            return np.asarray(moved, np.float32)

        if camera.model != "pinhole":
            flat = np.stack([row(k).ravel() for k in range(3)], axis=1)
            pixels = np.nan_to_num(camera.project(flat), nan=-1e4).clip(-1e4, 1e4)
            u, v = pixels.T.astype(np.float32).reshape(2, len(R), len(x))
            return np.ascontiguousarray(u), np.ascontiguousarray(v)
        depth = row(2)
        np.maximum(depth, np.float32(1e-3), out=depth)
        u = row(0)
        u /= depth
        u *= np.float32(camera.fx)
        u += np.float32(camera.cx)
        v = row(1)
        v /= depth
        v *= np.float32(camera.fy)
        v += np.float32(camera.cy)
        return np.clip(u, -1e4, 1e4), np.clip(v, -1e4, 1e4)


@dataclass(frozen=True)
class ImageEdges:
    """Edges (h, w) uint8 of an image at the reduced size, and the camera of that size."""

    camera: Camera
    edges: npt.NDArray[np.uint8]


def image_edges(frame: FrameInput) -> ImageEdges:
    """Return the edges of a frame's image, reduced to a width of at most WORK_WIDTH_PX."""
    height, width = frame.image.shape[:2]
    small_width = min(width, WORK_WIDTH_PX)
    small_height = max(1, round(height * small_width / width))
    camera = frame.camera.resized(small_width, small_height)
    image = frame.image
    if small_width < width:
        image = np.asarray(
            cv2.resize(image, (small_width, small_height), interpolation=cv2.INTER_AREA), np.uint8
        )
    return ImageEdges(camera, np.asarray(edge_strength(image) * 255, np.uint8))


MARGIN = 0.1
"""Edges up to this fraction of the image outside it are kept: a correction may move them inside."""


def observe(
    frame: FrameInput, twist: Floats | None = None, image: ImageEdges | None = None
) -> Observation:
    """Return the observation of a frame with all its points.

    twist: (6,), see Observation. image: the image's edges, if they have been computed already.
    """
    T = frame.T_camera_lidar
    assert T is not None
    points = np.empty((0, 3), np.float32) if frame.points is None else frame.points
    return observe_source(image or image_edges(frame), SourcePoints("", points, T, T), twist)


def observe_source(
    image: ImageEdges, source: SourcePoints, twist: Floats | None = None
) -> Observation:
    """Return the observation of one LiDAR beside the edges of an image.

    If its points were measured at another time than the image, the twist (6,) moves them to the
    time of the image.
    """
    T, points = source.T_camera_lidar, source.points
    camera = image.camera
    if not np.array_equal(source.T_camera_points, T):
        points = transform(invert_rigid(T) @ source.T_camera_points, points)
    edges = depth_edges(_in_view(points, T, camera, 2 * MARGIN), T[:3, :3])
    seen = transform(T, edges.points)
    if source.lag_s and twist is not None:
        turn, shift = source.lag_s * twist[:3], source.lag_s * twist[3:]
        seen = Rotation.from_rotvec(turn).apply(seen) + shift
    pixels = camera.project(seen)
    u, v = MARGIN * camera.width, MARGIN * camera.height
    with np.errstate(invalid="ignore"):
        keep = (pixels[:, 0] > -u) & (pixels[:, 0] < camera.width + u)
        keep &= (pixels[:, 1] > -v) & (pixels[:, 1] < camera.height + v)
    return Observation(camera, image.edges, seen[keep], edges.weight[keep], twist)


def _in_view(points: FloatArray, T: Floats, camera: Camera, margin: float) -> FloatArray:
    """Return those of the points (N, 3) that are in the view or near it; most of a turn is not.

    margin: around the image, as a fraction of its size.
    """
    x, y, z = np.asarray(points, np.float32).reshape(-1, 3).T
    r, t = T[:3, :3].astype(np.float32), T[:3, 3].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        depth = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z + t[2]
        keep = np.flatnonzero(depth > 0.05)
    x, y, z, depth = x[keep], y[keep], z[keep], depth[keep]
    with np.errstate(invalid="ignore", over="ignore"):
        across = (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z + t[0]) / depth
        down = (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z + t[1]) / depth
    if camera.model == "pinhole":
        left, right = -camera.cx / camera.fx, (camera.width - camera.cx) / camera.fx
        top, bottom = -camera.cy / camera.fy, (camera.height - camera.cy) / camera.fy
        u, v = margin * (right - left), margin * (bottom - top)
        seen = (across > left - u) & (across < right + u) & (down > top - v) & (down < bottom + v)
        keep = keep[seen]
    return np.asarray(points).reshape(-1, 3)[keep]


def observe_all(frames: Sequence[FrameInput], limit: int = 0) -> list[Observation]:
    """Return the observations of a sequence, with the motion found from poses or images.

    limit: at most so many frames, spread evenly; 0 for all. Of consecutive frames with the same
    view only the first is used.
    """
    count = len(frames)
    chosen: npt.NDArray[np.intp] = np.arange(count, dtype=np.intp)
    if limit and count > limit:
        chosen = np.unique(np.linspace(0, count - 1, limit).round().astype(np.intp))
    out: list[Observation] = []
    newest: npt.NDArray[np.float32] | None = None
    for i in (int(index) for index in chosen):
        before, after = frames[max(i - 1, 0)], frames[min(i + 1, count - 1)]
        image = image_edges(frames[i])
        view = edge_map(image.edges, FINE_PX)
        if newest is None or not same_view(newest, view):
            out.append(observe(frames[i], motion(before, after), image))
            newest = view
    return out


MAX_INTERVAL_S = 0.6
"""Between two frames farther apart in time the motion is not assumed to be constant."""


def motion(before: FrameInput, after: FrameInput) -> Floats | None:
    """Return the twist (6,) of the camera in its frame, rad/s and m/s, between two frames.

    From T_world_camera if it is given. Otherwise from the shift of the whole image, as if the
    camera only rotated: a time offset shifts a scan by the same apparent amount. None if a stamp is
    missing, the frames are too far apart in time, or the images differ in size.
    """
    if before.stamp_ns is None or after.stamp_ns is None:
        return None
    interval_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    if not 0 < interval_s <= MAX_INTERVAL_S:
        return None
    if before.T_world_camera is not None and after.T_world_camera is not None:
        T = invert_rigid(before.T_world_camera) @ after.T_world_camera
        turn = Rotation.from_matrix(T[:3, :3]).as_rotvec()
        return np.concatenate([turn, T[:3, 3]]) / interval_s
    if before.image.shape != after.image.shape:
        return None
    size = (160, max(1, round(160 * before.image.shape[0] / before.image.shape[1])))
    first, second = (
        np.asarray(
            cv2.resize(
                cv2.cvtColor(f.image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA
            ),
            np.float32,
        )
        for f in (before, after)
    )
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    (right, down), _ = cv2.phaseCorrelate(first, second, window)
    camera = before.camera.resized(*size)
    return np.array(
        [down / camera.fy / interval_s, -right / camera.fx / interval_s, 0.0, 0.0, 0.0, 0.0]
    )


def chance_variance(observation: Observation, field: npt.NDArray[np.float32]) -> float:
    """Return the variance of an observation's score if its edges fell on random pixels.

    field: (h, w), see edge_map.
    """
    return float(field.var()) * float(np.square(observation.weight).sum())


def total_score(
    observations: Sequence[Observation],
    fields: Sequence[npt.NDArray[np.float32]],
    corrections: Floats,
) -> Floats:
    """Return the scores (F, K) of K corrections (K, 7) by each of F observations."""
    return np.stack([o.score(f, corrections) for o, f in zip(observations, fields, strict=True)])
