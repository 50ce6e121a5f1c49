# SPDX-License-Identifier: Apache-2.0
"""FP16 graphs: well typed, right where a blind cast overflows, refused where they are not near."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from depth_node.cli import main
from depth_node.engine import EngineError
from depth_node.engine.manifest import Manifest, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.inference import open_engine
from depth_node.model_zoo import compare, convert, fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
SHAPE = (1, 3, 8, 12)
Node = tuple[Any, ...]


def graph(
    nodes: Sequence[Node],
    weights: dict[str, Any] | None = None,
    *,
    shape: Sequence[int | str] = SHAPE,
    opset: int = 17,
    kind: int = FLOAT,
    output: int = FLOAT,
) -> Any:
    """A model `image` -> `out` of (operator, inputs, outputs[, attributes]) and weights."""
    made = [helper.make_node(n[0], n[1], n[2], **(n[3] if len(n) > 3 else {})) for n in nodes]
    stored = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights or {}).items()]
    content = helper.make_graph(
        made,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("out", output, None)],
        stored,
    )
    versions = [helper.make_opsetid("", opset), helper.make_opsetid("com.example", 1)]
    return helper.make_model(content, opset_imports=versions, ir_version=8)


def f32(*values: float) -> np.ndarray:
    return np.asarray(values if len(values) > 1 else values[0], np.float32)


def saved(
    model: Any, path: Path, meaning: str = "disparity_affine_invariant", **facts: Any
) -> Path:
    onnx.save(model, str(path))
    write_manifest(path, meaning, **facts)
    return path


def halved(model: Any, **options: Any) -> fp16.Fp16Model:
    half = fp16.to_fp16(onnx_graph.prepared(model, {"image": SHAPE}), **options)
    assert onnx_graph.mixed_types(half.model) == []
    return half


def answer(model: Any, image: np.ndarray) -> np.ndarray:
    """By onnx's reference: NumPy, each operator in the type that the graph gives it."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: np.ndarray = ReferenceEvaluator(model).run(None, {"image": image})[0]
    return found.astype(np.float32)


def blindly(model: Any) -> Any:
    """Everything in FP16, as a converter does that knows nothing of the network."""
    cast = onnx.ModelProto()
    cast.CopyFrom(onnx_graph.prepared(model, {"image": SHAPE}))
    for index, item in enumerate(cast.graph.initializer):
        if item.data_type == FLOAT:
            values = numpy_helper.to_array(item).astype(np.float16)
            cast.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, item.name))
    for item in (*cast.graph.input, *cast.graph.output):
        item.type.tensor_type.elem_type = HALF
    return cast


def near(found: np.ndarray, wanted: np.ndarray) -> bool:
    good = np.isfinite(found)
    return bool(good.all()) and float(np.abs(found - wanted).max()) < 0.01 * float(wanted.std())


def normalised(square: Sequence[Node], gain: float) -> Any:
    """x * gain, then a layer normalisation written out, then an offset, a last product."""
    return graph(
        [
            ("Mul", ["image", "gain"], ["x"]),
            ("ReduceMean", ["x"], ["mean"], {"axes": [-1]}),
            ("Sub", ["x", "mean"], ["d"]),
            *square,
            ("ReduceMean", ["square"], ["variance"], {"axes": [-1]}),
            ("Add", ["variance", "epsilon"], ["safe"]),
            ("Sqrt", ["safe"], ["deviation"]),
            ("Div", ["d", "deviation"], ["normal"]),
            ("Mul", ["normal", "two"], ["scaled"]),
            ("Add", ["scaled", "two"], ["shifted"]),
            ("MatMul", ["shifted", "last"], ["out"]),
        ],
        {
            "gain": f32(gain),
            "two": f32(2),
            "epsilon": f32(1e-6),
            "last": np.eye(12, dtype=np.float32),
        },
    )


SQUARES = {
    "power": [("Pow", ["d", "two"], ["square"])],
    "product": [("Mul", ["d", "d"], ["square"])],
}


