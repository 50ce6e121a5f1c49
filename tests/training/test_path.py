# SPDX-License-Identifier: Apache-2.0
"""From a folder of images and ordinal labels to a network in the node: the README's commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from depth_node.frame import FrameInput
from tests.helpers import REPO

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
pytest.importorskip("peft", reason="adaptation needs peft (requirements-training.txt)")

from depth_node.geometry.sparse_depth import SparseDepth
from depth_node.inference import ModelConfig
from depth_node.pipeline import DepthPipeline, PipelineConfig
from depth_node.simulation.renderer import Scene
from depth_node.simulation.viewpoints import random_view
from training.__main__ import main, parse_arguments
from training.data.ordinal_labels import SimulationConfig, read_labels, simulate, write_labels
from training.models import networks

README = REPO / "README.md"
# Settings that make it small; everything else is the command as it is printed.
TOY = [
    "height=56", "width=84", "masks.folder=", "loop.steps=3", "loop.batch=2", "loop.warmup=1",
    "loop.tensorboard=false", "loss.mask_px=16",
]  # fmt: skip


def commands() -> list[list[str]]:
    section = README.read_text(encoding="utf-8").split("## A network for your place")[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].strip().splitlines()]


def test_six_commands_lead_to_a_network_in_the_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training").symlink_to(README.parent / "training")  # run from the checkout
    rooms = []
    Path("photos").mkdir()
    pairs = []
    for k in range(4):
        rng = np.random.default_rng(k)
        scene = Scene.random(rng)
        camera, pose = random_view(scene, rng, 96, 72)
        view = scene.render(camera, pose)
        rooms.append((camera, view))
        cv2.imwrite(f"photos/{k}.png", view.image[..., ::-1])
        pairs += simulate(f"{k}.png", view.depth, SimulationConfig(count=4, seed=1))
    torch.manual_seed(0)
    source = networks.open_network(networks.NetworkConfig(kind="debug"))
    source.network.save_pretrained("MODEL")

    annotate, split, westar, export, evaluate, launch = (words for words in commands())
    for words in (annotate, split, westar, export, evaluate):
        assert words[:3] == ["python", "-m", "training"]
    given_arguments = parse_arguments(annotate[3:])  # a person answers; here the depth does
    assert str(given_arguments.folder) == "photos"
    write_labels(given_arguments.out, pairs)
    assert main(split[3:]) == 0
    held = read_labels("held.csv")
    assert 0 < len(held) < len(pairs)
    assert not {pair.image for pair in held} & {pair.image for pair in read_labels("train.csv")}
    assert main([*westar[3:], *TOY]) == 0
    assert main(export[3:]) == 0
    assert main([*evaluate[3:], "--json", "agreement.json"]) == 0
    lines = json.loads(Path("agreement.json").read_text())["summary"]
    assert [line["method"] for line in lines] == ["mine", "MODEL"]
    assert lines[0]["pairs"] == sum(pair.sign != 0 for pair in held)

    assert launch[:2] == ["ros2", "launch"]
    given = dict(word.split(":=") for word in launch[4:])
    path = given["model"].replace("$PWD", str(tmp_path))
    camera, view = rooms[0]
    rows, cols = (grid.ravel() for grid in np.mgrid[4:72:8, 4:96:8])
    points = SparseDepth.from_arrays(rows, cols, view.depth[rows, cols])
    with DepthPipeline(PipelineConfig(model=ModelConfig(path=path, threads=1))) as pipeline:
        manifest = pipeline.depth_model.engine.manifest
        result = pipeline.process(FrameInput(view.image, camera, None, None, sparse=points))
    assert (manifest.name, manifest.input.height, manifest.input.width) == ("mine", 56, 84)
    assert manifest.training["recipe"] == "westar" and manifest.training["start"] == "MODEL"
    assert np.isfinite(result.depth).mean() > 0.9
    assert str(tmp_path) not in Path("mine.manifest.yaml").read_text()
