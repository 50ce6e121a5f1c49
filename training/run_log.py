# SPDX-License-Identifier: Apache-2.0
"""The log of a run: log.jsonl, TensorBoard, images, and a progress bar."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PACKAGES = ("torch", "numpy", "accelerate", "transformers", "peft", "diffusers", "safetensors")


def environment() -> dict[str, Any]:
    """Return git revision, command, machine and package versions, to repeat a run with."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git": _git("rev-parse", "HEAD") or "unknown",
        "changed_files": (_git("status", "--porcelain", "--untracked-files=no") or "").splitlines(),
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "packages": versions,
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


class RunLog:
    """The log of one run; it continues after step `first`, and rows of later steps are removed.

    shown: name in the log -> label on the console ("": not shown). Terms that are neither in
    `shown` nor in `hidden` follow the loss in brackets. quiet: write nothing, for processes other
    than the main one.
    """

    def __init__(
        self,
        folder: Path,
        first: int,
        steps: int,
        console: Console,
        tensorboard: bool = True,
        quiet: bool = False,
        shown: Mapping[str, str] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.hidden = hidden
        # The loss and the score are always shown.
        self.shown = {"loss": "loss", **(shown or {})}
        self.shown.setdefault("score", "score (lower is better)")
        self.console = console
        self.steps = steps
        self.quiet = quiet
        self._board: Any = None
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(
            *columns, console=console, disable=quiet or not console.is_terminal, transient=False
        )
        self._task = self._bar.add_task("", total=steps, completed=first, note="")
        if quiet:
            return
        path = folder / "log.jsonl"
        earlier = [line for line in _lines(path) if _step(line) <= first]
        _replace(path, "".join(line + "\n" for line in earlier))
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first + 1)

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if not self.quiet:
            self._file.close()
        if self._board is not None:
            self._board.close()

    def row(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of numbers to log.jsonl, TensorBoard and the console."""
        if self.quiet:
            return
        shown = {name: float(f"{value:.6g}") for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **shown}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        texts = {
            name: f"{label} {shown[name]:.4g}"
            for name, label in self.shown.items()
            if name in shown and label
        }
        terms = [
            f"{name.removesuffix('_term')} {value:.3g}"
            for name, value in shown.items()
            if name not in self.shown and name not in self.hidden
        ]
        if "loss" in texts and terms:
            texts["loss"] += f" ({', '.join(terms)})"
        note = "  ".join(texts.values())
        if "images_per_s" in shown:
            note += f"  {shown['images_per_s']:.3g} images/s"
        self._bar.update(self._task, note=note)
        if not self.console.is_terminal:
            self.console.print(f"step {step}/{self.steps}  {note}")

    def images(self, step: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write images (H, W, 3) uint8 RGB by name to images/ and to TensorBoard.

        Raises OSError if one cannot be written.
        """
        if self.quiet:
            return
        (self.folder / "images").mkdir(exist_ok=True)
        for name, image in images.items():
            path = self.folder / "images" / f"{step:07d}_{name}.png"
            if not cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
                raise OSError(f"cannot write {path}")
            if self._board is not None:
                self._board.add_image(name, image, step, dataformats="HWC")

    def at(self, step: int) -> None:
        """Move the progress bar to a step."""
        self._bar.update(self._task, completed=step)


def _replace(path: Path, text: str) -> None:
    """Write a text file without losing the old one if the disk is full or the process ends."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _step(line: str) -> float:
    """Return the step of a log line; infinity for a line that a crash left incomplete."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