def attention(gain: float) -> Any:
    """Softmax of Q K^T / 4 plus a mask, times V, then a last product."""
    return graph(
        [
            ("Mul", ["image", "gain"], ["q"]),
            ("Transpose", ["q"], ["kt"], {"perm": [0, 1, 3, 2]}),
            ("MatMul", ["q", "kt"], ["product"]),
            ("Mul", ["product", "scale"], ["scores"]),
            ("Add", ["scores", "mask"], ["masked"]),
            ("Softmax", ["masked"], ["weights"]),
            ("MatMul", ["weights", "image"], ["mixed"]),
            ("Relu", ["mixed"], ["positive"]),
            ("MatMul", ["positive", "last"], ["out"]),
        ],
        {
            "gain": f32(gain),
            "scale": f32(1 / gain**2),
            "mask": np.zeros((8, 8), np.float32),
            "last": np.eye(12, dtype=np.float32),
        },
    )


IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
OVERFLOWS = {
    "squares of a normalisation": normalised(SQUARES["power"], 900),
    "squares by a product": normalised(SQUARES["product"], 900),
    "scores of an attention": attention(300),
}


# --- where a blind cast breaks


@pytest.mark.parametrize("name", OVERFLOWS)
def test_overflow_of_a_blind_cast_is_none_of_ours(name: str) -> None:
    model = OVERFLOWS[name]
    wanted = answer(model, IMAGE)
    blind = blindly(model)
    assert not near(answer(blind, IMAGE.astype(np.float16)), wanted)
    ours = halved(model).model
    assert near(answer(ours, IMAGE), wanted)
    # The graph that stands for a GPU here says the same of both.
    assert not near(answer(onnx_graph.rounded(blind), IMAGE), wanted)
    assert near(answer(onnx_graph.rounded(ours), IMAGE), wanted)


def test_blind_cast_would_pass_on_onnxruntime_alone(tmp_path: Path) -> None:
    """Why FP16 is rounded by hand: ONNX Runtime on the CPU does not show the overflow."""
    model = OVERFLOWS["squares of a normalisation"]
    plain, blind = tmp_path / "plain.onnx", tmp_path / "blind.onnx"
    cast = blindly(model)
    for path, content in ((plain, model), (blind, cast), (tmp_path / "r.onnx", cast)):
        if path.name == "r.onnx":
            content = onnx_graph.rounded(cast)
        saved(content, path)
    found = {}
    for path in (plain, blind, tmp_path / "r.onnx"):
        with open_engine(path, backend="onnxruntime-cpu") as engine:
            found[path.stem] = engine.run(IMAGE.astype(engine.manifest.input.dtype))
    assert near(found["blind"].astype(np.float32), found["plain"])
    assert not near(found["r"], found["plain"])


def test_what_stays_fp32_and_why() -> None:
    kept = halved(OVERFLOWS["squares of a normalisation"]).kept
    assert kept[("normalisation", "Sub")] == 1 and kept[("normalisation", "Pow")] == 1
    assert kept[("normalisation", "ReduceMean")] == 2 and kept[("normalisation", "Div")] == 1
    assert kept[("last layers", "MatMul")] == 1
    half = halved(attention(1.0))
    assert half.kept[("attention scores", "MatMul")] == 1
    assert half.kept[("attention scores", "Mul")] == 2  # scale, and what makes Q
    assert half.kept[("softmax", "Softmax")] == 1
    assert half.halved == {"MatMul": 1, "Relu": 1}  # times V
    assert set(why for why, _ in half.kept) <= set(fp16.REASONS)


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
    assert ("range", "Conv") in unaware.kept  # the weights alone say it
    path = saved(large, tmp_path / "large.onnx")
    images = compare.ComparisonImages(2, height=32, width=48)
    done = convert.convert(path, images)
    assert done.half.kept[("range", "Relu")] >= 1
    assert done.comparison.worst.finite == 1 and not done.comparison.failures
    manifest = Manifest.load(manifest_path(path))
    found = convert.measured(ready, manifest, images, tmp_path)
    with open_engine(path) as engine:  # ... and they are measured right
        tensors = [compare.tensors_of(manifest, p, 0)["image"] for p in images]
        assert found["out"] == max(np.abs(engine.run(t)).max() for t in tensors)
    assert found["high"] == found["still"] > 65504


# --- types


