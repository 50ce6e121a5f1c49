# SPDX-License-Identifier: Apache-2.0
"""The recipe supervised: what it minimises near the end, and students that grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.metrics import evaluate
from depth_node.prediction import Prediction
from training.checkpoints import TrainingError
from training.evaluation import protocols
from training.losses import depth as losses_depth
from training.models.unet import SmallUNet, StudentConfig
from training.recipes import supervised

SMALL = StudentConfig(widths=(4, 6, 8, 8, 8), depths=(0, 1, 1, 1, 1), decoder=(8, 6, 6, 4))


def test_the_relative_error_is_the_one_that_networks_are_judged_by() -> None:
    """AbsRel after disp_ls, where no depth is wrong by more than a factor of two."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (2, 1, 12, 16)).astype(np.float32)
    disparity = (3 / depth + 1 + rng.normal(0, 0.05, depth.shape)).astype(np.float32)
    known = rng.random(depth.shape) > 0.2
    found = losses_depth.relative_error(*(torch.from_numpy(x) for x in (disparity, depth, known)))
    expected = []
    for p, g, m in zip(disparity[:, 0], depth[:, 0], known[:, 0], strict=True):
        prediction = Prediction(p, "disparity_affine_invariant")
        z = protocols.align(prediction, g, m, "disp_ls", protocols.PROTOCOLS["indoor"])
        assert (z / g)[m].max() < 2
        expected.append(evaluate(z, g, m).abs_rel)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


def test_depths_far_too_far_count_with_their_logarithm() -> None:
    """A flat prediction is fitted by the mean disparity: 0.5, then 0.4."""

    def cost(disparities: list[float]) -> float:
        depth = 1 / torch.tensor(disparities).view(1, 1, 1, -1)
        return float(losses_depth.relative_error(torch.ones_like(depth), depth, depth > 0))

    assert cost([0.8, 0.2]) == pytest.approx((0.6 + 0.6) / 2)  # ratios 1.6 and 0.4
    # Ratios 2.5, which costs 1 + 2 ln(2.5 / 2), and twice 0.25.
    assert cost([1.0, 0.1, 0.1]) == pytest.approx((1 + 2 * np.log(1.25) + 0.75 + 0.75) / 3)


def test_nothing_valid_costs_nothing_and_has_a_gradient() -> None:
    prediction = torch.rand(1, 1, 4, 4, requires_grad=True)
    depth = torch.ones(1, 1, 4, 4)
    found = losses_depth.relative_error(
        prediction, depth, torch.zeros_like(depth, dtype=torch.bool)
    )
    (gradient,) = torch.autograd.grad(found, prediction)
    assert float(found.detach()) == 0.0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_a_grown_student_begins_as_the_smaller_one() -> None:
    torch.manual_seed(0)
    small = SmallUNet(SMALL)
    small.train()(torch.randn(2, 3, 64, 96))
    large = SmallUNet(StudentConfig(SMALL.widths, (1, 1, 3, 2, 1), SMALL.decoder))
    large.load_state_dict(supervised.with_new_blocks(large, small.state_dict()))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(large.eval()(x), small.eval()(x))
    large.train()
    parameters = dict(large.named_parameters())
    scale = parameters["stages.2.2.body.1.1.weight"]
    (gradient,) = torch.autograd.grad(large(x).square().sum(), scale)
    assert float(gradient.abs().max()) > 0


def test_a_run_starts_from_a_smaller_student_and_refuses_another_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weights = tmp_path / "small.safetensors"
    torch.manual_seed(0)
    save_file(SmallUNet(SMALL).state_dict(), str(weights))
    grown = StudentConfig(SMALL.widths, (0, 1, 2, 1, 1), SMALL.decoder)
    cfg = supervised.Config(student=grown, start=str(weights))
    model = supervised.Supervised(cfg, []).model()
    assert len(model.stages[2]) == 2
    wider = StudentConfig((4, 6, 8, 8, 16), SMALL.depths, SMALL.decoder)
    cfg = supervised.Config(student=wider, start=str(weights))
    with pytest.raises(TrainingError, match="another network"):
        supervised.Supervised(cfg, []).model()
