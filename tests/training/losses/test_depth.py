# SPDX-License-Identifier: Apache-2.0
"""Losses and normalisation against values computed by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

import numpy as np

from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from tests.helpers.golden import STUDENT, TEACHER, as_map, everywhere
from training.evaluation import protocols
from training.losses import depth as losses_depth
from training.losses.depth import (
    context_l1,
    dead_outputs,
    drift,
    feature_alignment,
    gradient_matching,
    gradient_preservation,
    masked_l1,
    normalised_l1,
    ordinal,
    product_norm,
    scale_anchor,
)
from training.losses.normalization import normalise
from training.recipes.supervised import LossConfig, disparity_loss


def test_global_loss_golden() -> None:
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    loss = normalised_l1(student, teacher, everywhere(teacher), "global")
    assert float(loss) == pytest.approx(0.2363636, abs=1e-5)


def test_hybrid_loss_by_hand() -> None:
    """Seven contexts, three per pixel; the median of {1, 2, 3, 4} is the lower middle, 2.

    Level of one bin: |N| sums to 1.1818182. Two bins: teacher {1,2,3,4} is (-1,0,1,2)/1, student
    {2,2,3,5} is (0,0,1,3)/1: differences 1, 0, 0, 1. Four bins {1,2,3}: teacher (-1,0,1)/(2/3),
    student (0,0,1)/(1/3): differences 1.5, 0, 1.5. Singletons give 0.
    """
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    loss = normalised_l1(student, teacher, everywhere(teacher), "hybrid")
    assert float(loss) == pytest.approx((1.1818182 + 2.0 + 3.0) / 15, abs=1e-5)
    assert float(loss) == pytest.approx(0.4121212, abs=1e-5)  # the same with NumPy's median


def test_unknown_normalisation_is_refused() -> None:
    teacher = as_map(TEACHER)
    with pytest.raises(ValueError, match="globl"):
        normalised_l1(teacher, teacher, everywhere(teacher), "globl")


def test_an_overlapping_mask_is_one_context_more() -> None:
    """Pixels of the mask have the mean of two normalisations, the others have one."""
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    whole = torch.ones(1, 1, 1, 5, dtype=torch.long)
    part = torch.tensor([0, 1, 1, 1, 0]).view(1, 1, 1, 5)
    loss = context_l1(student, teacher, torch.cat([whole, part], 1), everywhere(teacher))
    over_all = [0.4090909, 0.0454545, 0, 0.5454545, 0.1818182]
    # {2, 3, 4} is (-1, 0, 1) / (2 / 3), {2, 3, 5} is (-1, 0, 2) / 1.
    over_part = [0.0, 0.5, 0.0, 0.5, 0.0]
    expected = [
        (a + b) / 2 if 0 < k < 4 else a
        for k, (a, b) in enumerate(zip(over_all, over_part, strict=True))
    ]
    assert float(loss) == pytest.approx(sum(expected) / 5, abs=1e-5)


def test_a_context_where_the_teacher_is_flat_says_nothing() -> None:
    teacher, student = as_map([1.0, 1.0, 1.0, 5.0]), as_map([1.0, 2.0, 3.0, 4.0])
    contexts = torch.tensor([1, 1, 1, 2]).view(1, 1, 1, 4)
    assert float(context_l1(student, teacher, contexts, everywhere(teacher))) == 0.0


@pytest.mark.parametrize("norm", ["global", "hybrid", "local"])
def test_scale_and_shift_of_the_student_change_nothing(norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    student = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 1, 8, 8, generator=generator) > 0.2
    plain = normalised_l1(student, teacher, mask, norm)
    moved = normalised_l1(7.0 * student - 3.0, teacher, mask, norm)
    assert float(moved) == pytest.approx(float(plain), rel=1e-4)


def test_gradient_matching_golden() -> None:
    residual = torch.zeros(1, 1, 4, 4)
    residual[0, 0, 1, 2] = 3.0
    mask = everywhere(residual)
    assert float(gradient_matching(residual, mask, scales=1)) == pytest.approx(0.75)
    assert float(gradient_matching(residual, mask, scales=2)) == pytest.approx(0.75)


def test_gradient_matching_sees_no_masked_pixel() -> None:
    residual = torch.zeros(1, 1, 6, 6)
    residual[0, 0, 2, 2] = float("nan")
    mask = torch.isfinite(residual)
    assert float(gradient_matching(residual, mask)) == 0.0


@pytest.mark.parametrize("norm", ["none", "global", "hybrid", "local"])
def test_nothing_valid_is_zero_with_a_gradient(norm: str) -> None:
    student = torch.rand(2, 1, 4, 4, requires_grad=True)
    teacher = torch.full((2, 1, 4, 4), float("nan"))
    mask = torch.isfinite(teacher)
    target = torch.where(mask, teacher, torch.zeros_like(teacher))
    residual = student - target
    loss = normalised_l1(student, target, mask, norm) + gradient_matching(residual, mask)
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_weighted_l1_is_the_weighted_mean() -> None:
    residual = as_map([1.0, -3.0, 100.0])
    mask = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    assert float(masked_l1(residual, mask)) == pytest.approx(2.0)
    weight = as_map([3.0, 1.0, 5.0])
    assert float(masked_l1(residual, mask, weight)) == pytest.approx(6.0 / 4.0)


def test_the_true_normalised_disparity_costs_nothing() -> None:
    depth = 1.0 + 4.0 * torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    depth[0, 0, :3] = float("nan")
    mask = torch.isfinite(depth)
    disparity = 1.0 / torch.where(mask, depth, torch.ones_like(depth))
    target = normalise(disparity, mask)
    for cfg in (LossConfig(), LossConfig(norm="hybrid", far=0.0)):
        right = disparity_loss(target, depth, cfg)["loss"]
        wrong = disparity_loss(-target, depth, cfg)["loss"]
        assert float(right) < 1e-5 < float(wrong)


def test_gradient_preservation_knows_neither_scale_nor_shift() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher = torch.rand(2, 1, 12, 12, generator=generator, dtype=torch.float64)
    mask = everywhere(teacher)
    assert float(gradient_preservation(3 * teacher + 2, teacher, mask)) == pytest.approx(
        0, abs=1e-4
    )
    smooth = torch.nn.functional.avg_pool2d(teacher, 3, 1, 1)
    assert float(gradient_preservation(smooth, teacher, mask)) > 1


def test_feature_alignment_tolerates_what_is_alike() -> None:
    teacher = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    student = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.6, 0.8]]], requires_grad=True)
    loss = feature_alignment(student, teacher)  # cos 1 (left out), 0 and 0.6
    assert float(loss.detach()) == pytest.approx((1.0 + 0.4) / 2)
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient[0, 0].tolist() == [0, 0]
    assert float(feature_alignment(2 * teacher, teacher)) == 0


@pytest.mark.parametrize(("agreement", "cost"), [(1.0, 0.3132617), (-1.0, 1.3132617)])
def test_logistic_ordinal_golden(agreement: float, cost: float) -> None:
    for sign in (1.0, -1.0):
        loss = ordinal(torch.tensor([agreement * sign]), torch.tensor([sign]), "logistic")
        assert float(loss) == pytest.approx(cost, abs=1e-6)


def test_margin_ordinal_by_hand() -> None:
    difference = torch.tensor([0.2, 0.02, -0.3, 0.1])
    relation = torch.tensor([1, 1, 1, 0])
    loss = ordinal(difference, relation, "margin", 0.05)
    assert float(loss) == pytest.approx((0 + 0.03 + 0.35 + 0.1) / 4)
    assert float(ordinal(torch.tensor([0.5]), torch.tensor([0]), "logistic")) == 0.25
    with pytest.raises(ValueError, match="margn"):
        ordinal(difference, relation, "margn")


def test_no_pairs_cost_nothing() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    assert float(ordinal(nothing, torch.zeros(0)).detach()) == 0


def test_the_trace_identity_is_the_norm_of_the_product() -> None:
    generator = torch.Generator().manual_seed(4)
    layers = [
        (
            torch.randn(4, 24, generator=generator, dtype=torch.float64, requires_grad=True),
            torch.randn(48, 4, generator=generator, dtype=torch.float64, requires_grad=True),
            scale,
        )
        for scale in (2.0, 0.5)
    ]
    norm = product_norm(layers)
    dense = sum(((scale * b @ a) ** 2).sum() for a, b, scale in layers)
    torch.testing.assert_close(norm, dense)
    a, b, _ = layers[0]
    for one, other in zip(
        torch.autograd.grad(norm, (a, b)), torch.autograd.grad(dense, (a, b)), strict=True
    ):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="LoRA"):
        product_norm([])


def test_drift_is_the_squared_distance() -> None:
    now, source = [torch.ones(2, 2), torch.zeros(3)], [torch.zeros(2, 2), torch.ones(3)]
    assert float(drift(now, source)) == 7


def test_the_scale_anchor_is_zero_at_the_teacher_and_knows_both_drifts() -> None:
    teacher = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double()
    mask = everywhere(teacher)
    assert float(scale_anchor(teacher, teacher, mask)) == pytest.approx(0, abs=1e-9)
    median = teacher.flatten(1).median(1).values.view(2, 1, 1, 1)
    wider = median + torch.e * (teacher - median)
    assert float(scale_anchor(wider, teacher, mask)) == pytest.approx(1, abs=1e-4)
    deviation = (teacher - median).abs().mean(dim=(1, 2, 3), keepdim=True)
    shifted = teacher + 2 * deviation
    assert float(scale_anchor(shifted, teacher, mask)) == pytest.approx(4, abs=1e-3)
    assert float(scale_anchor(teacher, teacher, ~mask)) == 0


def test_a_few_dead_outputs_are_allowed_and_more_are_pulled_up() -> None:
    before = torch.ones(1, 1, 10, 10)
    before[0, 0, 0, :4] = -5.0
    assert float(dead_outputs(before)) == 0
    before[0, 0, :5] = -5.0
    before.requires_grad_(True)
    (gradient,) = torch.autograd.grad(dead_outputs(before), before)
    assert float(gradient.sum()) < 0  # descending the gradient raises the values
    assert float(gradient[0, 0, 5:].abs().max()) == 0


def test_the_relative_error_is_the_one_that_networks_are_judged_by() -> None:
    """It equals AbsRel after disp_ls if no depth is wrong by more than a factor of two."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (2, 1, 12, 16)).astype(np.float32)
    disparity = (3 / depth + 1 + rng.normal(0, 0.05, depth.shape)).astype(np.float32)
    known = rng.random(depth.shape) > 0.2
    loss = losses_depth.relative_error(*(torch.from_numpy(x) for x in (disparity, depth, known)))
    expected = []
    for p, g, m in zip(disparity[:, 0], depth[:, 0], known[:, 0], strict=True):
        prediction = Prediction(p, "disparity_affine_invariant")
        z = protocols.align(prediction, g, m, "disp_ls", protocols.PROTOCOLS["indoor"])
        assert (z / g)[m].max() < 2
        expected.append(evaluate(z, g, m).abs_rel)
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-4)