def test_types_of_every_kind_of_operator() -> None:
    """Inputs that are FP32 by ONNX's rules, optional ones, constants, foreign and integer ones."""
    model = graph(
        [
            ("Clip", ["image", "low", ""], ["clipped"]),
            ("Constant", [], ["factor"], {"value_float": 1.5}),
            ("Mul", ["clipped", "factor"], ["m"]),
            ("Resize", ["m", "", "scales"], ["large"], {"mode": "linear"}),
            ("Resize", ["large", "", "", "sizes"], ["small"], {"mode": "cubic"}),
            ("Shape", ["small"], ["shape"]),
            ("Reshape", ["small", "shape"], ["again"]),
            ("Cast", ["stored"], ["weight"], {"to": FLOAT}),
            ("Conv", ["again", "weight"], ["c"]),
            ("Mystery", ["c"], ["strange"], {"domain": "com.example"}),
            ("IsNaN", ["c"], ["bad"]),
            ("Where", ["bad", "low", "c"], ["w"]),
            ("Pad", ["w", "pads", "low"], ["p"]),
            ("Conv", ["p", "weight"], ["last"]),
            ("Sigmoid", ["last"], ["out"]),
        ],
        {
            "low": f32(-2),
            "scales": f32(1, 1, 2, 2),
            "sizes": np.asarray([1, 3, 8, 12]),
            "stored": np.ones((3, 3, 1, 1), np.float16),
            "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
        },
    )
    del model.graph.node[9]  # onnx cannot infer through an operator it does not know
    half = halved(model)
    kept = {op: why for why, op in half.kept}
    assert kept["Resize"] == "cubic resize" and half.halved["Resize"] == 1
    assert kept["Sigmoid"] == "last layers" and half.halved["Conv"] == 1
    wanted = answer(model, IMAGE)
    assert near(answer(half.model, IMAGE), wanted)
    names = {item.name: item.data_type for item in half.model.graph.initializer}
    assert names["scales"] == FLOAT and names["low.half"] == HALF and "stored" not in names


def test_sizes_that_the_graph_works_out_stay_exact() -> None:
    """Width 12 times and by 4099: in FP16 that is 11.99, and a column would be lost."""
    model = graph(
        [
            ("Shape", ["image"], ["shape"]),
            ("Gather", ["shape", "three"], ["width"]),
            ("Cast", ["width"], ["float"], {"to": FLOAT}),
            ("Mul", ["float", "factor"], ["times"]),
            ("Div", ["times", "factor"], ["again"]),
            ("Cast", ["again"], ["end"], {"to": TensorProto.INT64}),
            ("Slice", ["image", "zero", "end", "three"], ["columns"]),
            ("Conv", ["columns", "w"], ["c"]),
            ("Relu", ["c"], ["r"]),
            ("Conv", ["r", "w"], ["out"]),
        ],
        {
            "three": np.asarray([3]),
            "zero": np.asarray([0]),
            "factor": f32(4099),
            "w": np.ones((3, 3, 1, 1), np.float32),
        },
    )
    half = halved(model)
    assert half.kept[("constant", "Mul")] == half.kept[("constant", "Div")] == 1
    assert near(answer(half.model, IMAGE), answer(model, IMAGE))
    assert answer(half.model, IMAGE).shape == SHAPE


def test_picture_of_bytes(tmp_path: Path) -> None:
    """What the file casts to FP32 itself is FP32, whoever takes it."""
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
    assert half.halved["Mul"] == 1 and half.casts == 2
    path = saved(model, tmp_path / "bytes.onnx", scale=1.0)
    done = convert.convert(path, compare.ComparisonImages(1, (), 32, 48))
    assert done.manifest.input.dtype == "uint8"
    assert "leave --half-input out" in refusal(
        lambda: convert.convert(path, compare.ComparisonImages(1, (), 32, 48), half_input=True)
    )


def test_mixed_types_are_found() -> None:
    model = graph(
        [("Cast", ["image"], ["h"], {"to": HALF}), ("Add", ["image", "h"], ["out"])], output=FLOAT
    )
    with pytest.raises(onnx_graph.ConvertError, match="not valid ONNX"):
        onnx_graph.mixed_types(model)
    where = graph(
        [
            ("Cast", ["image"], ["h"], {"to": HALF}),
            ("IsNaN", ["image"], ["bad"]),
            ("Where", ["bad", "image", "h"], ["out"]),
        ]
    )
    try:
        faults = onnx_graph.mixed_types(where)
    except onnx_graph.ConvertError:
        return  # this onnx checks it while inferring
    assert "Where" in faults[0] and "FLOAT16" in faults[0]


