# SPDX-License-Identifier: Apache-2.0
"""The meaning of a network's output is checked wherever it enters training (metres, disparity)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from depth_node import config
from depth_node.engine.manifest import manifest_path
from tests.helpers import REPO
from training import loop
from training.checkpoints import TrainingError
from training.data.ordinal_labels import LabelSet, Pair
from training.data.samples import Sample
from training.export.exportable import open_checkpoint
from training.models.hub import DepthAnything, depth_anything_config, initialise_decoder
from training.models.networks import NetworkConfig, open_network, open_run
from training.models.teachers import NetworkTeacher, TeacherConfig, ask, open_teacher
from training.recipes import distill, mesa, westar

CONFIGS = REPO / "training" / "configs"


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a metric Depth Anything of up to 20 m whose output is not constant."""
    from transformers import DepthAnythingForDepthEstimation

    torch.manual_seed(3)
    settings = depth_anything_config("debug")
    settings.depth_estimation_type, settings.max_depth = "metric", 20
    network = initialise_decoder(DepthAnythingForDepthEstimation(settings))
    with torch.no_grad():  # the output of a random decoder is nearly constant
        network.head.conv3.weight.mul_(30)
        network.head.conv3.bias.fill_(-1.0)
    folder = tmp_path_factory.mktemp("metric")
    network.save_pretrained(folder)
    return folder


def image(seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:56, 0:84]
    wave = 120 + 90 * np.sin(x / 9 + seed) * np.cos(y / 11)
    return np.clip(wave[..., None] + rng.normal(0, 5, (56, 84, 3)), 0, 255).astype(np.uint8)


def metres(folder: Path, rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    network = open_network(NetworkConfig(kind="small", source=str(folder))).eval()
    x = torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.no_grad():
        return network(network.spec.normalise(x))[0, 0].numpy()


def own_labels(folder: Path, names: list[str]) -> LabelSet:
    """Return labels from the metric network's own output: fewer metres are closer."""
    pairs = []
    for k, name in enumerate(names):
        depth, rng = metres(folder, image(k)), np.random.default_rng(k)
        while sum(pair.image == name for pair in pairs) < 6:
            (y1, y2), (x1, x2) = rng.integers(0, 56, 2), rng.integers(0, 84, 2)
            if abs(depth[y1, x1] - depth[y2, x2]) > 0.1 * np.ptp(depth):
                relation = "closer" if depth[y1, x1] < depth[y2, x2] else "farther"
                pairs.append(Pair(name, float(x1), float(y1), float(x2), float(y2), relation))
    return LabelSet(pairs, names)


def test_a_metric_folder_stays_metric_where_nothing_is_learnt(metric: Path) -> None:
    network = open_network(NetworkConfig(kind="small", source=str(metric))).eval()
    assert isinstance(network, DepthAnything)
    assert network.meaning == "depth_metric" == open_checkpoint(metric, 56, 84).meaning
    x = torch.rand(1, 3, 56, 84)
    depth, answer = network(x), network.answer(x)
    torch.testing.assert_close(answer.disparity, 1 / depth)
    depth = depth.detach()
    disparity, _ = ask(NetworkTeacher(network, "t"), x)
    assert float(torch.corrcoef(torch.stack([disparity.flatten(), depth.flatten()]))[0, 1]) < 0


def adapted(metric: Path, run: Path, *more: str) -> tuple[westar.Westar, Any]:
    names = [f"{k}.png" for k in range(4)]
    settings = [f"network.source={metric}", "network.kind=small", "masks.folder=", *more]
    cfg = config.load(westar.Config, CONFIGS / "westar_debug.yaml",
                      ["labels.from_depth=false", "labels.held=0.5", *settings])  # fmt: skip
    made = westar.Westar(
        cfg, [Sample(n, image(k)) for k, n in enumerate(names)], own_labels(metric, names)
    )
    return made, loop.run(made, cfg.loop, run, config.to_dict(cfg))


def test_westar_reads_the_metres_of_its_source_as_depth(metric: Path, tmp_path: Path) -> None:
    made, state = adapted(metric, tmp_path / "run", "loop.steps=1")
    assert made.validate(state.product)["wrong_order"] < 0.1, "labels of its own: not upside down"
    opened = open_checkpoint(tmp_path / "run")
    assert opened.meaning == "disparity_affine_invariant", "scale and shift were free to move"
    prediction = opened.predict(image(1)).disparity()
    assert np.corrcoef(prediction.ravel(), metres(metric, image(1)).ravel())[0, 1] < -0.5
    again = open_network(NetworkConfig(source=str(tmp_path / "run")))
    assert getattr(again, "meaning", "") == "disparity_affine_invariant"
    kind = open_teacher(TeacherConfig(network=NetworkConfig(source=str(tmp_path / "run")))).kind
    assert kind == "disparity_affine_invariant"


def test_a_metric_student_agrees_with_itself_as_a_teacher(metric: Path) -> None:
    settings = [f"network.source={metric}", "network.kind=small", "teacher_choice=primary",
                "loss.feature=0", "loss.local=0", "crop.flip=0"]  # fmt: skip
    cfg = config.load(distill.Config, CONFIGS / "distill_debug.yaml", settings)
    teacher = NetworkTeacher(open_network(NetworkConfig(kind="small", source=str(metric))), "t")
    made = distill.Distill(cfg, [Sample("a", image())], [teacher, None])
    terms = made.loss(made.model().eval(), made.batch(0, (0, 1)), None)
    shared = float(terms["shared"].detach())
    assert shared < 0.05, "2 is upside down"


def test_an_onnx_start_that_gives_no_disparity_is_refused(tmp_path: Path) -> None:
    from depth_node.model_zoo.registry import locate

    path, _ = locate("embedded")
    (tmp_path / "mine.onnx").write_bytes(Path(path).read_bytes())
    content = yaml.safe_load(manifest_path(Path(path)).read_text())
    content["meaning"] = "depth_metric"
    manifest_path(tmp_path / "mine.onnx").write_text(yaml.safe_dump(content))
    with pytest.raises(TrainingError, match=r"gives depth_metric.*disparity_affine_invariant"):
        open_network(NetworkConfig(source=str(tmp_path / "mine.onnx")))


def test_a_run_of_mesa_is_no_disparity(tmp_path: Path) -> None:
    cfg = config.load(
        mesa.Config, CONFIGS / "mesa_debug.yaml", ["loss.geometric=0", "loop.steps=1"]
    )
    made = mesa.build(cfg, Console(quiet=True))
    loop.run(made, cfg.loop, tmp_path / "run", config.to_dict(cfg))
    with pytest.raises(TrainingError, match=r"run of mesa.*export it.*source=engine"):
        open_network(NetworkConfig(source=str(tmp_path / "run")))
    open_run(tmp_path / "run")  # for its features
