# SPDX-License-Identifier: Apache-2.0
"""What engine/trt.py and engine/cuda.py use, against the real bindings of several versions.

Nothing here needs a GPU or NVIDIA's libraries (see bindings.py); the wheels come from the package
registry once. The tables USED are proved to cover the code by reading its syntax tree.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import REPO
from tests.helpers.bindings import CUDA, NVRTC, TENSORRT, ask, fetched, fits, signatures

pytestmark = pytest.mark.slow  # wheels from the package registry, a process a question

ENGINE = REPO / "depth_node" / "engine"

# The variables of trt.py that hold objects of TensorRT, and the class of each. A name that stands
# for something else at another place would make the walk below too strict, never too lax.
HOLDERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "tensor": "ITensor",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
    "self._runtime": "Runtime",
}
# What else has attributes in trt.py. `config` and `tensor` are also the model's settings and a
# NumPy array, `engine` a TrtEngine, in the functions named; there they have these and no others.
OTHERS = {
    "np", "npt", "cuda", "logging", "time", "self", "gpu", "request", "cached", "identity",
    "manifest", "logger", "_log", "pinned", "image", "text", "str", "builtins",
    "self._gpu", "self._logger", "self.manifest", "self.errors", "self.details", "self._image",
    "self._outputs", "self._inputs", "self._phases", "request.manifest", "request.cache",
    "request.config", "request.engine", "cached.metadata", "self.manifest.input",
    "manifest.input_shapes",
    "manifest.input", "manifest.inputs", "pinned.dtype", "request.manifest.input", "request.model",
    "version", "reasons", "tensors", "Resampling", "monitor", "logger.errors",
    "self._logger.errors", "self._inputs | self._outputs", "error.desc", "engine.details", "named",
    "warnings", "self.manifest.inputs", "failure.args", "shapes",
}  # fmt: skip
ELSEWHERE = {("_cached_engine", "config"), ("open_tensorrt", "engine")}
# Variables that hold what TensorRT's objects give: numbers, names, bytes, things to hand on.
RESULTS = {
    "flag", "plan", "trt_type", "size", "shape", "names", "inputs", "(in_engine, dtype)", "version",
    "named", "text", "warnings", "command", "self.details", "self.details['engine memory [MB]']",
}  # fmt: skip


def table(path: Path) -> dict[str, tuple[str, ...]]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "USED":
            assert node.value is not None
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return found
    raise AssertionError(f"{path} has no USED")


def uses(source: str) -> list[tuple[str, str, str, int | None]]:
    """(function, base, attribute, number of arguments if it is called) of every attribute."""
    found = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            count = len(node.args) + len(node.keywords)
            found.append((function, ast.unparse(node.func.value), node.func.attr, count))
            visit(node.func.value, function)
            for child in (*node.args, *(word.value for word in node.keywords)):
                visit(child, function)
            return
        if isinstance(node, ast.Attribute):
            found.append((function, ast.unparse(node.value), node.attr, None))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(source), "")
    return found


def tensorrt_gaps(source: str, used: dict[str, tuple[str, ...]]) -> list[str]:
    """Uses of TensorRT's objects that the table does not name, and bases that nobody knows."""
    gaps = []
    for function, base, name, count in uses(source):
        if base == "trt" or base.startswith("trt."):
            owner = "tensorrt" if base == "trt" else base.split(".")[1]
        elif base in HOLDERS and (function, base) not in ELSEWHERE:
            owner = HOLDERS[base]
        elif base.split("[")[0].split("(")[0] in OTHERS | set(HOLDERS) or base[0] in "\"'f(":
            continue
        else:
            gaps.append(f"{base}.{name} in {function}: what is {base}?")
            continue
        if owner == "tensorrt" and name in used and count is not None:
            name, owner = "__init__", name  # calling a class makes one
        entries = [entry for entry in used.get(owner, ()) if entry.split("(")[0] == name]
        given = [len([p for p in _inside(e).split(",") if p.strip()]) for e in entries]
        # ILogger.__init__(self) is written with self, so it counts one more.
        called = None if count is None else count - (base.startswith("trt.") and name == "__init__")
        if not entries or (called is not None and called not in given):
            gaps.append(f"{owner}.{name} with {called} arguments, in {function}")
    return gaps


