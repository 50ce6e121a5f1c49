# SPDX-License-Identifier: Apache-2.0
"""`depth_tools models ...`: list, fetch, verify, convert, check and build networks."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depth_node.cli.console import (
    UsageError,
    console,
    image_size,
    print_table,
    progress,
    write_json,
)
from depth_node.engine import depth_tools
from depth_node.engine.manifest import (
    MEANINGS,
    ROLES,
    UNITS,
    Manifest,
    SparseSpec,
    manifest_path,
    model_sha256,
)
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.preprocess import RESIZES
from depth_node.engine.protocol import Engine, Progress
from depth_node.inference import build_engine, judge_answer, open_engine
from depth_node.model_zoo import compare, convert, fetch, fp16, onnx_graph, registry
from depth_node.model_zoo.registry import locate

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    """Add the command `models` with its own commands."""
    parser = commands.add_parser(
        "models", help="list, fetch, verify, convert, check and build networks; write manifests"
    )
    kinds = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_fetching(kinds)
    _add_converting(kinds)
    _add_manifest(kinds)


# ------------------------------------------------------------------------- list, fetch and verify


def _add_fetching(kinds: Any) -> None:
    listing = kinds.add_parser(
        "list", help="list the embedded networks and those that can be fetched"
    )
    listing.set_defaults(run=_run_list)
    fetching = kinds.add_parser("fetch", help="download a network of the list")
    fetching.add_argument("name", metavar="NAME", help="see `depth_tools models list`")
    fetching.add_argument(
        "--accept-licence", action="store_true", help="accept a licence that forbids commercial use"
    )
    fetching.add_argument(
        "--size", default="", metavar="WxH", help="input size, if the file leaves it open"
    )
    fetching.add_argument(
        "--output-name", default="", metavar="NAME", help="output to use, if the file has several"
    )
    fetching.set_defaults(run=_run_fetch)
    verifying = kinds.add_parser("verify", help="check the hashes of fetched networks")
    verifying.add_argument(
        "names", nargs="*", metavar="NAME", help="networks to check (default: all fetched ones)"
    )
    verifying.set_defaults(run=_run_verify)


def _run_list(options: argparse.Namespace) -> int:
    terminal = console()
    rows: list[tuple[str, ...]] = []
    for model in sorted((Path(__file__).resolve().parent.parent / "models").glob("*.onnx")):
        if not manifest_path(model).is_file():
            continue  # a part of the method, which nobody can choose
        manifest = Manifest.load(manifest_path(model))
        spec = manifest.input
        whole = model_sha256(model) == manifest.sha256
        rows.append(
            (
                model.stem,
                manifest.meaning,
                f"{spec.width}x{spec.height}",
                f"{model.stat().st_size / 1e6:.1f} MB",
                manifest.licence or "-",
                "whole" if whole else "DAMAGED",
            )
        )
    if not rows:
        raise UsageError("the package holds no network: install it again, or give --model FILE")
    head: tuple[str, ...] = ("model", "gives", "input", "size", "licence", "file")
    print_table(terminal, "Networks in the package", head, rows, set(), left=6)
    entries = list(registry.registry().values())
    for meaning in dict.fromkeys(entry.meaning for entry in entries):
        rows = [
            (
                entry.name,
                f"{entry.parameters:g} M",
                entry.licence,
                entry.format,
                _fetched_files(entry),
            )
            for entry in entries
            if entry.meaning == meaning
        ]
        head = ("model", "parameters", "licence", "as", "here")
        print_table(terminal, f"To fetch: {meaning}", head, rows, set(), left=5)
    terminal.print(f"fetched networks lie in {registry.models_folder()}")
    return 0


def _fetched_files(entry: registry.RegistryEntry) -> str:
    folder = entry.folder
    names = sorted(path.name for path in folder.glob("*.onnx"))
    if not names and (folder / entry.main).is_file():
        names = ["weights"]
    return ", ".join(names) or "-"


def _run_fetch(options: argparse.Namespace) -> int:
    terminal = console()
    entry = registry.find(options.name)
    size = image_size("--size", options.size) if options.size else ()
    terminal.print(
        f"{entry.name}: a network of {entry.maker}, from {entry.repo}, licence {entry.licence}"
        f" ({entry.page})"
    )
    if entry.note:
        terminal.print(f"note: {entry.note}", style="yellow")
    if entry.non_commercial and not options.accept_licence:
        _confirm(terminal, entry)
    with _bytes_bar(terminal) as on_bytes:
        done = fetch.fetch(entry, on_bytes, size, options.output_name)
    for name, file in done.record.files.items():
        terminal.print(f"{name}: {file.bytes / 1e6:.1f} MB, sha256 {file.sha256} ({file.basis})")
        if file.basis == "first use":
            terminal.print(
                "  no hash of this file is published, so it is trusted as received; from now on it"
                " is compared with this first download",
                style="yellow",
            )
    if done.manifest is None:
        terminal.print(f"weights: {done.path}; to run them, export them to ONNX:")
        terminal.print(
            f"  {entry.export_command}"
            if entry.export
            else f"  with the package of {entry.maker}, to {entry.onnx}; then"
            f" `{entry.manifest_command}`"
        )
        return 0
    spec = done.manifest.input
    terminal.print(
        f"ready: {done.path} takes {spec.width}x{spec.height} and gives {done.manifest.meaning};"
        f" use it by its name: --model {entry.name}"
    )
    return 0


def _confirm(terminal: Console, entry: registry.RegistryEntry) -> None:
    """Ask the user at the terminal to accept the licence. Raises UsageError unless they do."""
    question = f"The licence {entry.licence} forbids commercial use. Is yours non-commercial? [y/N]"
    if sys.stdin.isatty() and terminal.input(question + " ").strip().lower() in ("y", "yes"):
        return
    raise UsageError(
        f"{entry.name} was not fetched: its licence {entry.licence} forbids commercial use; read it"
        f" at {entry.page} and, if yours is none, run this again with --accept-licence"
    )


@contextmanager
def _bytes_bar(terminal: Console) -> Iterator[fetch.OnBytes]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(name: str, received: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, completed=received)
            bar.update(tasks[name], completed=received)

        yield report


def _run_verify(options: argparse.Namespace) -> int:
    terminal = console()
    entries = [registry.find(name) for name in options.names] or list(registry.registry().values())
    verdicts = []
    for entry in entries:
        checked = fetch.verify(entry)
        if not checked and options.names:
            raise UsageError(
                f"{entry.name} is not on this machine: run"
                f" `{depth_tools(f'models fetch {entry.name}')}`"
            )
        verdicts += checked
    if not verdicts:
        terminal.print(f"no network of the list is in {registry.models_folder()}")
        return 0
    rows = [(v.name, v.file, v.basis, v.problem or "whole") for v in verdicts]
    print_table(
        terminal, "Fetched networks", ("model", "file", "compared with", "file is"), rows, set(), 4
    )
    damaged = sorted({v.name for v in verdicts if v.problem})
    for name in damaged:
        terminal.print(
            f"{name} is not what was fetched: delete {registry.models_folder() / name} and run"
            f" `{depth_tools(f'models fetch {name}')}`",
            style="red",
        )
    return 1 if damaged else 0


# ------------------------------------------------------------------------ convert, check and build


def _add_converting(kinds: Any) -> None:
    model = "ONNX file, name of a fetched network, or embedded"
    converting = kinds.add_parser(
        "convert", help="write an FP16 copy if its outputs agree with FP32"
    )
    converting.add_argument("model", metavar="MODEL", help=model)
    converting.add_argument("--precision", default="fp16", choices=["fp16"])
    converting.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: MODEL.fp16.onnx, beside the model)"
    )
    converting.add_argument(
        "--fp16-input", "--half-input", action="store_true", help="make the input FP16 too"
    )
    converting.add_argument(
        "--keep", default="", metavar="OP,OP", help="more operators to keep in FP32"
    )
    checking = kinds.add_parser("check", help="compare two networks, precisions or back ends")
    checking.add_argument("first", metavar="A", help=f"{model}; the reference")
    checking.add_argument("second", metavar="B", help="the network to compare with A")
    checking.add_argument(
        "--backends",
        default="onnxruntime-cpu,auto",
        metavar="A,B",
        help="back ends of A and B (onnxruntime-cpu,auto)",
    )
    checking.add_argument(
        "--precisions",
        default="file,file",
        metavar="A,B",
        help="precisions of A and B: file or fp16",
    )
    checking.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures of every image"
    )
    building = kinds.add_parser("build", help="build a TensorRT engine before the node starts")
    building.add_argument("model", metavar="MODEL", help=model)
    building.add_argument("--precision", default="file", choices=["file", "fp16"])
    building.add_argument("--workspace-mb", type=int, default=0, metavar="MB")
    building.add_argument("--cache-dir", default="", metavar="DIR")
    for command, run in (
        (converting, _run_convert),
        (checking, _run_check),
        (building, _run_build),
    ):
        command.set_defaults(run=run)
        if run is not _run_check:
            command.add_argument(
                "--manifest",
                default="",
                metavar="FILE",
                help="manifest of the model (default: the file beside it)",
            )
        if run is not _run_build:
            command.add_argument(
                "--images",
                type=Path,
                metavar="DIR",
                help="images to compare on (default: rendered rooms)",
            )
            command.add_argument(
                "--count",
                type=int,
                default=compare.RECOMMENDED_IMAGES,
                metavar="N",
                help="number of images (50)",
            )


def _run_convert(options: argparse.Namespace) -> int:
    terminal = console()
    onnx_graph.onnx_package()  # reports a missing package before the measurements
    _, manifest = locate(options.model, options.manifest or None)
    images = compare.ComparisonImages.of(options.images, manifest, options.count)
    asked = [word.strip() for word in options.keep.split(",") if word.strip()]
    with progress(terminal, "comparing with FP32", images.count + 1) as advance:
        done = convert.convert(
            options.model,
            images,
            manifest=options.manifest or None,
            out=options.out,
            fp16_input=options.fp16_input,
            keep=asked,
            on_step=advance,
        )
    converted = done.fp16
    rows = []
    for reason, meaning in fp16.REASONS.items():
        ops = {op: n for (given, op), n in converted.fp32_nodes.items() if given == reason}
        if ops:
            named = ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda x: -x[1]))
            rows.append((reason, named, meaning))
    print_table(terminal, "Kept in FP32", ("reason", "operators", "meaning"), rows, set(), 3)
    total = sum(converted.fp16_nodes.values())
    terminal.print(
        f"FP16: {total} operators, FP32: {sum(converted.fp32_nodes.values())}, casts between:"
        f" {converted.casts}; weights that became 0: {converted.flushed_fraction:.3%}"
    )
    _print_comparison(terminal, f"FP16 against FP32, {images}", done.comparison, images)
    before, after = done.bytes
    terminal.print(
        f"written with its manifest: {done.path}, {after / 1e6:.1f} MB instead of"
        f" {before / 1e6:.1f} MB"
    )
    name = f"{options.model}.fp16" if options.model in registry.registry() else done.path
    terminal.print(f"run it: model.precision: fp16, or --model {name}")
    return 0


def _print_comparison(
    terminal: Console, title: str, result: compare.ModelComparison, images: compare.ComparisonImages
) -> None:
    head = ("figure", "mean", "worst", "limit", "")
    print_table(terminal, title, head, result.rows(), set())
    if images.count < compare.RECOMMENDED_IMAGES:
        terminal.print(
            f"note: {images.count} images; at least {compare.RECOMMENDED_IMAGES} are recommended",
            style="yellow",
        )


def _run_check(options: argparse.Namespace) -> int:
    terminal = console()
    backends = _pair("--backends", options.backends)
    precisions = _pair("--precisions", options.precisions)
    with ExitStack() as stack:
        engines, names = [], []
        models = (options.first, options.second)
        for model, backend, precision in zip(models, backends, precisions, strict=True):
            opened = stack.enter_context(open_engine(model, backend=backend, precision=precision))
            engine, description = _rounding_as_gpu(opened, stack)
            engines.append(engine)
            names.append(f"{engine.manifest.name} ({opened.manifest.model}, {description})")
        images = compare.ComparisonImages.of(options.images, engines[0].manifest, options.count)
        with progress(terminal, "comparing", images.count) as advance:
            result = compare.compare(engines[0], engines[1], images, advance)
    _print_comparison(terminal, f"{names[1]} against {names[0]}, {images}", result, images)
    times = compare.median_ms(result.times_ms)
    terminal.print(f"median of a run: {times[0]:.1f} ms and {times[1]:.1f} ms")
    if options.json:
        write_json(
            options.json,
            {
                "a": names[0],
                "b": names[1],
                "images": str(images),
                "limits": vars(result.limits),
                "worst": vars(result.worst),
                "median_ms": times,
                "each": [vars(one) for one in result.differences],
            },
        )
    for failure in result.failures:
        terminal.print(f"B is not near enough to A: {failure}", style="red")
    return 1 if result.failures else 0


def _rounding_as_gpu(engine: Engine, stack: ExitStack) -> tuple[Engine, str]:
    """Replace an FP16 engine on the CPU, which computes in FP32, by one that rounds every value."""
    if engine.backend != "onnxruntime-cpu" or importlib.util.find_spec("onnx") is None:
        return engine, engine.backend
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        rounding = convert.rounding_engine(Path(engine.details["model"]), engine.manifest, folder)
    except onnx_graph.ConvertError:  # a graph with branches cannot be prepared, but runs
        return engine, f"{engine.backend}, FP16 values, if any, not rounded"
    if rounding is None:
        return engine, engine.backend
    return stack.enter_context(rounding), f"{engine.backend}, every FP16 value rounded"


def _pair(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if len(words) != 2 or not all(words):
        raise UsageError(f"{option} {text!r} must be two words with a comma, one for A, one for B")
    return words


def _run_build(options: argparse.Namespace) -> int:
    terminal = console()
    with _steps_bar(terminal) as report:
        details = build_engine(
            options.model,
            manifest=options.manifest or None,
            progress=report,
            precision=options.precision,
            workspace_mb=options.workspace_mb,
            cache_dir=options.cache_dir,
        )
    rows = [(key, str(value)) for key, value in details.items()]
    print_table(terminal, "Engine", ("part", "value"), rows, set(), 2)
    return 0


@contextmanager
def _steps_bar(terminal: Console) -> Iterator[Progress]:
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}", markup=False), bars.BarColumn(),
        bars.MofNCompleteColumn(), bars.TimeElapsedColumn(),
    )  # fmt: skip
    with bars.Progress(*columns, console=terminal) as bar:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield report


# --------------------------------------------------------------------------------- your own network


def _add_manifest(kinds: Any) -> None:
    writing = kinds.add_parser("manifest", help="write the manifest of an ONNX file")
    writing.add_argument("model", type=Path, metavar="MODEL.onnx")
    writing.add_argument(
        "--meaning", required=True, help=f"meaning of the output: {', '.join(MEANINGS)}"
    )
    writing.add_argument("--out", type=Path, metavar="FILE", help="(default: beside the model)")
    for name in ("name", "output-name", "licence", "source"):
        writing.add_argument(f"--{name}", default="")
    for role in ROLES:
        writing.add_argument(
            f"--{role}-output", default="", metavar="NAME", help=f"output that is the {role}"
        )
        if role != "scale":
            writing.add_argument(
                f"--{role}-level",
                type=float,
                help=f"smallest value of that output that counts as {role}",
            )
    writing.add_argument(
        "--focal-px", type=float, default=0.0, metavar="PX",
        help="for depth_metric_focal: focal length of the input at which the output is metres",
    )  # fmt: skip
    writing.add_argument(
        "--sparse-depth", default="", metavar="NAME", help="depth input of a completion network"
    )
    writing.add_argument(
        "--sparse-mask", default="", metavar="NAME", help="its mask input, 1 where there is a point"
    )
    writing.add_argument(
        "--sparse-unit", default="m", help=f"unit of the depth input: {', '.join(UNITS)} (m)"
    )
    writing.add_argument(
        "--sparse-empty",
        type=float,
        default=0.0,
        help="value of the depth input where there is no point (0)",
    )
    writing.add_argument(
        "--multiple",
        type=int,
        metavar="PX",
        help="multiple of the sides for longest_side, such as 14",
    )
    for name in ("height", "width", "patch-size"):
        writing.add_argument(f"--{name}", type=int, default=0, metavar="PX")
    choices = (("channel-order", "rgb, bgr"), ("resize", ", ".join(RESIZES)))
    for name, meaning in (*choices, ("interpolation", "as in InputSpec")):
        writing.add_argument(f"--{name}", metavar="WORD", help=meaning)
    writing.add_argument("--scale", type=float, help="factor on pixel values before mean and std")
    for name in ("mean", "std"):
        writing.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"))
    writing.add_argument(
        "--no-run", action="store_true",
        help="do not run the network (takes minutes for a huge one): names, shapes and types are"
        " checked, the output is not",
    )  # fmt: skip
    writing.set_defaults(run=_run_manifest)


def _run_manifest(options: argparse.Namespace) -> int:
    given = {
        key: getattr(options, key)
        for key in ("channel_order", "resize", "interpolation", "multiple", "scale", "mean", "std")
        if getattr(options, key) is not None
    }
    for key in ("mean", "std"):
        if key in given:
            given[key] = tuple(given[key])
    sparse = None
    if options.sparse_depth:
        sparse = SparseSpec(
            options.sparse_depth, options.sparse_mask, options.sparse_unit, options.sparse_empty
        )
    manifest = write_manifest(
        options.model,
        options.meaning,
        manifest=options.out,
        name=options.name,
        output_name=options.output_name,
        height=options.height,
        width=options.width,
        patch_size=options.patch_size,
        licence=options.licence,
        source=options.source,
        roles={
            role: getattr(options, f"{role}_output")
            for role in ROLES
            if getattr(options, f"{role}_output")
        },
        levels={
            role: getattr(options, f"{role}_level")
            for role in ROLES
            if getattr(options, f"{role}_level", None) is not None
        },
        focal_px=options.focal_px,
        sparse=sparse,
        run=not options.no_run,
        judge=judge_answer,
        **given,
    )
    path = options.out or manifest_path(options.model)
    spec = manifest.input
    print(
        f"{path}: {manifest.name} takes {spec.channel_order} {spec.width}x{spec.height}"
        f" ({spec.resize}) and gives {manifest.meaning} in {manifest.output_name}"
    )
    if options.out:
        print(f"use it with --model {options.model} --manifest {path}")
    return 0
