# SPDX-License-Identifier: Apache-2.0
"""The studies of MeSa and DepthMaster: a step of a few variants, their tables, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("diffusers", reason="the diffusion teacher needs diffusers")
from depth_node import config
from training import checkpoints
from training.__main__ import main
from training.models import alignment
from training.models.networks import NetworkConfig, open_dino
from training.recipes import depthmaster
from training.studies import common, mesa
from training.studies import depthmaster as study


@pytest.fixture(autouse=True)
def _a_step_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten every run to one step of two images, with the smallest networks."""
    for base in (mesa.MESA_BASE, study.MASTER_BASE, study.STUDENT_BASE):
        monkeypatch.setitem(base["loop"], "batch", 2)
        monkeypatch.setitem(base["loop"], "steps", 1)
    for changes in (
        study.AUTOENCODER,
        study.STAND_IN,
        study.LATER,
    ):
        monkeypatch.setitem(changes, "loop.steps", 1)
    monkeypatch.setattr(mesa, "TUNE_STEPS", 1)
    monkeypatch.setitem(study.STAND_IN, "loop.batch", 2)
    for variant in study.MASTER:
        if variant.settings and "loop.steps" in variant.settings:
            monkeypatch.setitem(variant.settings, "loop.steps", 1)
    monkeypatch.setitem(study.FINER_AUTOENCODER, "loop.steps", 1)
    widths = {"unet_widths": [8, 8], "vae_widths": [8, 8, 8]}
    monkeypatch.setitem(study.MASTER_BASE, "diffusion", widths)


@pytest.mark.parametrize(
    ("case", "names", "gate"),
    [
        (
            "mesa",
            ["masked", "fine-tuning alone", "mean map"],
            "'masked' is at most 0.75 of 'mean map'",
        ),
        ("spaces", ["sqrt-disparity", *study.THROUGH, "plane"], "'sqrt-disparity' is at most 0.75"),
        (
            "depthmaster",
            [
                "sqrt-disparity",
                "both stages, aligned",
                study.WHOLE,
                study.FINER,
                *study.PACKAGED_ROWS,
            ],
            "'both stages' is at least 0.5",
        ),
        (
            "assistant",
            ["with the diffusion assistant", *study.TEACHERS, "plane"],
            "'the embedded network itself' is at most 0.6 of 'plane'",
        ),
    ],
)
def test_a_study_says_which_gate_failed_and_repeats_nothing(
    case: str,
    names: list[str],
    gate: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["study", case, "--out", str(tmp_path), "--rooms", "1", "--images", "3", "--only"]
    assert main([*words, *names]) == 0
    printed = capsys.readouterr().out
    assert gate in printed and "No table" in printed
    assert len(list(tmp_path.rglob("scores/*.json"))) == len(names)
    runs = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("runs/*"))
    assert main([*words, *names]) == 0
    assert runs == sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("runs/*"))
    assert printed == capsys.readouterr().out


def test_the_stand_in_is_what_the_alignment_opens(tmp_path: Path) -> None:
    """The encoder trained by the masked term opens as a DINOv2, and its patches fit the study."""
    learn = common.pool(tmp_path, "learn", 3, "room", 1, (54, 72))
    made = study.stand_in(tmp_path, learn)
    weights = checkpoints.read(tmp_path / "runs" / "encoder")["averaged"]
    dino = open_dino(NetworkConfig(kind="debug", source=str(made)))
    name = "encoder.layer.0.norm1.weight"
    assert torch.equal(dino.network.state_dict()[name], weights[f"network.backbone.{name}"])
    size = alignment.external_size(*study.MASTER_SIZE.values(), dino.spec.multiple_px)
    assert size == (study.STAND_IN["height"], study.STAND_IN["width"])


def test_every_variant_resolves_and_changes_something() -> None:
    """Every setting exists, and no two rows have the same settings."""
    settings = []
    for variant in study.MASTER:
        cfg = config.build(depthmaster.Config, study.MASTER_BASE)
        settings.append(config.to_dict(config.replace(cfg, dict(variant.settings or {}))))
    assert all(a != b for k, a in enumerate(settings) for b in settings[:k])
    names = [variant.name for variant in study.MASTER]
    starts = {(v.settings or {}).get("start", names[0]) for v in study.MASTER}
    assert starts <= set(names) and study.ASSISTANT in names
