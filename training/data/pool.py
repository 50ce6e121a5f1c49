# SPDX-License-Identifier: Apache-2.0
"""Pool of rendered scenes on disk.

The pool is a ring of fixed-size arrays. `python -m training render` fills it with one or several
processes, while another process trains on the images that are there. Image i depends on the pool's
settings and i only. A training run on a growing pool sees the images rendered so far; only on a
complete pool are runs bit-identical.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from depth_node import config
from depth_node.simulation.renderer import ALL_STYLES, STYLE_GROUPS, Scene
from depth_node.simulation.viewpoints import random_view
from training.data.files import reading
from training.data.samples import U8, DataError, Sample

SHADOW_PX = 96  # coarser than by default: pooled images are small
POLL_S = 5.0  # interval at which a pool that another process fills is checked


@dataclass(frozen=True)
class PoolConfig:
    """Folder, size and style of a pool of rendered scenes."""

    folder: str = config.option("pool", "Folder of the pool (outside the repository).")
    samples: int = config.option(
        100_000, "Images the ring holds before the oldest is replaced.", minimum=1
    )
    height: int = config.option(108, "Rows of a pooled image.", unit="px", minimum=16)
    width: int = config.option(144, "Columns of a pooled image.", unit="px", minimum=16)
    views_per_scene: int = config.option(6, "Images taken of each scene.", minimum=1)
    style: str = config.option("mixed", "Kind of scenes.", choices=(*STYLE_GROUPS, *ALL_STYLES))
    seed: int = config.option(-1, "Seed of the scenes; must be set.")
    wait_for: int = config.option(
        2000, "Images that must be there before training starts.", minimum=1
    )
    fill: bool = config.option(
        False, "Render wait_for images first, in the training process itself."
    )

    labels: bool = config.option(
        False, "Also store which surface each pixel shows: masks of what is in the image."
    )

    def __post_init__(self) -> None:
        config.validate(self)


class Pool:
    """Memory-mapped images of rendered scenes with depth and, if cfg.labels is set, labels.

    image (N, H, W, 3) uint8 RGB, depth (N, H, W) float16 m, labels (N, H, W) int16, the numbers of
    the surfaces from 1. Raises DataError without a seed, without a pool to read, and for a pool
    that was made with other settings.
    """

    def __init__(self, cfg: PoolConfig, write: bool = False) -> None:
        if cfg.seed < 0:
            raise DataError("The pool has no seed: set pool.seed to a number of 0 or more.")
        self.cfg = cfg
        self.folder = Path(cfg.folder)
        self._identity = {
            "height": cfg.height,
            "width": cfg.width,
            "samples": cfg.samples,
            "seed": cfg.seed,
            "style": cfg.style,
            "views_per_scene": cfg.views_per_scene,
            **({"labels": True} if cfg.labels else {}),
        }
        about = self.folder / "pool.yaml"
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
        if about.exists():
            with reading(about):
                stored = yaml.safe_load(about.read_text(encoding="utf-8"))
            if stored != self._identity:
                raise DataError(
                    f"The pool in {self.folder} was made with other settings"
                    f" ({json.dumps(stored)}); choose another pool.folder or the settings of that"
                    " pool."
                )
        elif not write:
            raise DataError(
                f"There is no pool in {self.folder}; start `python -m training render` with the"
                " same config."
            )
        self._complete = about.exists()  # it is written after the arrays
        image_shape = (cfg.samples, cfg.height, cfg.width, 3)
        self.image: U8 = self._map("image.u8", np.uint8, image_shape, write)
        self.depth: NDArray[np.float16] = self._map("depth.f16", np.float16, image_shape[:3], write)
        self.labels: NDArray[np.int16] | None = None
        if cfg.labels:
            self.labels = self._map("labels.i16", np.int16, image_shape[:3], write)
        self._count: NDArray[np.int64] = self._map("count.i64", np.int64, (1,), write)
        if not self._complete:
            about.write_text(yaml.safe_dump(self._identity), encoding="utf-8")

    def _map(
        self, name: str, dtype: type, shape: tuple[int, ...], write: bool
    ) -> np.memmap[Any, Any]:
        path = self.folder / name
        found = path.stat().st_size if path.exists() else None
        size = math.prod(shape) * np.dtype(dtype).itemsize
        # If it were opened for writing, zeros would replace what is missing.
        if self._complete and found != size:
            raise DataError(
                f"{path} has {found or 0} bytes and needs {size}: copy the pool again, or delete"
                f" {self.folder} and render it again."
            )
        mode = ("r+" if found is not None else "w+") if write else "r"
        return np.memmap(path, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload]

    @property
    def written(self) -> int:
        """The number of images rendered so far, including those that were replaced since."""
        return int(self._count[0])

    def __len__(self) -> int:
        """Return the number of images that can be read."""
        return min(self.written, self.cfg.samples)

    def __getitem__(self, index: int) -> Sample:
        """Return one image with its depth, and its masks if the pool has labels."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index} among {len(self)}")
        depth = self.depth[index].astype(np.float32)
        masks = None if self.labels is None else self.labels[index].astype(np.int32)
        return Sample(f"{self.cfg.seed}-{index}", self.image[index], depth, masks=masks)

    def fill(self, until: int, processes: int = 1) -> Iterator[int]:
        """Render until there are `until` images in all, and yield the count after every scene.

        It continues after the scenes that are there. The images do not depend on the number of
        processes.
        """
        per_scene = self.cfg.views_per_scene
        first, last = self.written // per_scene, -(-until // per_scene)
        for index in _in_order(self.cfg, range(first, last), processes, self.render):
            self._count[0] = (index + 1) * per_scene
            yield self.written

    def render(self, index: int) -> int:
        """Render scene `index` into its places in the ring, and return the index."""
        cfg = self.cfg
        rng = np.random.default_rng([cfg.seed, index])
        scene = Scene.random(rng, cfg.style, shadow_px=SHADOW_PX)
        for k in range(cfg.views_per_scene):
            camera, pose = random_view(scene, rng, cfg.width, cfg.height)
            view = scene.render(camera, pose, antialias=False)
            slot = (index * cfg.views_per_scene + k) % cfg.samples
            self.image[slot] = view.image
            self.depth[slot] = view.depth
            if self.labels is not None:
                self.labels[slot] = view.labels
        return index


