# SPDX-License-Identifier: Apache-2.0
"""`depth_tools models ...`: which networks there are, and getting, checking, converting them."""

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
from depth_node.engine.manifest import MEANINGS, Manifest, manifest_path, model_sha256
from depth_node.engine.manifest_writer import write_manifest
from depth_node.engine.protocol import Engine, Progress
from depth_node.inference import build_engine, open_engine
from depth_node.model_zoo import compare, convert, fetch, fp16, onnx_graph, registry
from depth_node.model_zoo.registry import locate

if TYPE_CHECKING:
    from rich.console import Console


def add(commands: Any) -> None:
    """The command `models` with its own commands."""
    parser = commands.add_parser("models", help="networks: fetch, verify, convert, check, your own")
    kinds = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_fetching(kinds)
    _add_converting(kinds)
    _add_manifest(kinds)


# ------------------------------------------------------------------------- list, fetch and verify


def _add_fetching(kinds: Any) -> None:
    listing = kinds.add_parser("list", help="the package's network and those that can be fetched")
    listing.set_defaults(run=_run_list)
    fetching = kinds.add_parser("fetch", help="download a network of the list")
    fetching.add_argument("name", metavar="NAME", help="see `depth_tools models list`")
    fetching.add_argument(
        "--accept-licence", action="store_true", help="of a network that forbids commercial use"
    )
    fetching.add_argument(
        "--size", default="", metavar="WxH", help="input, where the file leaves it open"
    )
    fetching.add_argument(
        "--output-name", default="", metavar="NAME", help="if the file has several outputs"
    )
    fetching.set_defaults(run=_run_fetch)
    verifying = kinds.add_parser("verify", help="compare fetched networks with their hashes")
    verifying.add_argument("names", nargs="*", metavar="NAME", help="(default: all that are here)")
    verifying.set_defaults(run=_run_verify)


def _run_list(options: argparse.Namespace) -> int:
    terminal = console()
    rows: list[tuple[str, ...]] = []
    for model in sorted((Path(__file__).resolve().parent.parent / "models").glob("*.onnx")):
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
                _what_is_here(entry),
            )
            for entry in entries
            if entry.meaning == meaning
        ]
        head = ("model", "parameters", "licence", "as", "here")
        print_table(terminal, f"To fetch: {meaning}", head, rows, set(), left=5)
    terminal.print(f"fetched networks lie in {registry.models_folder()}")
    return 0


def _what_is_here(entry: registry.RegistryEntry) -> str:
    folder = entry.folder
    found = sorted(path.name for path in folder.glob("*.onnx"))
    if not found and (folder / entry.main).is_file():
        found = ["weights"]
    return ", ".join(found) or "-"


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
    for name, kept in done.record.files.items():
        terminal.print(f"{name}: {kept.bytes / 1e6:.1f} MB, sha256 {kept.sha256} ({kept.basis})")
        if kept.basis == "first use":
            terminal.print(
                "  nobody published this hash, so this file is trusted as it came; from now on it"
                " is compared with what came today",
                style="yellow",
            )
    if done.manifest is None:
        terminal.print(f"weights: {done.path}; they run once they are exported to ONNX:")
        terminal.print(
            f"  {entry.export_command}"
            if entry.export
            else f"  with the package of {entry.maker}, to {entry.onnx}; then `depth_tools models"
            f" manifest {entry.onnx} --meaning {entry.meaning}`"
        )
        return 0
    spec = done.manifest.input
    terminal.print(
        f"ready: {done.path} takes {spec.width}x{spec.height} and gives {done.manifest.meaning};"
        f" use it by its name: --model {entry.name}"
    )
    return 0


def _confirm(terminal: Console, entry: registry.RegistryEntry) -> None:
    """UsageError unless the user agrees at the terminal."""
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
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(name: str, here: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, completed=here)
            bar.update(tasks[name], completed=here)

        yield tell


