# SPDX-License-Identifier: Apache-2.0
"""FP16 graphs: right where a blind cast overflows, every operator typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depth_node.engine.manifest import Manifest, manifest_path
from depth_node.model_zoo import compare, convert, fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto

from tests.helpers.onnx_graphs import (
    FEW,
    FLOAT,
    HALF,
    IMAGE,
    OVERFLOWS,
    SHAPE,
    answer,
    attention,
    blindly,
    f32,
    graph,
    halved,
    near,
    saved,
)


@pytest.mark.parametrize("name", OVERFLOWS)
def test_overflow_of_a_blind_cast_is_none_of_ours(name: str) -> None:
    model = OVERFLOWS[name]
    wanted = answer(model, IMAGE)
    blind = blindly(model)
    assert not near(answer(blind, IMAGE.astype(np.float16)), wanted)
    ours = halved(model).model
    assert near(answer(ours, IMAGE), wanted)
    # The rounded graph, which stands in for a GPU here, gives the same for both.
    assert not near(answer(onnx_graph.rounded(blind), IMAGE), wanted)
    assert near(answer(onnx_graph.rounded(ours), IMAGE), wanted)


def test_what_stays_fp32_and_why() -> None:
    kept = halved(OVERFLOWS["squares of a normalisation"]).fp32_nodes
    assert kept[("normalisation", "Sub")] == 1 and kept[("normalisation", "Pow")] == 1
    assert kept[("normalisation", "ReduceMean")] == 2 and kept[("normalisation", "Div")] == 1
    assert kept[("last layers", "MatMul")] == 1
    half = halved(attention(1.0))
    assert half.fp32_nodes[("attention scores", "MatMul")] == 1
    assert half.fp32_nodes[("attention scores", "Mul")] == 2  # scale, and what makes Q
    assert half.fp32_nodes[("softmax", "Softmax")] == 1
    assert half.fp16_nodes == {"MatMul": 1, "Relu": 1}  # times V
    assert set(why for why, _ in half.fp32_nodes) <= set(fp16.REASONS)


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
    kept = {op: why for why, op in half.fp32_nodes}
    assert kept["Resize"] == "cubic resize" and half.fp16_nodes["Resize"] == 1
    assert kept["Sigmoid"] == "last layers" and half.fp16_nodes["Conv"] == 1
    wanted = answer(model, IMAGE)
    assert near(answer(half.model, IMAGE), wanted)
    names = {item.name: item.data_type for item in half.model.graph.initializer}
    assert names["scales"] == FLOAT and names["low.fp16"] == HALF and "stored" not in names


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
    assert half.fp32_nodes[("constant", "Mul")] == half.fp32_nodes[("constant", "Div")] == 1
    assert near(answer(half.model, IMAGE), answer(model, IMAGE))
    assert answer(half.model, IMAGE).shape == SHAPE


# --- scores of attentions


def measured(model: Any, tmp_path: Path) -> fp16.Measured:
    path = saved(model, tmp_path / "scores.onnx")
    ready = onnx_graph.prepared(model, {"image": SHAPE})
    return convert.measure(ready, Manifest.load(manifest_path(path)), FEW, tmp_path)


@pytest.mark.parametrize(
    ("gain", "scale", "fits"),
    [(1.0, 1.0, True), (20.0, 1.0, True), (20.0, 400.0, False), (1000.0, 1.0, False)],
    ids=["small", "scaled down", "large: lossy", "overflow"],
)
def test_measured_scores_decide(gain: float, scale: float, fits: bool, tmp_path: Path) -> None:
    """FP16 if neither range nor loss forbids it; the report has what was measured."""
    model = attention(gain)
    for item in model.graph.initializer:
        if item.name == "scale":
            item.CopyFrom(onnx.numpy_helper.from_array(f32(scale / gain**2), "scale"))
    found = measured(model, tmp_path)
    half = fp16.to_fp16(onnx_graph.prepared(model, {"image": SHAPE}), found)
    assert onnx_graph.mixed_types(half.model) == []
    (report,) = half.attentions
    assert report.fp16 == fits and report.largest_score > 0 and report.loss >= 0
    for operator in ("MatMul", "Add"):
        assert half.fp32_nodes.get(("attention scores", operator), 0) == (not fits)
    assert half.fp32_nodes[("softmax", "Softmax")] == 1
    assert (report.loss <= fp16.LARGEST_LOSS) or not fits
    asked = fp16.to_fp16(onnx_graph.prepared(model, {"image": SHAPE}), found, keep=("attention",))
    assert not asked.attentions[0].fp16


def test_the_loss_is_that_of_rounded_scores(tmp_path: Path) -> None:
    """Against NumPy in float16, for the images on which it was measured: Q, K, Q K^T, scaled."""
    model = attention(3.0)
    found = measured(model, tmp_path)
    ((name, loss),) = found.losses.items()
    assert name == "weights"
    manifest = Manifest.load(manifest_path(tmp_path / "scores.onnx"))
    expected = 0.0
    for number, image in enumerate(FEW):
        q = compare.tensors_of(manifest, image, number)["image"] * np.float32(3)
        rounded = [x.astype(np.float16).astype(np.float32) for x in (q, q.swapaxes(-1, -2))]
        weights = []
        for scores in (q @ q.swapaxes(-1, -2), (rounded[0] @ rounded[1]).astype(np.float16)):
            scaled = (scores / scores.dtype.type(9)).astype(np.float64)
            x = np.exp(scaled - scaled.max(-1, keepdims=True))
            weights.append(x / x.sum(-1, keepdims=True))
        expected = max(expected, np.abs(weights[0] - weights[1]).sum(-1).mean(-1).max())
    assert loss == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("mask", "dropped"),
    [
        (np.zeros((8, 8), np.float32), True),
        (np.triu(np.full((8, 8), -np.inf, np.float32), 1), True),
        (np.full((8, 8), -np.inf, np.float32), False),
    ],
    ids=["none", "causal", "hides rows"],
)
def test_the_guard_behind_a_softmax(mask: np.ndarray, dropped: bool) -> None:
    """The guard is removed unless a mask hides a whole row, where it is needed against NaN."""
    model = graph(
        [
            ("Transpose", ["image"], ["kt"], {"perm": [0, 1, 3, 2]}),
            ("MatMul", ["image", "kt"], ["product"]),
            ("Add", ["product", "mask"], ["masked"]),
            ("Softmax", ["masked"], ["weights"]),
            ("IsNaN", ["weights"], ["bad"]),
            ("Where", ["bad", "zero", "weights"], ["safe"]),
            ("MatMul", ["safe", "image"], ["out"]),
        ],
        {"mask": mask, "zero": f32(0)},
    )
    ready = onnx_graph.prepared(model, {"image": SHAPE})
    assert ("IsNaN" not in [node.op_type for node in ready.graph.node]) == dropped
    np.testing.assert_array_equal(answer(ready, IMAGE), answer(model, IMAGE))
    onnx.checker.check_model(ready, full_check=True)


def test_a_converted_file_is_valid_onnx(tmp_path: Path) -> None:
    done = convert.convert(saved(attention(1.0), tmp_path / "a.onnx"), FEW)
    onnx.checker.check_model(str(done.path), full_check=True)
    assert [report.fp16 for report in done.fp16.attentions] == [True]


def test_too_little_memory_is_told_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(attention(1.0), tmp_path / "a.onnx")
    free = tmp_path / "meminfo"
    free.write_text("MemTotal: 9 kB\nMemAvailable: 1 kB\n")
    monkeypatch.setattr(convert, "_MEMORY", free)
    with pytest.raises(onnx_graph.ConvertError, match=r"needs about .* GB of memory and 0\.0 GB"):
        convert.convert(path, FEW)
    assert not list(tmp_path.glob("*fp16*"))


def test_tensors_in_use() -> None:
    """Of four large tensors two are live at once; the input is not counted."""
    model = graph([(op, [a], [b]) for op, a, b in
                   (("Relu", "image", "b"), ("Abs", "b", "c"), ("Neg", "c", "d"),
                    ("Exp", "d", "out"))])  # fmt: skip
    size = 4 * int(np.prod(SHAPE))
    assert onnx_graph.live_bytes(onnx_graph.prepared(model, {"image": SHAPE})) == 2 * size
