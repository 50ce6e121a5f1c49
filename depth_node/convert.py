# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in FP16 where that is safe: every tensor typed, nothing left to a builder's flags.

TensorRT from 11 on takes the precision from the graph's types (strongly typed), and 10 can. Cast
blindly, transformers overflow: the squares of a layer normalisation and the scores of an attention
exceed 65504, the small depths of the last layer lose their digits. So every node gets a type, FP16
unless there is a reason for FP32 (:data:`REASONS`), and Casts stand where the types meet.

Two of the reasons are measured: the FP32 network is run on pictures first, and what comes near the
ends of FP16's range stays FP32 (docs/models.md). Needs the onnx package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from depth_node import __version__
from depth_node.engine import (
    Engine,
    EngineError,
    Manifest,
    converted_path,
    locate,
    manifest_path,
    model_sha256,
)
from depth_node.parity import Comparison, Picture, Pictures, compare, tensors_of

if TYPE_CHECKING:
    import onnx

REASONS = {
    "normalisation": "statistics of layer, group and batch normalisations",
    "softmax": "softmax and other sums of exponentials",
    "attention scores": "Q K^T, its scale and mask",
    "last layers": "from the last convolution or matrix product to the output",
    "operator": "squares, roots, powers, sums over many values, trigonometry",
    "range": "measured values near the ends of FP16's range, or such weights",
    "cubic resize": "weights of a cubic interpolation",
    "constant": "made of constants and shapes alone, computed once",
    "between": "moves values from FP32 to FP32",
    "foreign": "operators that are not of ONNX, or with types of their own",
    "asked": "kept by --keep",
}

# Values seen on a few pictures may be larger on others; FP16 ends at 65504.
LARGEST = 65504 / 4
# FP16 has its full 11 bits down to 6.1e-5; a tensor whose largest value is here has few above that.
SMALLEST = 2.0**-10
MEASURED = 4  # pictures on which the ranges are measured

_NORMALISE = {
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
    "BatchNormalization", "LpNormalization", "MeanVarianceNormalization",
}  # fmt: skip
_EXPONENTIALS = {"Softmax", "LogSoftmax", "Attention", "ReduceLogSumExp", "ReduceLogSum"}
_DELICATE = {
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "CumSum",
    "GlobalAveragePool", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Softplus", "Sin", "Cos", "Tan",
    "Asin", "Acos", "Atan", "Range", "TopK", "NonMaxSuppression", "GridSample", "RoiAlign", "LRN",
}  # fmt: skip
_PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"}
_MOVES = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Slice",
    "Split", "Gather", "Concat", "Tile", "Pad", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip", "Neg", "Cast"}
_ANY_FLOAT = {"Cast", "CastLike", "Shape", "Size", "IsNaN", "IsInf", "NonZero", "OneHot"}
# Inputs that ONNX wants in FP32 whatever the type of the others.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}
_LARGEST_FILE = 2_000_000_000  # bytes; protobuf ends at 2^31
_LARGE_TENSOR = 1024  # values; more are no shapes or axes, which alone inference has to read


class ConvertError(EngineError):
    """A model cannot be converted; one sentence, cause and cure."""


@dataclass(frozen=True)
class Half:
    """A graph in FP16. ``kept`` counts the nodes that stayed FP32 by (reason, operator);
    ``halved`` the FP16 nodes by operator; ``casts`` the Casts put in; ``flushed`` the share of the
    FP16 weights that became 0.
    """

    model: onnx.ModelProto
    kept: Mapping[tuple[str, str], int]
    halved: Mapping[str, int]
    casts: int
    flushed: float


def onnx_package() -> Any:
    """The onnx package. Raises ConvertError with the cure where it is missing."""
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


# --- the graph in order --------------------------------------------------------------------------


