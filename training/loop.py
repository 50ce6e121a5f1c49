# SPDX-License-Identifier: Apache-2.0
"""The only training loop: optimiser, schedule, averaged weights, checkpoints, resume, log.

A recipe (recipe.py) supplies the model, the batch of a step and the loss; only this loop calls
backward() and step(). The images of step k depend on the seed and k alone, however they are divided
among processes and accumulated parts; the random numbers drawn in a part depend on the seed, k and
the number of the part. So a resumed run continues as if it had never stopped. accelerate supplies
devices, processes, precision and gradient scaling.
"""

from __future__ import annotations

import atexit
import copy
import errno
import json
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, send_to_device
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from depth_node import config
from depth_node.cli.console import console as terminal
from training import checkpoints
from training.checkpoints import BEST, LAST, TrainingError, read
from training.recipe import Batch, BatchPart, LoopConfig, Recipe
from training.run_log import RunLog, environment

__all__ = ["TrainingError", "main_first", "read", "run"]

# Settings that may differ between a checkpoint and the run that resumes from it. A recipe adds its
# own (Recipe.free_to_change).
FREE_TO_CHANGE = (
    "loop.steps",
    "loop.find_unused",
    "loop.log_every",
    "loop.checkpoint_every",
    "loop.keep_every",
    "loop.images_every",
    "loop.tensorboard",
    "loop.threads",
    "loop.workers",
)

GRADIENT_NORM = "gradient_norm"
# Names that the loop itself writes into a row of the log, beside the terms of the recipe.
OWN_ROWS = {"step", GRADIENT_NORM, "rate", "memory_mb", "gpu_memory_mb", "images_per_s"}


def main_first() -> AbstractContextManager[None]:
    """Let the main process of a machine run the block first while its others wait.

    For work that writes files which all processes of the machine then read.
    """
    return PartialState(cpu=_on_cpu()).local_main_process_first()


def _on_cpu() -> bool:
    """Return whether to train on CPUs; accelerate joins processes on CPUs only with cpu=True."""
    return not torch.accelerator.is_available()


def learning_rate(cfg: LoopConfig, step: int) -> float:
    """Return the rate of a step: linear warm-up, then cfg.schedule from the peak rate.

    cosine, poly and exponential end at final_rate times the peak; constant stays at the peak.
    """
    if step < cfg.warmup:
        return cfg.learning_rate * (step + 1) / cfg.warmup
    done = min((step - cfg.warmup) / max(cfg.steps - cfg.warmup, 1), 1.0)
    if cfg.schedule == "constant":
        return cfg.learning_rate
    if cfg.schedule == "exponential":
        return cfg.learning_rate * cfg.final_rate**done
    left = (
        (1 - done) ** cfg.power if cfg.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))
    )
    return cfg.learning_rate * (cfg.final_rate + (1 - cfg.final_rate) * left)


