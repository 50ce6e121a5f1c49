# SPDX-License-Identifier: Apache-2.0
"""FP16 copies: well typed, right where a blind cast overflows, refused if they differ too much."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.cli import main
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine
from depth_node.model_zoo import compare, convert, fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.onnx_graphs import (
    FEW,
    FLOAT,
    OVERFLOWS,
    SHAPE,
    blindly,
    branching,
    f32,
    graph,
    halved,
    saved,
)
from tests.helpers.refusals import refusal


def test_measured_ranges_keep_what_the_shape_of_the_graph_does_not_tell(tmp_path: Path) -> None:
    large = graph(
        [
            ("Conv", ["image", "up"], ["high"]),
            ("Relu", ["high"], ["still"]),
            ("Conv", ["still", "down"], ["low"]),
            ("Relu", ["low"], ["more"]),
            ("Conv", ["more", "same"], ["out"]),
        ],
        {
            "up": np.full((3, 3, 1, 1), 5e4, np.float32),
            "down": np.full((3, 3, 1, 1), 1e-5, np.float32),
            "same": np.ones((1, 3, 1, 1), np.float32),
        },
    )
    ready = onnx_graph.prepared(large, {"image": SHAPE})
    unaware = fp16.to_fp16(ready)
    assert ("range", "Conv") in unaware.fp32_nodes  # the weights alone show it
    path = saved(large, tmp_path / "large.onnx")
    images = compare.ComparisonImages(2, height=32, width=48)
    done = convert.convert(path, images)
    assert done.fp16.fp32_nodes[("range", "Relu")] >= 1
    assert done.comparison.worst.finite == 1 and not done.comparison.failures
    manifest = Manifest.load(manifest_path(path))
    found = convert.measure(ready, manifest, images, tmp_path).ranges
    with open_engine(path) as engine:  # ... and they are measured right
        tensors = [compare.tensors_of(manifest, p, 0)["image"] for p in images]
        assert found["out"] == max(np.abs(engine.run(t)).max() for t in tensors)
    assert found["high"] == found["still"] > 65504


def test_picture_of_bytes(tmp_path: Path) -> None:
    """A tensor that the file itself casts to FP32 stays FP32 for all its consumers."""
    model = graph(
        [
            ("Cast", ["image"], ["float"], {"to": FLOAT}),
            ("Mul", ["float", "scale"], ["x"]),
            ("Conv", ["x", "w"], ["c"]),
            ("Relu", ["c"], ["r"]),
            ("Conv", ["r", "v"], ["out"]),
        ],
        {
            "scale": f32(0.01),
            "w": np.ones((2, 3, 1, 1), np.float32),
            "v": np.ones((1, 2, 1, 1), np.float32),
        },
        kind=TensorProto.UINT8,
    )
    half = halved(model)
    assert half.fp16_nodes["Mul"] == 1 and half.casts == 2
    path = saved(model, tmp_path / "bytes.onnx", scale=1.0)
    done = convert.convert(path, compare.ComparisonImages(1, (), 32, 48))
    assert done.manifest.input.dtype == "uint8"
    assert "leave --fp16-input out" in refusal(
        lambda: convert.convert(path, compare.ComparisonImages(1, (), 32, 48), fp16_input=True)
    )


def test_half_input_and_open_size(tmp_path: Path) -> None:
    model = graph(
        [("Conv", ["image", "w"], ["c"]), ("Relu", ["c"], ["r"]), ("Conv", ["r", "v"], ["out"])],
        {"w": np.ones((4, 3, 3, 3), np.float32), "v": np.ones((1, 4, 1, 1), np.float32)},
        shape=[1, 3, "h", "w"],
    )
    path = saved(model, tmp_path / "network.onnx", height=24, width=32)
    done = convert.convert(path, compare.ComparisonImages(2, height=32, width=48), fp16_input=True)
    assert done.path == tmp_path / "network.fp16.onnx"
    assert done.manifest.input.dtype == "float16"
    (found,) = onnx.load(str(done.path)).graph.input
    assert [d.dim_value for d in found.type.tensor_type.shape.dim] == [1, 3, 24, 32]
    with open_engine(path, precision="fp16", backend="onnxruntime-cpu") as engine:
        assert engine.manifest == Manifest.load(manifest_path(done.path))
        assert "FP16 made from sha256" in engine.manifest.source


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    model = graph(
        [("Conv", ["image", "w"], ["c"]), ("Conv", ["c", "v"], ["out"])],
        {"w": np.ones((40, 3, 3, 3), np.float32), "v": np.ones((1, 40, 1, 1), np.float32)},
    )
    path = tmp_path / "network.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="network.onnx.data",
              size_threshold=0)  # fmt: skip
    write_manifest(path, "depth_metric")
    done = convert.convert(path, compare.ComparisonImages(1, height=32, width=48))
    assert done.bytes[0] > (tmp_path / "network.onnx.data").stat().st_size
    open_engine(done.path).close()


def test_other_files_beside_the_model_are_not_its_weights(network: Path) -> None:
    with network.with_name("network.onnx.bak").open("wb") as backup:
        backup.truncate(3 * 10**9)
    done = convert.convert(network, FEW)
    assert done.bytes[0] == network.stat().st_size


def test_a_copy_may_not_take_the_models_manifest(network: Path) -> None:
    before = manifest_path(network).read_bytes()
    sentence = refusal(lambda: convert.convert(network, FEW, out=network.with_name("network.half")))
    assert "network.manifest.yaml" in sentence and "another --out" in sentence
    assert manifest_path(network).read_bytes() == before


# --- real networks


def depth_anything(tmp_path: Path, opset: int) -> Path:
    """The real architecture, small, with random weights as large as trained ones."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=4, num_attention_heads=3, image_size=70, patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=48, neck_hidden_sizes=[16, 24, 32, 32],
        fusion_hidden_size=16, head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    for part in network.modules():
        if isinstance(part, kinds):
            torch.nn.init.kaiming_normal_(part.weight)
    network.head.conv3.weight.data.mul_(0.1)
    network.head.conv3.bias.data.fill_(10.0)

    class Map(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> Any:
            return self.network(image).predicted_depth

    path = tmp_path / "anything.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Map(),
            (torch.rand(1, 3, 56, 84),),
            str(path),
            input_names=["image"],
            output_names=["disparity"],
            opset_version=opset,
            dynamo=opset >= 18,
            **(  # the files on the hub leave the size open: shapes are worked out in the graph
                {"external_data": False, "verbose": False}
                if opset >= 18
                else {"dynamic_axes": {"image": {2: "h", 3: "w"}, "disparity": {1: "h", 2: "w"}}}
            ),
        )
    facts = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "patch_size": 14}
    write_manifest(path, "disparity_affine_invariant", height=56, width=84, **facts)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 17, 14])
