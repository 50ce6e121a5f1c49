# SPDX-License-Identifier: Apache-2.0
"""Teachers of every kind give disparity through one interface."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node.engine import opening, options
from depth_node.inference import DepthModel, ModelConfig
from training.checkpoints import TrainingError
from training.models.network_io import NetworkInput
from training.models.networks import NetworkConfig
from training.models.teachers import NetworkTeacher, TeacherConfig, ask, fingerprint, open_teacher


class Fixed:
    """A teacher that always gives the same map."""

    name, revision = "fixed", "1"

    def __init__(self, kind: str, values: torch.Tensor) -> None:
        self.kind, self.values = kind, values

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.values


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("disparity_affine_invariant", [3.0, 0.0, -1.0], [3.0, 0.0, -1.0]),
        ("depth_affine_invariant", [2.0, 4.0, 0.5], [0.5, 0.25, 2.0]),
        ("depth_metric", [2.0, 4.0, float("nan")], [0.5, 0.25, 0.0]),
        ("log_depth_affine_invariant", [0.0, 0.0, float("inf")], [1.0, 1.0, 0.0]),
    ],
)
def test_whatever_a_teacher_means_becomes_disparity(
    kind: str, values: list[float], expected: list[float]
) -> None:
    teacher = Fixed(kind, torch.tensor(values).view(1, 1, 1, 3))
    disparity, known = ask(teacher, torch.rand(1, 3, 1, 3))
    assert disparity.flatten().tolist() == pytest.approx(expected)
    assert known.flatten().tolist() == [bool(np.isfinite(v)) for v in values]


def test_an_answer_of_another_size_is_refused() -> None:
    with pytest.raises(TrainingError, match="one map of their size"):
        ask(Fixed("depth_metric", torch.ones(1, 1, 2, 2)), torch.rand(1, 3, 4, 4))


def test_a_network_teaches_at_any_size_and_repeats() -> None:
    cfg = TeacherConfig(network=NetworkConfig(kind="debug"), seed=3)
    before = torch.random.get_rng_state()
    teacher = open_teacher(cfg)
    assert torch.equal(before, torch.random.get_rng_state())
    images = torch.rand(2, 3, 60, 80)
    disparity, known = ask(teacher, images)
    assert disparity.shape == (2, 1, 60, 80)
    assert known.all()
    again = open_teacher(cfg)
    assert again.revision == teacher.revision
    assert torch.equal(ask(again, images)[0], disparity)
    other = open_teacher(TeacherConfig(network=NetworkConfig(kind="debug"), seed=4))
    assert other.revision != teacher.revision
    fixed = open_teacher(
        TeacherConfig(network=NetworkConfig(kind="debug"), seed=3, height=28, width=28)
    )
    assert ask(fixed, images)[0].shape == (2, 1, 60, 80)


class Ramp(torch.nn.Module):
    """A network whose affine depth is the red channel."""

    spec = NetworkInput((0.0,) * 3, (1.0,) * 3, 8)
    meaning = "depth_affine_invariant"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]


def test_affine_depth_gets_a_shift_before_it_is_inverted() -> None:
    """The nearest affine depth is 0, and its inverse would be far above all other values."""
    images = torch.linspace(0, 1, 16).expand(1, 3, 8, 16)
    disparity, known = ask(NetworkTeacher(Ramp(), "ramp", shift=0.1), images)
    torch.testing.assert_close(disparity, 1 / (images[:, :1] + 0.1))
    assert known.all()
    plain, _ = ask(NetworkTeacher(Ramp(), "ramp"), images)
    assert float(plain.max()) > 5 * float(disparity.max())
    revisions = {NetworkTeacher(Ramp(), "ramp", shift=s).revision for s in (0.0, 0.1, 0.2)}
    assert len(revisions) == 3, "kept answers of another shift are not mistaken for these"


def test_an_engine_teaches_as_it_runs_on_the_robot() -> None:
    teacher = open_teacher(TeacherConfig(source="engine", path="embedded"))
    image = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    disparity, known = ask(teacher, torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    with DepthModel.open(ModelConfig(threads=1)) as model:
        expected = model.predict(image).disparity()
    np.testing.assert_allclose(disparity[0, 0].numpy(), expected, rtol=1e-5)
    assert known.all()


def test_an_engine_is_the_reference_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "AUTO", ("tensorrt",))  # as on a robot with a GPU
    assert open_teacher(TeacherConfig(source="engine")).model.engine.backend == options.REFERENCE
    with pytest.raises(TrainingError, match=r"cannot be opened: .*no-such"):
        open_teacher(TeacherConfig(source="engine", backend="no-such"))


def test_an_engine_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be opened"):
        open_teacher(TeacherConfig(source="engine", path=str(tmp_path / "no.onnx")))


def test_the_fingerprint_knows_every_weight() -> None:
    network = torch.nn.Linear(3, 2)
    before = fingerprint(network)
    assert fingerprint(network) == before
    with torch.no_grad():
        network.bias[1] += 1e-3
    assert fingerprint(network) != before


def test_the_revision_changes_with_all_that_maps_depend_on() -> None:
    """It names cached maps: those of another working size or meaning must not be read."""
    nearer = Ramp()
    nearer.meaning = "disparity_affine_invariant"
    teachers = (
        NetworkTeacher(Ramp(), "ramp"),
        NetworkTeacher(Ramp(), "ramp", (8, 8)),
        NetworkTeacher(Ramp(), "ramp", (8, 16)),
        NetworkTeacher(nearer, "ramp"),
    )
    assert len({teacher.revision for teacher in teachers}) == len(teachers)
    assert NetworkTeacher(nearer, "ramp").revision == fingerprint(nearer), "as existing caches have"
