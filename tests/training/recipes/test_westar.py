# SPDX-License-Identifier: Apache-2.0
"""WeSTAR: its terms, its switches, and that adaptation helps where it should."""

from __future__ import annotations

import json
from dataclasses import replace
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
from training.data.ordinal_labels import LabelSet, Pair, write_labels
from training.data.samples import DataError, Sample
from training.models.lora import low_rank
from training.models.networks import open_network, open_run
from training.recipes import westar
from training.recipes.westar import LossConfig, at, ordinal_loss, self_training

CONFIG = REPO / "training" / "configs" / "westar_debug.yaml"
SIZE = (60, 80)


def samples(count: int = 3) -> list[Sample]:
    """Make images whose brightness is proportional to their disparity, with that depth."""
    out = []
    for k in range(count):
        rng = np.random.default_rng(k)
        y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
        disparity = 0.2 + 0.5 * y / SIZE[0] + 0.3 * ((x // 20 + k) % 2)
        image = np.clip(disparity[..., None] * 200 + rng.normal(0, 4, (*SIZE, 3)), 0, 255)
        depth = (1 / disparity).astype(np.float32)
        out.append(Sample(f"{k}.png", image.astype(np.uint8), depth))
    return out


def settings(*overrides: str) -> westar.Config:
    return config.load(westar.Config, CONFIG, ["masks.folder=", *overrides])


def recipe(*overrides: str, labels: LabelSet | None = None) -> westar.Westar:
    torch.manual_seed(0)
    return westar.Westar(settings(*overrides), samples(), labels)


def scalars(made: westar.Westar, averaged: bool = True) -> tuple[dict[str, float], Any, Any]:
    """Return the terms of the first batch, the recipe's model and its averaged copy."""
    import copy

    model = made.model()
    slow = copy.deepcopy(model).eval() if averaged else None
    terms = made.loss(model, made.batch(0, (0, 1)), slow)
    return {name: float(value.detach()) for name, value in terms.items()}, model, terms


def test_the_debug_run_learns_only_the_updates_and_opens_merged(tmp_path: Path) -> None:
    made = recipe()
    state = loop.run(made, made.cfg.loop, tmp_path, config.to_dict(made.cfg))
    assert state.step == made.cfg.loop.steps
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "st", "weak", "reg"} <= rows[-1].keys()
    assert all(row["st"] > 0 and row["weak"] > 0 for row in rows)
    assert rows[-1]["reg"] > 0
    fresh = recipe()
    torch.manual_seed(made.cfg.loop.seed)
    source = dict(fresh.model().named_parameters())
    for name, now in state.model.named_parameters():
        assert torch.equal(now, source[name]) != ("lora_" in name), name
    opened = open_run(tmp_path)
    assert not list(low_rank(opened))
    x = torch.rand(1, 3, 56, 84)
    torch.testing.assert_close(opened(x), state.averaged(x), atol=1e-5, rtol=1e-5)


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    def run(folder: Path, *overrides: str) -> loop.State:
        made = recipe(*overrides)
        return loop.run(made, made.cfg.loop, folder, config.to_dict(made.cfg))

    whole = run(tmp_path / "whole", "loop.steps=4")
    run(tmp_path / "parts", "loop.steps=2", "loop.schedule=constant")
    with pytest.raises(loop.TrainingError, match="other settings"):
        run(tmp_path / "parts", "loop.steps=4")
    constant = run(tmp_path / "constant", "loop.steps=4", "loop.schedule=constant")
    resumed = run(tmp_path / "parts", "loop.steps=4", "loop.schedule=constant")
    for name, weight in constant.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name])
    assert whole.step == 4


def test_at_the_start_nothing_is_to_be_held_back() -> None:
    terms, _, _ = scalars(recipe())
    assert terms["reg"] == 0
    assert terms["st"] > 0, "the views differ"
    assert terms["loss"] == pytest.approx(terms["st"] + 0.001 * terms["weak"], rel=1e-5)