def test_half_input_and_open_size(tmp_path: Path) -> None:
    model = graph(
        [("Conv", ["image", "w"], ["c"]), ("Relu", ["c"], ["r"]), ("Conv", ["r", "v"], ["out"])],
        {"w": np.ones((4, 3, 3, 3), np.float32), "v": np.ones((1, 4, 1, 1), np.float32)},
        shape=[1, 3, "h", "w"],
    )
    path = saved(model, tmp_path / "net.onnx", height=24, width=32)
    done = convert.convert(path, compare.ComparisonImages(2, height=32, width=48), half_input=True)
    assert done.path == tmp_path / "net.fp16.onnx"
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
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="net.onnx.data",
              size_threshold=0)  # fmt: skip
    write_manifest(path, "depth_metric")
    done = convert.convert(path, compare.ComparisonImages(1, height=32, width=48))
    assert done.bytes[0] > (tmp_path / "net.onnx.data").stat().st_size
    open_engine(done.path).close()


# --- real networks


def depth_anything(tmp_path: Path, opset: int) -> Path:
    """The real architecture, small, with random weights of a size that trained ones have."""
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


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.slow), 17, 14])
def test_depth_anything(opset: int, tmp_path: Path) -> None:
    path = depth_anything(tmp_path, opset)
    done = convert.convert(path, compare.ComparisonImages(4, height=64, width=96))
    kept = done.half.kept
    assert onnx_graph.mixed_types(onnx.load(str(done.path))) == []
    if opset >= 17:  # torch's older exporter also writes those whose result is not used
        assert kept[("normalisation", "LayerNormalization")] == (9 if opset == 20 else 12)
    else:  # written out: every one of the 12 in all its parts
        assert [kept[("normalisation", op)] for op in ("Pow", "Sqrt", "Sub", "Div")] == [12] * 4
    assert kept[("softmax", "Softmax")] == kept[("attention scores", "MatMul")] == 4
    assert kept[("last layers", "Conv")] == 1 and done.half.halved["Conv"] == 30
    assert done.half.halved["MatMul"] == 28
    assert done.comparison.worst.relative_error < 1e-3
    assert done.bytes[1] < 0.6 * done.bytes[0]


def test_the_packages_network(tmp_path: Path) -> None:
    done = convert.convert(
        "embedded", compare.ComparisonImages(3, height=96, width=128), out=tmp_path / "e.onnx"
    )
    assert done.half.halved["Conv"] > 20 and done.comparison.worst.relative_error < 1e-3
    with open_engine(done.path) as engine:
        assert engine.manifest.meaning == "disparity_affine_invariant"


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


# --- what is refused, and leaves nothing behind


@pytest.fixture
def net(tmp_path: Path) -> Path:
    weights = {
        "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
        "v": np.random.default_rng(1).normal(size=(1, 4, 1, 1)).astype(np.float32),
        "ten": f32(10),
    }
    nodes = [
        ("Conv", ["image", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], ["r"]),
        ("Conv", ["r", "v"], ["d"]),
        ("Add", ["d", "ten"], ["out"]),
    ]
    folder = tmp_path / "net"
    folder.mkdir()
    return saved(graph(nodes, weights), folder / "net.onnx")


FEW = compare.ComparisonImages(2, height=32, width=48)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(EngineError) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def strict(net: Path) -> None:
    manifest = Manifest.load(manifest_path(net))
    dataclasses.replace(manifest, limits={"relative_error": 1e-9}).save(manifest_path(net))


def test_not_near_enough_writes_nothing(net: Path) -> None:
    strict(net)
    before = sorted(net.parent.iterdir())
    sentence = refusal(lambda: convert.convert(net, FEW))
    assert "relative error" in sentence and "nothing was written" in sentence
    assert "--keep" in sentence and sorted(net.parent.iterdir()) == before
    done = convert.convert(net, FEW, keep=["Conv", "Relu", "Add"])  # FP32 throughout
    assert done.half.kept[("asked", "Conv")] == 2 and done.comparison.worst.relative_error == 0