def test_depth_anything(opset: int, tmp_path: Path) -> None:
    path = depth_anything(tmp_path, opset)
    done = convert.convert(path, compare.ComparisonImages(4, height=64, width=96))
    kept = done.fp16.fp32_nodes
    assert onnx_graph.mixed_types(onnx.load(str(done.path))) == []
    if opset >= 17:  # torch's older exporter also writes those whose result is not used
        assert kept[("normalisation", "LayerNormalization")] == (9 if opset == 20 else 12)
    else:  # written out: every one of the 12 in all its parts
        assert [kept[("normalisation", op)] for op in ("Pow", "Sqrt", "Sub", "Div")] == [12] * 4
    assert kept[("softmax", "Softmax")] == 4 and not kept[("attention scores", "MatMul")]
    assert [report.fp16 for report in done.fp16.attentions] == [True] * 4
    assert kept[("last layers", "Conv")] == 1 and done.fp16.fp16_nodes["Conv"] == 30
    assert done.fp16.fp16_nodes["MatMul"] == 32
    assert done.comparison.worst.relative_error < 1e-3
    assert done.bytes[1] < 0.6 * done.bytes[0]


@pytest.mark.parametrize("name", ["embedded-small", "embedded"])
def test_the_packages_networks(name: str, tmp_path: Path) -> None:
    done = convert.convert(
        name, compare.ComparisonImages(3, height=96, width=128), out=tmp_path / "e.onnx"
    )
    delicate = {op: n for (why, op), n in done.fp16.fp32_nodes.items() if why == "delicate"}
    # MobileNetV2's first depthwise convolution loses ten times as much as all other nodes.
    assert sum(delicate.values()) == (3 if name == "embedded" else 0)
    assert done.fp16.fp16_nodes["Conv"] > 20 and done.comparison.worst.relative_error < 1e-3
    with open_engine(done.path) as engine:
        assert engine.manifest.meaning == "disparity_affine_invariant"


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({37}, range(37, 40)),
        ({3, 4}, range(3, 6)),
        ({49, 50}, range(0)),  # in both halves, so only the whole range is enough
        (set(), range(0, 3)),
    ],
)
def test_the_delicate_nodes_are_found_by_halves(bad: set[int], found: range) -> None:
    asked: list[range] = []

    def agrees(part: range) -> bool:
        asked.append(part)
        return bad <= set(part)

    assert convert.delicate_part(100, agrees) == found
    assert len(asked) <= 12