def prepared(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """A copy with fixed input shapes, constants as initializers, no functions and no metadata.

    Raises ConvertError for control flow and for inputs that the graph does not have.
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
    pictures = [item for item in graph.input if item.name not in weights]  # old files list both
    del graph.input[:]
    graph.input.extend(pictures)
    for item in graph.input:
        if item.name not in inputs:
            raise ConvertError(
                f"the graph has an input {item.name} that the manifest does not name: write the"
                " manifest anew with `depth_tools models manifest`"
            )
        dims = item.type.tensor_type.shape
        del dims.dim[:]
        for size in inputs[item.name]:
            dims.dim.add().dim_value = size
    _constants_to_initializers(graph)
    _fold_casts(graph)
    for item in (ready, graph, *graph.node, *graph.initializer):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
    del graph.value_info[:]
    for output in graph.output:  # inferred anew for the fixed input
        output.type.tensor_type.ClearField("shape")
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
    """Casts and Identities of weights are done here: weights may be stored as FP16, or shared."""
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
            to = onnx.helper.get_attribute_value(node.attribute[0])
            values = onnx.numpy_helper.to_array(source)
            cast = onnx.numpy_helper.from_array(
                values.astype(onnx.helper.tensor_dtype_to_np_dtype(to)), node.output[0]
            )
            graph.initializer.append(cast)
            stored[cast.name] = graph.initializer[-1]
    used = {name for node in rest for name in node.input} | outputs
    kept = [item for item in graph.initializer if item.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rest)
    graph.initializer.extend(kept)


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large weights as inputs: small enough to infer types and check."""
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
    """The skeleton with the type and shape of every tensor. Raises ConvertError if it has none."""
    onnx = onnx_package()
    try:
        bare = onnx.shape_inference.infer_shapes(
            skeleton(model), check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(bare, full_check=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConvertError(
            f"the graph is not valid ONNX ({reason}): export it again, with opset 17 or newer"
        ) from error
    return bare


def tensor_types(bare: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of an inferred graph that has one."""
    found = {item.name: item.data_type for item in bare.graph.initializer}
    for group in (bare.graph.input, bare.graph.value_info, bare.graph.output):
        for item in group:
            if item.type.HasField("tensor_type"):
                found[item.name] = item.type.tensor_type.elem_type
    return found


def mixed_types(model: onnx.ModelProto) -> list[str]:
    """Nodes whose inputs and outputs contradict their operator: one type where it has one letter.

    What a strongly typed TensorRT refuses, in words; empty for a well typed graph.
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
                letter, found = formal.type_str, types[name]
                if bound.setdefault(letter, found) != found:
                    faults.append(
                        f"{node.op_type} {node.name or node.output[0]}: {name} is"
                        f" {onnx.TensorProto.DataType.Name(found)}, another"
                        f" {onnx.TensorProto.DataType.Name(bound[letter])}"
                    )
    return faults


# --- which nodes stay FP32 -----------------------------------------------------------------------


@dataclass
class _Graph:
    """Who makes and who takes each tensor; nodes by number, in order."""

    nodes: Sequence[onnx.NodeProto]
    types: Mapping[str, int]
    weights: Mapping[str, onnx.TensorProto]
    outputs: frozenset[str]
    maker: dict[str, int] = field(default_factory=dict)
    takers: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for number, node in enumerate(self.nodes):
            for name in node.output:
                self.maker[name] = number
            for name in set(node.input):
                self.takers[name].append(number)

    def before(self, number: int) -> Iterator[int]:
        """Nodes that make the FP32 inputs of a node."""
        for name in self.nodes[number].input:
            if name in self.maker and self.is_float(name):
                yield self.maker[name]

    def after(self, number: int) -> Iterator[int]:
        """Nodes that take its outputs."""
        for name in self.nodes[number].output:
            yield from self.takers.get(name, ())

    def op(self, number: int) -> str:
        return str(self.nodes[number].op_type)

    def is_float(self, name: str) -> bool:
        return bool(name) and self.types.get(name) == 1  # TensorProto.FLOAT

    def floats(self, number: int) -> list[str]:
        """Its FP32 inputs and outputs."""
        node = self.nodes[number]
        return [name for name in (*node.input, *node.output) if self.is_float(name)]


def _upwards(graph: _Graph, start: Iterable[int], through: set[str]) -> set[int]:
    """Nodes above the start, following only operators of `through`; those reached besides too."""
    found: set[int] = set()
    rest = list(start)
    while rest:
        number = rest.pop()
        if number in found:
            continue
        found.add(number)
        if graph.op(number) in through:
            rest += graph.before(number)
    return found


def _reasons(
    graph: _Graph, ranges: Mapping[str, float], peaks: Mapping[str, float], asked: Collection[str]
) -> dict[int, str]:
    """Node number -> why it stays FP32; the others become FP16."""
    why: dict[int, str] = {}

    def keep(numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            why.setdefault(number, reason)

    everyone = range(len(graph.nodes))
    keep((n for n in everyone if graph.op(n) in asked), "asked")
    keep((n for n in everyone if _foreign(graph, n)), "foreign")
    keep((n for n in everyone if graph.op(n) in _NORMALISE), "normalisation")
    keep((n for n in everyone if graph.op(n) in _EXPONENTIALS), "softmax")
    for number in everyone:
        if graph.op(number) == "Sqrt":
            keep(_statistics(graph, number), "normalisation")
        if graph.op(number) == "Softmax":
            keep(_scores(graph, number), "attention scores")
    keep((n for n in everyone if graph.op(n) in _DELICATE), "operator")
    keep(_last_layers(graph), "last layers")
    keep((n for n in everyone if _cubic(graph, n)), "cubic resize")
    constant: set[int] = set()
    for number in everyone:
        # Shapes are constants too, as the input's is fixed; sizes in FP16 would be wrong ones.
        shape = graph.op(number) in ("Shape", "Size")
        sources = [name for name in graph.nodes[number].input if name]
        if shape or all(n in graph.weights or graph.maker.get(n) in constant for n in sources):
            constant.add(number)
    keep(constant, "constant")
    limits = {**peaks, **ranges}
    for number in everyone:
        sizes = [limits[name] for name in graph.floats(number) if name in limits]
        if any(not size <= LARGEST or 0 < size < SMALLEST for size in sizes):
            keep([number], "range")
    for number in everyone:  # in order, so that chains of moves are followed
        if graph.op(number) in _MOVES and number not in why:
            made = [graph.maker.get(name) for name in graph.nodes[number].input]
            above = all(name is None or name in why for name in made)
            takers = list(graph.after(number))
            below = bool(takers) and all(_still(graph, taker, why) for taker in takers)
            if above and below and any(name is not None for name in made):
                why[number] = "between"
    return why


def _still(graph: _Graph, number: int, why: Mapping[int, str]) -> bool:
    """Whether all that follows a node, moves aside, is FP32."""
    if number in why:
        return True
    takers = list(graph.after(number))
    return graph.op(number) in _MOVES and bool(takers) and all(t in why for t in takers)


def _foreign(graph: _Graph, number: int) -> bool:
    node = graph.nodes[number]
    if node.domain not in ("", "ai.onnx") or graph.op(number).endswith("Linear"):
        return True
    half = {graph.types.get(name) for name in (*node.input, *node.output)} & {
        10,
        11,
        16,
    }  # FLOAT16, DOUBLE, BFLOAT16 in the file: its maker's choice
    return bool(half) and graph.op(number) != "Cast"


def _cubic(graph: _Graph, number: int) -> bool:
    if graph.op(number) not in ("Resize", "Upsample"):
        return False
    return any(item.name == "mode" and item.s == b"cubic" for item in graph.nodes[number].attribute)


def _statistics(graph: _Graph, root: int) -> set[int]:
    """A normalisation written out: difference to the mean, squares, mean, epsilon, root, division.

    What follows it, gain and offset, is not of it. Nothing where the root is of something else.
    """
    above = _upwards(graph, graph.before(root), {"Add", "Max", "Clip", "Mul", "Pow", "Div"})
    sums = {n for n in above if graph.op(n) in ("ReduceMean", "ReduceSum")}
    squares: set[int] = set()
    for total in sums:
        squares |= {n for n in graph.before(total) if graph.op(n) in ("Pow", "Mul")}
    if not squares:
        return set()
    found = {root} | sums | squares
    found |= {n for n in above if graph.op(n) in ("Add", "Max", "Clip", "Div")}
    for square in squares:
        for difference in graph.before(square):
            if graph.op(difference) == "Sub":
                found.add(difference)
                found |= {n for n in graph.before(difference) if graph.op(n) == "ReduceMean"}
    for division in graph.after(root):
        if graph.op(division) in ("Div", "Reciprocal", "Mul"):
            found.add(division)
        if graph.op(division) == "Reciprocal":
            found |= {n for n in graph.after(division) if graph.op(n) == "Mul"}
    return found


def _scores(graph: _Graph, softmax: int) -> set[int]:
    """From the softmax up to Q K^T, and what scales Q and K before it."""
    found = _upwards(graph, graph.before(softmax), _ELEMENTWISE | _MOVES)
    found = {n for n in found if graph.op(n) in _ELEMENTWISE | _MOVES | _PRODUCTS}
    for product in [n for n in found if graph.op(n) in _PRODUCTS]:
        path = _upwards(graph, graph.before(product), _MOVES)
        found |= {
            n
            for n in path
            if graph.op(n) in ("Mul", "Div")
            and any(name not in graph.maker for name in graph.nodes[n].input)
        }
    return found


def _last_layers(graph: _Graph) -> set[int]:
    """From every output up to the first convolution or matrix product on each way."""
    ends = [graph.maker[name] for name in graph.outputs if name in graph.maker]
    others = {graph.op(n) for n in range(len(graph.nodes))} - _PRODUCTS
    return _upwards(graph, ends, others - _NORMALISE)


# --- writing it ----------------------------------------------------------------------------------


def to_half(
    ready: onnx.ModelProto,
    ranges: Mapping[str, float] | None = None,
    half_input: bool = False,
    keep: Collection[str] = (),
) -> Half:
    """A prepared FP32 graph in FP16, input and outputs FP32 (``half_input``: the input FP16 too).

    ``ranges``: largest magnitude of tensors by name, as measured; without them only the shape of
    the graph decides. ``keep``: operators to leave in FP32 besides. Raises ConvertError where the
    result would be no valid, well typed ONNX.
    """
    onnx = onnx_package()
    bare = inferred(ready)
    types = tensor_types(bare)
    weights = {item.name: item for item in ready.graph.initializer}
    graph = _Graph(
        ready.graph.node, types, weights, frozenset(item.name for item in ready.graph.output)
    )
    arrays = {
        name: onnx.numpy_helper.to_array(item)
        for name, item in weights.items()
        if item.data_type == onnx.TensorProto.FLOAT
    }
    peaks = {name: _peak(values) for name, values in arrays.items()}
    why = _reasons(graph, ranges or {}, peaks, keep)
    writer = _Writer(graph, arrays, why, half_input)
    for number in range(len(graph.nodes)):
        writer.put(number)
    result = _head(ready)
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.initializers(weights))
    if half_input:
        for item in result.graph.input:
            if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                item.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    faults = mixed_types(result)
    if faults:
        raise ConvertError(
            f"the converted graph would mix types ({faults[0]}): report the model, and use it in"
            " FP32 meanwhile"
        )
    typed = [
        n for n in range(len(graph.nodes)) if graph.floats(n) and graph.op(n) not in _ANY_FLOAT
    ]
    return Half(
        result,
        Counter((why[n], graph.op(n)) for n in typed if n in why),
        Counter(graph.op(n) for n in typed if n not in why),
        writer.casts,
        writer.flushed / max(writer.halved, 1),
    )


def _head(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model's head: opsets, inputs and outputs, no nodes and no weights."""
    onnx = onnx_package()
    head = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    head.graph.name = model.graph.name or "graph"
    head.graph.input.extend(model.graph.input)
    head.graph.output.extend(model.graph.output)
    return head


def _peak(values: npt.NDArray[np.float32]) -> float:
    finite = np.abs(values[np.isfinite(values)])  # an infinity is one in FP16 too
    return float(finite.max()) if finite.size else 0.0


class _Writer:
    """Nodes with their tensors in the right type, and Casts where two types meet."""

    def __init__(
        self,
        graph: _Graph,
        arrays: Mapping[str, npt.NDArray[np.float32]],
        why: Mapping[int, str],
        half_input: bool,
    ) -> None:
        self._onnx = onnx_package()
        self._graph, self._arrays, self._why = graph, arrays, why
        self._half_input = half_input
        self.nodes: list[onnx.NodeProto] = []
        self.casts = self.halved = self.flushed = 0
        self._made: dict[tuple[str, bool], str] = {}
        self._used: dict[str, tuple[str, bool]] = {}  # weight as used -> its source, in half?

    def put(self, number: int) -> None:
        """Append one node of the old graph."""
        source = self._graph.nodes[number]
        half = number not in self._why and self._graph.op(number) not in _ANY_FLOAT
        node = self._onnx.NodeProto()
        node.CopyFrom(source)
        fixed = _ALWAYS_FLOAT.get(source.op_type, ())
        for index, name in enumerate(source.input):
            if self._graph.is_float(name):
                wanted = half and index not in fixed
                if source.op_type in _ANY_FLOAT:
                    wanted = self._is_half(name)  # takes either: no Cast
                node.input[index] = self._as(name, wanted)
            elif name in self._graph.weights:
                self._used[name] = (name, False)
        self.nodes.append(node)

    def _is_half(self, name: str) -> bool:
        """Whether a tensor is FP16 where it is made."""
        if name in self._arrays:
            return False
        maker = self._graph.maker.get(name)
        if maker is None:
            return self._half_input
        return maker not in self._why and self._graph.op(maker) not in _ANY_FLOAT

    def _as(self, name: str, half: bool) -> str:
        """The name under which a tensor is had in a type; a Cast or a copied weight if need be."""
        if name in self._arrays:
            known = f"{name}.half" if half else name
            self._used[known] = (name, half)
            return known
        if self._is_half(name) == half:
            return name
        key = (name, half)
        if key not in self._made:
            self._made[key] = f"{name}.half" if half else f"{name}.float"
            to = self._onnx.TensorProto.FLOAT16 if half else self._onnx.TensorProto.FLOAT
            self.nodes.append(
                self._onnx.helper.make_node(
                    "Cast", [name], [self._made[key]], name=f"{self._made[key]}.cast", to=to
                )
            )
            self.casts += 1
        return self._made[key]

    def initializers(self, weights: Mapping[str, onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
        """The weights that the nodes use, in the types in which they use them."""
        for known, (name, half) in self._used.items():
            if not half:
                yield weights[name]
                continue
            with np.errstate(over="ignore"):
                values = self._arrays[name].astype(np.float16)
            self.halved += values.size
            self.flushed += int(np.count_nonzero((values == 0) & (self._arrays[name] != 0)))
            yield self._onnx.numpy_helper.from_array(values, known)


# --- FP16 arithmetic without a GPU --------------------------------------------------------------


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph that computes what an FP16 graph computes: every FP16 tensor is rounded.

    ONNX Runtime on the CPU runs FP16 operators in FP32 and leaves the rounding between them out, so
    that overflow is not seen there (1.31: a layer normalisation of squares beyond 65504 is right).
    This graph rounds after every operator, with sums inside one in FP32 as tensor cores have them;
    what exceeds FP16's range becomes infinite.
    """
    onnx = onnx_package()
    kind = onnx.TensorProto
    types = tensor_types(inferred(model))
    result = _head(model)
    nodes: list[Any] = []

    def round_trip(source: str, target: str) -> None:
        half = f"{target}.rounded"
        nodes.append(onnx.helper.make_node("Cast", [source], [half], to=kind.FLOAT16))
        nodes.append(onnx.helper.make_node("Cast", [half], [target], to=kind.FLOAT))

    def is_half(name: str) -> bool:
        return types.get(name) == kind.FLOAT16

    renamed: dict[str, str] = {}
    for item in result.graph.input:
        if is_half(item.name):
            item.type.tensor_type.elem_type = kind.FLOAT
            renamed[item.name] = f"{item.name}.16"
            round_trip(item.name, renamed[item.name])
    for item in result.graph.output:
        if is_half(item.name):
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
        targets = [name for name in node.output if name and is_half(name)]
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


def rounding_engine(model: Path, manifest: Manifest, folder: Path) -> Engine | None:
    """An engine on the CPU that rounds like the GPU would (:func:`rounded`); None for FP32 files.

    Its file is made in `folder`. Raises ConvertError where the graph cannot be prepared.
    """
    from depth_node.engine import ort

    ready = prepared(_loaded(model), manifest.input_shapes)
    if onnx_package().TensorProto.FLOAT16 not in tensor_types(inferred(ready)).values():
        return None
    path = folder / "rounded.onnx"
    onnx_package().save(rounded(ready), str(path))
    spec = manifest.input
    if spec.dtype == "float16":
        spec = dataclasses.replace(spec, dtype="float32")  # rounded by the graph
    return ort.OrtEngine(path, dataclasses.replace(manifest, input=spec))


def _retype(node: onnx.NodeProto, to: int | None) -> None:
    for attribute in node.attribute:
        if attribute.name == "to" and to is not None:
            attribute.i = to


# --- measured ranges -----------------------------------------------------------------------------


def with_ranges(ready: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph with one more output per FP32 tensor, its largest magnitude; output -> tensor."""
    onnx = onnx_package()
    types = tensor_types(inferred(ready))
    weights = {item.name for item in ready.graph.initializer}
    measuring = onnx.ModelProto()
    measuring.CopyFrom(ready)
    outputs: dict[str, str] = {}
    for node in ready.graph.node:
        for name in node.output:
            if types.get(name) != onnx.TensorProto.FLOAT or name in weights:
                continue
            size, peak = f"{name}.size", f"{name}.peak"
            measuring.graph.node.extend(
                [
                    onnx.helper.make_node("Abs", [name], [size]),
                    onnx.helper.make_node("ReduceMax", [size], [peak], keepdims=0),
                ]
            )
            measuring.graph.output.append(
                onnx.helper.make_tensor_value_info(peak, onnx.TensorProto.FLOAT, [])
            )
            outputs[peak] = name
    return measuring, outputs


def measured(
    ready: onnx.ModelProto, manifest: Manifest, pictures: Iterable[Picture], folder: Path
) -> dict[str, float]:
    """Largest magnitude of every FP32 tensor over the pictures; infinite where one is not finite.

    The FP32 graph is run by ONNX Runtime; its file is made in `folder`.
    """
    from depth_node.engine import ort

    measuring, outputs = with_ranges(ready)
    path = folder / "ranges.onnx"
    onnx_package().save(measuring, str(path))
    measuring.Clear()
    names = tuple(outputs)
    facts = dataclasses.replace(manifest, output_name=names[0], outputs=names, limits={})
    found: dict[str, float] = dict.fromkeys(outputs.values(), 0.0)
    with ort.OrtEngine(path, facts) as engine:
        for number, picture in enumerate(pictures):
            answers = engine.run_named(tensors_of(manifest, picture, number))
            for peak, name in outputs.items():
                value = float(answers[peak])
                found[name] = max(found[name], value if math.isfinite(value) else math.inf)
    path.unlink()
    return found


# --- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """A model file in FP16 with its manifest, and what was measured before it was written.

    The graph of ``half`` is empty: it is in the file. ``bytes``: of the FP32 and the FP16 file.
    """

    path: Path
    manifest: Manifest
    half: Half
    comparison: Comparison
    bytes: tuple[int, int]


def convert(
    model: str | Path,
    pictures: Pictures,
    *,
    manifest: str | Path | None = None,
    out: Path | None = None,
    half_input: bool = False,
    keep: Collection[str] = (),
    on_step: Callable[[str], None] = lambda word: None,
) -> Converted:
    """Write a model's FP16 copy, ``NAME.fp16.onnx`` unless `out` names it, and its manifest.

    First it has to answer as the FP32 file does on the pictures, within the manifest's limits, with
    every FP16 tensor rounded (:func:`rounded`). Raises EngineError, and writes nothing, where it
    does not or cannot be converted.
    """
    onnx = onnx_package()
    from depth_node.engine import ort

    source, facts = locate(model, manifest)
    target = out or converted_path(source, "fp16")
    if target.resolve() == source.resolve():
        raise ConvertError(f"{target} is the model itself: give another --out")
    loaded = _loaded(source)
    ready = prepared(loaded, facts.input_shapes)
    if onnx.TensorProto.FLOAT16 in tensor_types(inferred(ready)).values():
        raise ConvertError(f"{source} is in FP16 already: use it, or convert the FP32 file")
    with _scratch(target) as folder:
        on_step("measuring ranges")
        half = to_half(
            ready,
            measured(ready, facts, itertools.islice(pictures, MEASURED), folder),
            half_input,
            keep,
        )
        path = folder / target.name
        onnx.save(half.model, str(path))
        dtype = "float16" if half_input and not facts.inputs else facts.input.dtype
        made = dataclasses.replace(
            facts,
            model=target.name,
            sha256=model_sha256(path),
            input=dataclasses.replace(facts.input, dtype=dtype),
            source=f"{facts.source + ', ' if facts.source else ''}"
            f"FP16 made from sha256 {facts.sha256[:12]} by depth_node {__version__}",
        )
        simulated = folder / "rounded.onnx"
        onnx.save(rounded(half.model), str(simulated))
        for proto in (loaded, ready, half.model):  # they are in files now; a large network needs
            proto.Clear()  # the memory for the engines
        with ort.OrtEngine(source, facts) as reference:
            with ort.OrtEngine(path, made) as written:
                once = compare(reference, written, dataclasses.replace(pictures, count=1))
            with ort.OrtEngine(simulated, facts) as rounding:
                comparison = compare(reference, rounding, pictures, on_step)
        comparison.found += once.found  # the file itself has to run, and right
        if comparison.failures:
            raise ConvertError(
                f"{facts.name} in FP16 is not near enough to FP32 on {pictures}"
                f" ({'; '.join(comparison.failures)}), so nothing was written: keep more in FP32"
                " with --keep OPERATOR, or use the FP32 file"
            )
        try:
            os.replace(path, target)
            made.save(manifest_path(target))
        except OSError as error:
            raise ConvertError(f"{target} cannot be written ({error.strerror})") from error
    return Converted(target, made, half, comparison, (_size(source), _size(target)))


def _loaded(model: Path) -> onnx.ModelProto:
    """An ONNX file with its external weights. Raises ConvertError."""
    onnx = onnx_package()
    if _size(model) > _LARGEST_FILE:
        raise ConvertError(
            f"{model} has {_size(model) / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB:"
            " take a smaller network"
        )
    try:
        return onnx.load(str(model))
    except Exception as error:  # protobuf's errors share no base class
        raise ConvertError(
            f"{model} cannot be read by onnx {onnx.__version__} ({' '.join(str(error).split())}):"
            " fetch or export it again"
        ) from error


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder beside the target, so that what is ready is put in place by a rename."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-")
    except OSError as error:
        raise ConvertError(
            f"nothing can be written in {target.parent} ({error.strerror}): name a place with --out"
        ) from error
    with folder as name:
        yield Path(name)


def _size(model: Path) -> int:
    """Bytes of a model file and its external weights."""
    return sum(part.stat().st_size for part in model.parent.glob(f"{model.name}*"))
