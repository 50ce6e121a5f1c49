# SPDX-License-Identifier: Apache-2.0
"""Edits of ONNX graphs: fixed sizes, types of all tensors, FP16 rounding that any machine can run.

Needs the onnx package; nothing here runs a network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from depth_node.engine import EngineError, depth_tools
from depth_node.sentences import one_line

if TYPE_CHECKING:
    import onnx

# Number of values; larger tensors cannot be the shapes or axes that shape inference must read.
_LARGE_TENSOR = 1024


class ConvertError(EngineError):
    """A model cannot be converted; the message is one sentence with cause and cure."""


def onnx_package() -> Any:
    """Import and return the onnx package. Raises ConvertError with the cure if it is missing."""
    try:
        import onnx
        import onnx.inliner
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        raise ConvertError(
            "converting needs the onnx package, which is not here: pip install onnx"
        ) from None
    return onnx


# --- sizes and constants -------------------------------------------------------------------------


def prepared(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """Return a simplified copy: fixed input shapes, constants as initializers, no functions.

    Casts and choices of weights are computed, additions of zeros and guards of softmaxes
    (:func:`drop_softmax_guards`) are removed, and so are metadata. inputs: shapes by name. Raises
    ConvertError for control flow, for inputs that `inputs` does not name and for invalid graphs.
    """
    onnx = onnx_package()
    ready = onnx.inliner.inline_local_functions(model)
    graph = ready.graph
    for node in graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ConvertError(
                f"the graph branches or loops at run time ({node.op_type} {node.name}): export it"
                " with fixed shapes and without control flow, then convert again"
            )
    weights = {item.name for item in graph.initializer}
    # Files of old IR versions list weights as inputs too.
    images = [item for item in graph.input if item.name not in weights]
    del graph.input[:]
    graph.input.extend(images)
    for item in graph.input:
        if item.name not in inputs:
            raise ConvertError(
                f"the graph has an input {one_line(item.name)} that the manifest does not name:"
                f" write the manifest anew with `{depth_tools('models manifest')}`"
            )
        dims = item.type.tensor_type.shape
        del dims.dim[:]
        for size in inputs[item.name]:
            dims.dim.add().dim_value = size
    _constants_to_initializers(graph)
    _fold_casts(graph)
    _fold_choices(graph)
    drop_softmax_guards(ready)
    for item in (ready, graph, *graph.node, *graph.initializer):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.value_info[:]
    for output in graph.output:  # the shapes are inferred again for the fixed inputs
        output.type.tensor_type.ClearField("shape")
    bare = inferred(ready)
    for output, typed in zip(graph.output, bare.graph.output, strict=True):
        output.CopyFrom(typed)  # ONNX requires the shapes of the outputs
    _drop_empty_masks(graph, tensor_shapes(bare))
    return ready


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    onnx = onnx_package()
    rest = []
    for node in graph.node:
        tensor = None
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            (attribute,) = node.attribute
            value = onnx.helper.get_attribute_value(attribute)
            if attribute.name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(value)
            elif attribute.name in ("value_float", "value_floats"):
                tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float32))
            elif attribute.name in ("value_int", "value_ints"):
                tensor = onnx.numpy_helper.from_array(np.asarray(value, np.int64))
        if tensor is None:
            rest.append(node)
        else:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(rest)


def _fold_casts(graph: onnx.GraphProto) -> None:
    """Compute Casts and remove Identities of weights, which exporters write for FP16 or sharing."""
    onnx = onnx_package()
    stored = {item.name: item for item in graph.initializer}
    outputs = {item.name for item in graph.output}
    same: dict[str, str] = {}
    rest = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        source = stored.get(node.input[0]) if node.op_type in ("Cast", "Identity") else None
        if source is None or node.output[0] in outputs:
            rest.append(node)
        elif node.op_type == "Identity":
            same[node.output[0]] = source.name
        else:
            to = next(item.i for item in node.attribute if item.name == "to")
            values = onnx.numpy_helper.to_array(source)
            cast = onnx.numpy_helper.from_array(
                values.astype(onnx.helper.tensor_dtype_to_np_dtype(to)), node.output[0]
            )
            graph.initializer.append(cast)
            stored[cast.name] = graph.initializer[-1]
    del graph.node[:]
    graph.node.extend(rest)
    _drop_unused(graph)


def _fold_choices(graph: onnx.GraphProto) -> None:
    """Compute every Where that has only weights as inputs, such as a constant attention mask."""
    onnx = onnx_package()
    stored = {item.name: item for item in graph.initializer}
    outputs = {item.name for item in graph.output}
    rest = []
    for node in graph.node:
        parts = [stored.get(name) for name in node.input]
        if node.op_type != "Where" or node.output[0] in outputs or None in parts:
            rest.append(node)
            continue
        values = np.where(*(onnx.numpy_helper.to_array(part) for part in parts))
        graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
        stored[node.output[0]] = graph.initializer[-1]
    del graph.node[:]
    graph.node.extend(rest)
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Remove weights that neither a node nor an output uses."""
    used = {name for node in graph.node for name in node.input}
    used |= {item.name for item in graph.output}
    initializers = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _replace(graph: onnx.GraphProto, same: Mapping[str, str]) -> None:
    """Remove the nodes that produce the keys of `same`; consumers get the values instead."""
    rest = []
    for node in graph.node:
        if node.output and node.output[0] in same:
            continue
        for index, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[index] = name
        rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)
    _drop_unused(graph)