def test_refusals(net: Path, tmp_path: Path) -> None:
    assert "the model itself" in refusal(lambda: convert.convert(net, FEW, out=net))
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "name a place with --out" in refusal(
        lambda: convert.convert(net, FEW, out=blocked / "x.onnx")
    )
    (tmp_path / "folder.onnx").mkdir()
    assert "folder.onnx cannot be written" in refusal(
        lambda: convert.convert(net, FEW, out=tmp_path / "folder.onnx")
    )
    for half_input in (False, True):
        done = convert.convert(net, FEW, half_input=half_input)
        sentence = refusal(lambda done=done: convert.convert(done.path, FEW))
        assert "is in FP16 already" in sentence
    net.write_bytes(net.read_bytes()[:-30])
    manifest = Manifest.load(manifest_path(net))
    dataclasses.replace(manifest, sha256=model_sha256(net)).save(manifest_path(net))
    assert "fetch or export it again" in refusal(lambda: convert.convert(net, FEW))


def test_network_that_no_file_holds(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_LARGEST_FILE", 100)
    assert "one ONNX file holds 2 GB" in refusal(lambda: convert.convert(net, FEW))


def branching() -> Any:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", FLOAT, SHAPE)],
    )
    nodes = [("If", ["yes"], ["out"], {"then_branch": branch, "else_branch": branch})]
    return graph(nodes, {"yes": np.asarray(True)})


def test_control_flow_and_unknown_inputs() -> None:
    model = branching()
    assert "without control flow" in refusal(lambda: onnx_graph.prepared(model, {"image": SHAPE}))
    plain = graph([("Relu", ["image"], ["out"])])
    assert "does not name" in refusal(lambda: onnx_graph.prepared(plain, {"image": SHAPE}))
    wrong = graph([("MatMul", ["image", "w"], ["out"])], {"w": np.ones((5, 5), np.float32)})
    assert "not valid ONNX" in refusal(
        lambda: fp16.to_fp16(onnx_graph.prepared(wrong, {"image": SHAPE}))
    )


