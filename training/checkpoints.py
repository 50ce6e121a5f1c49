# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: written whole or not at all, read without running code that they carry.

    RUN/checkpoints/step_0000500/   about.json            format, recipe, step, settings
                                    averaged.safetensors  the whole network, averaged: for users
                                    model.safetensors     what is learnt, and buffers: to go on from
                                    extra.safetensors     learnt beside the network (optional)
                                    state.pt              optimiser and counters
    RUN/last, RUN/best              links to two of these folders; where the disk has no links (an
                                    exFAT stick), files that hold their names

A folder is written under another name, flushed to the disk and renamed, then the link is replaced:
a crash or a full disk in between leaves the old checkpoint where it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from depth_node.sentences import one_line
from training.renamed_settings import upgraded

FORMAT = 2
PARTIAL = ".partial"
LAST, BEST = "last", "best"
LONGEST_NAME = 200  # bytes of a file that stands for a link
# What state.pt holds.
STATE: dict[str, type | tuple[type, ...]] = {
    "optimiser": dict,
    "scaler": dict,
    "window": dict,
    "window_steps": (int, dict),
    "since": Tensor,
    "since_steps": int,
    "best": (int, float),
}


class TrainingError(RuntimeError):
    """A run that cannot start or go on; the message says why and what to do."""


def write(
    run: Path,
    step: int,
    about: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    links: Iterable[str] = (LAST,),
) -> Path:
    """Write one checkpoint of a run folder and point the links (`last`, `best`) to it.

    tensors: file stem -> state dict. Raises TrainingError where the disk is full or not writable;
    earlier checkpoints then remain intact.
    """
    folder = run / "checkpoints" / f"step_{step:07d}"
    partial = folder.with_name(folder.name + PARTIAL)
    try:
        if not folder.exists():
            _write_folder(partial, {"format": FORMAT, "step": step, **about}, tensors, state)
            os.replace(partial, folder)
            _flush(folder.parent)
        for name in links:
            _point(run, name, folder.relative_to(run))
        _flush(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"The checkpoint of step {step} could not be written ({error}); those before it are"
            f" intact in {run}: make room on that disk and give the same command again."
        ) from error
    return folder


def _point(run: Path, name: str, target: Path) -> None:
    """Let RUN/name be a link to a folder, or a file with its name where the disk has no links."""
    fresh = run / (name + PARTIAL)
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(target, target_is_directory=True)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        fresh.unlink(missing_ok=True)
        fresh.write_text(f"{target.as_posix()}\n", encoding="utf-8")
        _flush(fresh)
    if (run / name).is_dir() and not (run / name).is_symlink():  # a copy that followed the links
        shutil.rmtree(run / name)
    os.replace(fresh, run / name)


def pointed(path: Path) -> Path:
    """The folder that RUN/last or RUN/best stands for, be it a link or a file with a name."""
    if path.is_file() and path.name in (LAST, BEST) and path.stat().st_size < LONGEST_NAME:
        try:
            target = path.parent / path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return path
        if target.parent.resolve() == (path.parent / "checkpoints").resolve():
            return target
    return path


def is_run(path: Path) -> bool:
    """Whether a folder is a run of ours or a checkpoint in one."""
    return any((pointed(p) / "about.json").is_file() for p in (path, path / LAST))


def _write_folder(
    folder: Path,
    about: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in tensors.items():
        # Own memory for every tensor: safetensors refuses weights that share it.
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in content.items()}
        save_file(plain, str(folder / f"{name}.safetensors"))
    with (folder / "state.pt").open("wb") as file:
        torch.save(dict(state), file)
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Flush to the disk: a file renamed before its content is written is lost with the power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems have no flushing of folders; their content is flushed already.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def tidy(run: Path, keep_every: int = 0) -> None:
    """Remove checkpoints that no link names, except every keep_every-th step (0: none)."""
    named = {pointed(run / name).resolve() for name in (LAST, BEST)}
    for folder in (run / "checkpoints").glob("step_*"):
        number = folder.name.removeprefix("step_")
        milestone = number.isdigit() and keep_every > 0 and int(number) % keep_every == 0
        if folder.resolve() not in named and not milestone:
            shutil.rmtree(folder, ignore_errors=True)