def strangers(source: str) -> list[str]:
    """Variables that were given something of TensorRT's and that neither list names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        values = [ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.expr)]
        if any(text.startswith((*(f"{name}." for name in HOLDERS), "trt.")) for text in values):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [ast.unparse(target) for target in targets]
    return sorted(set(found) - set(HOLDERS) - RESULTS)


def _inside(entry: str) -> str:
    match = re.search(r"\((.*)\)", entry)
    return match[1] if match else ""


@functools.cache
def _calls(source: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]


def cuda_gaps(source: str, used: dict[str, tuple[str, ...]]) -> list[str]:
    gaps = []
    for function, base, name, count in uses(source):
        module = base.split(".")[0]
        if module not in used:
            continue
        if base == module and any(entry.startswith(f"{name}.") for entry in used[module]):
            continue  # an enum, whose member is looked at by itself
        wanted = name if base == module else f"{base.split('.', 1)[1]}.{name}"
        entries = [entry for entry in used[module] if re.split(r"\(", entry)[0] == wanted]
        spread = "*" in "".join(_call_texts(source, name))  # *grid: counted by hand in the table
        right = count is None or spread or any(_inside(entry) == str(count) for entry in entries)
        if not entries or not right:
            gaps.append(f"{module}.{wanted} with {count} arguments, in {function}")
    return gaps


def _call_texts(source: str, name: str) -> list[str]:
    return [ast.unparse(call) for call in _calls(source) if getattr(call.func, "attr", "") == name]


# --- the tables cover the code


def test_the_table_names_all_that_trt_uses() -> None:
    path = ENGINE / "trt.py"
    assert tensorrt_gaps(path.read_text(), table(path)) == []
    assert strangers("thing = builder.create_network(1)\n") == ["thing"]
    assert strangers(path.read_text()) == []


def test_the_table_names_all_that_cuda_uses() -> None:
    path = ENGINE / "cuda.py"
    assert cuda_gaps(path.read_text(), table(path)) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "tensorrt.BuilderFlag"),
        ("config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size"),
        ("context.execute_async_v2(1, 2)", "IExecutionContext.execute_async_v2"),
        ("network.get_input(0).dtype", "what is network.get_input(0)"),
        ("builder.build_serialized_network(network)", "with 1 arguments"),
        ("stranger.call()", "what is stranger"),
        ("trt.Runtime()", "Runtime.__init__ with 0 arguments"),
    ],
)
def test_a_use_that_the_table_does_not_name_is_found(line: str, told: str) -> None:
    gaps = tensorrt_gaps(f"def build(builder, network):\n    {line}\n", table(ENGINE / "trt.py"))
    assert any(told in gap for gap in gaps), gaps


@pytest.mark.parametrize(
    "line", ["runtime.cudaMallocAsync(1, 2)", "runtime.cudaMalloc(1, 2)", "driver.CUresult.NONE"]
)
def test_a_use_of_cuda_that_the_table_does_not_name_is_found(line: str) -> None:
    assert cuda_gaps(f"def f():\n    {line}\n", table(ENGINE / "cuda.py"))


def test_every_entry_of_the_tables_is_used() -> None:
    trt_text, cuda_text = (ENGINE / "trt.py").read_text(), (ENGINE / "cuda.py").read_text()
    for path, text in ((ENGINE / "trt.py", trt_text), (ENGINE / "cuda.py", cuda_text)):
        names = {name for _, _, name, _ in uses(text)}
        for owner, entries in table(path).items():
            for entry in entries:
                name = re.split(r"[(]", entry)[0].split(".")[-1]
                assert name in names or name == "__init__", f"{owner}.{entry} is used nowhere"


# --- the bindings have what the tables name


@pytest.mark.parametrize("version", TENSORRT)
def test_tensorrt_has_all_that_we_use(version: str) -> None:
    assert ask("tensorrt_problems", table(ENGINE / "trt.py"), version) == []


@pytest.mark.parametrize("version", [TENSORRT[-2], TENSORRT[-1]])
def test_a_wrong_name_fails(version: str) -> None:
    wrong = {
        "IExecutionContext": ["execute_async_v4(stream_handle)", "execute_async_v3(stream)"],
        "ICudaEngine": ["get_tensor_name"],
        "NoSuchClass": ["name"],
        "IBuilderConfig": ["set_memory_pool_limit(pool)", "max_workspace_size"],
        "OnnxParser": ["__init__(logger, network)"],
        "MemoryPoolType": ["WORK"],
    }
    problems = ask("tensorrt_problems", wrong, version)
    told = [
        "no IExecutionContext.execute_async_v4", "stream_handle", "is a method", "no class NoSuch",
        "set_memory_pool_limit(pool) takes", "no IBuilderConfig.max_workspace_size",
        "OnnxParser.__init__(logger, network) takes", "no MemoryPoolType.WORK",
    ]  # fmt: skip
    assert len(problems) == len(told)
    assert all(word in problem for word, problem in zip(told, problems, strict=True)), problems


def test_the_two_generations_differ_where_we_think_so() -> None:
    """What keeps one path from being the old one: no precision flags any more."""
    assert ask("tensorrt_problems", {"BuilderFlag": ["FP16"]}, TENSORRT[-2]) == []
    assert ask("tensorrt_problems", {"BuilderFlag": ["FP16"]}, TENSORRT[-1]) != []


@pytest.mark.parametrize("version", CUDA)
def test_cuda_has_all_that_we_use(version: str) -> None:
    assert ask("cuda_problems", table(ENGINE / "cuda.py"), "", version) == []


def test_a_wrong_name_of_cuda_fails() -> None:
    wrong = [
        "cudaMallocFast(1) -> 2", "cudaMalloc(2) -> 2", "cudaMalloc(1) -> 3",
        "cudaError_t.cudaTired",
    ]  # fmt: skip
    told = ["no runtime.cudaMallocFast", "takes 1", "gives 2", "no runtime.cudaError_t.cudaTired"]
    problems = ask("cuda_problems", {"runtime": wrong}, "", CUDA[-1])
    assert all(word in problem for word, problem in zip(told, problems, strict=True)), problems


@pytest.mark.parametrize("version", CUDA)
def test_cuda_takes_arguments_of_our_types(version: str) -> None:
    """Really called: without a driver every call gives its error, and as many values as we take."""
    found = ask("cuda_calls", None, "", version)
    if not found:
        pytest.skip("this machine has a GPU: make gpu-check calls them for real")
    assert found.pop("handles")[:2] == [0, 0]
    used = table(ENGINE / "cuda.py")
    for entry in used["runtime"]:
        name, _, values = entry.partition("(")
        if values:
            assert found.pop(name) == int(values.split("-> ")[1]), entry
    # The driver's library is looked for when its arguments have been taken.
    assert set(found) == {entry.partition("(")[0] for entry in used["driver"] if "(" in entry}
    assert set(found.values()) <= {"DynamicLibNotFoundError", "RuntimeError"}, found


def test_signatures_are_read_with_their_defaults() -> None:
    def function() -> None:
        """build(*args, **kwargs)
        Overloaded function.

        1. build(self: a.B, shape: Callable[[int, int], str], name: str = <E.X: 0>) -> None

        2. build(self: a.B) -> None
        """

    function.__name__ = "build"
    overloads = signatures(_Documented(function), True)
    assert overloads == [[("shape", False), ("name", True)], []]
    assert fits(["shape"], overloads[0])
    assert not fits(["name"], overloads[0])
    assert not fits([], overloads[0])


class _Documented:
    """Not a Python function: what it takes stands in its docstring alone."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__


