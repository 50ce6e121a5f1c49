# SPDX-License-Identifier: Apache-2.0
"""FP16 graphs: right where a blind cast overflows, every operator typed."""

from __future__ import annotations

import numpy as np
import pytest

from depth_node.model_zoo import fp16, onnx_graph

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx", reason="onnx builds the models of these tests")
from onnx import TensorProto

from tests.helpers.onnx_graphs import (
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
)


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
