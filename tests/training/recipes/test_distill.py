# SPDX-License-Identifier: Apache-2.0
"""Distill Any Depth: its contexts, its teachers, its switches, and that a student follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from rich.console import Console

from depth_node import config
from training import loop
from training.batch_images import TITLE_PX
from training.data.augmentation import Window
from training.data.samples import Sample
from training.losses.depth import normalised_l1
from training.models.lora import fresh_decoder
from training.models.networks import NetworkConfig, open_network, open_run, open_student
from training.recipes import distill
from training.recipes.distill import Distill, agreed, parts_of

CONFIG = REPO / "training" / "configs" / "distill_debug.yaml"
SIZE = (90, 120)


class Red:
    """A teacher whose disparity is the red channel, so that the map shows what it saw."""

    kind = "disparity_affine_invariant"

    def __init__(self, name: str = "red", scale: float = 1.0) -> None:
        self.name, self.revision, self.scale, self.asked = name, "1", scale, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += len(images)
        return images[:, :1] * self.scale


def samples(count: int = 3) -> list[Sample]:
    """Images whose red channel is smooth and whose others are noise."""
    out = []
    for k in range(count):
        rng = np.random.default_rng(k)
        y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
        image = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        image[..., 0] = 127 + 60 * np.sin(x / 20 + k) + 60 * y / SIZE[0]
        out.append(Sample(f"{k}.png", image))
    return out


def settings(*overrides: str) -> distill.Config:
    return config.load(distill.Config, CONFIG, list(overrides))


def recipe(*overrides: str) -> Distill:
    torch.manual_seed(0)
    return Distill(settings(*overrides), samples(), [Red(), Red("assistant", 0.1)])


def terms(made: Distill, step: int = 0) -> dict[str, float]:
    torch.manual_seed(0)
    model = made.model()
    scalars = made.loss(model, made.batch(step, (0, 1)), None)
    return {name: float(value.detach()) for name, value in scalars.items()}


def test_the_debug_config_runs_and_opens(tmp_path: Path) -> None:
    made = distill.build(settings("images.limit=2", "loop.steps=2"), Console(quiet=True))
    state = loop.run(made, made.cfg.loop, tmp_path, config.to_dict(made.cfg))
    opened = open_run(tmp_path)
    x = torch.rand(1, 3, 56, 84)
    torch.testing.assert_close(opened(x), state.product(x))
    assert state.product.state_dict().keys() == opened.state_dict().keys()


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> loop.State:
        made = recipe(f"loop.steps={steps}", "loop.schedule=constant")
        return loop.run(made, made.cfg.loop, folder, config.to_dict(made.cfg))

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4)
    for one, other in ((whole.model, resumed.model), (whole.extra, resumed.extra)):
        for name, weight in one.state_dict().items():
            assert torch.equal(weight, other.state_dict()[name])


def test_a_student_comes_to_follow_its_teacher(tmp_path: Path) -> None:
    made = recipe(
        "teacher_choice=primary", "loop.steps=24", "loop.learning_rate=4e-3", "loop.log_every=6",
        "loss.feature=0", "encoder_rate=1", "loss.dead=0", "loop.batch=2",
    )  # fmt: skip
    loop.run(made, made.cfg.loop, tmp_path, config.to_dict(made.cfg))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["shared"] < 0.8 * rows[0]["shared"]
    assert rows[-1]["local"] < 0.8 * rows[0]["local"]


def test_total_is_the_weighted_sum_of_what_is_on() -> None:
    made = recipe("teacher_choice=primary", "loss.local=0.5", "loss.gradient=2", "loss.anchor=0.01")
    scalars = terms(made)
    assert set(scalars) == {"loss", "shared", "local", "feature", "gradient", "anchor", "dead"}
    w = made.cfg.loss
    assert scalars["loss"] == pytest.approx(
        sum(getattr(w, name) * value for name, value in scalars.items() if name != "loss"), rel=1e-5
    )
    for name in ("shared", "local", "feature", "gradient", "anchor", "dead"):
        assert name not in terms(recipe("teacher_choice=primary", f"loss.{name}=0"))


def test_depthmasters_losses_are_options() -> None:
    plain = terms(recipe())
    root = terms(recipe("loss.root=true"))
    assert root["shared"] != plain["shared"]
    more = terms(recipe("loss.directional=0.001", "loss.likeness=divergence"))
    assert set(more) - set(plain) == {"directional"}
    assert more["directional"] > 0
    assert more["feature"] != plain["feature"]


def test_the_anchor_holds_to_the_primary_only() -> None:
    assert "anchor" in terms(recipe("teacher_choice=primary"))
    assert "anchor" not in terms(recipe("teacher_choice=assistant"))
    assert "anchor" not in terms(recipe("teacher_choice=average"))


def test_the_assistant_teaches_its_share_of_the_steps() -> None:
    made = recipe("assistant_probability=0.3")
    drawn = [made.asked_teachers(step) for step in range(2000)]
    assert np.mean([d == [1] for d in drawn]) == pytest.approx(0.3, abs=0.04)
    assert drawn[:9] == [made.asked_teachers(step) for step in range(9)]
    assert recipe("teacher_choice=average").asked_teachers(0) == [0, 1]
    parts = [made.batch(5, (k, 2))["teachers"].tolist() for k in (0, 1)]
    assert parts[0] == parts[1] == drawn[5]


def test_two_teachers_are_averaged() -> None:
    made = recipe("teacher_choice=average")
    batch = made.batch(0, (0, 1))
    target, known, _ = made._target(batch, "crop")
    torch.testing.assert_close(target, batch["teach_crop"][:, :1] * 0.55)
    assert known.all()


@pytest.mark.parametrize("flip", [0, 1])
def test_both_see_the_same_place(flip: int) -> None:
    """A student that outputs the red channel agrees with the red teacher in both contexts."""
    made = recipe(f"crop.flip={flip}", "crop.parts=4", "teacher_choice=primary")
    batch = made.batch(0, (0, 1))
    crop, _, _ = made._target(batch, "crop")
    torch.testing.assert_close(batch["crop"][:, :1], crop)
    part, known, _ = made._target(batch, "part")
    assert part.shape == (16, 1, 56, 84)
    own = parts_of(batch["wide"][:, :1], batch["corner"], made.cfg)
    assert float((own - part).abs().mean()) < 0.02
    assert float(normalised_l1(own, part, known, "hybrid")) < 0.2


def test_parts_are_the_overlapping_corners_of_the_wide_view() -> None:
    cfg = settings()
    assert cfg.wide_size == (84, 126)
    assert cfg.corners() == [(0, 0), (0, 42), (28, 0), (28, 42)]
    default = distill.Config()
    assert default.wide_size == (840, 840)
    assert default.corners()[-1] == (280, 280)
    assert len(settings("crop.grid=3", "crop.parts=9").corners()) == 9


def test_crops_lie_in_the_picture_and_have_the_inputs_shape() -> None:
    made = recipe()
    rng = np.random.default_rng(0)
    for shape in ((90, 120), (40, 300), (300, 40)):
        for _ in range(50):
            w = made.window(shape, rng)
            assert w.top >= 0 and w.top + w.rows <= shape[0]
            assert w.left >= 0 and w.left + w.columns <= shape[1]
            assert w.columns / w.rows == pytest.approx(84 / 56, rel=0.1)
    rows = [made.window((1000, 2000), rng).rows for _ in range(300)]
    assert min(rows) < 120 and max(rows) > 950
    big = distill.Config()
    assert big.crop.smallest_px == 644


def test_kept_answers_are_asked_once_and_equal_the_fresh_ones(tmp_path: Path) -> None:
    common = ["crop.per_image=2", "crop.flip=0.5", "teacher_choice=primary"]
    cached = recipe(*common, f"cache={tmp_path}")
    count = cached.fill(Console(quiet=True))
    assert count == 3 * 2 * 2 * 5  # images, crops, teachers, a crop and four parts
    assert cached.fill(Console(quiet=True)) == 0
    fresh = recipe(*common)
    for step in range(3):
        one, other = cached.batch(step, (0, 1)), fresh.batch(step, (0, 1))
        assert torch.equal(one["crop"], other["crop"])
        assert "teach_crop" not in one
        for content in ("crop", "part"):
            stored, _, _ = cached._target(one, content)
            torch.testing.assert_close(stored, fresh._target(other, content)[0], atol=2e-5, rtol=0)


def test_an_answer_that_is_not_kept_is_said(tmp_path: Path) -> None:
    from training.data.samples import DataError

    with pytest.raises(DataError, match="has nothing of"):
        recipe("crop.per_image=2", f"cache={tmp_path}").batch(0, (0, 1))


def test_panels_show_crops_and_maps() -> None:
    made = recipe()
    with torch.no_grad():
        (image,) = made.batch_images(made.model(), made.batch(0, (0, 1)), None).values()
    assert image.shape == (3 * (56 + TITLE_PX), 4 * 84, 3)
    assert image[56 + 2 * TITLE_PX :][:56].std() > 5


def test_features_may_have_other_strides_than_dinos() -> None:
    unet = [
        "network.kind=unet", "height=64", "width=96", "network.unet.widths=[8, 8, 16, 16, 16]",
        "network.unet.depths=[0, 1, 1, 1, 1]", "network.unet.decoder=[16, 8, 8, 8]",
    ]  # fmt: skip
    scalars = terms(recipe(*unet))
    assert 0 < scalars["feature"] < 2
    assert "dead" not in scalars


def test_the_encoder_learns_more_slowly() -> None:
    made = recipe("encoder_rate=0.1")
    rates: dict[str, Any] = {name: made.rate(name) for name, _ in made.model().named_parameters()}
    assert {rate for name, rate in rates.items() if "backbone" in name} == {0.1}
    assert {rate for name, rate in rates.items() if "backbone" not in name} == {1.0}
    assert made.rate("extra.weight") == 1.0


@pytest.mark.parametrize("kind", ["debug", "unet"])
def test_a_fresh_decoder_keeps_the_encoder(kind: str) -> None:
    from training.models.lora import in_encoder

    network = open_network(NetworkConfig(kind=kind))
    before = {name: p.clone() for name, p in network.named_parameters()}
    fresh_decoder(network)
    for name, p in network.named_parameters():
        if in_encoder(name):
            assert torch.equal(p, before[name])
        elif p.ndim == 4:
            assert not torch.equal(p, before[name])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["loss.shared=0", "loss.local=0"], "nothing to learn from"),
        (["loss.norm=none"], "needs one teacher"),
        (["cache=somewhere"], r"crop\.per_image"),
        (["crop.parts=5"], "at most grid"),
        (["view.flip=0.5"], "may not move pixels"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(config.ConfigError, match=sentence):
        settings(*overrides)
    assert settings("loss.norm=none", "teacher_choice=primary").loss.norm == "none"


def test_defaults_are_the_published_ones_where_there_are_such() -> None:
    cfg = config.load(distill.Config, CONFIG.with_name("distill.yaml"))
    w = cfg.loss
    assert (w.shared, w.local, w.feature, w.gradient) == (1.0, 0.5, 1.0, 2.0)
    assert (w.norm, w.tolerance, cfg.assistant_probability) == ("hybrid", 0.85, 0.3)
    assert (cfg.height, cfg.width, cfg.crop.smallest_px) == (560, 560, 644)
    assert (cfg.loop.steps, cfg.loop.batch, cfg.loop.learning_rate) == (20_000, 8, 5e-5)
    # Of Depth Anything V2's code, and ours.
    assert (cfg.loop.schedule, cfg.loop.power, cfg.loop.weight_decay) == ("poly", 0.9, 0.01)
    assert (cfg.encoder_rate, w.anchor, cfg.crop.wide, cfg.crop.grid) == (0.1, 0.01, 1.5, 2)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(config.ConfigError, match="use 56x84"):
        recipe("height=60", "width=80").model()


def test_the_wide_view_is_the_crop_with_more_pixels() -> None:
    made = recipe()
    views = made.views(0, Window(10, 5, 60, 90, 56, 84))
    assert views.wide.shape == (84, 126, 3)
    small = Window.whole(views.wide.shape, 56, 84).image(views.wide)
    assert np.abs(small[..., 0].astype(float) - views.crop[..., 0]).mean() < 3


def test_pixels_on_which_teachers_agree_weigh_more() -> None:
    """Maps of equal shape and different scale agree everywhere; a wrong region gets less weight."""
    one = torch.linspace(0, 1, 96).view(1, 1, 8, 12)
    known = torch.ones_like(one, dtype=torch.bool)
    target, weight = agreed([one, 0.1 * one + 3], known)
    torch.testing.assert_close(weight, torch.ones_like(weight), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(target[0, 0, -1, -1], torch.tensor(2.0), rtol=0.05, atol=0.0)
    wrong = one.clone()
    wrong[..., :1, :] = 1.0
    _, weight = agreed([one, wrong], known)
    assert float(weight[..., :1, :].max()) < 0.5 < float(weight[..., 1:, :].min())
    both, plain = (terms(recipe(f"teacher_choice={c}")) for c in ("agreement", "average"))
    assert both["shared"] != plain["shared"]
    with pytest.raises(config.ConfigError, match="needs one teacher"):
        settings("teacher_choice=agreement", "loss.norm=none")


def test_a_student_of_an_exported_file_begins_as_that_network() -> None:
    # Its normalisations are folded: the statistics of a batch would change its output completely.
    made = recipe("network.source=embedded-small", "height=64", "width=96", "loop.batch=24")
    x = made.batch(0, (0, 1))["crop"]
    model: Any = made.model()
    x = model.spec.normalise(x)
    with torch.no_grad():
        packaged, student = open_student(made.cfg.network).eval()(x), model.eval()(x)
        learning = model.train()(x)
    spread = float(packaged.std())
    assert float((student - packaged).abs().max()) < 1e-3 * spread
    assert float((learning - packaged).abs().mean()) < 0.5 * spread  # scrambled: 2
