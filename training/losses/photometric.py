# SPDX-License-Identifier: Apache-2.0
"""Photometric self-supervision: neighbouring images are warped by depth and pose and compared.

Written from the formulas of Monodepth2 (Godard et al. 2019). Images are (N, 3, H, W) in 0..1, depth
is (N, 1, H, W) in metres along the optical axis, K (N, 3, 3) in pixels with centres at integers;
T_source_target (N, 4, 4) maps coordinates of the target camera into those of the source camera.
All is computed in float32 or better: rounding by half a pixel would move every edge. This module
also has the scale-invariant loss that supervises metric depth (Eigen et al. 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from depth_node import config
from training.losses.normalization import exact

NEAREST_M = 1e-3  # a point with a smaller depth in the source camera is not in its image


@dataclass(frozen=True)
class GeometricConfig:
    """Settings of the comparison between the warped neighbours and the image."""

    ssim: float = config.option(
        0.85, "Weight of structural similarity; the rest is |difference|.", minimum=0, maximum=1
    )
    automask: bool = config.option(
        True, "Leave out pixels that the unmoved neighbour explains better (standing camera)."
    )
    minimum: bool = config.option(
        True, "Of the neighbours take the better one per pixel (occlusions), not their mean."
    )
    smooth: float = config.option(
        1e-3, "Weight of the edge-aware smoothness; halved at every coarser scale.", minimum=0
    )
    near: float = config.option(0.1, "Nearest depth of the head.", unit="m", minimum=1e-3)
    far: float = config.option(100.0, "Farthest depth of the head.", unit="m", minimum=0.1)

    def __post_init__(self) -> None:
        config.validate(self)
        if self.far <= self.near:
            raise config.ConfigError(f"far ({self.far}) must be greater than near ({self.near})")


def bounded_depth(raw: Tensor, near: float, far: float) -> Tensor:
    """Return depth (N, 1, H, W), m, between near and far, from the raw output of the head.

    1 / depth is 1 / far + (1 / near - 1 / far) sigmoid(raw).
    """
    span = 1.0 / near - 1.0 / far
    return 1.0 / (1.0 / far + span * torch.sigmoid(exact(raw)))


# --- warping -------------------------------------------------------------------------------------


def project(
    depth: Tensor, K_target: Tensor, K_source: Tensor, T_source_target: Tensor
) -> tuple[Tensor, Tensor]:
    """Project the target's pixels into the source camera.

    Returns (u, v) (N, H, W, 2) in source pixels and the depth z (N, 1, H, W) in the source camera,
    m. depth is (N, 1, H, W) m of the target.
    """
    n, _, height, width = depth.shape
    v, u = torch.meshgrid(
        torch.arange(height, device=depth.device, dtype=depth.dtype),
        torch.arange(width, device=depth.device, dtype=depth.dtype),
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)]).view(1, 3, -1)
    rays = torch.linalg.solve(K_target, pixels.expand(n, -1, -1))
    points = rays * depth.view(n, 1, -1)
    moved = T_source_target[:, :3, :3] @ points + T_source_target[:, :3, 3:]
    z = moved[:, 2:]
    safe = z.clamp_min(NEAREST_M)
    pixels_source = (K_source @ (moved / safe))[:, :2]
    return pixels_source.transpose(1, 2).view(n, height, width, 2), z.view(n, 1, height, width)


def sample(source: Tensor, pixels: Tensor) -> Tensor:
    """Return the source (N, C, h, w) at pixels (N, H, W, 2), (u, v), as (N, C, H, W).

    Interpolation is bilinear; beyond the border the nearest border pixel counts.
    """
    size = torch.tensor([source.shape[3], source.shape[2]], device=source.device)
    grid = 2 * pixels / (size - 1).clamp_min(1) - 1
    return functional.grid_sample(
        source, grid, mode="bilinear", padding_mode="border", align_corners=True
    )


def warp(
    source: Tensor, depth: Tensor, K_target: Tensor, K_source: Tensor, T_source_target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the source image as the target camera would see it, and where that is possible.

    The image is (N, C, H, W). The mask (N, 1, H, W) is True where the pixel projects into the
    source image.
    """
    with torch.autocast(depth.device.type, enabled=False):
        depth = exact(depth)
        # At least float32, and all of one type: tests run in float64.
        source, K_target, K_source, T_source_target = (
            x.to(depth.dtype) for x in (source, K_target, K_source, T_source_target)
        )
        pixels, z = project(depth, K_target, K_source, T_source_target)
        height, width = source.shape[2:]
        u, v = pixels[..., 0], pixels[..., 1]
        # Rounding by up to 0.01 px must not put a border pixel outside the image.
        inside = (u > -0.01) & (u < width - 0.99) & (v > -0.01) & (v < height - 0.99)
        return sample(source, pixels), inside[:, None] & (z > NEAREST_M)