def _run_verify(options: argparse.Namespace) -> int:
    terminal = console()
    entries = [registry.find(name) for name in options.names] or list(registry.registry().values())
    verdicts = []
    for entry in entries:
        found = fetch.verify(entry)
        if not found and options.names:
            raise UsageError(
                f"{entry.name} is not on this machine: run `depth_tools models fetch {entry.name}`"
            )
        verdicts += found
    if not verdicts:
        terminal.print(f"no network of the list is in {registry.models_folder()}")
        return 0
    rows = [(v.name, v.file, v.basis, v.problem or "whole") for v in verdicts]
    print_table(
        terminal, "Fetched networks", ("model", "file", "compared with", "file is"), rows, set(), 4
    )
    bad = sorted({v.name for v in verdicts if v.problem})
    for name in bad:
        terminal.print(
            f"{name} is not what was fetched: delete {registry.models_folder() / name} and run"
            f" `depth_tools models fetch {name}`",
            style="red",
        )
    return 1 if bad else 0


# ------------------------------------------------------------------------ convert, check and build


def _add_converting(kinds: Any) -> None:
    model = "ONNX file, name of a fetched network, or embedded"
    converting = kinds.add_parser("convert", help="an FP16 copy, if it answers as FP32 does")
    converting.add_argument("model", metavar="MODEL", help=model)
    converting.add_argument("--precision", default="fp16", choices=["fp16"])
    converting.add_argument("--out", type=Path, metavar="FILE", help="(MODEL.fp16.onnx, beside it)")
    converting.add_argument(
        "--half-input", action="store_true", help="the image's tensor in FP16 too"
    )
    converting.add_argument(
        "--keep", default="", metavar="OP,OP", help="operators to keep in FP32 besides"
    )
    checking = kinds.add_parser("check", help="two networks, precisions or back ends compared")
    checking.add_argument("first", metavar="A", help=f"{model}; it is right")
    checking.add_argument("second", metavar="B", help="the one to be compared with it")
    checking.add_argument(
        "--backends", default="onnxruntime-cpu,auto", metavar="A,B", help="(onnxruntime-cpu,auto)"
    )
    checking.add_argument("--precisions", default="file,file", metavar="A,B", help="file or fp16")
    checking.add_argument("--json", type=Path, metavar="FILE", help="the figures of every image")
    building = kinds.add_parser("build", help="a TensorRT engine, ahead of the node's start")
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
            command.add_argument("--manifest", default="", metavar="FILE", help="if not beside it")
        if run is not _run_build:
            command.add_argument(
                "--images", type=Path, metavar="DIR", help="to compare on (rendered rooms)"
            )
            command.add_argument(
                "--count", type=int, default=compare.WANTED, metavar="N", help="of them (50)"
            )


def _run_convert(options: argparse.Namespace) -> int:
    terminal = console()
    onnx_graph.onnx_package()  # said before anything takes time
    _, facts = locate(options.model, options.manifest or None)
    images = compare.ComparisonImages.of(options.images, facts, options.count)
    asked = [word.strip() for word in options.keep.split(",") if word.strip()]
    with progress(terminal, "comparing with FP32", images.count + 1) as advance:
        done = convert.convert(
            options.model,
            images,
            manifest=options.manifest or None,
            out=options.out,
            half_input=options.half_input,
            keep=asked,
            on_step=advance,
        )
    half = done.half
    rows = []
    for reason, meaning in fp16.REASONS.items():
        ops = {op: n for (why, op), n in half.kept.items() if why == reason}
        if ops:
            named = ", ".join(f"{n} {op}" for op, n in sorted(ops.items(), key=lambda x: -x[1]))
            rows.append((reason, named, meaning))
    print_table(terminal, "Kept in FP32", ("reason", "operators", "what"), rows, set(), 3)
    total = sum(half.halved.values())
    terminal.print(
        f"FP16: {total} operators, FP32: {sum(half.kept.values())}, casts between: {half.casts};"
        f" weights that became 0: {half.flushed:.3%}"
    )
    _print_parity(terminal, f"FP16 against FP32, {images}", done.comparison, images)
    before, after = done.bytes
    terminal.print(
        f"written with its manifest: {done.path}, {after / 1e6:.1f} MB instead of"
        f" {before / 1e6:.1f} MB"
    )
    name = f"{options.model}.fp16" if options.model in registry.registry() else done.path
    terminal.print(f"run it: model.precision: fp16, or --model {name}")
    return 0