def test_without_a_strong_view_the_student_agrees_with_its_teacher() -> None:
    off = [f"strong.{n}=0" for n in ("posterize", "equalize", "sharpen", "solarize", "exposure")]
    terms, _, _ = scalars(recipe(*off, "strong.shadow=0", "strong.at_least_one=false"))
    assert terms["st"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("teacher", ["ema", "shared", "frozen_source"])
def test_no_gradient_reaches_the_teacher(teacher: str) -> None:
    _, model, terms = scalars(recipe(f"teacher={teacher}"), averaged=teacher == "ema")
    learnt = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(terms["loss"], learnt)
    assert any(float(g.abs().max()) > 0 for g in gradient)
    assert model.training or not any(m.training for m in model.modules())


@pytest.mark.parametrize("mode", ["full", "encoder", "decoder"])
def test_whole_parts_are_held_back_by_their_distance(mode: str) -> None:
    made = recipe(f"tune.mode={mode}")
    model = made.model()
    assert float(made._distance(model).detach()) == 0
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(2.0)
    count = next(p for p in model.parameters() if p.requires_grad).numel()
    assert float(made._distance(model).detach()) == pytest.approx(4.0 * count, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "absent"),
    [
        (["loss.st=0"], "st"),
        (["loss.weak=0"], "weak"),
        (["loss.reg=0"], "reg"),
    ],
)
def test_terms_switch_off(overrides: list[str], absent: str) -> None:
    made = recipe(*overrides)
    model = made.model()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    terms = made.loss(model, made.batch(0, (0, 1)), model)
    assert float(terms[absent].detach()) == 0
    others = {"st", "weak", "reg"} - {absent}
    assert all(float(terms[name].detach()) > 0 for name in others)


def test_what_the_source_knows_is_held_by_its_answers() -> None:
    """0 at the start; after the weights have changed, a pull towards the source's output."""
    torch.manual_seed(0)
    known = [Sample("old", s.image) for s in samples(2)]
    made = westar.Westar(settings("loss.known=2", "loss.reg=0"), samples(), None, known)
    model = made.model()
    batch = made.batch(0, (0, 1))
    assert batch["known"].shape == batch["strong"].shape
    terms = made.loss(model, batch, model)
    assert float(terms["known"].detach()) == pytest.approx(0, abs=1e-6)
    plain = recipe("loss.reg=0")
    other = plain.batch(0, (0, 1))
    assert not {"known", "truth"} & other.keys()
    terms = made.loss(model, {**other, "known": batch["known"]}, model)
    assert float(terms["st"].detach()) == pytest.approx(
        float(plain.loss(model, other, model)["st"].detach()), abs=1e-6
    ), "the old place's images take no part in self-training"
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.5)
    moved = made.loss(model, batch, model)
    assert float(moved["known"].detach()) > 0.01
    parts = float(moved["st"].detach()) + 0.001 * float(moved["weak"].detach())
    total = parts + 2 * float(moved["known"].detach())
    assert float(moved["loss"].detach()) == pytest.approx(total, rel=1e-5)
    learnt = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(moved["known"], learnt)
    with torch.no_grad():
        for p, g in zip(learnt, gradient, strict=True):
            p.sub_(g, alpha=1e-3 / float(torch.cat([x.flatten() for x in gradient]).norm()))
    after = made.loss(model, batch, model)["known"]
    assert float(after.detach()) < float(moved["known"].detach())
    with pytest.raises(DataError, match="needs images: set `known`"):
        recipe("loss.known=1")


