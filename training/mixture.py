# SPDX-License-Identifier: Apache-2.0
"""Pictures with depth to learn from: rendered rooms, a data set, or a mixture with a second one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depth_node import config
from training.data import F32, DataError, Pool, PoolConfig, ViewConfig, augment, open_pool
from training.datasets import DataConfig, open_samples


@dataclass(frozen=True)
class MixtureConfig:
    """Where pictures and depth come from."""

    first: str = config.option(
        "pool", "The rendered rooms of `pool`, or the data set `data`.", choices=("pool", "data")
    )
    second_share: float = config.option(
        0.0, "Share of the pictures that come from the data set `second`.", minimum=0, maximum=1
    )
    keep: int = config.option(32, "Pictures of data sets that are held in memory.", minimum=0)
    pool: PoolConfig = config.section(PoolConfig, "The rendered rooms.")
    data: DataConfig = config.section(DataConfig, "The data set.")
    second: DataConfig = config.section(DataConfig, "Another data set.")

    def __post_init__(self) -> None:
        config.validate(self)


class Mixture:
    """What `draw` draws from. DataError where a source is missing."""

    def __init__(
        self, cfg: MixtureConfig, waiting: Callable[[int], None] = lambda found: None
    ) -> None:
        self.cfg = cfg
        self.pool: Pool | None = None
        self._sources: list[tuple[int, Callable[[int], tuple[np.ndarray, F32]]]] = []
        if cfg.first == "pool":
            self.pool = open_pool(cfg.pool, waiting)
        else:
            self._add(cfg.data)
        if cfg.second_share > 0:
            self._add(cfg.second)

    def _add(self, data: DataConfig) -> None:
        samples = open_samples(data)

        @functools.lru_cache(self.cfg.keep)
        def read(index: int) -> tuple[np.ndarray, F32]:
            sample = samples[index]
            if sample.depth is None:
                raise DataError(
                    f"{sample.name} of {samples.name} has no depth: give a data set with depth."
                )
            return sample.image, sample.depth

        self._sources.append((len(samples), read))

    def draw(
        self, rng: np.random.Generator, height: int, width: int, view: ViewConfig
    ) -> tuple[F32, F32]:
        """A picture (height, width, 3) float32 in 0..1 and its depth (height, width) m."""
        second = self.cfg.second_share > 0 and rng.random() < self.cfg.second_share
        if self.pool is not None and not second:
            i = int(rng.integers(0, len(self.pool)))
            image, depth = self.pool.image[i], self.pool.depth[i].astype(np.float32)
        else:
            count, read = self._sources[-1 if second else 0]
            image, depth = read(int(rng.integers(0, count)))
        return augment(image, depth, height, width, view, rng)

    def batch(
        self, rngs: list[np.random.Generator], height: int, width: int, view: ViewConfig
    ) -> dict[str, Tensor]:
        """`image` (N, 3, h, w) in 0..1 and `depth` (N, 1, h, w) m, a picture per generator."""
        images, depths = zip(*(self.draw(rng, height, width, view) for rng in rngs), strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            "depth": torch.from_numpy(np.stack(depths))[:, None],
        }