def _drop_empty_masks(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Remove additions of large zero tensors: an N x N mask without effect costs memory traffic."""
    onnx = onnx_package()
    outputs = {item.name for item in graph.output}
    zeros = {
        item.name: tuple(item.dims)
        for item in graph.initializer
        if item.data_type == onnx.TensorProto.FLOAT
        and math.prod(item.dims) > _LARGE_TENSOR
        and not onnx.numpy_helper.to_array(item).any()
    }
    same = {}
    for node in graph.node:
        if node.op_type != "Add" or node.output[0] in outputs:
            continue
        for mask, values in (node.input, tuple(node.input)[::-1]):
            shape = tuple(shapes.get(values, ()))
            if mask in zeros and shape and shape == tuple(shapes.get(node.output[0], ())):
                same[node.output[0]] = values
    if same:
        _replace(graph, same)


_BETWEEN_SCORES = {
    "Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip", "Neg", "Cast", "Reshape",
    "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Slice", "Concat", "Pad",
    "ConstantOfShape", "Constant",
}  # fmt: skip


def drop_softmax_guards(model: onnx.ModelProto) -> int:
    """Remove IsNaN -> Where(0) after Softmax nodes, and return how many were removed.

    torch's exporter writes this guard after every attention. It replaces the NaN of a row that a
    mask hides completely, but it keeps TensorRT from fusing the attention and would hide an
    overflow. It stays where a mask of minus infinity may hide a whole row.
    """
    onnx = onnx_package()
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    stored = {item.name: item for item in graph.initializer}
    outputs = {item.name for item in graph.output}

    def constant(name: str) -> Any:
        if name in stored:
            return onnx.numpy_helper.to_array(stored[name])
        node = maker.get(name)
        if node is not None and node.op_type == "Constant" and len(node.attribute) == 1:
            value = onnx.helper.get_attribute_value(node.attribute[0])
            is_tensor = isinstance(value, onnx.TensorProto)
            return onnx.numpy_helper.to_array(value) if is_tensor else np.asarray(value)
        return None

    def may_hide_a_row(name: str) -> bool:
        """Return whether constants upstream can fill a whole row of the scores with -infinity."""
        rest, seen = [name], set()
        while rest:
            name = rest.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            values = constant(name)
            if values is not None:
                hidden = np.isneginf(values) if values.dtype.kind == "f" else np.zeros(1, bool)
                rows = hidden.reshape(-1, hidden.shape[-1]) if hidden.ndim else hidden[None, None]
                if rows.all(axis=-1).any():
                    return True
                continue
            node = maker.get(name)
            if node is None or node.op_type not in _BETWEEN_SCORES:
                continue
            for attribute in node.attribute:
                value = onnx.helper.get_attribute_value(attribute)
                if isinstance(value, onnx.TensorProto):
                    value = onnx.numpy_helper.to_array(value)
                    if value.dtype.kind == "f" and np.isneginf(value).any():
                        return True
            rest += node.input
        return False

    same = {}
    for node in graph.node:
        if node.op_type != "Where" or node.output[0] in outputs:
            continue
        test, zero, values = (maker.get(node.input[0]), constant(node.input[1]), node.input[2])
        softmax = maker.get(values)
        if (
            test is not None
            and test.op_type == "IsNaN"
            and test.input[0] == values
            and zero is not None
            and not np.any(zero)
            and softmax is not None
            and softmax.op_type == "Softmax"
            and not may_hide_a_row(softmax.input[0])
        ):
            same[node.output[0]] = values
    if same:
        _replace(graph, same)
        used = {name for node in graph.node for name in node.input} | outputs
        rest = [node for node in graph.node if node.op_type != "IsNaN" or used & set(node.output)]
        del graph.node[:]
        graph.node.extend(rest)
    return len(same)


# --- types ---------------------------------------------------------------------------------------


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its large weights as inputs: small enough for inference and checks."""
    onnx = onnx_package()
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.producer_name = model.producer_name
    graph = bare.graph
    graph.name = model.graph.name or "graph"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for item in model.graph.initializer:
        if math.prod(item.dims) <= _LARGE_TENSOR:
            graph.initializer.append(item)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(item.name, item.data_type, list(item.dims))
            )
    return bare


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the skeleton with inferred types and shapes. Raises ConvertError if it is invalid."""
    onnx = onnx_package()
    try:
        bare = onnx.shape_inference.infer_shapes(
            skeleton(model), check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(bare, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = one_line(error)
        raise ConvertError(
            f"the graph is not valid ONNX ({reason}): export it again, with opset 17 or newer"
        ) from error
    return bare


def tensor_types(bare: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of an inferred graph that has one."""
    types = {item.name: item.data_type for item in bare.graph.initializer}
    for group in (bare.graph.input, bare.graph.value_info, bare.graph.output):
        for item in group:
            if item.type.HasField("tensor_type"):
                types[item.name] = item.type.tensor_type.elem_type
    return types