def _in_order(
    cfg: PoolConfig, scenes: range, processes: int, here: Callable[[int], int]
) -> Iterator[int]:
    """Yield the scenes in order when they are done, rendered by `here` or by other processes."""
    if processes < 2:
        yield from map(here, scenes)
        return
    left = iter(scenes)
    with ProcessPoolExecutor(processes, get_context("spawn")) as renderers:
        queue: deque[Future[int]] = deque(
            renderers.submit(_render, cfg, index) for index in itertools.islice(left, 2 * processes)
        )
        try:
            while queue:
                yield queue.popleft().result()
                queue += [renderers.submit(_render, cfg, k) for k in itertools.islice(left, 1)]
        finally:
            renderers.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _writer(cfg: PoolConfig) -> Pool:
    return Pool(cfg, write=True)


def _render(cfg: PoolConfig, index: int) -> int:
    return _writer(cfg).render(index)


def open_pool(
    cfg: PoolConfig,
    say: Callable[[str], object] = lambda text: None,
    processes: int = 1,
) -> Pool:
    """Return the pool when it holds cfg.wait_for images.

    If cfg.fill is set they are rendered here, by `processes` processes; otherwise this waits for
    another process that renders them, and regularly calls `say` with the count.
    """
    if cfg.fill:
        writer = Pool(cfg, write=True)
        for _ in writer.fill(cfg.wait_for, processes):
            pass
        return writer
    pool = Pool(cfg)
    while len(pool) < min(cfg.wait_for, cfg.samples):
        say(f"waiting for the renderer: {len(pool)} of {min(cfg.wait_for, cfg.samples)} images")
        time.sleep(POLL_S)
    return pool
