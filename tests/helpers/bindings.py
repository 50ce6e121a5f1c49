# SPDX-License-Identifier: Apache-2.0
"""The real Python bindings of TensorRT and CUDA on a machine without their libraries.

The wheels are fetched once into a folder of the environment. To be imported, TensorRT's module
needs nine C functions of three libraries; stubs provide them. Nothing can be run this way, but
every class, method, keyword and enum is the real one. :func:`ask` runs this file in a fresh
interpreter with those bindings, because one interpreter cannot hold two versions of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPO

# JetPack 6 has 10.3, which has no wheel for Python 3.13.
TENSORRT = (
    *(("tensorrt-cu12-bindings==10.3.0",) if sys.version_info < (3, 13) else ()),
    "tensorrt-cu12-bindings==10.13.3.9.post1",
    "tensorrt-cu13-bindings==11.4.0.106",
)
CUDA = ("cuda-bindings==12.9.4", "cuda-bindings==13.0.3")
PATHFINDER = "cuda-pathfinder==1.9.0"
NVRTC = "nvidia-cuda-nvrtc==13.0.88"

_SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry", "getNvOnnxParserVersion", "getPluginRegistry",
    "initLibNvInferPlugins",
)  # fmt: skip


def cache_folder() -> Path:
    """Return the folder of the fetched wheels: in the environment, or in the temporary folder if
    that cannot be written.
    """
    base = Path(sys.prefix)
    if not os.access(base, os.W_OK):
        base = Path(tempfile.gettempdir())
    return base / "depth_node_bindings" / f"cp{sys.version_info[0]}{sys.version_info[1]}"


def fetched(requirement: str) -> Path:
    """Return the folder of a package, from the cache or the registry; skip if it cannot be had."""
    folder, reason = _fetched(requirement)
    if reason:
        missing(f"{requirement} cannot be fetched ({reason})")
    return folder


@functools.cache
def _fetched(requirement: str) -> tuple[Path, str]:
    """Return the folder, and "" or why it does not exist; a fetch is tried once in a session."""
    folder = cache_folder() / requirement.replace("==", "-")
    if folder.is_dir():
        return folder, ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(dir=folder.parent))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--no-compile", "--target", str(half)]
    command += ["--retries", "1", "--timeout", "15"]
    try:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=120)
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = "no answer in 120 s"
    if not reason:
        with contextlib.suppress(OSError):  # another process was faster
            half.rename(folder)
    shutil.rmtree(half, ignore_errors=True)
    return folder, reason


def missing(reason: str) -> None:
    """Skip, or fail if the environment promises the part (REQUIRE_BINDINGS=1)."""
    if os.environ.get("REQUIRE_BINDINGS") == "1":
        pytest.fail(f"{reason} (REQUIRE_BINDINGS=1 promises it)")
    pytest.skip(reason)


def stub_libraries(major: str) -> Path:
    """Return the folder of stubs of TensorRT's three libraries; skip without a C compiler."""
    folder = cache_folder() / f"stubs-{major}"
    names = [f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser")]
    if all((folder / name).is_file() for name in names):
        return folder
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        missing("no C compiler (gcc) for the stub libraries")
    folder.mkdir(parents=True, exist_ok=True)
    source = "".join(f"void* {symbol}(void) {{ return 0; }}\n" for symbol in _SYMBOLS)
    for name in names:
        with tempfile.TemporaryDirectory(dir=folder) as half:
            made = Path(half) / name
            subprocess.run(
                [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-x", "c", "-", "-o", made],
                input=source.encode(),
                check=True,
            )
            made.rename(folder / name)
    return folder


def ask(question: str, given: Any, tensorrt: str = "", cuda: str = "", *more: str) -> Any:
    """Call a function of this file in a fresh interpreter with these bindings; JSON in and out."""
    paths = [str(REPO), str(REPO / "tests")]
    environment = dict(os.environ)
    if tensorrt:
        paths.append(str(fetched(tensorrt)))
        libraries = stub_libraries(tensorrt.partition("==")[2].split(".")[0])
        before = environment.get("LD_LIBRARY_PATH", "")
        environment["LD_LIBRARY_PATH"] = f"{libraries}:{before}" if before else str(libraries)
    if cuda:
        paths += [str(fetched(cuda)), str(fetched(PATHFINDER))]
    paths += [str(fetched(requirement)) for requirement in more]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, question],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- in the fresh interpreter --------------------------------------------------------------------


def tensorrt_module() -> Any:
    """Import the bindings under the name that the full package gives them."""
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    return tensorrt_bindings


def tensorrt_problems(used: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what the bindings lack, or take with other parameters, of a table like trt.USED."""
    module = tensorrt_module()
    found = []
    for owner, names in used.items():
        place = module if owner == "tensorrt" else getattr(module, owner, None)
        if place is None:
            found.append(f"no class {owner}")
            continue
        for entry in names:
            name, _, rest = entry.partition("(")
            if not hasattr(place, name):
                found.append(f"no {owner}.{name}")
            elif rest:
                wanted = [word.strip() for word in rest.rstrip(")").split(",") if word.strip()]
                overloads = signatures(getattr(place, name), owner != "tensorrt")
                if not any(fits(wanted, overload) for overload in overloads):
                    found.append(f"{owner}.{entry} takes {overloads}")
            elif callable(getattr(place, name)) and not inspect.isclass(getattr(place, name)):
                found.append(f"{owner}.{name} is a method: write its parameters")
    return found


def signatures(function: Any, method: bool) -> list[list[tuple[str, bool]]]:
    """Return every overload as a list of (parameter, whether it has a default).

    They are read from pybind11's docstring; method: leave out `self`.
    """
    if inspect.isfunction(function):
        parameters = list(inspect.signature(function).parameters.values())
        return [[(item.name, item.default is not item.empty) for item in parameters]]
    name = function.__name__
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> .*)?$", line.strip())
        if not match or match[1].startswith("*args"):
            continue
        parameters = []
        for part in _split(match[1]):
            word, _, default = part.partition("=")
            parameters.append((word.partition(":")[0].strip(), bool(default)))
        found.append(parameters[1:] if method else parameters)
    return found


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{<") - (letter in ")]}>" and text[place - 1] != "-")
        if letter == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    return [part for part in (*parts, text[start:]) if part.strip()]


def fits(wanted: Sequence[str], overload: Sequence[tuple[str, bool]]) -> bool:
    """Return whether an overload takes a call with these parameters, in this order."""
    names = [name for name, _ in overload]
    return names[: len(wanted)] == list(wanted) and all(free for _, free in overload[len(wanted) :])


def cuda_problems(used: Mapping[str, Sequence[str]]) -> list[str]:
    """Return what cuda.bindings lacks of `used`.

    used: {"module": ["function(count) -> values", "Enum.member"]}.
    """
    import importlib

    found = []
    for module_name, names in used.items():
        module = importlib.import_module(f"cuda.bindings.{module_name}")
        for entry in names:
            match = re.match(r"(\w+)(?:\.(\w+)|\((\d+)\) -> (\d+))?$", entry)
            assert match, entry
            name, member, count, values = match.groups()
            if not hasattr(module, name):
                found.append(f"no {module_name}.{name}")
            elif member and not hasattr(getattr(module, name), member):
                found.append(f"no {module_name}.{name}.{member}")
            elif count:
                function = getattr(module, name)
                parameters = len(inspect.signature(function).parameters)
                returned = len(re.findall(r"^\w+ *:|^[\w.]+$", _returns(function), re.M))
                if parameters != int(count) or returned != int(values):
                    found.append(f"{module_name}.{name} takes {parameters}, gives {returned}")
    return found


def cuda_calls(given: Any) -> dict[str, Any]:
    """Call what engine/cuda.py calls, with arguments of the same types, where there is no driver.

    The bindings convert the arguments before they notice that, so a wrong type or number of
    arguments shows. Returns for each function how many values it returned, or the error's name.
    """
    from cuda.bindings import driver, runtime

    from depth_node.engine import cuda

    if not cuda.missing():
        return {}  # a real GPU must not be given these addresses
    stream, graph, made = runtime.cudaStream_t(), runtime.cudaGraph_t(), runtime.cudaGraphExec_t()
    event, module, kind = runtime.cudaEvent_t(), driver.CUmodule(), runtime.cudaMemcpyKind
    local = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    calls: dict[str, tuple[Any, ...]] = {
        "cudaDriverGetVersion": (),
        "cudaRuntimeGetVersion": (),
        "cudaGetDeviceCount": (),
        "cudaGetDeviceProperties": (0,),
        "cudaSetDevice": (0,),
        "cudaGetErrorString": (runtime.cudaError_t.cudaErrorNoDevice,),
        "cudaGetLastError": (),
        "cudaMemGetInfo": (),
        "cudaMalloc": (16,),
        "cudaFree": (0,),
        "cudaHostAlloc": (16, 0),
        "cudaFreeHost": (0,),
        "cudaMemcpyAsync": (16, 32, 4, kind.cudaMemcpyHostToDevice, stream),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaStreamSynchronize": (stream,),
        "cudaStreamDestroy": (stream,),
        "cudaStreamBeginCapture": (stream, local),
        "cudaStreamEndCapture": (stream,),
        "cudaGraphInstantiate": (graph, 0),
        "cudaGraphLaunch": (made, stream),
        "cudaGraphDestroy": (graph,),
        "cudaGraphExecDestroy": (made,),
        "cudaEventCreate": (),
        "cudaEventRecord": (event, stream),
        "cudaEventSynchronize": (event,),
        "cudaEventElapsedTime": (event, event),
        "cudaEventDestroy": (event,),
        "cuModuleLoadData": (b"code",),
        "cuModuleGetFunction": (module, b"name"),
        "cuModuleUnload": (module,),
        "cuLaunchKernel": (driver.CUfunction(), 1, 1, 1, 32, 8, 1, 0, int(stream), 4096, 0),
    }
    found: dict[str, Any] = {"handles": [int(made), int(module), type(event).__name__]}
    for name, arguments in calls.items():
        function = getattr(runtime, name, None) or getattr(driver, name)
        try:
            found[name] = len(function(*arguments))
        except Exception as error:
            found[name] = type(error).__name__
    return found


def _returns(function: Any) -> str:
    """Return the section "Returns" of a docstring, without its indented explanations."""
    text = inspect.cleandoc(function.__doc__ or "")
    match = re.search(r"^Returns\n-+\n(.*?)(?=\n\n\S.*\n-+\n|\Z)", text, re.M | re.S)
    body = match[1] if match else ""
    kept = []
    for line in body.splitlines():
        if line and not line[0].isspace():
            kept.append(line)
    return "\n".join(kept)


def our_module(given: Any) -> dict[str, Any]:
    """Import depth_node.engine.trt with the real bindings; return what works without a GPU."""
    tensorrt_module()
    from depth_node.engine import EngineError, cuda, trt
    from depth_node.inference import open_engine

    logger = trt._Logger()
    logger.log(trt.trt.ILogger.Severity.ERROR, "first\n error")
    logger.log(trt.trt.ILogger.Severity.INFO, "nothing")
    told: list[Any] = []
    monitor = trt._Monitor(lambda *step: told.append(step))
    monitor.phase_start("tactics", None, 3)
    goes_on = monitor.step_complete("tactics", 0)
    monitor.phase_finish("tactics")
    try:
        open_engine("embedded", backend="tensorrt")
        refusal = ""
    except EngineError as error:
        refusal = str(error)
    return {
        "version": trt.trt.__version__,
        "logger": list(logger.errors),
        "progress": told,
        "goes_on": goes_on,
        "flag": 1 << int(trt.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),
        "missing": trt.missing(),
        "refusal": refusal,
        "types": [
            str(trt.np.dtype(trt.trt.nptype(getattr(trt.trt, name))))
            for name in ("float32", "float16", "uint8")
        ],
        "cuda": cuda.missing(),
    }


def compiled(given: tuple[str, Sequence[str]]) -> dict[str, str]:
    """Compile the kernels with the real NVRTC for each capability; return the first bytes of the
    code, or the error's text, by capability.

    given: the folder of NVRTC's library, and the capabilities.
    """
    import ctypes

    from depth_node.engine import EngineError, cuda

    folder, capabilities = given
    if folder:  # a library that is loaded already is later found by its name
        for name in ("libnvrtc-builtins.so.13.0", "libnvrtc.so.13"):
            ctypes.CDLL(str(Path(folder) / name), ctypes.RTLD_GLOBAL)
    found = {}
    for capability in capabilities:
        try:
            found[capability] = cuda.compile_source(capability)[:4].decode("latin-1")
        except EngineError as error:
            found[capability] = str(error)
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](json.load(sys.stdin))))
