# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: written completely or not at all, read without running code in them.

    RUN/checkpoints/step_0000500/   about.json            format, recipe, step, settings
                                    averaged.safetensors  the whole network, averaged: for users
                                    model.safetensors     learnt weights and buffers, to resume from
                                    extra.safetensors     learnt beside the network (optional)
                                    state.pt              optimiser and counters
    RUN/last, RUN/best              links to two of these folders; on a file system without links
                                    (exFAT), files that contain the folders' paths

A folder is written under a temporary name, flushed to the disk and renamed, then the link is
replaced: a crash or a full disk in between leaves the previous checkpoint intact.
"""

from __future__ import annotations

import errno
import json
import math
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
LONGEST_NAME = 200  # bytes; a larger file is not one that replaces a link
# The entries of state.pt and their types.
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
    """A run that cannot start or continue; the message says why and what to do."""


def write(
    run: Path,
    step: int,
    about: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    links: Iterable[str] = (LAST,),
) -> Path:
    """Write one checkpoint of a run folder and point the links (`last`, `best`) to it.

    about: entries of about.json beside format and step. tensors: file stem -> state dict. state:
    the content of state.pt. A folder of this step that exists already is kept as it is. Raises
    TrainingError if the disk is full or not writable; earlier checkpoints then remain intact.
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
    """Make RUN/name a link to a folder, or a file with its path if the disk has no links.

    target: relative to the run folder.
    """
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
    # A copy of a run that followed the links has a folder in the link's place.
    if (run / name).is_dir() and not (run / name).is_symlink():
        shutil.rmtree(run / name)
    os.replace(fresh, run / name)


def restore_links(run: Path) -> None:
    """Link `last` and `best` again in a run folder that has checkpoints but no `last`.

    A copy may drop the links, and a crash may come before the first one is made; without them the
    run would start again and `tidy` would delete its checkpoints. `last` becomes the newest
    checkpoint. A checkpoint stores the lowest score up to its step, so `best` becomes the first one
    with the score of the newest. Raises TrainingError for a damaged checkpoint and a folder that
    cannot be written.
    """
    if os.path.lexists(run / LAST):
        return
    folders = {
        int(number): folder
        for folder in (run / "checkpoints").glob("step_*")
        if (number := folder.name.removeprefix("step_")).isdigit()
        and (folder / "about.json").is_file()
    }
    if not folders:
        return
    lowest = {step: read_state(folder)["best"] for step, folder in folders.items()}
    newest = max(folders)
    targets = {BEST: min(step for step in folders if lowest[step] == lowest[newest])}
    if os.path.lexists(run / BEST) or not math.isfinite(lowest[newest]):
        targets = {}
    try:
        for name, step in {**targets, LAST: newest}.items():
            _point(run, name, folders[step].relative_to(run))
        _flush(run)
    except OSError as error:
        raise TrainingError(
            f"The links of {run} are missing and could not be made again ({error}): make that"
            " folder writable and give the same command again."
        ) from error


def pointed(path: Path) -> Path:
    """Return the folder that RUN/last or RUN/best names if it is a file instead of a link.

    Any other path, a link too, is returned unchanged.
    """
    if path.is_file() and path.name in (LAST, BEST) and path.stat().st_size < LONGEST_NAME:
        try:
            target = path.parent / path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return path
        if target.parent.resolve() == (path.parent / "checkpoints").resolve():
            return target
    return path


def is_run(path: Path) -> bool:
    """Return whether a path is a run of this loop or a checkpoint in one."""
    path = path.expanduser()
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
        # clone() gives every tensor its own memory: safetensors refuses tensors that share it.
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in content.items()}
        save_file(plain, str(folder / f"{name}.safetensors"))
    with (folder / "state.pt").open("wb") as file:
        torch.save(dict(state), file)
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk.

    If a file is renamed before its content is on the disk, a power failure leaves it empty.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush folders; the files in them are flushed already.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def tidy(run: Path, keep_every: int = 0) -> None:
    """Remove checkpoints that neither `last` nor `best` names.

    Those of steps divisible by keep_every stay too (0: none).
    """
    named = {pointed(run / name).resolve() for name in (LAST, BEST)}
    for folder in (run / "checkpoints").glob("step_*"):
        number = folder.name.removeprefix("step_")
        milestone = number.isdigit() and keep_every > 0 and int(number) % keep_every == 0
        if folder.resolve() not in named and not milestone:
            shutil.rmtree(folder, ignore_errors=True)


def find(path: Path) -> Path:
    """Return the checkpoint folder of a checkpoint, a link to one, or a run folder (its last one).

    Raises TrainingError if there is none.
    """
    path = path.expanduser()
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
    """Return `recipe`, `step`, `settings` (nested) and `averaged` (the whole network).

    path: a checkpoint, a link to one, or a run folder (its last one). No pickled code is run.
    Renamed settings have their new names. Raises TrainingError if there is no checkpoint, or if it
    is damaged or of another format.
    """
    content = about(path)
    return {**content, "averaged": weights(find(Path(path)) / "averaged.safetensors")}


def about(path: Path) -> dict[str, Any]:
    """Return `recipe`, `step` and `settings` of a checkpoint without its weights.

    Raises TrainingError as `read` does.
    """
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
    """Return optimiser and counters of a checkpoint folder: tensors and plain values only.

    Raises TrainingError for a damaged file.
    """
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise _unreadable(folder, error) from error
    wrong = [name for name, kind in STATE.items() if not isinstance(_get(state, name), kind)]
    if wrong or not all(isinstance(value, Tensor) for value in state["window"].values()):
        raise _unreadable(folder, ValueError(f"state.pt has no {(wrong or ['window'])[0]!r}"))
    return dict(state)


def _get(state: object, name: str) -> object:
    return state.get(name) if isinstance(state, Mapping) else None


def weights(path: Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pt or .pth file, by name.

    A .pt file that holds more than tensors could run any code when it is opened: it is refused
    unless trust_pickle. Raises TrainingError for it, and for a file that is missing, damaged or
    holds anything else.
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
        for key in ("state_dict", "model"):  # other projects nest the state dict in these
            content = content[key] if isinstance(content.get(key), Mapping) else content
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise TrainingError(f"{path} holds no table of tensors: give the network's state dict.")
    return {str(name): value for name, value in content.items()}


def starting_weights(path: str | Path, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Read initial weights for a new run: the averaged ones of a run, or a file of weights.

    Raises TrainingError as `read` and `weights` do.
    """
    path = Path(path).expanduser()
    if path.is_dir() or is_run(path):
        averaged: dict[str, Tensor] = read(path)["averaged"]
        return averaged
    return weights(path, trust_pickle)


def load(module: nn.Module, content: Mapping[str, Tensor], where: object) -> None:
    """Load weights into a network of the same architecture.

    where: the source of the weights, for the message. Raises TrainingError for weights of another
    architecture.
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
