# SPDX-License-Identifier: Apache-2.0
"""Changes of a graph at export: fewer nodes, a fixed size, FP16 weights, no paths of this machine.

Some are made on the torch module before the export, others on the ONNX model after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from depth_node.model_zoo.onnx_graph import drop_softmax_guards

OPSET = 20
SMALLEST_FP16 = 1024  # values; smaller tensors are not worth a Cast


def folded(model: nn.Module) -> nn.Module:
    """Fold batch normalisations into the convolutions before them, in place; return the model.

    The function in eval mode stays the same. Only pairs that begin an nn.Sequential are folded.
    """
    for name, child in model.named_children():
        if (
            isinstance(child, nn.Sequential)
            and len(child) >= 2
            and isinstance(child[0], nn.Conv2d)
            and isinstance(child[1], nn.BatchNorm2d)
        ):
            fused = nn.utils.fusion.fuse_conv_bn_eval(child[0], child[1])
            setattr(model, name, nn.Sequential(fused, *list(child)[2:]))
        else:
            folded(child)
    return model


@contextmanager
def sized(model: nn.Module, height: int, width: int) -> Iterator[None]:
    """Inside, positional embeddings are constants for one size: no cubic Resize in the graph."""
    embeddings: list[Any] = [m for m in model.modules() if hasattr(m, "interpolate_pos_encoding")]
    for module in embeddings:
        patch = module.patch_embeddings.patch_size
        tokens = 1 + (height // patch[0]) * (width // patch[1])
        with torch.no_grad():
            own = module.position_embeddings
            fixed = module.interpolate_pos_encoding(
                own.new_zeros(1, tokens, own.shape[-1]), height, width
            ).clone()
        module.register_buffer("fixed_positions", fixed, persistent=False)
        module.interpolate_pos_encoding = lambda *_, m=module: m.fixed_positions
    try:
        yield
    finally:
        for module in embeddings:
            del module.interpolate_pos_encoding, module.fixed_positions


def clean(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Remove source paths of this machine (metadata, doc strings) and softmax guards, in place."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.graph.metadata_props[:]
    for item in (
        *graph.graph.node,
        *graph.graph.input,
        *graph.graph.output,
        *graph.graph.value_info,
        *graph.graph.initializer,
    ):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.graph.value_info[:]
    drop_softmax_guards(graph)
    for function in graph.functions:
        function.doc_string = ""
    return graph


def store_weights_as_fp16(graph: onnx.ModelProto) -> None:
    """Store large float32 weights as float16 and cast them back in the graph, in place."""
    casts = []
    for index, item in enumerate(graph.graph.initializer):
        if item.data_type != TensorProto.FLOAT or np.prod(item.dims) < SMALLEST_FP16:
            continue
        values = numpy_helper.to_array(item).astype(np.float16)
        name = item.name
        graph.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, name + "_half"))
        casts.append(
            helper.make_node(
                "Cast", [name + "_half"], [name], name=name + "_cast", to=TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
