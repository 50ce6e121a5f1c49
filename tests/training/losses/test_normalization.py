# SPDX-License-Identifier: Apache-2.0
"""Normalisation over contexts against values computed by hand and by plain loops."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from tests.helpers.golden import STUDENT, TEACHER, as_map, everywhere
from training.losses.normalization import (
    EPS,
    FEW,
    bins,
    layers,
    normalise,
    normalised_by,
    statistics,
    worthwhile,
)


def test_normalise_golden() -> None:
    teacher, student = as_map(TEACHER), as_map(STUDENT)
    normalised = normalise(teacher, everywhere(teacher)).flatten().tolist()
    assert normalised == pytest.approx([-0.9090909, -0.4545455, 0, 0.4545455, 3.1818182], abs=1e-5)
    normalised = normalise(student, everywhere(student)).flatten().tolist()
    assert normalised == pytest.approx([-0.5, -0.5, 0, 1, 3], abs=1e-5)


def test_statistics_golden() -> None:
    for values, deviation in ((TEACHER, 2.2), (STUDENT, 2.0)):
        median, spread, count = statistics(as_map(values), everywhere(as_map(values)))
        assert (float(median[0, 1]), float(spread[0, 1])) == pytest.approx((3.0, deviation))
        assert int(count[0, 1]) == 5


@pytest.mark.parametrize("count", [1, 40])
def test_the_deviation_may_be_the_median_one(count: int) -> None:
    """1, 2, 3, 4, 10 are 2, 1, 0, 1, 7 away from their median 3: mean 2.2, median 1."""
    values = as_map([1.0, 2.0, 3.0, 4.0, 10.0] * count)
    contexts = torch.arange(1, count + 1).repeat_interleave(5).view_as(values)
    both = [statistics(values, contexts, kind) for kind in ("mean", "median")]
    for (median, spread, _), expected in zip(both, (2.2, 1.0), strict=True):
        assert median[0, 1:].tolist() == [3.0] * count
        assert spread[0, 1:].tolist() == pytest.approx([expected] * count)
    scaled = normalise(values, contexts, "median").flatten()[:5]
    assert scaled.tolist() == pytest.approx([-2, -1, 0, 1, 7], rel=1e-4)


@pytest.mark.parametrize("count", [1, 4, FEW + 3])  # selected one by one, and sorted
def test_all_contexts_at_once_equal_one_by_one(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 1, 9, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, count + 1, (3, 1, 9, 7), generator=generator)
    normalised = normalise(values, labels)
    assert torch.equal(normalised[labels == 0], torch.zeros_like(normalised[labels == 0]))
    for image in range(3):
        for label in range(1, count + 1):
            inside = labels[image] == label
            own = values[image][inside]
            centred = own - own.median()
            expected = centred / (centred.abs().mean() + 1e-6)
            torch.testing.assert_close(normalised[image][inside], expected)


def test_values_outside_do_not_matter_and_get_no_gradient() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, float("nan"), 100.0]).view(1, 1, 1, 5)
    values.requires_grad_(True)
    mask = torch.tensor([1, 1, 1, 0, 0], dtype=torch.bool).view(1, 1, 1, 5)
    normalised = normalise(values, mask)
    assert normalised.flatten().tolist() == pytest.approx([-1, 0, 2, 0, 0], abs=1e-5)
    (gradient,) = torch.autograd.grad((normalised**2).sum(), values)
    assert torch.isfinite(gradient).all()
    assert gradient.flatten()[3:].tolist() == [0, 0]


def test_a_flat_or_single_context_becomes_zero_with_a_finite_gradient() -> None:
    values = torch.tensor([5.0, 5.0, 5.0, 7.0]).view(1, 1, 1, 4).requires_grad_(True)
    labels = torch.tensor([1, 1, 1, 2]).view(1, 1, 1, 4)
    normalised = normalise(values, labels)
    assert normalised.flatten().tolist() == [0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(normalised.abs().sum(), values)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) <= 10


def test_half_precision_is_computed_in_float32() -> None:
    values = torch.linspace(1000, 1001, 64).view(1, 1, 8, 8)
    normalised = normalise(values.to(torch.bfloat16), everywhere(values))
    assert normalised.dtype == torch.float32


def test_layers_hold_every_valid_pixel_once_each() -> None:
    teacher = torch.rand(2, 1, 7, 9, generator=torch.Generator().manual_seed(0))
    mask = teacher > 0.1
    contexts = layers(teacher, mask, "hybrid")
    assert contexts.shape == (2, 3, 7, 9)
    assert torch.equal(contexts > 0, mask.expand(2, 3, 7, 9))
    assert [int(contexts[:, k].max()) for k in range(3)] == [1, 2, 4]
    assert layers(teacher, mask, "local").shape[1] == 1


def test_the_largest_value_lies_in_the_last_bin() -> None:
    """In the published code of hierarchical normalisation it lies in no bin."""
    teacher = as_map(TEACHER)
    assert bins(teacher, everywhere(teacher), 2).flatten().tolist() == [1, 1, 1, 1, 2]
    assert bins(teacher, everywhere(teacher), 4).flatten().tolist() == [1, 1, 1, 2, 4]


def test_unknown_normalisation_is_refused() -> None:
    teacher = as_map(TEACHER)
    with pytest.raises(ValueError, match="globl"):
        layers(teacher, everywhere(teacher), "globl")


def test_small_and_flat_contexts_are_dropped() -> None:
    teacher = torch.zeros(1, 1, 20, 30)
    teacher[..., 10:, :] = torch.linspace(0, 1, 30)
    contexts = torch.zeros(1, 2, 20, 30, dtype=torch.long)
    contexts[:, 0, :10] = 1  # flat
    contexts[:, 0, 10:] = 2
    contexts[:, 1, 12:14, :4] = 1  # eight pixels
    filtered = worthwhile(contexts, teacher, everywhere(teacher), least_px=50)
    assert filtered[0, 0].unique().tolist() == [0, 2]
    assert filtered[0, 1].max() == 0
    assert worthwhile(contexts, teacher, everywhere(teacher), least_px=8)[0, 1].max() == 1


def test_nothing_valid_gives_zeros() -> None:
    values = torch.full((2, 1, 3, 3), float("nan"))
    mask = torch.zeros(2, 1, 3, 3, dtype=torch.bool)
    assert torch.equal(normalise(values, mask), torch.zeros(2, 1, 3, 3))
    assert worthwhile(mask.long(), values, mask).max() == 0


def test_a_part_of_the_map_may_give_median_and_deviation() -> None:
    values = torch.tensor([[[[1.0, 2.0, 3.0, 100.0]]]])
    mask = torch.ones_like(values, dtype=torch.bool)
    part = values < 50
    found = normalised_by(values, mask, part)
    torch.testing.assert_close(found, (values - 2.0) / (2.0 / 3.0 + EPS))
    none = torch.zeros_like(part)
    torch.testing.assert_close(normalised_by(values, mask, none), normalise(values, mask))
    torch.testing.assert_close(normalised_by(values, part, part)[~part], torch.zeros(1))