# --- comparing -----------------------------------------------------------------------------------


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """Return (1 - SSIM) / 2 in 0..1 per pixel and channel, windows 3 x 3 (Wang et al. 2004).

    a, b and the result are (N, C, H, W).
    """

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    var_a = mean(a * a) - mean_a**2
    var_b = mean(b * b) - mean_b**2
    both = mean(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return ((1 - above / below) / 2).clamp(0, 1)


def photometric(a: Tensor, b: Tensor, ssim: float = 0.85) -> Tensor:
    """Return the photometric error (N, 1, H, W) of two images (N, 3, H, W).

    ssim * (1 - SSIM)/2 + (1 - ssim) * |a - b|, the mean over the channels (Godard et al. 2019,
    equation 3).
    """
    away = (a - b).abs()
    if ssim > 0:
        away = ssim * dissimilarity(a, b) + (1 - ssim) * away
    return away.mean(dim=1, keepdim=True)


def smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """Return the edge-aware smoothness cost (scalar) of a disparity (N, 1, H, W).

    It is the mean |gradient| of the disparity over its mean, weighted by exp(-|gradient|) of the
    image (N, 3, H, W): less where the image has an edge.
    """
    flat = disparity / disparity.mean(dim=(2, 3), keepdim=True).clamp_min(1e-7)
    across = (flat[..., :, 1:] - flat[..., :, :-1]).abs()
    down = (flat[..., 1:, :] - flat[..., :-1, :]).abs()
    edge_x = (image[..., :, 1:] - image[..., :, :-1]).abs().mean(1, keepdim=True)
    edge_y = (image[..., 1:, :] - image[..., :-1, :]).abs().mean(1, keepdim=True)
    return (across * torch.exp(-edge_x)).mean() + (down * torch.exp(-edge_y)).mean()


def reprojection(
    depth: Tensor,
    target: Tensor,
    sources: Tensor,
    K_target: Tensor,
    K_sources: Tensor,
    T_sources_target: Tensor,
    cfg: GeometricConfig = GeometricConfig(),
) -> tuple[Tensor, Tensor]:
    """Return the photometric error of the warped neighbours and the mask of the pixels that count.

    Both are (N, 1, H, W). sources (N, S, 3, H, W), K_sources (N, S, 3, 3), T_sources_target
    (N, S, 4, 4). A pixel that lies in none of the source images does not count (ours: Monodepth2
    compares it with the colour of the border). With cfg.automask a pixel does not count either if a
    neighbour that is not warped matches at least as well.
    """
    errors, views = [], []
    for k in range(sources.shape[1]):
        warped, inside = warp(
            sources[:, k], depth, K_target, K_sources[:, k], T_sources_target[:, k]
        )
        errors.append(photometric(warped, target.to(warped.dtype), cfg.ssim))
        views.append(inside)
    error, view = torch.cat(errors, dim=1), torch.cat(views, dim=1)
    counts = view.any(dim=1, keepdim=True)
    if cfg.minimum:
        best = error.masked_fill(~view, torch.inf).amin(dim=1, keepdim=True)
        best = torch.where(counts, best, torch.zeros_like(best))
    else:
        best = (error * view).sum(1, keepdim=True) / view.sum(1, keepdim=True).clamp_min(1)
    if cfg.automask:
        with torch.no_grad():
            unmoved = torch.cat(
                [photometric(sources[:, k], target, cfg.ssim) for k in range(sources.shape[1])], 1
            )
            still = unmoved.amin(1, keepdim=True) if cfg.minimum else unmoved.mean(1, keepdim=True)
            # The noise breaks the tie of a camera that does not move.
            counts = counts & (best < still + 1e-5 * torch.randn_like(still))
    return best, counts


def geometric_loss(
    depths: Sequence[Tensor],
    target: Tensor,
    sources: Tensor,
    K_target: Tensor,
    K_sources: Tensor,
    T_sources_target: Tensor,
    cfg: GeometricConfig = GeometricConfig(),
) -> dict[str, Tensor]:
    """Return `photometric`, `smooth` and `loss` = photometric + cfg.smooth * smooth, all scalars.

    depths: (N, 1, h_k, w_k) m, one per scale, the finest first; both terms are means over the
    scales. For `photometric` each depth is resized to the image's size; `smooth` is taken at the
    size of the depth and halved at every coarser scale. Pixels that do not count are 0 in the mean
    over all pixels, so that a batch of cameras that do not move weighs little. Raises ValueError
    without depths.
    """
    if not depths:
        raise ValueError("There is no depth to compare: give at least one scale.")
    total = torch.zeros((), device=target.device)
    smooth = torch.zeros((), device=target.device)
    for k, depth in enumerate(depths):
        depth, image = exact(depth), target
        inverse = 1.0 / depth
        if depth.shape[2:] != target.shape[2:]:
            image = functional.interpolate(target, size=depth.shape[2:], mode="area")
            # Inverse depth is interpolated because it is linear in the pixel along a plane.
            depth = 1.0 / functional.interpolate(
                inverse, size=target.shape[2:], mode="bilinear", align_corners=False
            )
        error, counts = reprojection(
            depth, target, sources, K_target, K_sources, T_sources_target, cfg
        )
        total = total + (error * counts).mean() / len(depths)
        smooth = smooth + smoothness(inverse, image) / 2**k / len(depths)
    return {"photometric": total, "smooth": smooth, "loss": total + cfg.smooth * smooth}


def silog(depth: Tensor, truth: Tensor, mask: Tensor, variance_focus: float = 0.5) -> Tensor:
    """Compute the scale-invariant logarithmic error (scalar) of Eigen et al. 2014.

    sqrt(mean g^2 - variance_focus (mean g)^2) with g = ln depth - ln truth over the valid pixels of
    the batch. depth, truth (N, 1, H, W) m and mask (N, 1, H, W).
    """
    safe = torch.where(mask, exact(truth), torch.ones_like(exact(truth)))
    away = torch.log(exact(depth).clamp_min(1e-6)) - torch.log(safe.clamp_min(1e-6))
    away = torch.where(mask, away, torch.zeros_like(away))
    count = mask.sum().clamp_min(1)
    spread = (away**2).sum() / count - variance_focus * (away.sum() / count) ** 2
    # The slope of the root is infinite at 0: without valid pixels the gradient would not be finite.
    return torch.sqrt(spread.clamp_min(1e-12)) * mask.any()


# --- pose ----------------------------------------------------------------------------------------


def rotation_matrix(axis_angle: Tensor) -> Tensor:
    """Return the rotation matrices (N, 3, 3) of rotation vectors (N, 3) in radians."""
    x, y, z = axis_angle.unbind(dim=1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return torch.matrix_exp(torch.stack(rows, dim=1).view(-1, 3, 3))


def transform(rotation: Tensor, translation: Tensor) -> Tensor:
    """Return transforms (N, 4, 4) of rotation vectors (N, 3), rad, and translations (N, 3), m."""
    matrix = torch.cat([rotation_matrix(rotation), translation[:, :, None]], dim=2)
    last = matrix.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(matrix), 1, 4)
    return torch.cat([matrix, last], dim=1)


class PoseNetwork(nn.Module):
    """Network that estimates T_source_target (N, 4, 4) from two images, up to the scale of depth.

    It has strided convolutions and a mean over the image. The output is scaled by 0.01, so that
    training starts near the identity. Ours, and smaller than Monodepth2's ResNet-18.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 6
        for k, width in enumerate(widths):
            size = 7 if k == 0 else 3
            layers += [nn.Conv2d(inputs, width, size, 2, size // 2), nn.ReLU(inplace=True)]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(inputs, 6, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """Return T_source_target (N, 4, 4) of two images (N, 3, H, W).

        It maps coordinates of the target camera into those of the source camera.
        """
        motion = self.head(self.body(torch.cat([target, source], dim=1))).mean(dim=(2, 3))
        rotation, translation = (0.01 * exact(motion)).split(3, dim=1)
        with torch.autocast(motion.device.type, enabled=False):
            return transform(rotation, translation)
