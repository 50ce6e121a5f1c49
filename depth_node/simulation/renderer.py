# SPDX-License-Identifier: Apache-2.0
"""Ray casting of procedural scenes with exact depth, labels and LiDAR, for demo, tests, training.

Every primitive of a scene is a unit shape under an affine map, so the parameter t of a ray is the
same in the primitive's own frame; with rays scaled to z = 1 in the camera frame, t is the depth
along the optical axis, exact up to float32.

Only numpy is needed. A view costs one pass per primitive over the image rectangle that it can
cover, so small primitives are cheap. Lamps cast soft shadows (a cube of depth maps per lamp, cast
once per scene), textures are filtered, and corners of the room are darker: pictorial cues that
monocular networks use.

Frames: world and LiDAR x forward, y left, z up; camera x right, y down, z forward. Lengths in m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depth_node.geometry.camera import Camera
from depth_node.simulation.outdoors import OUTDOORS, lay_out
from depth_node.simulation.primitives import BOX, CYLINDER, ELLIPSOID, Lamp, Room
from depth_node.simulation.rooms import STYLES, furnish
from depth_node.simulation.textures import TEXTURE_SIZE_PX, look_up, texture_set

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

ROOM_FACES = 6  # labels 1 to 6: faces -x +x -y +y floor ceiling; primitive p (from 1): 6 + p
MIXTURE = (0.55, 0.2, 0.12, 0.13)  # probabilities of STYLES in "mixed"
ALL_STYLES = (*STYLES, *OUTDOORS)
# Names that stand for a random style: "mixed" draws among STYLES, "outdoors" among OUTDOORS.
STYLE_GROUPS = ("mixed", "outdoors")
NEAREST_HIT_M = 1e-3
TINY = np.float32(1e-30)  # replaces a zero divisor; its reciprocal is finite
CHUNK_PX = 1 << 14  # pixels shaded at once, so few that the temporaries stay in the cache
# Offsets of the four rays, on a rotated grid, that smooth the edges of primitives.
SUBPIXELS = ((-0.125, -0.375), (0.375, -0.125), (-0.375, 0.125), (0.125, 0.375))


@dataclass(frozen=True)
class Rendered:
    """Image, depth and labels of one view.

    image (H, W, 3) uint8 RGB; depth (H, W) float32 m, NaN where the camera has no ray; labels
    (H, W) int32: 1..Scene.label_count, the same in every view of a scene, 0 without a ray.
    """

    image: NDArray[np.uint8]
    depth: F32
    labels: I32


@dataclass(frozen=True)
class LidarPattern:
    """Rays of a spinning LiDAR: `beams` elevations times `azimuth_steps` azimuths.

    range_noise_m: standard deviation of the range noise.
    """

    beams: int = 16
    azimuth_steps: int = 900
    vertical_fov_deg: tuple[float, float] = (-25.0, 15.0)
    horizontal_fov_deg: tuple[float, float] = (-180.0, 180.0)
    range_noise_m: float = 0.0
    min_range_m: float = 0.1
    max_range_m: float = 40.0

    def directions(self) -> F32:
        """Return unit rays (beams * azimuth_steps, 3) in the LiDAR frame, ring after ring."""
        elevation = np.deg2rad(np.linspace(*self.vertical_fov_deg, self.beams))[:, None]
        low, high = self.horizontal_fov_deg
        steps = (np.arange(self.azimuth_steps) + 0.5) / self.azimuth_steps
        azimuth = np.deg2rad(low + (high - low) * steps)[None, :]
        flat = np.cos(elevation)
        x, y = flat * np.cos(azimuth), flat * np.sin(azimuth)
        rays = np.stack([x, y, np.broadcast_to(np.sin(elevation), x.shape)], axis=-1)
        return rays.reshape(-1, 3).astype(np.float32)


# --- rays against unit shapes --------------------------------------------------------------------


def _entry(kind: int, origin: F32, d: F32) -> F32:
    """Return the entry t (n,) of rays origin (3,) + t d (3, n) into a unit shape, +inf for a miss.

    Each shape is convex: a ray is inside it between the largest entry into and the smallest exit
    from its slabs and its quadric.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if kind == ELLIPSOID:
            near, far = _quadric(origin, d, 3)
        elif kind == CYLINDER:
            near, far = _quadric(origin, d, 2)
            cap_near, cap_far = _slab(origin[2], d[2])
            near, far = np.maximum(near, cap_near), np.minimum(far, cap_far)
        else:
            near, far = _slab(origin[0], d[0])
            for axis in (1, 2):
                axis_near, axis_far = _slab(origin[axis], d[axis])
                near, far = np.maximum(near, axis_near), np.minimum(far, axis_far)
        hit = (near <= far) & (near > NEAREST_HIT_M)
        return np.where(hit, near, np.float32(np.inf))