def _print_parity(
    terminal: Console, title: str, found: compare.ModelComparison, images: compare.ComparisonImages
) -> None:
    head = ("figure", "mean", "worst", "limit", "")
    print_table(terminal, title, head, found.rows(), set())
    if images.count < compare.WANTED:
        terminal.print(
            f"note: {images.count} images say less than the {compare.WANTED} that are meant",
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
            engine, how = _as_a_gpu(opened, stack)
            engines.append(engine)
            names.append(f"{engine.manifest.name} ({opened.manifest.model}, {how})")
        images = compare.ComparisonImages.of(options.images, engines[0].manifest, options.count)
        with progress(terminal, "comparing", images.count) as advance:
            found = compare.compare(engines[0], engines[1], images, advance)
    _print_parity(terminal, f"{names[1]} against {names[0]}, {images}", found, images)
    times = compare.median_ms(found.ms)
    terminal.print(f"median of a run: {times[0]:.1f} ms and {times[1]:.1f} ms")
    if options.json:
        write_json(
            options.json,
            {
                "a": names[0],
                "b": names[1],
                "images": str(images),
                "limits": vars(found.limits),
                "worst": vars(found.worst),
                "median_ms": times,
                "each": [vars(one) for one in found.found],
            },
        )
    for failure in found.failures:
        terminal.print(f"B is not near enough to A: {failure}", style="red")
    return 1 if found.failures else 0


def _as_a_gpu(engine: Engine, stack: ExitStack) -> tuple[Engine, str]:
    """FP16 on the CPU with every value rounded, as it is computed in FP32 there; else as it is."""
    if engine.backend != "onnxruntime-cpu" or importlib.util.find_spec("onnx") is None:
        return engine, engine.backend
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        rounding = convert.rounding_engine(Path(engine.details["model"]), engine.manifest, folder)
    except onnx_graph.ConvertError:  # a graph that branches runs all the same
        return engine, f"{engine.backend}, FP16 in it, if any, not rounded"
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
    with _steps_bar(terminal) as tell:
        details = build_engine(
            options.model,
            manifest=options.manifest or None,
            progress=tell,
            precision=options.precision,
            workspace_mb=options.workspace_mb,
            cache_dir=options.cache_dir,
        )
    rows = [(key, str(value)) for key, value in details.items()]
    print_table(terminal, "Engine", ("what", "value"), rows, set(), 2)
    return 0


@contextmanager
def _steps_bar(terminal: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bar(*columns, TimeElapsedColumn(), console=terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


# --------------------------------------------------------------------------------- your own network


def _add_manifest(kinds: Any) -> None:
    writing = kinds.add_parser("manifest", help="write the manifest of your ONNX file")
    writing.add_argument("model", type=Path, metavar="MODEL.onnx")
    writing.add_argument("--meaning", required=True, help=f"of the output: {', '.join(MEANINGS)}")
    writing.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: beside the model, found by itself)"
    )
    for name in ("name", "output-name", "licence", "source"):
        writing.add_argument(f"--{name}", default="")
    for name in ("height", "width", "patch-size"):
        writing.add_argument(f"--{name}", type=int, default=0, metavar="PX")
    choices = (("channel-order", "rgb, bgr"), ("resize", "stretch, letterbox, corner, crop"))
    for name, meaning in (*choices, ("interpolation", "as in InputSpec")):
        writing.add_argument(f"--{name}", metavar="WORD", help=meaning)
    writing.add_argument("--scale", type=float, help="pixel values times this, before mean and std")
    for name in ("mean", "std"):
        writing.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"))
    writing.set_defaults(run=_run_manifest)


def _run_manifest(options: argparse.Namespace) -> int:
    given = {
        key: getattr(options, key)
        for key in ("channel_order", "resize", "interpolation", "scale", "mean", "std")
        if getattr(options, key) is not None
    }
    for key in ("mean", "std"):
        if key in given:
            given[key] = tuple(given[key])
    try:
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
            **given,
        )
    except OSError as error:
        raise UsageError(
            f"the manifest cannot be written ({error}): name a place with --out"
        ) from None
    place = options.out or manifest_path(options.model)
    spec = manifest.input
    print(
        f"{place}: {manifest.name} takes {spec.channel_order} {spec.width}x{spec.height}"
        f" ({spec.resize}) and gives {manifest.meaning} in {manifest.output_name}"
    )
    if options.out:
        print(f"use it with --model {options.model} --manifest {place}")
    return 0
