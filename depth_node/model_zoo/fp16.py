# SPDX-License-Identifier: Apache-2.0
"""An ONNX graph in FP16 where that is safe: every tensor typed, nothing left to a builder's flags.

TensorRT from 11 on takes the precision from the graph's types (strongly typed), and 10 can. Cast
blindly, transformers overflow: the squares of a layer normalisation and the scores of an attention
exceed 65504, the small depths of the last layer lose their digits. So every node gets a type, FP16
unless there is a reason for FP32 (:data:`REASONS`), and Casts stand where the types meet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from depth_node.model_zoo.onnx_graph import (
    ConvertError,
    head,
    inferred,
    mixed_types,
    onnx_package,
    tensor_types,
)

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


# Values seen on a few images may be larger on others; FP16 ends at 65504.
LARGEST = 65504 / 4
# FP16 has its full 11 bits down to 6.1e-5; a tensor whose largest value is here has few above that.
SMALLEST = 2.0**-10

_NORMALISE = {
    "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization",
    "BatchNormalization", "LpNormalization", "MeanVarianceNormalization",
}  # fmt: skip
_EXPONENTIALS = {"Softmax", "LogSoftmax", "Attention", "ReduceLogSumExp", "ReduceLogSum"}
_DELICATE = {
    "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "CumSum",
    "GlobalAveragePool", "Pow", "Exp", "Log", "Sqrt", "Reciprocal", "Softplus", "Sin", "Cos", "Tan",
    "Asin", "Acos", "Atan", "Range", "TopK", "NonMaxSuppression", "GridSample", "RoiAlign", "LRN",
    "CastLike",
}  # fmt: skip
_PRODUCTS = {"MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose"}
_MOVES = {
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Identity", "Slice",
    "Split", "Gather", "Concat", "Tile", "Pad", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Where", "Max", "Min", "Clip", "Neg", "Cast"}
_ANY_FLOAT = {"Cast", "Shape", "Size", "IsNaN", "IsInf", "NonZero"}
# Inputs that ONNX wants in FP32 whatever the type of the others.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


@dataclass(frozen=True)
class Fp16Model:
    """A graph in FP16. ``kept`` counts the nodes that stayed FP32 by (reason, operator);
    ``halved`` the FP16 nodes by operator; ``casts`` the Casts put in; ``flushed`` the share of the
    FP16 weights that became 0.
    """

    model: onnx.ModelProto
    kept: Mapping[tuple[str, str], int]
    halved: Mapping[str, int]
    casts: int
    flushed: float


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


def to_fp16(
    ready: onnx.ModelProto,
    ranges: Mapping[str, float] | None = None,
    half_input: bool = False,
    keep: Collection[str] = (),
) -> Fp16Model:
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
    result = head(ready)
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
    return Fp16Model(
        result,
        Counter((why[n], graph.op(n)) for n in typed if n in why),
        Counter(graph.op(n) for n in typed if n not in why),
        writer.casts,
        writer.flushed / max(writer.halved, 1),
    )


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