def _slab(origin: np.float32, d: F32) -> tuple[F32, F32]:
    """Return the entry into and the exit from -1 <= x <= 1, (n,) each."""
    if not d.all():  # a ray along a face: 0 / 0 would miss a shape that the ray is inside of
        d = np.where(d == 0, TINY, d)
    inverse = 1.0 / d
    middle = -origin * inverse
    half = np.abs(inverse)
    return middle - half, middle + half


def _quadric(origin: F32, d: F32, axes: int) -> tuple[F32, F32]:
    """Return entry and exit, (n,) each, at the unit sphere (axes = 3) or the unit cylinder around z
    (axes = 2); NaN for a miss.
    """
    square, along = d[0] * d[0], origin[0] * d[0]
    for axis in range(1, axes):
        square = square + d[axis] * d[axis]
        along = along + origin[axis] * d[axis]
    square = np.maximum(square, TINY)  # it is 0 for a ray along the cylinder
    closest = -along / square
    # Computed from the closest approach, because b^2 - a c cancels for small, far shapes.
    inside = 1.0 - sum((origin[axis] + closest * d[axis]) ** 2 for axis in range(axes))
    half = np.where(inside > 0, np.sqrt(np.maximum(inside, 0.0) / square), np.float32(np.nan))
    return closest - half, closest + half


# --- the scene -----------------------------------------------------------------------------------