def find(path: Path) -> Path:
    """The checkpoint folder of a checkpoint, a link to one, or a run folder.

    Raises TrainingError where there is none.
    """
    for folder in (pointed(path), pointed(path / LAST)):
        if (folder / "about.json").is_file():
            return folder.resolve()
    if path.is_file():
        raise TrainingError(
            f"{path} is no checkpoint of this loop but a file: give the folder that"
            " `python -m training` wrote (RUN, RUN/last or RUN/best)."
        )
    raise TrainingError(f"There is no checkpoint in {path}; check the path or start a new run.")


def read(path: Path) -> dict[str, Any]:
    """`recipe`, `step`, `settings` (nested) and `averaged` (the whole network) of a checkpoint.

    path: a checkpoint, a link to one, or a run folder (its last one). No pickled code is run.
    Renamed settings stand under their new names. Raises TrainingError.
    """
    content = about(path)
    return {**content, "averaged": weights(find(Path(path)) / "averaged.safetensors")}


def about(path: Path) -> dict[str, Any]:
    """`recipe`, `step` and `settings` of a checkpoint without its weights. Raises TrainingError."""
    folder = find(Path(path))
    try:
        content = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, error) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise TrainingError(
            f"{folder} is no checkpoint of this version of the loop (format {FORMAT}); use the"
            " revision that wrote it, named in environment.json beside it."
        )
    if (
        not isinstance(content.get("settings", {}), dict)
        or not isinstance(content.get("recipe"), str)
        or type(content.get("step")) is not int
    ):
        raise _unreadable(folder, ValueError("about.json lacks recipe, step or settings"))
    return {**content, "settings": upgraded(content.get("settings", {}))}


def read_state(folder: Path) -> dict[str, Any]:
    """Optimiser and counters of a checkpoint folder: tensors and plain values only.

    Raises TrainingError for a damaged file.
    """
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise _unreadable(folder, error) from error
    wrong = [name for name, kind in STATE.items() if not isinstance(_get(state, name), kind)]
    if wrong or not all(isinstance(value, Tensor) for value in state["window"].values()):
        raise _unreadable(folder, ValueError(f"state.pt has no {(wrong or ['window'])[0]!r}"))
    return dict(state)


def _get(state: object, name: str) -> object:
    return state.get(name) if isinstance(state, Mapping) else None


def weights(path: Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors file, or of a .pt/.pth file.

    A .pt file that holds more than tensors could run any code when it is opened: it is refused
    unless trust_pickle. Raises TrainingError.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"There are no weights {path}; check the path.")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(str(path)))
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:
        if not trust_pickle and "weights_only" in str(error).lower():
            raise TrainingError(
                f"{path} is a pickle that holds more than tensors, and opening it could run any"
                " code: convert it to .safetensors, or set trust_pickle if you know who made it."
            ) from error
        raise _unreadable(path, error) from error
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):  # how others wrap theirs
            content = content[key] if isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise TrainingError(f"{path} holds no table of tensors: give the network's state dict.")
    return {str(name): value for name, value in content.items()}


def starting_weights(path: str | Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Initial weights of a new run: the averaged weights of a run of ours, or a file of weights.

    Raises TrainingError.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        averaged: dict[str, Tensor] = read(path)["averaged"]
        return averaged
    return weights(path, trust_pickle)


def load(module: nn.Module, content: Mapping[str, Tensor], where: object) -> None:
    """Load weights into a network of the same architecture.

    where: named in the message. Raises TrainingError for another architecture.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in content]
    unknown = [name for name in content if name not in own]
    shapes = [
        f"{name!r} is {tuple(content[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own
        if name in content and content[name].shape != own[name].shape
    ]
    if missing or unknown or shapes:
        mismatches = shapes[:1]
        if unknown:
            mismatches.insert(0, f"{len(unknown)} are not known here, first {unknown[0]!r}")
        if missing:
            mismatches.insert(0, f"{len(missing)} tensors are missing, first {missing[0]!r}")
        raise TrainingError(
            f"The weights in {where} are of another network ({'; '.join(mismatches)}): use the"
            " settings of the run that wrote them."
        )
    module.load_state_dict(dict(content))


def _unreadable(path: Path, error: Exception) -> TrainingError:
    return TrainingError(
        f"The checkpoint {path} cannot be read ({one_line(error, 300)}); use an older one."
    )