def test_without_onnx(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in refusal(lambda: convert.convert(net, FEW))


# --- images and comparing


def test_pictures(net: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(manifest_path(net))
    folder = tmp_path / "images"
    assert "no folder" in refusal(lambda: compare.ComparisonImages.of(folder, manifest))
    (folder / "deep").mkdir(parents=True)
    assert "no image below" in refusal(lambda: compare.ComparisonImages.of(folder, manifest))
    for number in range(6):
        image = np.full((4, 5, 3), (number, 0, 100), np.uint8)  # B, G, R
        cv2.imwrite(str(folder / "deep" / f"{number}.png"), image)
    cv2.imwrite(str(folder / "depth.png"), np.zeros((4, 5), np.uint16))
    chosen = compare.ComparisonImages.of(folder, manifest, 3)
    assert [path.stem for path in chosen.files] == ["0", "2", "4"] and str(chosen) == "3 images"
    assert [tuple(p[0, 0]) for p in chosen] == [(100, 0, 0), (100, 0, 2), (100, 0, 4)]
    assert compare.ComparisonImages.of(folder, manifest, 50).count == 6
    (folder / "deep" / "0.png").write_text("no image")
    assert "cannot be read as an image" in refusal(lambda: list(chosen))
    assert "at least one" in refusal(lambda: compare.ComparisonImages.of(None, manifest, 0))
    rooms = [*compare.ComparisonImages(7, height=32, width=48)]
    assert rooms[0].shape == (32, 48, 3) and rooms[0].dtype == np.uint8
    assert len({room.tobytes() for room in rooms}) == 7
    assert np.array_equal(rooms, [*compare.ComparisonImages(7, (), 32, 48)])  # the same every time


def test_compare_says_how_far_apart(net: Path, tmp_path: Path) -> None:
    moved = onnx.load(str(net))
    moved.graph.initializer[2].CopyFrom(numpy_helper.from_array(f32(10.2), "ten"))
    other = saved(moved, tmp_path / "other.onnx", "depth_metric")
    with open_engine(net) as a, open_engine(other) as b:
        assert "only networks of one meaning" in refusal(lambda: compare.compare(a, b, FEW))
    write_manifest(net, "depth_metric")
    with open_engine(net) as a, open_engine(other) as b:
        found = compare.compare(a, b, FEW)
    assert found.worst.correlation > 0.999999 and len(found.found) == 2
    assert found.worst.relative_error > 0.005 and "relative error" in found.failures[0]
    write_manifest(net, "disparity_affine_invariant")
    write_manifest(other, "disparity_affine_invariant")
    with open_engine(net) as a, open_engine(other) as b:  # the shift is not of the meaning
        assert compare.compare(a, b, FEW).worst.relative_error < 1e-6


def test_networks_of_two_sizes_are_compared_in_the_picture(tmp_path: Path) -> None:
    nodes = [("ReduceMean", ["image"], ["out"], {"axes": [1], "keepdims": 0})]
    paths = []
    for height, width in ((24, 36), (48, 72)):
        path = tmp_path / f"{height}.onnx"
        shape = (1, 3, height, width)
        paths.append(saved(graph(nodes, shape=shape), path, "depth_affine_invariant"))
    with open_engine(paths[0]) as a, open_engine(paths[1]) as b:
        assert compare.compare(a, b, FEW).worst.correlation > 0.9


# --- the command line


def test_commands(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    count = ["--count", "2"]
    assert main.main(["models", "convert", str(net), *count]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for word in ("Kept in FP32", "last layers", "relative error", "2 images say less", "written"):
        assert word in shown
    half = str(net.with_name("net.fp16.onnx"))
    figures = tmp_path / "check.json"
    backends = ["--backends", "onnxruntime-cpu,onnxruntime-cpu"]
    arguments = ["models", "check", str(net), half, *count, *backends]
    assert main.main([*arguments, "--json", str(figures)]) == 0
    assert "every FP16 value rounded" in " ".join(capsys.readouterr().out.split())
    stored = json.loads(figures.read_text())
    assert len(stored["each"]) == 2 and stored["worst"]["finite"] == 1
    same = ["models", "check", str(net), str(net), *count, *backends]
    assert main.main([*same, "--precisions", "file,fp16"]) == 0
    assert main.main([*same, "--precisions", "file"]) == 2
    assert "two words with a comma" in capsys.readouterr().err
    strict(net)
    assert main.main(arguments) == 1
    assert "not near enough" in " ".join(capsys.readouterr().out.split())
    assert main.main(["models", "convert", str(net), *count]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert main.main(["models", "check", str(net), "/nowhere.onnx"]) == 2


def test_check_sees_the_overflow_of_a_file_from_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CPU alone would not: an FP16 file by a converter that knows nothing of the network."""
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
    net: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert main.main(["models", "build", str(net)]) == 2
    error = capsys.readouterr().err
    assert "tensorrt" in error and "pip install" in error and "Traceback" not in error


def test_models_of_several_tensors(tmp_path: Path) -> None:
    """A prompt decoder: no image goes in, several outputs come out, and all have to be right."""
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
    assert done.half.halved == {"MatMul": 2, "Relu": 2}
    one = tmp_path / "one.onnx"
    onnx.save(onnx.load(str(path)), str(one))
    write_manifest(one, "prompt_masks", output_name="masks", height=32, width=48)
    with open_engine(path) as a, open_engine(one) as b:
        assert "has 2 outputs and one 1" in refusal(lambda: compare.compare(a, b, FEW))
    # One wrong output is enough to be told.
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
    net: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was converted is built by its own path, once; the table says under which key."""
    pytest.importorskip("rich", reason="rich is not installed")
    from tests.helpers.gpu_on_cpu import Machine

    machine = Machine()
    machine.install(monkeypatch)
    convert.convert(net, FEW)
    arguments = ["models", "build", str(net), "--precision", "fp16"]
    for _ in range(2):
        assert main.main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert "key" in shown and "fp16" in shown and "correlation" in shown
    assert machine.calls.count("build") == 1
    (about,) = (tmp_path / "cache").glob("*.json")
    facts = json.loads(about.read_text())
    half = model_sha256(net.with_name("net.fp16.onnx"))
    assert half in json.dumps(facts)