class Scene:
    """A furnished room or an outdoor scene that can be rendered; see `Scene.random(seed)`.

    shadow_px: size of the depth maps around each lamp; the edge of a shadow is one of their pixels
    wide, and they are most of the cost of a scene's first image. Raises ValueError if the room does
    not have six faces.
    """

    def __init__(self, room: Room, shadow_px: int = 192) -> None:
        if len(room.surfaces) != ROOM_FACES:
            raise ValueError(f"A room has {ROOM_FACES} faces, not {len(room.surfaces)}.")
        self.room = room
        primitives = room.primitives
        # Row 0 is the room itself, so that a pixel's primitive index addresses every table.
        self._kind = np.array([BOX] + [p.kind for p in primitives], np.int32)
        self._centre = np.stack(
            [np.array([0.0, 0.0, room.half[2]])] + [p.centre for p in primitives]
        )
        self._axes = np.stack([np.eye(3)] + [p.axes for p in primitives])
        self._half = np.stack([room.half] + [p.half for p in primitives])
        self._to_metric = np.swapaxes(self._axes, 1, 2)
        self._to_unit = self._to_metric / self._half[:, :, None]
        # Rows of 24 values, looked up per pixel: world to primitive (9), centre (3), half (3),
        # primitive to world (9).
        flat = [self._to_metric.reshape(-1, 9), self._centre, self._half, self._axes.reshape(-1, 9)]
        self._geometry = np.concatenate(flat, axis=1).astype(np.float32)
        materials = [*room.surfaces, *(p.material for p in primitives)]
        self._texture = np.array([m.texture for m in materials], np.int32)
        self._tile = np.array([m.tile_m for m in materials], np.float32)
        self._palette = np.array([m.palette for m in materials], np.float32).reshape(-1, 3)
        self._gloss = np.array([m.gloss for m in materials], np.float32)
        self._emission = np.array([m.emission for m in materials], np.float32)
        self._shadow_px = shadow_px
        self._shadows: list[F32] = []

    @classmethod
    def random(
        cls, seed: int | np.random.Generator, style: str = "room", shadow_px: int = 192
    ) -> Scene:
        """Return a random furnished room or outdoor scene; style: of ALL_STYLES or STYLE_GROUPS.

        Raises ValueError for an unknown style.
        """
        known = (*STYLE_GROUPS, *ALL_STYLES)
        if style not in known:
            raise ValueError(f"No scene style is called {style!r}: use one of {', '.join(known)}.")
        rng = np.random.default_rng(seed)
        if style == "outdoors" or style in OUTDOORS:
            chosen = style if style in OUTDOORS else str(rng.choice(OUTDOORS))
            return cls(lay_out(rng, chosen), shadow_px)
        drawn = str(rng.choice(STYLES, p=MIXTURE))
        return cls(furnish(rng, drawn if style == "mixed" else style), shadow_px)

    @property
    def style(self) -> str:
        """The style, one of ALL_STYLES."""
        return self.room.style

    @property
    def label_count(self) -> int:
        """Number of labels K, which are 1..K, whether in view or not."""
        return ROOM_FACES + len(self.room.primitives)

    def contains(self, points: F64, margin_m: float = 0.0) -> NDArray[np.bool_]:
        """Return whether world points (N, 3) are free, (N,): in the room and in no primitive.

        Every primitive counts as the box around it. margin_m: least distance from walls and boxes.
        """
        delta = np.atleast_2d(points)[:, None] - self._centre
        offset = np.abs(np.einsum("pij,npj->npi", self._to_metric, delta))
        in_room = (offset[:, 0] <= self._half[0] - margin_m).all(1)
        in_primitive = (offset[:, 1:] <= self._half[1:] + margin_m).all(2).any(1)
        return in_room & ~in_primitive

    def render(self, camera: Camera, T_world_camera: F64, antialias: bool = True) -> Rendered:
        """Render image, depth and labels from a pose (4, 4) inside the room.

        Depth and labels belong to the ray through the pixel's centre. With `antialias` the colours
        at edges of primitives are means of four rays; without it, rendering is about twice as fast.
        Raises ValueError for a pose of another shape.
        """
        rotation, origin = _pose(T_world_camera)
        rays, has_ray = _camera_rays(camera)
        boxes = self._rectangles(origin, rotation, camera)
        depth, primitive = self._cast_view(origin, rotation, rays, boxes)
        turn = rotation.astype(np.float32)
        angle = 1.0 / camera.fx
        n = depth.size
        image = np.empty((n, 3), np.uint8)
        labels = np.empty(n, np.int32)
        flat_rays, flat_depth, flat_primitive = rays.reshape(3, n), depth.ravel(), primitive.ravel()
        for start in range(0, n, CHUNK_PX):
            now = slice(start, start + CHUNK_PX)
            colour, surface = self._shade(
                origin, turn @ flat_rays[:, now], flat_depth[now], flat_primitive[now], angle
            )
            image[now] = colour * 255 + 0.5
            labels[now] = surface + 1
        if antialias:
            edges = _edges(labels.reshape(depth.shape))
            image[edges] = self._smooth(origin, rotation, rays, boxes, edges, angle) * 255 + 0.5
        no_ray = ~has_ray
        if no_ray.any():
            depth[no_ray], labels[no_ray.ravel()], image[no_ray.ravel()] = np.nan, 0, 0
        return Rendered(image.reshape(*depth.shape, 3), depth, labels.reshape(depth.shape))

    def probe(self, camera: Camera, T_world_camera: F64) -> tuple[F32, I32]:
        """Return depth (H, W) float32 m and primitive (H, W) int32, 0 = the room, without an image.

        This is several times faster than `render`.
        """
        rotation, origin = _pose(T_world_camera)
        rays, _ = _camera_rays(camera)
        boxes = self._rectangles(origin, rotation, camera)
        return self._cast_view(origin, rotation, rays, boxes)

    def lidar(
        self, T_world_lidar: F64, pattern: LidarPattern = LidarPattern(), seed: int = 0
    ) -> F32:
        """Return one sweep: points (N, 3) float32 m in the LiDAR frame, without those out of range.

        seed: of the range noise. Raises ValueError for a pose that is not (4, 4).
        """
        rotation, origin = _pose(T_world_lidar)
        directions = pattern.directions()
        ranges, _ = self._cast_rays(origin, rotation, np.ascontiguousarray(directions.T))
        if pattern.range_noise_m > 0:
            noise = np.random.default_rng(seed).standard_normal(len(ranges), dtype=np.float32)
            ranges = ranges + np.float32(pattern.range_noise_m) * noise
        keep = (ranges >= pattern.min_range_m) & (ranges <= pattern.max_range_m)
        points: F32 = directions[keep] * ranges[keep, None]
        return points

    # --- casting ---------------------------------------------------------------------------------

    def _room_exit(self, origin: F64, rotation: F64, rays: F32) -> F32:
        """Return the parameter t (n,) at which rays (3, n) of a frame leave the room."""
        start = (self._to_unit[0] @ (origin - self._centre[0])).astype(np.float32)
        d = (self._to_unit[0] @ rotation).astype(np.float32) @ rays
        with np.errstate(divide="ignore", invalid="ignore"):
            exits = [_slab(start[axis], d[axis])[1] for axis in range(3)]
            return np.fmin(np.fmin(exits[0], exits[1]), exits[2])

    def _rectangles(self, origin: F64, rotation: F64, camera: Camera) -> I32:
        """Return rows r0:r1 and columns c0:c1 (P + 1, 4) that each primitive can cover; empty for
        one behind the camera or out of view.
        """
        signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        offsets = np.einsum("pij,pkj->pki", self._axes, signs[None] * self._half[:, None])
        corners = (self._centre[:, None] + offsets - origin) @ rotation
        z = corners[..., 2]
        whole = np.array([0, camera.height, 0, camera.width])
        if camera.model == "pinhole":
            safe = np.maximum(z, 1e-3)
            u = camera.fx * corners[..., 0] / safe + camera.cx
            v = camera.fy * corners[..., 1] / safe + camera.cy
            sides = [
                np.floor(v.min(1)),
                np.ceil(v.max(1)) + 1,
                np.floor(u.min(1)),
                np.ceil(u.max(1)) + 1,
            ]
            box = np.clip(np.stack(sides, axis=1), 0, whole[[1, 1, 3, 3]])
            # A corner behind the camera has no projection, so it gives no bound.
            box = np.where((z > 1e-3).all(1)[:, None], box, whole)
        else:
            box = np.broadcast_to(whole, (len(z), 4)).copy()
        box[(z <= 0).all(1)] = 0
        return box.astype(np.int32)

    def _cast_view(self, origin: F64, rotation: F64, rays: F32, boxes: I32) -> tuple[F32, I32]:
        """Return depth (H, W) and primitive (H, W), 0 = the room, along camera rays (3, H, W) with
        z = 1.
        """
        shape = rays.shape[1:]
        depth = self._room_exit(origin, rotation, rays.reshape(3, -1)).reshape(shape)
        primitive = np.zeros(shape, np.int32)
        turns, starts = self._in_primitives(origin, rotation)
        for index in range(1, len(self._kind)):
            r0, r1, c0, c1 = boxes[index]
            if r1 <= r0 or c1 <= c0:
                continue
            d = turns[index] @ rays[:, r0:r1, c0:c1].reshape(3, -1)
            t = _entry(int(self._kind[index]), starts[index], d).reshape(r1 - r0, c1 - c0)
            window = depth[r0:r1, c0:c1]
            nearer = t < window
            np.copyto(window, t, where=nearer)
            primitive[r0:r1, c0:c1][nearer] = index
        return depth, primitive

    def _cast_rays(
        self,
        origin: F64,
        rotation: F64,
        rays: F32,
        pixels: tuple[I32, I32] | None = None,
        boxes: I32 | None = None,
    ) -> tuple[F32, I32]:
        """Return the first hit t (n,) and its primitive (n,) along any rays (3, n) of a frame.

        With pixels (rows, columns) and boxes, each primitive is tested only against the rays of its
        rectangle.
        """
        t = self._room_exit(origin, rotation, rays)
        primitive = np.zeros(len(t), np.int32)
        turns, starts = self._in_primitives(origin, rotation)
        for index in range(1, len(self._kind)):
            kind, start, turn = int(self._kind[index]), starts[index], turns[index]
            if pixels is None or boxes is None:
                entry = _entry(kind, start, turn @ rays)
                nearer = entry < t
                np.copyto(t, entry, where=nearer)
                primitive[nearer] = index
                continue
            r0, r1, c0, c1 = boxes[index]
            if r1 <= r0 or c1 <= c0:
                continue
            rows, columns = pixels
            inside = (rows >= r0 - 1) & (rows <= r1) & (columns >= c0 - 1) & (columns <= c1)
            chosen = np.flatnonzero(inside)
            entry = _entry(kind, start, turn @ rays[:, chosen])
            nearer = entry < t[chosen]
            t[chosen[nearer]] = entry[nearer]
            primitive[chosen[nearer]] = index
        return t, primitive

    def _in_primitives(self, origin: F64, rotation: F64) -> tuple[F32, F32]:
        """Return rotation (P + 1, 3, 3) and origin (P + 1, 3) of a frame in the unit frame of every
        primitive.
        """
        turns = (self._to_unit @ rotation).astype(np.float32)
        starts = np.einsum("pij,pj->pi", self._to_unit, origin - self._centre).astype(np.float32)
        return turns, starts

    def _smooth(
        self, origin: F64, rotation: F64, rays: F32, boxes: I32, edges: I32, angle: float
    ) -> F32:
        """Return the mean colour (n, 3) of four rays through each of the pixels `edges`.

        edges: flat indices (n,).
        """
        width = rays.shape[2]
        rows, columns = np.divmod(edges, width)
        here = rays[:, rows, columns]
        # One-sided differences are exact for a pinhole and close for a lens with distortion.
        right = rays[:, rows, np.minimum(columns + 1, width - 1)] - here
        left = here - rays[:, rows, np.maximum(columns - 1, 0)]
        across = np.where(columns + 1 < width, right, left)
        below = rays[:, np.minimum(rows + 1, rays.shape[1] - 1), columns] - here
        above = here - rays[:, np.maximum(rows - 1, 0), columns]
        down = np.where(rows + 1 < rays.shape[1], below, above)
        total = np.zeros((len(edges), 3), np.float32)
        turn = rotation.astype(np.float32)
        for x, y in SUBPIXELS:
            shifted = (here + np.float32(x) * across + np.float32(y) * down).astype(np.float32)
            t, primitive = self._cast_rays(origin, rotation, shifted, (rows, columns), boxes)
            total += self._shade(origin, turn @ shifted, t, primitive, angle)[0]
        return total / np.float32(len(SUBPIXELS))

    # --- shading ---------------------------------------------------------------------------------

    def _shade(
        self, origin: F64, rays: F32, t: F32, primitive: I32, radians_per_px: float
    ) -> tuple[F32, I32]:
        """Return display colours (n, 3) in 0..1 and surfaces (n,), label - 1, of hits at t (n,)
        along world rays (3, n).
        """
        point = [rays[k] * t + np.float32(origin[k]) for k in range(3)]
        normal, surface, u, v = self._surface(primitive, point)
        facing = np.abs(sum(normal[k] * rays[k] for k in range(3)))
        facing /= np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
        tile = self._tile[surface]
        texels = (
            t * np.float32(radians_per_px * TEXTURE_SIZE_PX) / (np.maximum(facing, 0.25) * tile)
        )
        bank = texture_set(self.room.texture_set)
        value = look_up(bank, self._texture[surface], u / tile, v / tile, texels)
        position = np.minimum(value * 2, np.float32(1.9999))
        low = position.astype(np.int32)
        mix = (position - low)[:, None]
        row = surface * 3 + low
        albedo = self._palette[row] * (1 - mix) + self._palette[row + 1] * mix
        light, shine = self._light(point, normal, rays, surface)
        colour = albedo * (light + self._emission[surface][:, None]) + shine
        if math.isfinite(self.room.haze_m):
            distance = t * np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
            clear = np.exp(distance * np.float32(-1 / self.room.haze_m))[:, None]
            colour = colour * clear + self.room.haze.astype(np.float32) * (1 - clear)
        # Tone mapping like the shoulder of a film, then the display's gamma.
        image = 1.0 - np.exp(-np.maximum(colour, 0.0))
        return np.power(image, np.float32(1 / 2.2)), surface

    def _surface(self, primitive: I32, point: list[F32]) -> tuple[list[F32], I32, F32, F32]:
        """Return unit normals (3 of (n,)), surfaces (n,) and texture coordinates u, v (n,) m of
        hits.
        """
        rows = self._geometry[primitive].T
        delta = [point[k] - rows[9 + k] for k in range(3)]
        metric = [sum(rows[3 * i + k] * delta[k] for k in range(3)) for i in range(3)]
        half = rows[12:15]
        unit = [metric[k] / half[k] for k in range(3)]
        kind = self._kind[primitive]
        size = [np.abs(c) for c in unit]
        flat_x = (size[0] >= size[1]) & (size[0] >= size[2])
        flat_y = ~flat_x & (size[1] >= size[2])
        flat_z = ~flat_x & ~flat_y
        cap = (kind == CYLINDER) & (size[2] >= np.sqrt(unit[0] ** 2 + unit[1] ** 2))
        side = (kind == CYLINDER) & ~cap
        ball = kind == ELLIPSOID
        bent = ball | side
        sign = [np.sign(c) for c in unit]
        outward = np.where(primitive == 0, np.float32(-1), np.float32(1))
        nothing = np.float32(0)
        own = [
            np.where(bent, unit[0] / half[0], np.where(flat_x & ~cap, sign[0] * outward, nothing)),
            np.where(bent, unit[1] / half[1], np.where(flat_y & ~cap, sign[1] * outward, nothing)),
            np.where(
                ball,
                unit[2] / half[2],
                np.where((flat_z & ~side) | cap, sign[2] * outward, nothing),
            ),
        ]
        length = np.sqrt(own[0] ** 2 + own[1] ** 2 + own[2] ** 2) + np.float32(1e-9)
        normal = [sum(rows[15 + 3 * k + i] * own[i] for i in range(3)) / length for k in range(3)]
        around = np.arctan2(unit[1], unit[0]) * half[0]
        u = np.where(bent, around, np.where(flat_x & ~cap, metric[1], metric[0]))
        v = np.where(bent, metric[2], np.where(flat_z | cap, metric[1], metric[2]))
        axis = np.where(flat_x, 0, np.where(flat_y, 2, 4))
        face = axis + (np.where(flat_x, sign[0], np.where(flat_y, sign[1], sign[2])) > 0)
        surface = np.where(primitive == 0, face, ROOM_FACES - 1 + primitive).astype(np.int32)
        return normal, surface, u, v

    def _light(
        self, point: list[F32], normal: list[F32], rays: F32, surface: I32
    ) -> tuple[F32, F32]:
        """Return diffuse irradiance and specular radiance of hits, (n, 3) each."""
        crease = np.ones_like(point[0])
        for axis in range(3):
            gap = np.float32(self.room.half[axis])
            gap = gap - np.abs(point[axis] - np.float32(self._centre[0, axis]))
            dark = np.float32(0.5) * (1 - np.abs(normal[axis]))
            crease *= 1 - dark * np.exp(np.maximum(gap, 0) * np.float32(-1 / 0.22))
        sky = np.float32(0.75) + np.float32(0.25) * normal[2]
        light = (crease * sky)[:, None] * self.room.ambient.astype(np.float32)
        shine = np.zeros_like(light)
        length = np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
        gloss = self._gloss[surface]
        for lamp, cube in zip(self.room.lamps, self._shadow_cubes(), strict=True):
            colour = lamp.colour.astype(np.float32)
            to = [np.float32(lamp.position[k]) - point[k] for k in range(3)]
            square = to[0] ** 2 + to[1] ** 2 + to[2] ** 2
            distance = np.sqrt(square) + np.float32(1e-6)
            cosine = sum(normal[k] * to[k] for k in range(3)) / distance
            arrives = _visible(lamp, cube, point, normal, distance) * (cosine > 0)
            falloff = 1 / (np.float32(0.3) + square)
            light += (arrives * cosine * crease * falloff)[:, None] * colour
            middle = [to[k] / distance - rays[k] / length for k in range(3)]
            size = np.sqrt(middle[0] ** 2 + middle[1] ** 2 + middle[2] ** 2) + np.float32(1e-6)
            peak = np.clip(sum(normal[k] * middle[k] for k in range(3)) / size, 0, 1) ** 40
            shine += (gloss * peak * arrives * falloff)[:, None] * colour
        return light, shine

    def _shadow_cubes(self) -> list[F32]:
        """Return the depth from each lamp through the faces of a cube, (6, S, S); cast at the first
        use.
        """
        if len(self._shadows) < len(self.room.lamps):
            size = self._shadow_px
            face = Camera(size, size, size / 2, size / 2, size / 2 - 0.5, size / 2 - 0.5)
            rays, _ = _camera_rays(face)
            cubes = []
            for lamp in self.room.lamps:
                views = []
                for turn in _CUBE_ROTATIONS:
                    boxes = self._rectangles(lamp.position, turn, face)
                    views.append(self._cast_view(lamp.position, turn, rays, boxes)[0])
                cubes.append(np.stack(views))
            self._shadows = cubes
        return self._shadows


