# SPDX-License-Identifier: Apache-2.0
"""Losses and normalisation against values computed by hand."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from training.losses import gradient_matching, masked_l1, normalised_l1  # noqa: E402
from training.normalization import contexts, normalise  # noqa: E402
from training.recipes.supervised import LossConfig, disparity_loss  # noqa: E402

TEACHER = [1.0, 2.0, 3.0, 4.0, 10.0]
STUDENT = [2.0, 2.0, 3.0, 5.0, 9.0]


def as_map(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def everywhere(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def test_normalise_golden() -> None:
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    found = normalise(teacher, everywhere(teacher)).flatten().tolist()
    assert found == pytest.approx([-0.9090909, -0.4545455, 0, 0.4545455, 3.1818182], abs=1e-5)
    found = normalise(student, everywhere(student)).flatten().tolist()
    assert found == pytest.approx([-0.5, -0.5, 0, 1, 3], abs=1e-5)


def test_global_loss_golden() -> None:
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    found = normalised_l1(student, teacher, everywhere(teacher), "global")
    assert float(found) == pytest.approx(0.2363636, abs=1e-5)


def test_hybrid_loss_by_hand() -> None:
    """Seven contexts, three per pixel; {1, 2, 3, 4} has the lower middle 2 as its median.

    Level of one bin: |N| sums to 1.1818182. Two bins: teacher {1,2,3,4} is (-1,0,1,2)/1, student
    {2,2,3,5} is (0,0,1,3)/1: differences 1, 0, 0, 1. Four bins {1,2,3}: teacher (-1,0,1)/(2/3),
    student (0,0,1)/(1/3): differences 1.5, 0, 1.5. Singletons give 0.
    """
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    found = normalised_l1(student, teacher, everywhere(teacher), "hybrid")
    assert float(found) == pytest.approx((1.1818182 + 2.0 + 3.0) / 15, abs=1e-5)


def test_contexts_hold_every_valid_pixel_once_per_level() -> None:
    teacher = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    mask = teacher > 0.1
    sets = contexts(teacher, mask, "hybrid")
    assert len(sets) == 7
    counts = torch.stack(sets).sum(dim=0)
    assert torch.equal(counts, 3 * mask)


def test_unknown_normalisation_is_refused() -> None:
    teacher = as_map(TEACHER)
    with pytest.raises(ValueError, match="globl"):
        contexts(teacher, everywhere(teacher), "globl")


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