@pytest.mark.slow
def test_fastdepth(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "fastdepth_nyu_224.onnx"
    facts = tmp_path / "fastdepth.manifest.yaml"
    write_manifest(model, "depth_metric", manifest=facts)
    done = convert.convert(
        model,
        compare.ComparisonImages.of(shared / "data", Manifest.load(facts), 4),
        manifest=facts,
        out=tmp_path / "fast.fp16.onnx",
    )
    assert done.bytes[1] < 0.6 * done.bytes[0] and not done.comparison.failures


def strict(network: Path) -> None:
    manifest = Manifest.load(manifest_path(network))
    dataclasses.replace(manifest, limits={"relative_error": 1e-9}).save(manifest_path(network))


def test_not_near_enough_writes_nothing(network: Path) -> None:
    strict(network)
    before = sorted(network.parent.iterdir())
    sentence = refusal(lambda: convert.convert(network, FEW))
    assert "relative error" in sentence and "nothing was written" in sentence
    assert "--keep" in sentence and sorted(network.parent.iterdir()) == before
    done = convert.convert(network, FEW, keep=["Conv", "Relu", "Add"])  # FP32 throughout
    assert (
        done.fp16.fp32_nodes[("asked", "Conv")] == 2 and done.comparison.worst.relative_error == 0
    )


def test_refusals(network: Path, tmp_path: Path) -> None:
    assert "the model itself" in refusal(lambda: convert.convert(network, FEW, out=network))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "name a place with --out" in refusal(
        lambda: convert.convert(network, FEW, out=blocked / "x.onnx")
    )
    (tmp_path / "folder.onnx").mkdir()
    assert "folder.onnx cannot be written" in refusal(
        lambda: convert.convert(network, FEW, out=tmp_path / "folder.onnx")
    )
    for fp16_input in (False, True):
        done = convert.convert(network, FEW, fp16_input=fp16_input)
        sentence = refusal(lambda done=done: convert.convert(done.path, FEW))
        assert "is in FP16 already" in sentence
    network.write_bytes(network.read_bytes()[:-30])
    manifest = Manifest.load(manifest_path(network))
    dataclasses.replace(manifest, sha256=model_sha256(network)).save(manifest_path(network))
    assert "fetch or export it again" in refusal(lambda: convert.convert(network, FEW))


def test_network_that_no_file_holds(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_MAX_FILE_BYTES", 100)
    assert "one ONNX file holds 2 GB" in refusal(lambda: convert.convert(network, FEW))


def test_without_onnx(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in refusal(lambda: convert.convert(network, FEW))


# --- the command line


def test_commands(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    count = ["--count", "2"]
    assert main.main(["models", "convert", str(network), *count]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "Kept in FP32",
        "last layers",
        "relative error",
        "50 are recommended",
        "written",
    ):
        assert word in shown
    half = str(network.with_name("network.fp16.onnx"))
    figures = tmp_path / "check.json"
    backends = ["--backends", "onnxruntime-cpu,onnxruntime-cpu"]
    arguments = ["models", "check", str(network), half, *count, *backends]
    assert main.main([*arguments, "--json", str(figures)]) == 0
    assert "every FP16 value rounded" in " ".join(capsys.readouterr().out.split())
    stored = json.loads(figures.read_text())
    assert len(stored["each"]) == 2 and stored["worst"]["finite"] == 1
    same = ["models", "check", str(network), str(network), *count, *backends]
    assert main.main([*same, "--precisions", "file,fp16"]) == 0
    assert main.main([*same, "--precisions", "file"]) == 2
    assert "two words with a comma" in capsys.readouterr().err
    strict(network)
    assert main.main(arguments) == 1
    assert "not near enough" in " ".join(capsys.readouterr().out.split())
    assert main.main(["models", "convert", str(network), *count]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert main.main(["models", "check", str(network), "/nowhere.onnx"]) == 2


def test_check_sees_the_overflow_of_a_file_from_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An FP16 file of a converter without measurements, whose overflow the CPU alone would hide."""
    pytest.importorskip("rich", reason="rich is not installed")
    model = OVERFLOWS["squares of a normalisation"]
    plain = saved(model, tmp_path / "plain.onnx", "region_labels")
    theirs = saved(blindly(model), tmp_path / "theirs.onnx", "region_labels")
    ours = saved(halved(model).model, tmp_path / "ours.onnx", "region_labels")
    backends = ["--backends", "onnxruntime-cpu,onnxruntime-cpu", "--count", "2"]
    assert main.main(["models", "check", str(plain), str(ours), *backends]) == 0
    assert main.main(["models", "check", str(plain), str(theirs), *backends]) == 1
    assert "B is not near enough to A" in capsys.readouterr().out


def test_check_of_a_graph_that_branches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    path = saved(branching(), tmp_path / "branch.onnx", "region_labels")
    backends = ["--backends", "onnxruntime-cpu,onnxruntime-cpu", "--count", "1"]
    assert main.main(["models", "check", str(path), str(path), *backends]) == 0
    assert "if any, not rounded" in " ".join(capsys.readouterr().out.split())


def test_build_names_what_this_machine_lacks(
    network: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main.main(["models", "build", str(network)]) == 2
    error = capsys.readouterr().err
    assert "tensorrt" in error and "pip install" in error and "Traceback" not in error


def test_models_of_several_tensors(tmp_path: Path) -> None:
    """A prompt decoder takes no image and has several outputs, all of which must be right."""
    rng = np.random.default_rng(0)
    nodes = [
        ("MatMul", ["points", "w"], ["a"]),
        ("Relu", ["a"], ["b"]),
        ("MatMul", ["b", "embedding"], ["c"]),
        ("Relu", ["c"], ["d"]),
        ("MatMul", ["d", "v"], ["masks"]),
        ("MatMul", ["d", "u"], ["iou"]),
    ]
    weights = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("w", (2, 16)), ("v", (6, 30)), ("u", (6, 1)))
    }
    content = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "decoder",
        [
            helper.make_tensor_value_info("points", FLOAT, [5, 2]),
            helper.make_tensor_value_info("embedding", FLOAT, [16, 6]),
        ],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in ("masks", "iou")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path / "decoder.onnx"
    onnx.save(
        helper.make_model(content, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(path),
    )
    write_manifest(path, "prompt_masks", outputs=("masks", "iou"), height=32, width=48)
    done = convert.convert(path, compare.ComparisonImages(3, (), 32, 48))
    assert done.manifest.outputs == ("masks", "iou") and set(done.manifest.inputs) == {
        "points",
        "embedding",
    }
    assert done.fp16.fp16_nodes == {"MatMul": 2, "Relu": 2}
    one = tmp_path / "one.onnx"
    onnx.save(onnx.load(str(path)), str(one))
    write_manifest(one, "prompt_masks", output_name="masks", height=32, width=48)
    with open_engine(path) as a, open_engine(one) as b:
        assert "has 2 outputs and one 1" in refusal(lambda: compare.compare(a, b, FEW))
    # One wrong output is enough for a failure.
    wrong = onnx.load(str(path))
    for item in wrong.graph.initializer:
        if item.name == "u":
            item.CopyFrom(numpy_helper.from_array(weights["u"] * 1.1, "u"))
    other = tmp_path / "wrong.onnx"
    onnx.save(wrong, str(other))
    write_manifest(other, "prompt_masks", outputs=("masks", "iou"), height=32, width=48)
    with open_engine(path) as a, open_engine(other) as b:
        found = compare.compare(a, b, FEW)
    assert found.worst.relative_error == pytest.approx(0.1, abs=0.01) and found.failures


def test_build_on_a_played_gpu(
    network: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A converted model is built by its own path, once; the table shows its key."""
    pytest.importorskip("rich", reason="rich is not installed")
    from tests.helpers.gpu_on_cpu import Machine

    machine = Machine()
    machine.install(monkeypatch)
    convert.convert(network, FEW)
    arguments = ["models", "build", str(network), "--precision", "fp16"]
    for _ in range(2):
        assert main.main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "key" in shown and "fp16" in shown and "correlation" in shown
    assert machine.calls.count("build") == 1
    (about,) = (tmp_path / "cache").glob("*.json")
    facts = json.loads(about.read_text())
    half = model_sha256(network.with_name("network.fp16.onnx"))
    assert half in json.dumps(facts)
