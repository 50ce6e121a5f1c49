# SPDX-License-Identifier: Apache-2.0
"""Conversion of an ONNX graph to FP16 where that is safe; every tensor gets a type.

TensorRT takes the precision from the graph's types (strongly typed networks): 11 always, 10
optionally. A transformer that is converted as a whole overflows: the squares of a layer
normalisation and the scores of an attention exceed 65504, and small depths of the last layer lose
digits. So every node becomes FP16 unless there is a reason for FP32 (:data:`REASONS`), and Casts
connect tensors of different types.

The scores of an attention (Q K^T, scale, bias, mask) are FP16 where their measured range and loss
allow it (:class:`Measured`). TensorRT fuses an attention into one kernel, which never writes the
N x N scores to memory, only if both of its products are FP16; without fusion even a bias of
relative positions is written for every pair. The softmax stays FP32, which costs nothing inside
the fused kernel.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from depth_node.model_zoo.onnx_graph import (
    ConvertError,
    head,
    inferred,
    mixed_types,
    onnx_package,
    tensor_ranks,
    tensor_types,
)

if TYPE_CHECKING:
    import onnx

REASONS = {
    "normalisation": "statistics of layer, group and batch normalisations",
    "softmax": "softmax and other sums of exponentials",
    "attention scores": "Q K^T, its scale, bias and mask, where the measured scores need it",
    "last layers": "from the last convolution or matrix product to the output",
    "operator": "squares, roots, powers, sums over many values, trigonometry",
    "range": "measured values near the ends of FP16's range, or such weights",
    "cubic resize": "weights of a cubic interpolation",
    "delicate": "the few nodes in a row that lose most of what the network loses in FP16",
    "constant": "computed once, from constants and shapes alone",
    "between": "moves values between nodes in FP32",
    "foreign": "operators of other domains, or with types of their own",
    "asked": "named by --keep",
}


# Largest magnitude for FP16, whose largest number is 65504: other images than those measured can
# give larger values.
LARGEST = 65504 / 4
# Largest change of an attention's weights that FP16 scores may cause: sum over a row of the
# absolute differences, mean over the rows of a head, worst head and image. Rounding the weights
# themselves to FP16 changes them by 2^-12; scores of about 16 with a spread of the same size change
# them by this limit.
LARGEST_LOSS = 2.0**-7
# Smallest maximum of a tensor for FP16, which has its full 11 bits only down to 6.1e-5: with a
# smaller maximum few values would have full precision.
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
# Inputs that ONNX requires in FP32, whatever the type of the others.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


@dataclass(frozen=True)
class Measured:
    """Results of measurements on images in FP32.

    ``ranges``: largest magnitude of each tensor by name. ``losses``: change of an attention's
    weights if its scores are FP16 (:data:`LARGEST_LOSS`), by the name of its softmax's output.
    """

    ranges: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AttentionReport:
    """An attention: name of its softmax, largest score and loss (NaN: not measured).

    ``fp16``: whether Q K^T is FP16, so that TensorRT can fuse the attention into one kernel.
    """

    name: str
    largest_score: float
    loss: float
    fp16: bool


@dataclass(frozen=True)
class Fp16Model:
    """A graph in FP16 and its statistics.

    ``fp32_nodes``: number of nodes that stayed FP32 by (reason, operator). ``fp16_nodes``: number
    of FP16 nodes by operator. ``casts``: number of Casts inserted. ``flushed_fraction``: fraction
    of the FP16 weights that became 0. ``attentions``: every attention, in order.
    """

    model: onnx.ModelProto
    fp32_nodes: Mapping[tuple[str, str], int]
    fp16_nodes: Mapping[str, int]
    casts: int
    flushed_fraction: float
    attentions: tuple[AttentionReport, ...] = ()


# --- which nodes stay FP32 -----------------------------------------------------------------------


@dataclass
class _Graph:
    """A graph with the producer and the consumers of each tensor; nodes are numbered in order."""

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
        """Yield the nodes that produce the FP32 inputs of a node."""
        for name in self.nodes[number].input:
            if name in self.maker and self.is_float(name):
                yield self.maker[name]

    def after(self, number: int) -> Iterator[int]:
        """Yield the nodes that consume the outputs of a node."""
        for name in self.nodes[number].output:
            yield from self.takers.get(name, ())

    def op(self, number: int) -> str:
        return str(self.nodes[number].op_type)

    def is_float(self, name: str) -> bool:
        return bool(name) and self.types.get(name) == 1  # TensorProto.FLOAT

    def floats(self, number: int) -> list[str]:
        """Return the FP32 inputs and outputs of a node."""
        node = self.nodes[number]
        return [name for name in (*node.input, *node.output) if self.is_float(name)]


def _upwards(graph: _Graph, start: Iterable[int], through: set[str]) -> set[int]:
    """Return the start nodes and all nodes upstream that operators of `through` lead to.

    The first node of another operator on each path is included.
    """
    reached: set[int] = set()
    rest = list(start)
    while rest:
        number = rest.pop()
        if number in reached:
            continue
        reached.add(number)
        if graph.op(number) in through:
            rest += graph.before(number)
    return reached


def _reasons(
    graph: _Graph,
    measured: Measured,
    peaks: Mapping[str, float],
    asked: Collection[str],
    delicate: Collection[int],
) -> dict[int, str]:
    """Return {node number: reason for FP32}; the other nodes become FP16.

    peaks: largest magnitude of each weight. asked: operators to keep in FP32. delicate: numbers of
    nodes to keep in FP32.
    """
    reasons: dict[int, str] = {}

    def keep(numbers: Iterable[int], reason: str) -> None:
        for number in numbers:
            reasons.setdefault(number, reason)

    every_node = range(len(graph.nodes))
    fitting: set[int] = set()  # nodes of scores for which measurements allow FP16
    keep((n for n in every_node if graph.op(n) in asked), "asked")
    keep((n for n in every_node if _foreign(graph, n)), "foreign")
    keep((n for n in every_node if graph.op(n) in _NORMALISE), "normalisation")
    keep((n for n in every_node if graph.op(n) in _EXPONENTIALS), "softmax")
    for number in every_node:
        if graph.op(number) == "Sqrt":
            keep(_statistics(graph, number), "normalisation")
        if graph.op(number) == "Softmax":
            attention = _Attention.of(graph, number)
            if _scores_fit(graph, attention, measured) and "attention" not in asked:
                fitting |= attention.products | attention.between
            else:
                keep(attention.nodes, "attention scores")
    keep((n for n in every_node if graph.op(n) in _DELICATE), "operator")
    keep(_last_layers(graph), "last layers")
    keep((n for n in every_node if _cubic(graph, n)), "cubic resize")
    keep(delicate, "delicate")
    constant: set[int] = set()
    for number in every_node:
        # Shapes are constant, because the input has a fixed shape; FP16 would round sizes.
        shape = graph.op(number) in ("Shape", "Size")
        sources = [name for name in graph.nodes[number].input if name]
        if shape or all(n in graph.weights or graph.maker.get(n) in constant for n in sources):
            constant.add(number)
    keep(constant, "constant")
    limits = {**peaks, **measured.ranges}
    for number in every_node:
        sizes = [limits[name] for name in graph.floats(number) if name in limits]
        # Small scores do not matter to a softmax, and their loss was measured.
        smallest = 0.0 if number in fitting else SMALLEST
        if any(not size <= LARGEST or 0 < size < smallest for size in sizes):
            keep([number], "range")
    for number in every_node:  # in order, so that chains of _MOVES are followed
        if graph.op(number) in _MOVES and number not in reasons:
            made = [graph.maker.get(name) for name in graph.nodes[number].input]
            above = all(name is None or name in reasons for name in made)
            takers = list(graph.after(number))
            below = bool(takers) and all(_still(graph, taker, reasons) for taker in takers)
            if above and below and any(name is not None for name in made):
                reasons[number] = "between"
    return reasons


def _still(graph: _Graph, number: int, reasons: Mapping[int, str]) -> bool:
    """Return whether a node stays FP32, or it only moves values to nodes that all stay FP32."""
    if number in reasons:
        return True
    takers = list(graph.after(number))
    return graph.op(number) in _MOVES and bool(takers) and all(t in reasons for t in takers)


def _foreign(graph: _Graph, number: int) -> bool:
    node = graph.nodes[number]
    if node.domain not in ("", "ai.onnx") or graph.op(number).endswith("Linear"):
        return True
    types = {graph.types.get(name) for name in (*node.input, *node.output)}
    other_floats = types & {10, 11, 16}  # FLOAT16, DOUBLE, BFLOAT16: chosen by the exporter
    return bool(other_floats) and graph.op(number) != "Cast"


def _cubic(graph: _Graph, number: int) -> bool:
    if graph.op(number) not in ("Resize", "Upsample"):
        return False
    return any(item.name == "mode" and item.s == b"cubic" for item in graph.nodes[number].attribute)


def _statistics(graph: _Graph, root: int) -> set[int]:
    """Return the nodes of a normalisation that is written out in operators, given its root.

    These are the difference to the mean, squares, mean, root and division, not the gain and offset
    that follow. Empty if the root belongs to something else.
    """
    above = _upwards(graph, graph.before(root), {"Add", "Max", "Clip", "Mul", "Pow", "Div"})
    sums = {n for n in above if graph.op(n) in ("ReduceMean", "ReduceSum")}
    squares: set[int] = set()
    for total in sums:
        squares |= {n for n in graph.before(total) if graph.op(n) in ("Pow", "Mul")}
    if not squares:
        return set()
    nodes = {root} | sums | squares
    nodes |= {n for n in above if graph.op(n) in ("Add", "Max", "Clip", "Div")}
    for square in squares:
        for difference in graph.before(square):
            if graph.op(difference) == "Sub":
                nodes.add(difference)
                nodes |= {n for n in graph.before(difference) if graph.op(n) == "ReduceMean"}
    for division in graph.after(root):
        if graph.op(division) in ("Div", "Reciprocal", "Mul"):
            nodes.add(division)
        if graph.op(division) == "Reciprocal":
            nodes |= {n for n in graph.after(division) if graph.op(n) == "Mul"}
    return nodes


@dataclass(frozen=True)
class _Attention:
    """Nodes of an attention.

    softmax: its softmax. products: the products Q K^T. between: the nodes from these to the
    softmax. above: the nodes that scale Q and K before the products.
    """

    softmax: int
    products: frozenset[int]
    between: frozenset[int]
    above: frozenset[int]

    @property
    def nodes(self) -> frozenset[int]:
        return self.products | self.between | self.above

    @classmethod
    def of(cls, graph: _Graph, softmax: int) -> _Attention:
        """Find the nodes from a softmax up to Q K^T; `products` is empty if it is no attention."""
        reached = _upwards(graph, graph.before(softmax), _ELEMENTWISE | _MOVES)
        products = {n for n in reached if graph.op(n) in _PRODUCTS}
        above: set[int] = set()
        for product in products:
            path = _upwards(graph, graph.before(product), _MOVES)
            above |= {
                n
                for n in path
                if graph.op(n) in ("Mul", "Div")
                and any(name not in graph.maker for name in graph.nodes[n].input)
            }
        between = {n for n in reached if graph.op(n) in _ELEMENTWISE | _MOVES}
        return cls(softmax, frozenset(products), frozenset(between), frozenset(above))


def _scores_fit(graph: _Graph, attention: _Attention, measured: Measured) -> bool:
    """Return whether the loss of an attention was measured, and loss and ranges allow FP16."""
    loss = measured.losses.get(graph.nodes[attention.softmax].output[0])
    if loss is None or not loss <= LARGEST_LOSS:
        return False
    names = [name for n in attention.products for name in graph.floats(n)]
    return all(measured.ranges.get(name, 0.0) <= LARGEST for name in names)


def _reports(
    graph: _Graph, measured: Measured, reasons: Mapping[int, str]
) -> Iterator[AttentionReport]:
    for number in range(len(graph.nodes)):
        if graph.op(number) != "Softmax":
            continue
        attention = _Attention.of(graph, number)
        if not attention.products or number in _last_layers(graph):
            continue
        node = graph.nodes[number]
        yield AttentionReport(
            node.name or node.output[0],
            measured.ranges.get(node.input[0], float("nan")),
            measured.losses.get(node.output[0], float("nan")),
            not attention.products & set(reasons),
        )


def attentions(ready: onnx.ModelProto) -> list[str]:
    """Return the names of the softmaxes of a prepared FP32 graph's attentions, in order."""
    return [report.name for report in _reports(_graph(ready), Measured(), {})]