class _Loss(nn.Module):
    """The loss as one forward call.

    DistributedDataParallel wraps this module instead of the model, so that a recipe gets its own
    model, unwrapped, and may call it any number of times in a step.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, extra: nn.Module | None, averaged: nn.Module | None
    ) -> None:
        super().__init__()
        self.model = model
        self.extra = extra
        self._hidden = (recipe, averaged)  # in a tuple, so that they do not become submodules

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, averaged = self._hidden
        return recipe.loss(self.model, batch, averaged)


class _Average:
    """The exponential moving average of the model's weights, updated in place.

    Tensors that the copy shares with the model (its frozen parameters) are left out.
    """

    def __init__(self, model: nn.Module, averaged: nn.Module) -> None:
        current = model.state_dict()
        pairs = [
            (slow, current[name])
            for name, slow in averaged.state_dict().items()
            if slow.data_ptr() != current[name].data_ptr()
        ]
        self._float = [(slow, now) for slow, now in pairs if slow.is_floating_point()]
        self._other = [(slow, now) for slow, now in pairs if not slow.is_floating_point()]

    @torch.no_grad()
    def update(self, keep: float) -> None:
        """Set slow <- keep slow + (1 - keep) current; integer tensors (counters) are copied."""
        if self._float:
            slow, now = zip(*self._float, strict=True)
            get_ema_multi_avg_fn(keep)(list(slow), list(now), None)
        for slow_count, count in self._other:
            slow_count.copy_(count)


@dataclass
class State:
    """Everything that a run carries over from one step to the next."""

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module
    averaged: nn.Module | None
    extra: nn.Module | None
    loss: nn.Module  # _Loss; with several processes wrapped in DistributedDataParallel
    optimiser: Any  # AcceleratedOptimizer, which skips a step whose float16 gradient overflowed
    average: _Average | None
    step: int = 0
    # The sum of each term since the last log line and how many values it holds (a term may be
    # absent from a step); the sum of the loss since the last checkpoint and its number of steps.
    window: dict[str, Tensor] = field(default_factory=dict)
    window_counts: dict[str, int] = field(default_factory=dict)
    since: Tensor = field(default_factory=lambda: torch.zeros(()))
    since_steps: int = 0
    best: float = math.inf

    @property
    def product(self) -> nn.Module:
        """The network that is exported: the averaged one, or the model if loop.ema is 0."""
        return self.model if self.averaged is None else self.averaged


def start(recipe: Recipe, cfg: LoopConfig) -> State:
    """Create model, averaged copy and optimiser from the seed, on this process's device.

    Raises TrainingError without a seed, for a model in which nothing requires a gradient, for a
    batch that cannot be divided evenly, for fp16 on a CPU and for processes that were launched but
    not joined.
    """
    if cfg.seed < 0:
        raise TrainingError(
            "The run has no seed: set loop.seed to 0 or more, so that it can be repeated."
        )
    accelerator = _accelerator(cfg)
    torch.manual_seed(cfg.seed)
    model = recipe.model()
    extra = recipe.extra()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = _averaged_copy(model) if cfg.ema > 0 else None
    loss = _Loss(recipe, model, extra, averaged).to(accelerator.device)
    groups = _groups(loss, recipe, cfg)
    if not groups:
        raise TrainingError("Nothing in the model requires a gradient: the recipe froze it all.")
    optimiser = torch.optim.AdamW(groups, lr=cfg.learning_rate)
    return State(
        recipe,
        accelerator,
        model,
        averaged,
        extra,
        accelerator.prepare_model(loss),
        accelerator.prepare_optimizer(optimiser),
        None if averaged is None else _Average(model, averaged),
        since=torch.zeros((), device=accelerator.device),
    )


def _accelerator(cfg: LoopConfig) -> Accelerator:
    precision = "no" if cfg.precision == "fp32" else cfg.precision
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != precision:
        # accelerate keeps one precision per process; an earlier run in it used another one.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=_on_cpu(),
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=cfg.find_unused)],
    )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise TrainingError("loop.precision fp16 needs a GPU: use bf16 or fp32 on a CPU.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise TrainingError(
            f"{launched} processes were launched, but each would train alone: give each its own"
            " GPU, or start them on CPUs with torchrun and no GPU in sight."
        )
    if accelerator.num_processes > 1:
        # Otherwise a thread of gloo may outlive the interpreter and abort the process.
        atexit.register(accelerator.state.destroy_process_group)
    parts = accelerator.num_processes * cfg.accumulate
    if cfg.batch % parts:
        raise TrainingError(
            f"loop.batch {cfg.batch} cannot be shared out evenly among"
            f" {accelerator.num_processes} processes x {cfg.accumulate} accumulated parts: make it"
            f" a multiple of {parts}."
        )
    return accelerator


def _averaged_copy(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode that shares the model's frozen parameters.

    Only parameters that are learnt (and buffers) then take memory twice.
    """
    frozen: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen).eval().requires_grad_(False)