def _pose(T_world_frame: F64) -> tuple[F64, F64]:
    """Return rotation (3, 3) and origin (3,) of a pose (4, 4)."""
    pose = np.asarray(T_world_frame, np.float64)
    if pose.shape != (4, 4):
        raise ValueError(f"A pose is a (4, 4) matrix, not {pose.shape}.")
    return pose[:3, :3], pose[:3, 3]


def _camera_rays(camera: Camera) -> tuple[F32, NDArray[np.bool_]]:
    """Return rays (3, H, W) float32 with z = 1, and where (H, W) the camera has one."""
    rays = np.ascontiguousarray(np.moveaxis(camera.rays(), -1, 0), np.float32)
    has_ray: NDArray[np.bool_] = np.all(np.isfinite(rays), axis=0)
    if not has_ray.all():
        rays = np.where(has_ray, rays, np.array([0, 0, 1], np.float32)[:, None, None])
    return rays, has_ray


def _edges(labels: I32) -> I32:
    """Return the flat indices of the pixels of labels (H, W) on either side of a label change."""
    edge = np.zeros(labels.shape, bool)
    across = labels[:, 1:] != labels[:, :-1]
    down = labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return np.flatnonzero(edge).astype(np.int32)


def _cube_rotations() -> F64:
    """Return rotations (6, 3, 3), world from camera, that look along +x -x +y -y +z -z."""
    faces = []
    for axis in range(3):
        for sign in (1.0, -1.0):
            forward = np.zeros(3)
            forward[axis] = sign
            right = np.roll(forward, 1)
            faces.append(np.stack([right, np.cross(forward, right), forward], axis=1))
    return np.stack(faces)


