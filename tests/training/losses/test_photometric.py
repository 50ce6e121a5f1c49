# SPDX-License-Identifier: Apache-2.0
"""Photometric self-supervision: warping, photometric error, pose; truth and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node import config
from training.data.sequences import SequenceConfig, Triplet, Triplets, open_triplets
from training.losses import photometric
from training.losses.photometric import GeometricConfig

PLAIN = GeometricConfig(automask=False)


@pytest.fixture(scope="module")
def walks() -> Triplets:
    cfg = SequenceConfig(scenes=2, views=3, walk=160, seed=4)
    return open_triplets(cfg, 96, 128, need_poses=True)


def tensors(triplet: Triplet) -> dict[str, torch.Tensor]:
    """Return a triplet as a batch of one, float64."""

    def sample_image(image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255

    views = triplet.sources
    return {
        "target": sample_image(triplet.target.image),
        "sources": torch.stack([sample_image(view.image) for view in views], 1),
        "depth": torch.from_numpy(triplet.target.depth)[None, None].double(),
        "K_target": torch.from_numpy(triplet.target.K)[None],
        "K_sources": torch.from_numpy(np.stack([view.K for view in views]))[None],
        "T_sources_target": torch.from_numpy(triplet.poses())[None],
    }


def loss(batch: dict[str, torch.Tensor], depth: torch.Tensor, cfg: GeometricConfig) -> float:
    names = ("target", "sources", "K_target", "K_sources", "T_sources_target")
    terms = photometric.geometric_loss([depth], *(batch[name] for name in names), cfg)
    return float(terms["photometric"])


def test_a_standing_camera_costs_nothing_whatever_the_depth(walks: Triplets) -> None:
    batch = tensors(walks[0])
    batch["sources"] = batch["target"][:, None].expand(-1, 2, -1, -1, -1)
    batch["T_sources_target"] = torch.eye(4).double().expand(1, 2, 4, 4)
    for factor in (0.5, 1.0, 2.0):
        assert loss(batch, batch["depth"] * factor, PLAIN) < 1e-9
    # If the pose is wrong, the automask leaves out the pixels that did not move.
    batch["T_sources_target"] = batch["T_sources_target"].clone()
    batch["T_sources_target"][..., 0, 3] = 0.2
    assert loss(batch, batch["depth"], PLAIN) > 0.01
    assert loss(batch, batch["depth"], GeometricConfig()) < 1e-6


def test_projection_agrees_with_the_renderer_to_numerical_tolerance(walks: Triplets) -> None:
    """Inverse depth is linear in the pixels of a plane, so that bilinear sampling of it is exact:
    with exact depth and pose the sample of the source equals the inverse of the target point's z,
    except at occlusions and edges.
    """
    for k in range(len(walks)):
        batch = tensors(walks[k])
        for s, view in enumerate(walks[k].sources):
            pose = batch["T_sources_target"][:, s]
            pixels, z = photometric.project(
                batch["depth"], batch["K_target"], batch["K_sources"][:, s], pose
            )
            sampled = photometric.sample(
                1 / torch.from_numpy(view.depth)[None, None].double(), pixels
            )
            _, inside = photometric.warp(
                batch["sources"][:, s], batch["depth"], batch["K_target"],
                batch["K_sources"][:, s], pose,
            )  # fmt: skip
            assert inside.float().mean() > 0.5
            away = ((sampled * z - 1).abs())[inside]
            # The renderer computes in float32; the other pixels are on round objects and edges.
            assert float(away.quantile(0.5)) < 2e-5


def test_exact_depth_and_pose_cost_nothing_on_surfaces_that_can_be_interpolated() -> None:
    """A room is painted with a smooth function of position: the remaining error is that of bilinear
    interpolation, and with pixels of half the size it is a quarter.
    """
    errors = []
    for size in (1, 2):
        cfg = SequenceConfig(scenes=1, views=3, walk=160, seed=4)
        triplet = open_triplets(cfg, 48 * size, 64 * size, need_poses=True)[0]
        batch = tensors(triplet)

        def paint(depth: torch.Tensor, K: torch.Tensor, T_world_camera: np.ndarray) -> torch.Tensor:
            height, width = depth.shape[2:]
            v, u = torch.meshgrid(
                torch.arange(height).double(), torch.arange(width).double(), indexing="ij"
            )
            pixels = torch.stack([u, v, torch.ones_like(u)]).view(3, -1)
            points = torch.linalg.solve(K[0], pixels) * depth.view(1, -1)
            pose = torch.from_numpy(T_world_camera)
            world = pose[:3, :3] @ points + pose[:3, 3:]
            return (0.5 + 0.3 * torch.sin(1.5 * world)).view(1, 3, height, width)

        batch["target"] = paint(batch["depth"], batch["K_target"], triplet.target.T_world_camera)
        batch["sources"] = torch.stack(
            [
                paint(torch.from_numpy(view.depth)[None, None].double(),
                      torch.from_numpy(view.K)[None], view.T_world_camera)
                for view in triplet.sources
            ],
            1,
        )  # fmt: skip
        error, counts = photometric.reprojection(
            batch["depth"], batch["target"], batch["sources"], batch["K_target"],
            batch["K_sources"], batch["T_sources_target"], GeometricConfig(ssim=0, automask=False),
        )  # fmt: skip
        errors.append(float(error[counts].median()))
    assert errors[0] < 5e-4
    assert errors[1] < errors[0] / 2.5


def test_wrong_depth_pose_or_intrinsics_cost_more_than_the_truth(walks: Triplets) -> None:
    for k in range(len(walks)):
        batch = tensors(walks[k])
        truth = loss(batch, batch["depth"], PLAIN)
        assert truth < 0.03
        for factor in (0.7, 1.4):
            assert loss(batch, batch["depth"] * factor, PLAIN) > 1.2 * truth
        zoomed = {**batch, "K_target": batch["K_target"] * torch.tensor([[1.2], [1.2], [1.0]])}
        assert loss(zoomed, batch["depth"], PLAIN) > 1.2 * truth
        still = {**batch, "T_sources_target": torch.eye(4).double().expand(1, 2, 4, 4)}
        assert loss(still, batch["depth"], PLAIN) > 1.2 * truth


def test_the_gradient_leads_to_the_true_scale_of_depth(walks: Triplets) -> None:
    batch = tensors(walks[0])
    names = ("target", "sources", "K_target", "K_sources", "T_sources_target")
    for start, towards in ((0.9, -1), (1.12, 1)):
        scale = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        cost = photometric.geometric_loss(
            [batch["depth"] * scale], *(batch[name] for name in names), PLAIN
        )["loss"]
        (slope,) = torch.autograd.grad(cost, scale)
        assert math.copysign(1, float(slope)) == towards


def test_the_minimum_over_frames_ignores_the_frame_that_does_not_see(walks: Triplets) -> None:
    batch = tensors(walks[0])
    good = loss(batch, batch["depth"], PLAIN)
    batch["sources"] = batch["sources"].clone()
    batch["sources"][:, 1] = 0.0  # one neighbour is black
    assert loss(batch, batch["depth"], PLAIN) < 2 * good + 0.01
    assert loss(batch, batch["depth"], GeometricConfig(automask=False, minimum=False)) > 3 * good


def test_coarser_scales_are_compared_at_full_size_and_smooth_at_their_own(walks: Triplets) -> None:
    batch = tensors(walks[0])
    names = ("target", "sources", "K_target", "K_sources", "T_sources_target")
    rest = [batch[name] for name in names]
    plane = torch.full_like(batch["depth"], 2.0)
    coarse = plane[..., ::2, ::2]
    one, both = (
        photometric.geometric_loss(maps, *rest, PLAIN) for maps in ([plane], [plane, coarse])
    )
    torch.testing.assert_close(one["photometric"], both["photometric"])
    ramp = 1 / torch.linspace(0.2, 1, 128).double().expand(1, 1, 96, 128)
    fine, half = (photometric.smoothness(1 / m, batch["target"][..., ::k, ::k])
                  for m, k in ((ramp, 1), (ramp[..., ::2, ::2], 2)))  # fmt: skip
    smooth = photometric.geometric_loss([ramp, ramp[..., ::2, ::2]], *rest, PLAIN)["smooth"]
    # At half the size a step is twice as large and has half the weight; the image is averaged.
    assert float(smooth) == pytest.approx(float(fine + half / 2) / 2, rel=0.05)
    with pytest.raises(ValueError, match="at least one scale"):
        photometric.geometric_loss([], *rest, PLAIN)


def test_similarity_and_photometric_error() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 16, 20, generator=generator)
    assert float(photometric.dissimilarity(a, a).max()) < 1e-6
    torch.testing.assert_close(photometric.dissimilarity(a, b), photometric.dissimilarity(b, a))
    assert float(photometric.photometric(a, a).max()) < 1e-6
    torch.testing.assert_close(
        photometric.photometric(a, b, ssim=0.0), (a - b).abs().mean(1, keepdim=True)
    )
    flat, bright = (torch.full((1, 3, 8, 8), v).double() for v in (0.2, 0.6))
    # Constant windows: SSIM is (2 m n + c1) / (m^2 + n^2 + c1).
    expected = (1 - (0.24 + 1e-4) / (0.4 + 1e-4)) / 2
    assert float(photometric.dissimilarity(flat, bright).mean()) == pytest.approx(
        expected, rel=1e-5
    )


def test_smoothness_is_free_of_scale_and_cheap_at_edges() -> None:
    disparity = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(1)) + 0.5
    grey = torch.full((1, 3, 12, 12), 0.5)
    plain = photometric.smoothness(disparity, grey)
    torch.testing.assert_close(photometric.smoothness(3 * disparity, grey), plain)
    step = torch.ones(1, 1, 12, 12)
    step[..., 6:] = 2.0
    edge = grey.clone()
    edge[..., 6:] = 1.0
    assert float(photometric.smoothness(step, edge)) < float(photometric.smoothness(step, grey))
    assert float(photometric.smoothness(torch.ones(1, 1, 8, 8), grey[..., :8, :8])) == 0


def test_silog_golden_values() -> None:
    p, g = (torch.tensor(x).view(1, 1, 1, 3).double() for x in ([1.0, 2.0, 4.0], [1.1, 1.9, 4.4]))
    mask = torch.ones_like(p, dtype=torch.bool)
    assert float(photometric.silog(p, g, mask)) == pytest.approx(0.0765152, abs=1e-6)
    assert 100 * float(photometric.silog(p, g, mask, 1.0)) == pytest.approx(6.910954, abs=1e-4)
    x = p.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(photometric.silog(x, g, ~mask), x)
    assert float(slope.abs().max()) == 0
    poisoned = g.clone()
    poisoned[..., 0] = torch.nan
    mask[..., 0] = False
    assert torch.isfinite(photometric.silog(p, poisoned, mask))


def test_bounded_depth_keeps_its_bounds() -> None:
    raw = torch.tensor([-100.0, 0.0, 100.0])
    depth = photometric.bounded_depth(raw, 0.1, 100.0)
    assert float(depth[0]) == pytest.approx(100.0)
    assert float(depth[2]) == pytest.approx(0.1)
    assert float(depth[1]) == pytest.approx(2 / (10 + 0.01))
    with pytest.raises(config.ConfigError, match="greater than near"):
        GeometricConfig(near=2.0, far=1.0)


def test_rotations_are_rotations_and_the_pose_network_starts_near_the_identity() -> None:
    turn = photometric.rotation_matrix(torch.tensor([[0.0, 0.0, math.pi / 2]]).double())[0]
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0.0, 0.0]).double(),
                               torch.tensor([0.0, 1.0, 0.0]).double())  # fmt: skip
    torch.manual_seed(0)
    network = photometric.PoseNetwork((8, 16, 16))
    a, b = torch.rand(2, 2, 3, 32, 48)
    pose = network(a, b)
    assert pose.shape == (2, 4, 4)
    torch.testing.assert_close(pose[:, :3, :3] @ pose[:, :3, :3].mT, torch.eye(3).expand(2, 3, 3))
    assert float((pose - torch.eye(4)).abs().max().detach()) < 0.05