def _groups(loss: nn.Module, recipe: Recipe, cfg: LoopConfig) -> list[dict[str, Any]]:
    """Return the optimiser's groups: parameters of the same rate factor and weight decay.

    Vectors and scalars (biases, normalisation weights) have no weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in loss.named_parameters():
        if parameter.requires_grad:
            factor = recipe.rate(name.partition(".")[2])  # removes the prefix "model." or "extra."
            decay = cfg.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "factor": factor}
        for (factor, decay), parameters in groups.items()
    ]


def advance(state: State, cfg: LoopConfig, parts: list[Batch]) -> None:
    """Make one optimiser step over this process's parts and add its scalars to the windows.

    Raises FloatingPointError if the gradient is not finite; the weights are then as they were
    before the step. Under float16 an overflow of the gradient alone skips the step instead, unless
    the gradient scale has already fallen below 1.
    """
    accelerator, optimiser = state.accelerator, state.optimiser
    rate = learning_rate(cfg, state.step)
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]
    state.loss.train()
    optimiser.zero_grad()
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for k, batch in enumerate(parts):
        # Random numbers drawn in a part (dropout, masks) must not depend on earlier steps, or a
        # resumed run would draw others.
        number = accelerator.process_index * len(parts) + k
        torch.manual_seed(
            int(np.random.default_rng([cfg.seed, state.step, number]).integers(2**62))
        )
        with nullcontext() if k + 1 == len(parts) else accelerator.no_sync(state.loss):
            scalars = state.loss(batch)
            accelerator.backward(scalars["loss"] / len(parts))
        if OWN_ROWS & scalars.keys():
            raise ValueError(f"A recipe's term may not be called {OWN_ROWS & scalars.keys()}.")
        for name, value in scalars.items():
            contribution = value.detach().float()
            sums[name] = sums[name] + contribution if name in sums else contribution
            counts[name] = counts.get(name, 0) + 1
    limit = cfg.clip if cfg.clip > 0 else math.inf
    norm = accelerator.clip_grad_norm_(state.loss.parameters(), limit)
    if not torch.isfinite(norm):
        scaler = accelerator.scaler
        # Under float16 an occasional overflow is normal: the scaler skips that step.
        if scaler is None or not torch.isfinite(sums["loss"]) or scaler.get_scale() < 1:
            optimiser.zero_grad()
            raise FloatingPointError
        norm = torch.zeros_like(norm)
    optimiser.step()
    state.step += 1
    if state.average is not None:
        # The average forgets faster in the first steps; otherwise it would keep the random initial
        # weights for a thousand steps.
        early = (1 + state.step) / (10 + state.step) if cfg.ema_warmup else 1.0
        state.average.update(min(cfg.ema, early))
    for name, value in {**sums, GRADIENT_NORM: norm.detach()}.items():
        state.window[name] = state.window[name] + value if name in state.window else value
        state.window_counts[name] = state.window_counts.get(name, 0) + counts.get(name, 1)
    state.since = state.since + sums["loss"] / len(parts)
    state.since_steps += 1


def save(
    state: State, cfg: LoopConfig, settings: dict[str, Any], run: Path, score: float | None = None
) -> Path:
    """Write a checkpoint, link `last` to it, and `best` too if its score is the lowest so far."""
    links = [LAST]
    if score is not None and score < state.best:
        state.best = score
        links.insert(0, BEST)  # a run that ends between the links repeats the step and links both
    frozen = {name for name, p in state.model.named_parameters() if not p.requires_grad}
    model = {name: t for name, t in state.model.state_dict().items() if name not in frozen}
    tensors = {"averaged": state.product.state_dict(), "model": model}
    if state.extra is not None:
        tensors["extra"] = state.extra.state_dict()
    scaler = state.accelerator.scaler
    rest = {
        "optimiser": state.optimiser.state_dict(),
        "scaler": {} if scaler is None else scaler.state_dict(),
        "window": state.window,
        "window_steps": state.window_counts,
        "since": state.since,
        "since_steps": state.since_steps,
        "best": state.best,
    }
    about = {"recipe": state.recipe.name, "settings": settings}
    folder = checkpoints.write(run, state.step, about, tensors, rest, links)
    checkpoints.tidy(run, cfg.keep_every)
    return folder


def restore(state: State, path: Path, settings: dict[str, Any]) -> None:
    """Restore a fresh state from a checkpoint.

    Raises TrainingError if the recipe, the network or a setting that shapes the result differs, and
    for a checkpoint that cannot be read.
    """
    content = read(path)
    before, now = _flat(content["settings"]), _flat(settings)
    # A setting that the revision of the checkpoint did not have yet counts as its default.
    cfg = getattr(state.recipe, "cfg", None)
    if cfg is not None:
        before = {**_flat(config.to_dict(type(cfg)())), **before}
    free = (*FREE_TO_CHANGE, *state.recipe.free_to_change)
    changed = sorted(
        name
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name) and name not in free
    )
    if content["recipe"] != state.recipe.name:
        raise TrainingError(
            f"The run in {path} was started with the recipe {content['recipe']}, not"
            f" {state.recipe.name}; use another run folder."
        )
    if changed:
        differences = ", ".join(
            f"{name} (was {before.get(name)!r}, is {now.get(name)!r})" for name in changed
        )
        raise TrainingError(
            f"The run in {path} was started with other settings: {differences}; use another run"
            " folder."
        )
    folder = checkpoints.find(path)
    averaged = content["averaged"]
    if state.averaged is not None:
        checkpoints.load(state.averaged, averaged, folder)
    learnt = checkpoints.weights(folder / "model.safetensors")
    checkpoints.load(state.model, {**averaged, **learnt}, folder)
    if state.extra is not None:
        checkpoints.load(state.extra, checkpoints.weights(folder / "extra.safetensors"), folder)
    rest = checkpoints.read_state(folder)
    try:
        state.optimiser.load_state_dict(rest["optimiser"])
        if state.accelerator.scaler is not None:
            state.accelerator.scaler.load_state_dict(rest["scaler"])
    except Exception as error:  # torch raises half a dozen types for a state that does not fit
        raise TrainingError(
            f"The checkpoint {folder} cannot be gone on from: its optimiser's state does not fit"
            f" ({type(error).__name__}: {error}); use an older one."
        ) from error
    device = state.accelerator.device
    state.window = {name: value.to(device) for name, value in rest["window"].items()}
    state.since = rest["since"].to(device)
    steps = rest["window_steps"]  # earlier revisions stored one number for all terms
    state.window_counts = dict.fromkeys(state.window, steps) if isinstance(steps, int) else steps
    state.since_steps = rest["since_steps"]
    state.step, state.best = content["step"], rest["best"]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out.update(
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return out


class _Parts(Dataset[Any]):
    """The parts of one process in order, from step `first` on, for DataLoader and its workers."""

    def __init__(self, recipe: Recipe, cfg: LoopConfig, first: int, process: BatchPart) -> None:
        self._recipe, self._cfg, self._first, self._process = recipe, cfg, first, process

    def __len__(self) -> int:
        return max(self._cfg.steps - self._first, 0) * self._cfg.accumulate

    def __getitem__(self, index: int) -> Batch | Exception:
        step, part = divmod(index, self._cfg.accumulate)
        rank, processes = self._process
        each = self._cfg.accumulate
        try:
            return self._recipe.batch(self._first + step, (rank * each + part, processes * each))
        except (RuntimeError, ValueError) as error:
            if get_worker_info() is not None and type(error).__module__.startswith(
                ("training.", "depth_node.")
            ):
                # Raised in a worker, our one sentence would be buried under DataLoader's traceback.
                return error
            raise


def _alone(worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork, and a worker has one core
    # Ctrl-C reaches the whole process group, but only the training process decides when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def batches(state: State, cfg: LoopConfig) -> Iterator[list[Batch]]:
    """Yield this process's parts of every step from state.step on, on its device."""
    accelerator = state.accelerator
    process = (accelerator.process_index, accelerator.num_processes)
    loader = DataLoader(
        _Parts(state.recipe, cfg, state.step, process),
        batch_size=None,
        num_workers=cfg.workers,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_alone,
    )
    parts: list[Batch] = []
    for part in loader:
        if isinstance(part, Exception):
            raise part
        parts.append(send_to_device(part, accelerator.device, non_blocking=True))
        if len(parts) == cfg.accumulate:
            yield parts
            parts = []