_CUBE_ROTATIONS = _cube_rotations()


def _visible(lamp: Lamp, cube: F32, point: list[F32], normal: list[F32], distance: F32) -> F32:
    """Return the visibility (n,) of a lamp, 0..1; shadow edges are one texel of the cube wide."""
    pixels = cube.shape[1]
    texel = distance * np.float32(2.0 / pixels)
    push = np.float32(0.01) + np.float32(1.2) * texel  # else the surface would shade itself
    away = [point[k] + normal[k] * push - np.float32(lamp.position[k]) for k in range(3)]
    size = [np.abs(c) for c in away]
    on_x = (size[0] >= size[1]) & (size[0] >= size[2])
    on_y = ~on_x & (size[1] >= size[2])
    major = np.where(on_x, away[0], np.where(on_y, away[1], away[2]))
    depth = np.abs(major) + np.float32(1e-6)
    face = np.where(on_x, 0, np.where(on_y, 2, 4)) + (major < 0)
    turn = _CUBE_ROTATIONS.astype(np.float32)
    right, down = turn[:, :, 0][face].T, turn[:, :, 1][face].T
    half = np.float32(pixels / 2)
    x = sum(right[k] * away[k] for k in range(3)) / depth * half + (half - np.float32(0.5))
    y = sum(down[k] * away[k] for k in range(3)) / depth * half + (half - np.float32(0.5))
    last = np.float32(pixels - 1.001)
    x, y = np.clip(x, 0, last), np.clip(y, 0, last)
    column, row = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - column, y - row
    base = (face * pixels + row) * pixels + column
    limit = depth - np.float32(0.01)
    flat = cube.ravel()
    steps = (0, 1, pixels, pixels + 1)
    a, b, c, d = ((flat[base + step] >= limit).astype(np.float32) for step in steps)
    visibility: F32 = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    return visibility