def with_losses(
    ready: onnx.ModelProto, measuring: onnx.ModelProto
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Add outputs with the change of every attention's weights by FP16 scores to `measuring`.

    ready: the prepared graph. measuring: its copy, which is changed and returned, together with
    {name of the output: name of the softmax's output}. After every softmax its scores are computed
    again, with every tensor from Q and K on rounded to FP16. The output is the sum of the absolute
    differences of a row's weights, mean over a head's rows, worst head.
    """
    onnx = onnx_package()
    kind = onnx.TensorProto
    graph = _graph(ready)
    ranks = tensor_ranks(inferred(ready))
    opset = next(item.version for item in ready.opset_import if item.domain in ("", "ai.onnx"))
    extra: dict[str, list[Any]] = {}
    losses: dict[str, str] = {}
    for number, softmax in enumerate(graph.nodes):
        if softmax.op_type != "Softmax":
            continue
        attention = _Attention.of(graph, number)
        weights = softmax.output[0]
        rank = ranks.get(weights, 0)
        axis = next((item.i for item in softmax.attribute if item.name == "axis"), -1)
        if not attention.products or rank < 2 or axis not in (-1, rank - 1):
            continue
        again, in_fp16 = _again_in_fp16(graph, attention, number)
        name = f"{weights}.loss"
        extra[weights] = [*again, *_row_loss(weights, in_fp16, name, axes_as_input=opset >= 18)]
        losses[name] = weights
    nodes = []
    for node in measuring.graph.node:
        nodes.append(node)
        for name in node.output:
            nodes += extra.pop(name, [])
    del measuring.graph.node[:]
    measuring.graph.node.extend(nodes)
    for name in losses:
        measuring.graph.output.append(onnx.helper.make_tensor_value_info(name, kind.FLOAT, []))
        if opset >= 18:
            measuring.graph.initializer.append(
                onnx.numpy_helper.from_array(np.asarray([-1], np.int64), f"{name}.axes")
            )
    return measuring, losses


def _again_in_fp16(
    graph: _Graph, attention: _Attention, softmax: int
) -> tuple[list[onnx.NodeProto], str]:
    """Return copies of the nodes from Q and K to a softmax, and the name of their result.

    Every tensor between them is rounded to FP16.
    """
    onnx = onnx_package()
    kind = onnx.TensorProto
    weights = graph.nodes[softmax].output[0]
    made: list[Any] = []
    copies: dict[str, str] = {}

    def rounded(name: str) -> str:
        half, full = f"{name}.{weights}.half", f"{name}.{weights}.rounded"
        if not any(full in node.output for node in made):
            made.append(onnx.helper.make_node("Cast", [name], [half], to=kind.FLOAT16))
            made.append(onnx.helper.make_node("Cast", [half], [full], to=kind.FLOAT))
        return full

    for place in sorted(attention.products | attention.between | {softmax}):
        node = onnx.NodeProto()
        node.CopyFrom(graph.nodes[place])
        node.name = ""
        for index, name in enumerate(node.input):
            name = copies.get(name, name)
            is_product = place in attention.products and graph.is_float(node.input[index])
            node.input[index] = rounded(name) if is_product else name
        for index, name in enumerate(node.output):
            node.output[index] = f"{name}.{weights}.copy"
            copies[name] = node.output[index]
        made.append(node)
        if place != softmax and graph.is_float(graph.nodes[place].output[0]):
            copies[node.output[0].removesuffix(f".{weights}.copy")] = rounded(node.output[0])
    return made, copies[weights]


def _row_loss(one: str, other: str, name: str, axes_as_input: bool) -> list[onnx.NodeProto]:
    """Return nodes for the difference of two tensors: absolute sum of a row, mean, largest mean.

    name: of the result. axes_as_input: the axes are the tensor `NAME.axes`, as from opset 18 on,
    instead of an attribute.
    """
    make = onnx_package().helper.make_node
    difference, total, mean = (f"{name}.{step}" for step in ("difference", "sum", "mean"))
    axes = [f"{name}.axes"] if axes_as_input else []
    attribute: dict[str, Any] = {} if axes_as_input else {"axes": [-1]}
    return [
        make("Sub", [one, other], [difference]),
        make("ReduceL1", [difference, *axes], [total], keepdims=0, **attribute),
        make("ReduceMean", [total, *axes], [mean], keepdims=0, **attribute),
        make("ReduceMax", [mean], [name], keepdims=0),
    ]


def _last_layers(graph: _Graph) -> set[int]:
    """Return the nodes from the outputs back to the first product or normalisation on each path.

    That node is included; products are convolutions and matrix products.
    """
    ends = [graph.maker[name] for name in graph.outputs if name in graph.maker]
    others = {graph.op(n) for n in range(len(graph.nodes))} - _PRODUCTS
    return _upwards(graph, ends, others - _NORMALISE)


# --- writing the graph ---------------------------------------------------------------------------


def to_fp16(
    ready: onnx.ModelProto,
    measured: Measured | None = None,
    fp16_input: bool = False,
    keep: Collection[str] = (),
    delicate: Collection[int] = (),
) -> Fp16Model:
    """Convert a prepared FP32 graph to FP16; inputs and outputs stay FP32.

    Without ``measured`` only the graph decides, and the scores of attentions stay FP32.
    ``fp16_input``: make the input FP16. ``keep``: more operators to keep in FP32; "attention" means
    the scores of every attention. ``delicate``: numbers of more nodes to keep in FP32. Raises
    ConvertError if the result is not valid, well-typed ONNX.
    """
    onnx = onnx_package()
    measured = measured or Measured()
    graph = _graph(ready)
    weights = graph.weights
    arrays = {
        name: onnx.numpy_helper.to_array(item)
        for name, item in weights.items()
        if item.data_type == onnx.TensorProto.FLOAT
    }
    peaks = {name: _peak(values) for name, values in arrays.items()}
    reasons = _reasons(graph, measured, peaks, keep, delicate)
    writer = _Writer(graph, arrays, reasons, fp16_input)
    for number in range(len(graph.nodes)):
        writer.put(number)
    result = head(ready)
    result.graph.node.extend(writer.nodes)
    result.graph.initializer.extend(writer.initializers(weights))
    if fp16_input:
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
        Counter((reasons[n], graph.op(n)) for n in typed if n in reasons),
        Counter(graph.op(n) for n in typed if n not in reasons),
        writer.casts,
        writer.flushed / max(writer.fp16_values, 1),
        tuple(_reports(graph, measured, reasons)),
    )


def _graph(ready: onnx.ModelProto) -> _Graph:
    return _Graph(
        ready.graph.node,
        tensor_types(inferred(ready)),
        {item.name: item for item in ready.graph.initializer},
        frozenset(item.name for item in ready.graph.output),
    )


def _peak(values: npt.NDArray[np.float32]) -> float:
    finite = np.abs(values[np.isfinite(values)])  # infinity is the same in FP16
    return float(finite.max()) if finite.size else 0.0


class _Writer:
    """Writer of nodes with tensors of the right types, and of Casts between two types."""

    def __init__(
        self,
        graph: _Graph,
        arrays: Mapping[str, npt.NDArray[np.float32]],
        reasons: Mapping[int, str],
        fp16_input: bool,
    ) -> None:
        self._onnx = onnx_package()
        self._graph, self._arrays, self._reasons = graph, arrays, reasons
        self._fp16_input = fp16_input
        self.nodes: list[onnx.NodeProto] = []
        self.casts = self.fp16_values = self.flushed = 0
        self._made: dict[tuple[str, bool], str] = {}
        # Name of a weight as the nodes use it -> name of its source, and whether it is FP16
        self._used: dict[str, tuple[str, bool]] = {}

    def put(self, number: int) -> None:
        """Append one node of the FP32 graph."""
        source = self._graph.nodes[number]
        fp16 = number not in self._reasons and self._graph.op(number) not in _ANY_FLOAT
        node = self._onnx.NodeProto()
        node.CopyFrom(source)
        fixed = _ALWAYS_FLOAT.get(source.op_type, ())
        for index, name in enumerate(source.input):
            if self._graph.is_float(name):
                as_fp16 = fp16 and index not in fixed
                if source.op_type in _ANY_FLOAT:
                    as_fp16 = self._is_fp16(name)  # takes any type, so no Cast is needed
                node.input[index] = self._typed_name(name, as_fp16)
            elif name in self._graph.weights:
                self._used[name] = (name, False)
        self.nodes.append(node)

    def _is_fp16(self, name: str) -> bool:
        """Return whether a tensor is FP16 as its node, or the graph's input, gives it."""
        if name in self._arrays:
            return False
        maker = self._graph.maker.get(name)
        if maker is None:
            return self._fp16_input
        return maker not in self._reasons and self._graph.op(maker) not in _ANY_FLOAT

    def _typed_name(self, name: str, fp16: bool) -> str:
        """Return the name of a tensor in a type; add a Cast or a copy of a weight if necessary."""
        if name in self._arrays:
            typed = f"{name}.fp16" if fp16 else name
            self._used[typed] = (name, fp16)
            return typed
        if self._is_fp16(name) == fp16:
            return name
        key = (name, fp16)
        if key not in self._made:
            self._made[key] = f"{name}.fp16" if fp16 else f"{name}.float"
            to = self._onnx.TensorProto.FLOAT16 if fp16 else self._onnx.TensorProto.FLOAT
            self.nodes.append(
                self._onnx.helper.make_node(
                    "Cast", [name], [self._made[key]], name=f"{self._made[key]}.cast", to=to
                )
            )
            self.casts += 1
        return self._made[key]

    def initializers(self, weights: Mapping[str, onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
        """Yield the weights that the nodes use, in the types in which they use them."""
        for typed, (name, fp16) in self._used.items():
            if not fp16:
                yield weights[name]
                continue
            with np.errstate(over="ignore"):
                values = self._arrays[name].astype(np.float16)
            self.fp16_values += values.size
            self.flushed += int(np.count_nonzero((values == 0) & (self._arrays[name] != 0)))
            yield self._onnx.numpy_helper.from_array(values, typed)