class _Interrupt:
    """Makes the first Ctrl-C or SIGTERM end a run between two steps; the second ends it at once.

    A run that stopped in the middle of a step would leave weights, averages and optimiser of
    different steps.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def agreed(self, accelerator: Accelerator) -> bool:
        """Return whether any process was interrupted, so that all stop at the same step."""
        if accelerator.num_processes == 1:
            return self.requested
        own = torch.tensor(float(self.requested), device=accelerator.device)
        self.requested = bool(accelerator.reduce(own, "sum") > 0)
        return self.requested

    def _note(self, number: int, frame: object) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()


def run(
    recipe: Recipe,
    cfg: LoopConfig,
    folder: Path,
    settings: dict[str, Any],
    stop: Callable[[int], bool] = lambda step: False,
    console: Console | None = None,
) -> State:
    """Train to cfg.steps in a run folder, resuming from its last checkpoint if there is one.

    settings: the resolved configuration, stored in the checkpoints. stop(step): True ends the run
    early, with a checkpoint. Ctrl-C or SIGTERM end it too, with a checkpoint, and raise
    TrainingError with the step. Also raises TrainingError for a full or read-only disk, settings of
    another run and a loss or gradient that is not finite.
    """
    torch.set_num_threads(cfg.threads)
    state = start(recipe, cfg)
    with main_first():
        checkpoints.restore_links(folder)
    if os.path.lexists(folder / LAST):
        restore(state, folder / LAST, settings)
    try:
        return _run(state, cfg, folder, settings, stop, console or terminal())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise
        raise TrainingError(
            f"The run folder {folder} cannot be written ({error}): make room there and give the"
            " same command again; it goes on from the last checkpoint."
        ) from error


def _run(
    state: State,
    cfg: LoopConfig,
    folder: Path,
    settings: dict[str, Any],
    stop: Callable[[int], bool],
    console: Console,
) -> State:
    accelerator = state.accelerator
    quiet = not accelerator.is_main_process
    if not quiet:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoints.tidy(folder, cfg.keep_every)
        _describe(folder, settings, accelerator.num_processes)
        if state.step >= cfg.steps:
            console.print(
                f"{folder} has all its {cfg.steps} steps: nothing is left to train. Raise"
                " loop.steps, or give another --run.",
            )
    log = RunLog(
        folder,
        state.step,
        cfg.steps,
        console,
        cfg.tensorboard,
        quiet,
        state.recipe.shown(),
        OWN_ROWS,
    )
    with log, _Interrupt() as interrupt:
        saved = logged = state.step
        clock = time.monotonic()
        for parts in batches(state, cfg):
            if stop(state.step) or interrupt.agreed(accelerator):
                break
            try:
                advance(state, cfg, parts)
            except FloatingPointError:
                raise _not_finite(state, parts, folder) from None
            if state.step % cfg.log_every == 0:
                row = _row(state, cfg)
                now = time.monotonic()
                row["images_per_s"] = (state.step - logged) * cfg.batch / (now - clock)
                log.row(state.step, row)
                logged, clock = state.step, now
            if cfg.images_every and state.step % cfg.images_every == 0:
                log.images(state.step, _batch_images(state, parts[0]))
            if state.step % cfg.checkpoint_every == 0:
                _checkpoint(state, cfg, folder, settings, log)
                saved = state.step
            log.at(state.step)
        if saved != state.step:
            _checkpoint(state, cfg, folder, settings, log)
    if interrupt.requested and state.step < cfg.steps:
        raise TrainingError(
            f"Interrupted at step {state.step}; the same command goes on from there."
        )
    if not quiet:
        console.print(_result(state, folder), soft_wrap=True)  # commands and paths stay whole
    return state


def _describe(folder: Path, settings: dict[str, Any], processes: int) -> None:
    """Write the settings of a run, its command and its software versions into its folder."""
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    text = json.dumps({"processes": processes, **environment()}, indent=1)
    (folder / "environment.json").write_text(text, encoding="utf-8")


def _result(state: State, folder: Path) -> str:
    """Return the sentences that say where the result of a run is and which command comes next."""
    text = f"The result is in {folder}/{LAST} (step {state.step})"
    best = checkpoints.pointed(folder / BEST)
    number = best.resolve().name.removeprefix("step_")
    if number.isdigit() and int(number) != state.step:
        text += f"; {folder}/{BEST} is step {int(number)}, whose score is the lowest"
        if math.isfinite(state.best):
            text += f" ({state.best:.4g})"
    return f"{text}. Next: {state.recipe.next_step(folder)}"


def _row(state: State, cfg: LoopConfig) -> dict[str, float]:
    """Return a row of the log and empty the window.

    The mean of each term is over the steps, parts and processes that had it.
    """
    names = list(state.window)
    if state.accelerator.num_processes > 1:  # a term may be absent from this process only
        names = list(dict.fromkeys(gather_object(names)))
    zero = torch.zeros((), device=state.accelerator.device)
    sums = torch.stack([state.window.get(name, zero) for name in names])
    counts = torch.tensor([float(state.window_counts.get(name, 0)) for name in names])
    both = state.accelerator.reduce(torch.stack([sums, counts.to(sums.device)]), "sum")
    row = dict(zip(names, (both[0] / both[1]).tolist(), strict=True))
    state.window, state.window_counts = {}, {}
    row["rate"] = learning_rate(cfg, state.step - 1)
    row["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if state.accelerator.device.type == "cuda":
        row["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return row


@torch.no_grad()
def _batch_images(state: State, batch: Batch) -> dict[str, NDArray[np.uint8]]:
    if not state.accelerator.is_main_process:
        return {}
    state.loss.eval()
    return state.recipe.batch_images(state.model, batch, state.averaged)


def _checkpoint(
    state: State, cfg: LoopConfig, folder: Path, settings: dict[str, Any], log: RunLog
) -> None:
    """Validate and save on the main process while the others wait.

    Without a "score" from the recipe the mean loss since the last checkpoint is the score.
    """
    accelerator = state.accelerator
    score = None
    if state.since_steps:
        score = float(accelerator.reduce(state.since, "mean")) / state.since_steps
    state.since, state.since_steps = torch.zeros_like(state.since), 0
    if accelerator.is_main_process:
        with torch.no_grad():
            numbers = state.recipe.validate(state.product.eval())
        if numbers:
            log.row(state.step, numbers)
        save(state, cfg, settings, folder, numbers.get("score", score))
    accelerator.wait_for_everyone()


def _not_finite(state: State, parts: list[Batch], folder: Path) -> TrainingError:
    rank = state.accelerator.process_index
    path = folder / ("bad_batch.pt" if rank == 0 else f"bad_batch_{rank}.pt")
    torch.save(send_to_device(parts[0] if len(parts) == 1 else parts, "cpu"), path)
    return TrainingError(
        f"The loss or gradient of step {state.step} is not finite; its batch is in {path}: look at"
        " that data or lower loop.learning_rate."
    )