def test_known_images_get_the_look_of_the_place_and_the_source_sees_them_as_they_are() -> None:
    dark = [replace(s, image=s.image // 3) for s in samples()]
    known = [Sample("old", s.image) for s in samples(2)]
    changes = ("loss.known=1", "loss.st=0", "loss.weak=0", "loss.reg=0", "weak.flip=0")
    made = westar.Westar(settings(*changes, "appearance=0.5"), dark, None, known)
    model = made.model()
    seen = []
    for step in range(6):
        batch = made.batch(step, (0, 1))
        seen += [
            (float(shown.mean()), float(plain.mean()))
            for shown, plain in zip(batch["known"], batch["known_source"], strict=True)
        ]
    light = np.array(seen)
    changed = np.abs(light[:, 0] - light[:, 1]) > 0.01
    assert 0.2 < changed.mean() < 0.8, "half of them"
    assert np.abs(light[changed, 0] * 3 - light[changed, 1]).max() < 0.05, "as dark as the place"
    terms = made.loss(model, batch, model)
    same = made.loss(model, {**batch, "known": batch["known_source"]}, model)
    assert float(same["known"].detach()) == pytest.approx(0, abs=1e-6)
    assert float(terms["known"].detach()) > 1e-3, "nobody told the source of the dark"
    assert float(terms["loss"].detach()) == float(terms["known"].detach())
    asked = made.loss(model, {**batch, "strong": batch["strong"] * float("nan")}, model)
    assert float(asked["loss"].detach()) == float(terms["loss"].detach()), "not even looked at"
    assert "ros2 launch" in made.next_step(Path("runs/camera")), "there are no labels to judge by"
    assert "HELD.csv" in recipe().next_step(Path("runs/mine"))
    with pytest.raises(config.ConfigError, match=r"loss\.known, which is 0: set a weight"):
        settings("appearance=0.5")
    with pytest.raises(config.ConfigError, match="all 0: nothing would be learnt"):
        settings("loss.known=1", "loss.st=0", "loss.weak=0")


def test_a_teacher_that_knows_the_truth() -> None:
    """A perfect student has no loss; here the disparity is known from the brightness."""
    made = recipe(
        "teacher=truth", "weak.smallest_crop=0.6", "weak.flip=0.5", "loss.contexts=global"
    )
    batch = made.batch(0, (0, 1))
    bright = batch["weak"].mean(dim=1, keepdim=True)
    assert float(self_training(bright, batch["truth"], None, made.cfg.loss)) < 0.1
    terms = made.loss(made.model(), batch, None)
    assert float(terms["st"].detach()) > 0.2, "random weights know nothing"
    blind = [Sample(s.name, s.image) for s in samples()]
    with pytest.raises(DataError, match="teacher=truth needs it"):
        westar.Westar(made.cfg, blind).batch(0, (0, 1))
    depth = np.full(SIZE, 2.0, np.float32)
    depth[:30] = 0
    half = [Sample(s.name, s.image, depth) for s in samples()]
    truth = westar.Westar(made.cfg, half).batch(0, (0, 1))["truth"]
    assert set(truth[torch.isfinite(truth)].tolist()) == {0.5}
    assert 0 < float(torch.isnan(truth).float().mean()) < 1


def test_contexts_by_hand() -> None:
    """With a mask of the left half, a change of scale in that half costs less than without."""
    teacher = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    student = teacher.clone()
    student[..., :4] *= 3
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    masks[..., :4] = 1
    costs = {
        name: float(self_training(student, teacher, masks, LossConfig(contexts=name, mask_px=2)))
        for name in westar.CONTEXTS
    }
    assert len({round(cost, 6) for cost in costs.values()}) == 3
    assert costs["masks"] < costs["global"]
    nothing = self_training(student, teacher, masks, LossConfig(contexts="masks", mask_px=99))
    assert float(nothing) == pytest.approx(costs["global"])


def test_points_are_read_where_they_are() -> None:
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    maps = torch.stack([10 * y + x, 100 + x])[:, None]
    points = torch.tensor([[0.0, 0.0], [8.0, 5.0], [2.5, 1.0], [4.0, 3.0]])
    owner = torch.tensor([0, 0, 0, 1])
    assert at(maps, points, owner).tolist() == pytest.approx([0, 58, 12.5, 104], abs=1e-4)


@pytest.mark.parametrize("on", ["normalised", "raw"])
def test_right_order_costs_nothing_and_wrong_order_pulls(on: str) -> None:
    disparity = torch.linspace(0, 4, 20).repeat(10, 1)[None, None].requires_grad_(True)
    cfg = LossConfig(ordinal_on=on)
    batch = {"points": torch.tensor([[15.0, 3, 4, 3]]), "owner": torch.tensor([0])}
    right = ordinal_loss(disparity, {**batch, "sign": torch.tensor([1])}, cfg)
    assert float(right.detach()) == 0
    wrong = ordinal_loss(disparity, {**batch, "sign": torch.tensor([-1])}, cfg)
    (gradient,) = torch.autograd.grad(wrong, disparity)
    assert float(gradient[0, 0, 3, 15]) > 0 > float(gradient[0, 0, 3, 4])


def test_labels_move_with_the_view() -> None:
    """Pairs drawn from depth stay correct in every flipped and cropped view."""
    made = recipe("weak.smallest_crop=0.6", "weak.flip=0.5", "labels.simulation.count=9")
    count = 0
    for step in range(4):
        batch = made.batch(step, (0, 1))
        bright = batch["weak"].mean(dim=1, keepdim=True)  # brightness says the disparity
        one = at(bright, batch["points"][:, :2], batch["owner"])
        other = at(bright, batch["points"][:, 2:], batch["owner"])
        right = ((one - other) * batch["sign"] > -0.02) | (batch["sign"] == 0)
        assert right.float().mean() > 0.9
        count += len(right)
    assert count > 100


def test_masks_move_with_the_view() -> None:
    """A mask of the bright pixels fits them in every flipped and cropped view."""
    made = recipe("weak.smallest_crop=0.6", "weak.flip=0.5", "loss.weak=0")
    made.masks = lambda image: (image.mean(axis=2) > 100)[None]  # type: ignore[assignment]
    for step in range(3):
        batch = made.batch(step, (0, 1))
        bright = batch["weak"].mean(dim=1, keepdim=True) > 100 / 255
        assert ((batch["masks"] > 0) == bright).float().mean() > 0.95
        assert 0.1 < bright.float().mean() < 0.9


def test_masks_that_come_with_the_images_are_taken() -> None:
    made = recipe("masks.given=true", "loss.weak=0")
    with pytest.raises(DataError, match=r"has no masks: set masks\.given to false"):
        made.batch(0, (0, 1))
    there = [replace(s, masks=np.full(s.image.shape[:2], 7, np.int32)) for s in samples()]
    batch = westar.Westar(settings("masks.given=true", "loss.weak=0"), there).batch(0, (0, 1))
    assert bool((batch["masks"] == 7).all())


def test_a_few_labels_correct_the_order(tmp_path: Path) -> None:
    """Labels alone improve the order of the labelled pairs."""
    made = recipe(
        "loss.st=0", "loss.weak=1", "loss.reg=0", "loop.steps=25", "loop.learning_rate=0.02",
        "loop.warmup=0", "tune.rank=8", "loop.log_every=5", "labels.simulation.count=9",
    )  # fmt: skip
    loop.run(made, made.cfg.loop, tmp_path, config.to_dict(made.cfg))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["weak"] < 0.8 * rows[0]["weak"]


def test_a_label_file_is_used_and_checked(tmp_path: Path) -> None:
    import cv2

    for sample in samples():
        cv2.imwrite(str(tmp_path / sample.name), sample.image[..., ::-1])
    labels = tmp_path / "labels.csv"
    write_labels(labels, [Pair("1.png", 5, 5, 70, 50, "farther")])
    overrides = [
        "images.kind=images", f"images.folder={tmp_path}", f"labels.file={labels}",
        "labels.from_depth=false", "loop.batch=8",
    ]  # fmt: skip
    console = Console(record=True, width=120, quiet=False, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    made = westar.build(settings(*overrides), console)
    assert "1 ordinal labels on 1 of 3 images" in console.export_text()
    console.file.close()
    batch = made.batch(0, (0, 1))
    assert len(batch["sign"]) > 0
    assert set(batch["sign"].tolist()) == {-1}
    write_labels(labels, [Pair("1.png", 5, 5, 170, 50, "farther")])
    made = westar.build(settings(*overrides), Console(quiet=True))
    with pytest.raises(DataError, match="outside the image of 80x60"):
        [made.batch(step, (0, 1)) for step in range(9)]


def test_full_tuning_of_an_exported_network_begins_as_that_network() -> None:
    # Its normalisations are folded: the statistics of a batch would change its output completely.
    known = [Sample("old", s.image) for s in samples(2)]
    changes = ("network.source=embedded-small", "tune.mode=full", "loss.known=1", "tune.pattern=")
    made = westar.Westar(settings(*changes, "height=64", "width=96"), samples(), None, known)
    model = made.model().train()
    terms = made.loss(model, made.batch(0, (0, 1)), model)
    assert float(terms["known"].detach()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("statistics", ["place", "both"])
def test_normalisations_take_the_statistics_of_the_place(statistics: str) -> None:
    known = [Sample("old", s.image // 4) for s in samples()]
    changes = ("network.source=embedded-small", f"tune.statistics={statistics}", "tune.pattern=.*")
    changes += ("height=64", "width=96")
    made = westar.Westar(settings(*changes), samples(), None, known)
    model = made.model().eval()
    images = samples() + (known if statistics == "both" else [])
    windows = [Window.whole(s.image.shape, 64, 96) for s in images]
    x = torch.stack(
        [
            torch.from_numpy(w.image(s.image)).permute(2, 0, 1).float() / 255
            for w, s in zip(windows, images, strict=True)
        ]
    )
    x = model.spec.normalise(x)
    with torch.no_grad():
        held = model(x)
        by_batch = model.train()(x)  # the same statistics, measured once more
    # The stored variance is the unbiased one, that of a batch in training the biased one.
    assert float((by_batch - held).abs().mean()) < 0.02
    source = open_network(made.cfg.network)
    assert float((source(x) - held).detach().abs().mean()) > 0.1
    with pytest.raises(DataError, match="images that the source knows"):
        westar.Westar(settings(*changes), samples()).model()


def test_statistics_go_a_share_of_the_way() -> None:
    known = [Sample("old", s.image // 4) for s in samples()]

    def statistics(share: float, name: str = "running_var") -> dict[str, torch.Tensor]:
        changes = ("network.source=embedded-small", "tune.statistics=place", "tune.pattern=.*")
        changes += (f"tune.statistics_share={share}", "height=64", "width=96")
        made = westar.Westar(settings(*changes), samples(), None, known)
        return {k: v for k, v in made.model().state_dict().items() if name in k}

    none, some, whole = statistics(0), statistics(0.25), statistics(1)
    assert any(float((whole[name] / none[name]).log().abs().max()) > 0.1 for name in none)
    for name in none:
        torch.testing.assert_close(some[name], 0.75 * none[name] + 0.25 * whole[name])


def test_the_embedded_network_is_adapted_beside_rendered_rooms(tmp_path: Path) -> None:
    """The shipped configuration, shortened: it learns, is saved, and opens with updates merged."""
    import cv2

    for sample in samples():
        cv2.imwrite(str(tmp_path / sample.name), sample.image[..., ::-1])
    write_labels(tmp_path / "labels.csv", [Pair("1.png", 5, 5, 70, 50, "farther")])
    overrides = [
        f"images.folder={tmp_path}", f"labels.file={tmp_path / 'labels.csv'}", "loop.steps=2",
        "known.limit=2", "masks.folder=", "loop.warmup=0", "loop.log_every=1",
    ]  # fmt: skip
    cfg = config.load(westar.Config, CONFIG.with_name("westar_embedded.yaml"), overrides)
    made = westar.build(cfg, Console(quiet=True))
    loop.run(made, cfg.loop, tmp_path / "run", config.to_dict(cfg), console=Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert rows[0]["known"] < 0.02 < rows[0]["st"], "the strong view alone is new to the source"
    assert rows[1]["reg"] > 0
    adapted, source = open_run(tmp_path / "run"), open_network(cfg.network)
    moved = [
        n for n, w in source.state_dict().items() if not torch.equal(w, adapted.state_dict()[n])
    ]
    assert any(name.startswith("up.") for name in moved), "the decoder learns too"


def test_a_run_is_opened_with_a_share_of_its_updates(tmp_path: Path) -> None:
    """With half of the updates the network is half-way from the source, with none the source."""

    def opened(scale: float) -> dict[str, torch.Tensor]:
        fast = ["loop.steps=3", "loop.warmup=0", "loop.learning_rate=0.05", "loop.ema=0.5"]
        made = recipe(f"tune.merge_scale={scale}", *fast)
        loop.run(made, made.cfg.loop, tmp_path / str(scale), config.to_dict(made.cfg))
        return open_run(tmp_path / str(scale)).state_dict()

    whole, half, none = opened(1.0), opened(0.5), opened(0.0)
    torch.manual_seed(settings().loop.seed)
    source = open_network(settings().network).state_dict()
    moved = [name for name, weight in source.items() if not torch.equal(weight, whole[name])]
    assert max(float((whole[name] - source[name]).abs().max()) for name in moved) > 1e-3
    for name in moved:
        torch.testing.assert_close(none[name], source[name], atol=0, rtol=0)
        torch.testing.assert_close(half[name], (whole[name] + source[name]) / 2)


def test_held_back_labels_judge_and_are_not_learnt() -> None:
    named = samples()
    pairs = [Pair(s.name, 5, 5, 5, 55, "farther") for s in named]  # lower is nearer in all of them
    made = recipe(
        "labels.from_depth=false",
        "labels.held=0.4",
        labels=LabelSet(pairs, ["0.png", "1.png", "2.png"]),
    )
    assert len(made.held) == 1
    for step in range(5):
        batch = made.batch(step, (0, 1))
        learnt = {pair.image for pair in pairs} - set(made.held)
        assert len(batch["sign"]) == len(batch["owner"]) <= 4
        assert learnt

    class Down(torch.nn.Module):
        """A network whose output grows or falls from top to bottom."""

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = torch.nn.Parameter(torch.tensor(sign))
            self.spec = made.model().spec

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = torch.linspace(0, 1, x.shape[-2]).view(1, 1, -1, 1)
            return self.sign * rows.expand(len(x), 1, -1, x.shape[-1])

    with torch.no_grad():
        assert made.validate(Down(1.0)) == {"wrong_order": 0, "held_pairs": 1, "score": 0}
        assert made.validate(Down(-1.0))["score"] == 1
    assert recipe().validate(Down(1.0)) == {}


def test_panels_show_views_and_maps() -> None:
    made = recipe()
    model = made.model().eval()
    with torch.no_grad():
        (image,) = made.batch_images(model, made.batch(0, (0, 1)), model).values()
    assert image.shape == (4 * (56 + TITLE_PX), 4 * 84, 3)
    assert image.dtype == np.uint8
    assert image[TITLE_PX:][:56].std() > 5 and image[-56:].std() > 5


def test_labels_alone_need_labels() -> None:
    """Nothing but the pull to the source would be left: a run that learns nothing."""
    alone = ("loss.st=0", "loss.weak=1")
    with pytest.raises(config.ConfigError, match=r"no labels.*labels\.file"):
        recipe(*alone, "labels.from_depth=false")
    recipe(*alone)  # drawn from depth
    some = LabelSet([Pair("0.png", 1, 1, 5, 5, "closer")], [s.name for s in samples()])
    recipe(*alone, "labels.from_depth=false", labels=some)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["loop.ema=0"], "teacher=ema needs averaged weights"),
        (["loss.st=0", "loss.weak=0"], "nothing would be learnt"),
        (["labels.file=a.csv"], "exclude each other"),
        (["loss.contexts=mask"], "did you mean 'masks'"),
    ],
)
def test_contradictions_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(config.ConfigError, match=sentence):
        settings(*overrides)


def test_defaults_are_the_published_ones_where_there_are_such() -> None:
    cfg = westar.Config()
    assert (cfg.loss.st, cfg.loss.weak, cfg.loss.reg) == (1.0, 0.001, 1.0)
    assert (cfg.tune.mode, cfg.tune.rank, cfg.tune.alpha) == ("lora", 8, 16)
    assert (cfg.loop.ema, cfg.loop.ema_warmup, cfg.loop.batch) == (0.996, False, 4)
    assert (cfg.loop.schedule, cfg.teacher, cfg.loss.contexts) == ("cosine", "ema", "masks")
    assert (cfg.labels.simulation.count, cfg.labels.simulation.ratio) == (5, 1.03)
    # Ours.
    assert (cfg.loss.margin, cfg.loss.mask_px, cfg.masks.most) == (0.05, 256, 64)
    assert (cfg.loop.learning_rate, cfg.loop.steps, cfg.loop.warmup) == (1e-4, 5000, 250)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(config.ConfigError, match="use 56x84"):
        recipe("height=60", "width=80").model()


def labelled(count: int = 6) -> tuple[list[Sample], LabelSet]:
    """Images of which the first has the labels."""
    images = samples(count)
    pairs = [Pair("0.png", 5, 5, 5, 55, "farther"), Pair("0.png", 70, 50, 70, 5, "closer")]
    return images, LabelSet(pairs, [image.name for image in images])


def test_few_labels_among_many_images_are_seen_often() -> None:
    images, labels = labelled()
    for probability, low, high in (("0", 0.0, 0.45), ("1", 1.0, 1.0), ("0.5", 0.4, 0.9)):
        cfg = settings("labels.from_depth=false", "labels.held=0", "loss.weak=1",
                       f"labels.probability={probability}", "loss.st=0")  # fmt: skip
        made = westar.Westar(cfg, images, labels)
        seen = np.mean([len(made.batch(k, (0, 1))["sign"]) / 8 for k in range(20)])
        assert low <= seen <= high, probability


def test_wrong_pairs_are_logged_by_name_and_direction(tmp_path: Path) -> None:
    import io

    named = samples(6)
    pairs = [Pair(s.name, 5, 5, 5, 55, "farther") for s in named]
    out = io.StringIO()
    console = Console(file=out, width=300)
    cfg = settings("labels.from_depth=false", "labels.held=0.4", "loss.weak=1", "loop.steps=4",
                   "loop.tensorboard=false")  # fmt: skip
    labels = LabelSet(pairs, [s.name for s in named])
    made = westar.Westar(cfg, named, labels, say=console.print)
    loop.run(made, cfg.loop, tmp_path, config.to_dict(cfg), console=console)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("wrong_order_train" in row for row in rows)
    assert any("wrong_order" in row for row in rows)
    text = " ".join(out.getvalue().split())
    assert "Held back: 2 ordered pairs" in text and "the source has" in text
    assert "So few say little" in text
    assert "wrong pairs in training (lower is better)" in text
    assert "wrong pairs held back (lower is better)" in text
    assert "labels split" in text


def test_published_weights_move_nothing_and_ours_do() -> None:
    """Return the gradient norm of the labels over that of self-training, for one batch."""
    images, labels = labelled()
    shares = {}
    for name in ("published", "ours"):
        cfg = westar.Config()
        if name == "ours":
            cfg = config.load(westar.Config, CONFIG.with_name("westar.yaml"))
        margin = f"loss.margin={cfg.loss.margin}"
        always = ("labels.from_depth=false", "labels.held=0", "labels.probability=1")
        made = westar.Westar(settings(*always, margin), images, labels)
        torch.manual_seed(0)
        model = made.model()
        terms = made.loss(model, made.batch(0, (0, 1)), model)
        shares[name] = (
            cfg.loss.weak * slope(terms["weak"], model) / (cfg.loss.st * slope(terms["st"], model))
        )
    assert shares["published"] < 0.02 and shares["ours"] > 2, shares


def slope(term: torch.Tensor, model: torch.nn.Module) -> float:
    """Return the norm of the gradient of a term."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    parts = torch.autograd.grad(term, learnt, retain_graph=True, allow_unused=True)
    return float(torch.cat([part.flatten() for part in parts if part is not None]).norm())