def tensor_shapes(bare: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an inferred graph whose sizes are all known."""
    shapes = {item.name: tuple(item.dims) for item in bare.graph.initializer}
    for group in (bare.graph.input, bare.graph.value_info, bare.graph.output):
        for item in group:
            dims = item.type.tensor_type.shape.dim
            if item.type.tensor_type.HasField("shape") and all(
                d.HasField("dim_value") for d in dims
            ):
                shapes[item.name] = tuple(d.dim_value for d in dims)
    return shapes


def tensor_ranks(bare: onnx.ModelProto) -> dict[str, int]:
    """Return the number of dimensions of every tensor of an inferred graph, also with open sizes.

    Initializers are not included.
    """
    return {
        item.name: len(item.type.tensor_type.shape.dim)
        for group in (bare.graph.input, bare.graph.value_info, bare.graph.output)
        for item in group
        if item.type.tensor_type.HasField("shape")
    }


def mixed_types(model: onnx.ModelProto) -> list[str]:
    """Describe all nodes with different types where their operator requires a single type.

    A strongly typed TensorRT network refuses such graphs. Empty for a well-typed graph.
    """
    onnx = onnx_package()
    types = tensor_types(inferred(model))
    versions = {item.domain or "": item.version for item in model.opset_import}
    faults = []
    for node in model.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            continue
        bound: dict[str, int] = {}
        for formals, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for index, name in enumerate(names):
                if not name or not formals or name not in types:
                    continue
                formal = formals[min(index, len(formals) - 1)]
                if not formal.is_homogeneous:
                    continue
                letter, actual = formal.type_str, types[name]
                if bound.setdefault(letter, actual) != actual:
                    faults.append(
                        f"{node.op_type} {node.name or node.output[0]}: {name} is"
                        f" {onnx.TensorProto.DataType.Name(actual)}, another"
                        f" {onnx.TensorProto.DataType.Name(bound[letter])}"
                    )
    return faults


def head(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the same opsets, inputs and outputs, but without nodes and weights."""
    onnx = onnx_package()
    empty = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    empty.graph.name = model.graph.name or "graph"
    empty.graph.input.extend(model.graph.input)
    empty.graph.output.extend(model.graph.output)
    return empty


# --- graphs for measurements ---------------------------------------------------------------------


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an FP32 graph that computes what an FP16 graph does: it rounds every FP16 tensor.

    ONNX Runtime on the CPU runs FP16 operators in FP32 without rounding between them, which hides
    overflows (in 1.31 a layer normalisation with squares above 65504 gives the right result). This
    graph rounds after every operator; sums inside an operator are in FP32, as on tensor cores, and
    values beyond FP16's range become infinite.
    """
    onnx = onnx_package()
    kind = onnx.TensorProto
    types = tensor_types(inferred(model))
    result = head(model)
    nodes: list[Any] = []

    def round_trip(source: str, target: str) -> None:
        as_fp16 = f"{target}.rounded"
        nodes.append(onnx.helper.make_node("Cast", [source], [as_fp16], to=kind.FLOAT16))
        nodes.append(onnx.helper.make_node("Cast", [as_fp16], [target], to=kind.FLOAT))

    def is_fp16(name: str) -> bool:
        return types.get(name) == kind.FLOAT16

    renamed: dict[str, str] = {}
    for item in result.graph.input:
        if is_fp16(item.name):
            item.type.tensor_type.elem_type = kind.FLOAT
            renamed[item.name] = f"{item.name}.16"
            round_trip(item.name, renamed[item.name])
    for item in result.graph.output:
        if is_fp16(item.name):
            item.type.tensor_type.elem_type = kind.FLOAT
    for item in model.graph.initializer:
        if item.data_type == kind.FLOAT16:
            values = onnx.numpy_helper.to_array(item).astype(np.float32)
            item = onnx.numpy_helper.from_array(values, item.name)
        result.graph.initializer.append(item)
    for source in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(source)
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        targets = [name for name in node.output if name and is_fp16(name)]
        if node.op_type == "Cast":
            _retype(node, kind.FLOAT if targets else None)
        for index, name in enumerate(node.output):
            if name in targets:
                node.output[index] = f"{name}.exact"
        nodes.append(node)
        for name in targets:
            round_trip(f"{name}.exact", name)
    result.graph.node.extend(nodes)
    return result


def _retype(node: onnx.NodeProto, to: int | None) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and to is not None:
            attribute.i = to


def with_ranges(ready: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Add outputs with the largest and smallest value of every FP32 tensor that a node produces.

    Returns the new graph, and {name of the output: name of the tensor}. Each value is computed
    directly after its tensor, without a copy: otherwise a runtime would keep every tensor until the
    end of the run.
    """
    onnx = onnx_package()
    types = tensor_types(inferred(ready))
    weights = {item.name for item in ready.graph.initializer}
    measuring = onnx.ModelProto()
    measuring.CopyFrom(ready)
    outputs: dict[str, str] = {}
    nodes = []
    for node in ready.graph.node:
        nodes.append(node)
        for name in node.output:
            if types.get(name) != onnx.TensorProto.FLOAT or name in weights:
                continue
            for operator in ("ReduceMax", "ReduceMin"):
                peak = f"{name}.{operator}"
                nodes.append(onnx.helper.make_node(operator, [name], [peak], keepdims=0))
                measuring.graph.output.append(
                    onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, [])
                )
                outputs[peak] = name
    del measuring.graph.node[:]
    measuring.graph.node.extend(nodes)
    return measuring, outputs


def live_bytes(model: onnx.ModelProto) -> int:
    """Return the largest number of bytes of tensors that a run must hold at once, without weights.

    Tensors of unknown size are not counted.
    """
    bare = inferred(model)
    shapes, types = tensor_shapes(bare), tensor_types(bare)
    width = {1: 4, 6: 4, 7: 8, 10: 2, 11: 8}  # FLOAT, INT32, INT64, FLOAT16, DOUBLE; others: 1
    last = {name: place for place, node in enumerate(model.graph.node) for name in node.input}
    worst = held = 0
    sizes: dict[str, int] = {}
    ends: dict[int, list[str]] = {}
    for place, node in enumerate(model.graph.node):
        for name in node.output:
            sizes[name] = math.prod(shapes.get(name, (0,))) * width.get(types.get(name, 0), 1)
            held += sizes[name]
            ends.setdefault(last.get(name, place), []).append(name)
        worst = max(worst, held)
        held -= sum(sizes[name] for name in ends.pop(place, []))
    return worst