def test_depths_far_too_far_count_with_their_logarithm() -> None:
    """A constant prediction is fitted to the mean disparity: 0.5, then 0.4."""

    def cost(disparities: list[float]) -> float:
        depth = 1 / torch.tensor(disparities).view(1, 1, 1, -1)
        return float(losses_depth.relative_error(torch.ones_like(depth), depth, depth > 0))

    assert cost([0.8, 0.2]) == pytest.approx((0.6 + 0.6) / 2)  # ratios 1.6 and 0.4
    # The ratios are 2.5, with the cost 1 + 2 ln(2.5 / 2), and twice 0.25.
    assert cost([1.0, 0.1, 0.1]) == pytest.approx((1 + 2 * np.log(1.25) + 0.75 + 0.75) / 3)


def test_nothing_valid_costs_nothing_and_has_a_gradient() -> None:
    prediction = torch.rand(1, 1, 4, 4, requires_grad=True)
    depth = torch.ones(1, 1, 4, 4)
    loss = losses_depth.relative_error(prediction, depth, torch.zeros_like(depth, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert float(loss.detach()) == 0.0 and torch.equal(gradient, torch.zeros_like(gradient))


def edge_maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the depth of a box before a wall, its blurred disparity, and that error elsewhere."""
    depth = torch.full((1, 1, 40, 60), 4.0)
    depth[..., 10:30, 20:40] = 1.5
    disparity = 1.0 / depth
    kernel = torch.ones(1, 1, 5, 5) / 25
    padded = torch.nn.functional.pad(disparity, (2, 2, 2, 2), mode="replicate")
    return depth, disparity, torch.nn.functional.conv2d(padded, kernel)


def test_the_boundary_error_knows_neither_scale_nor_shift_and_sees_a_blur() -> None:
    depth, disparity, blurred = edge_maps()
    everywhere_valid = torch.ones_like(depth, dtype=torch.bool)
    exact = losses_depth.boundary_error(3.0 * disparity - 1.0, depth, everywhere_valid)
    assert float(exact) < 1e-5
    soft = losses_depth.boundary_error(blurred, depth, everywhere_valid)
    flat = losses_depth.boundary_error(
        disparity + 0.02 * torch.linspace(-1, 1, 60), depth, everywhere_valid
    )
    assert float(soft) > 5 * float(flat) > 0


def test_a_step_at_an_edge_weighs_more() -> None:
    depth, _, blurred = edge_maps()
    valid = torch.ones_like(depth, dtype=torch.bool)
    fitted, truth, _ = losses_depth._fitted(blurred, depth, valid)
    steps = [(f.log() - t.log()).abs() for f, t in (
        (fitted[..., 1:] / fitted[..., :-1], truth[..., 1:] / truth[..., :-1]),
        (fitted[..., 1:, :] / fitted[..., :-1, :], truth[..., 1:, :] / truth[..., :-1, :]),
    )]  # fmt: skip
    plain = sum(step.sum() for step in steps) / sum(step.numel() for step in steps)
    weighted = losses_depth.boundary_error(blurred, depth, valid)
    assert float(plain) < float(weighted) < (1 + losses_depth.EDGE_WEIGHT) * float(plain)


def test_sky_is_only_far() -> None:
    ground = torch.linspace(2.0, 60.0, 600).view(1, 1, 20, 30).clone()
    ground[..., :5, :] = 300.0
    valid = torch.ones_like(ground, dtype=torch.bool)
    far = losses_depth.farthest(ground, valid)
    assert float(far) == losses_depth.FARTHEST_OUTDOORS_M
    assert float(losses_depth.farthest(ground.clamp_max(8.0), valid)) == losses_depth.FARTHEST_M
    other = ground.clone()
    other[..., :5, :] = 5000.0
    for loss in (losses_depth.relative_error, losses_depth.boundary_error):
        guess = 1.0 / (ground + 3.0)
        torch.testing.assert_close(loss(guess, ground, valid), loss(guess, other, valid))