# --- our modules on the real bindings, as far as a machine without a GPU goes


@pytest.mark.parametrize(
    ("tensorrt", "cuda"),
    [(TENSORRT[0], CUDA[0]), (TENSORRT[-2], CUDA[0]), (TENSORRT[-1], CUDA[1])],
)
def test_our_modules_on_the_real_bindings(tensorrt: str, cuda: str) -> None:
    """Imported for real; logger and monitor are real subclasses; the sentences are real."""
    found = ask("our_module", None, tensorrt, cuda)
    assert tensorrt.endswith(found["version"])
    assert found["logger"] == ["first error"]
    assert found["progress"] == [["tactics", 0, 3], ["tactics", 1, 3]]
    assert found["goes_on"] is True
    assert found["flag"] == (2 if found["version"].startswith("10") else 1)
    assert found["types"] == ["float32", "float16", "uint8"]
    if found["cuda"]:  # no GPU here, and nothing crashed on the way to saying so
        assert found["missing"] == found["cuda"]
        assert "back end tensorrt cannot be used here" in found["refusal"]
        assert "onnxruntime-cpu" in found["refusal"]


@pytest.mark.slow
def test_the_kernels_compile_for_every_gpu() -> None:
    """By NVRTC itself, which needs no GPU; newer ones than it knows get code for the driver."""
    libraries = fetched(NVRTC)
    wanted = ["7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0", "12.1"]
    (folder,) = {path.parent for path in libraries.rglob("libnvrtc.so.13")}
    found = ask("compiled", [str(folder), [*wanted, "19.9", "5.0"]], "", CUDA[1], NVRTC)
    assert {found[name] for name in wanted} == {"\x7fELF"}
    assert found["19.9"].startswith("//")
    assert "for GPUs of compute capability 7.5 and later, not 5.0" in found["5.0"]


def test_without_nvrtc_the_sentence_says_what_to_install() -> None:
    found = ask("compiled", ["", ["8.6"]], "", CUDA[1])["8.6"]
    if found == "\x7fELF":
        pytest.skip("this machine has NVRTC")
    assert "pip install nvidia-cuda-nvrtc" in found
