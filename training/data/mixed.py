# SPDX-License-Identifier: Apache-2.0
"""Images with depth for training: rendered rooms or a data set, alone or with a second data set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depth_node import config
from training.data.augmentation import ViewConfig, augment
from training.data.open import DataConfig, open_samples
from training.data.pool import Pool, PoolConfig, open_pool
from training.data.samples import F32, DataError, Images, Sample


@dataclass(frozen=True)
class MixtureConfig:
    """Sources of the images and their depth."""

    first: str = config.option(
        "pool", "The rendered rooms of `pool`, or the data set `data`.", choices=("pool", "data")
    )
    second_probability: float = config.option(
        0.0, "Probability that an image comes from the data set `second`.", minimum=0, maximum=1
    )
    keep: int = config.option(32, "Images of data sets that are held in memory.", minimum=0)
    pool: PoolConfig = config.section(PoolConfig, "The rendered rooms.")
    data: DataConfig = config.section(DataConfig, "The data set.")
    second: DataConfig = config.section(DataConfig, "Another data set.")
    second_height: int = config.option(
        0,
        "Rows of the images of `second`, where its shape is another; 0: as of the others. Each"
        " part of a step then holds one image (loop.accumulate as large as loop.batch).",
        unit="px",
        minimum=0,
    )
    second_width: int = config.option(0, "Columns of the same.", unit="px", minimum=0)

    def __post_init__(self) -> None:
        config.validate(self)
        if bool(self.second_height) != bool(self.second_width):
            raise config.ConfigError("second_height and second_width: set both, or neither")


class Mixture:
    """Random draws from one or two sources of images. Raises DataError if a source is missing."""

    def __init__(
        self, cfg: MixtureConfig, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self.cfg = cfg
        self.first = open_first(cfg.first, cfg.pool, cfg.data, say)
        self.pool = self.first if isinstance(self.first, Pool) else None
        if self.pool is None:
            self.first = _InMemory(self.first, cfg.keep)
        self.second: Images = (
            _InMemory(open_samples(cfg.second), cfg.keep) if cfg.second_probability > 0 else ()
        )

    def draw(
        self, rng: np.random.Generator, height: int, width: int, view: ViewConfig
    ) -> tuple[F32, F32]:
        """Draw an image (height, width, 3) float32 in 0..1 and its depth (height, width) m.

        Images of the second data set have their own size if cfg sets it.
        """
        cfg = self.cfg
        if not (cfg.second_probability > 0 and rng.random() < cfg.second_probability):
            return drawn(self.first, rng, height, width, view)
        size = (cfg.second_height or height, cfg.second_width or width)
        return drawn(self.second, rng, *size, view)

    def batch(
        self, rngs: list[np.random.Generator], height: int, width: int, view: ViewConfig
    ) -> dict[str, Tensor]:
        """Draw `image` (N, 3, h, w) in 0..1 and `depth` (N, 1, h, w) m, one image per generator.

        Raises DataError if images of two sizes could be in the same batch.
        """
        if self.cfg.second_height and len(rngs) > 1:
            raise DataError(
                f"Images of two sizes cannot share a part of a step, and {len(rngs)} are in one:"
                " set loop.accumulate to the images that a process has of a step, or"
                " images.second_height and second_width to 0."
            )
        return batched([self.draw(rng, height, width, view) for rng in rngs])


class _InMemory:
    """Images of which the most recently read ones are held in memory."""

    def __init__(self, images: Images, keep: int) -> None:
        self._images = images
        self._read = functools.lru_cache(keep)(images.__getitem__)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        return self._read(index)


def open_first(
    which: str,
    pool: PoolConfig,
    data: DataConfig,
    say: Callable[[str], object] = lambda text: None,
) -> Images:
    """Open the rendered rooms if `which` is "pool", else the data set.

    It waits until the pool has enough images. Raises DataError if the source is missing.
    """
    return open_pool(pool, say) if which == "pool" else open_samples(data)


def drawn(
    images: Images, rng: np.random.Generator, height: int, width: int, view: ViewConfig
) -> tuple[F32, F32]:
    """Draw a random image with depth and augment both.

    Returns (height, width, 3) float32 in 0..1 and depth (height, width) m. Raises DataError for an
    image without depth.
    """
    sample = images[int(rng.integers(0, len(images)))]
    if sample.depth is None:
        raise DataError(f"{sample.name} has no depth to learn from: give a data set with depth.")
    return augment(sample.image, sample.depth, height, width, view, rng)


def batched(pairs: Sequence[tuple[F32, F32]]) -> dict[str, Tensor]:
    """Return pairs from `drawn` as one batch: `image` (N, 3, h, w) and `depth` (N, 1, h, w)."""
    images, depths = zip(*pairs, strict=True)
    return {
        "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
        "depth": torch.from_numpy(np.stack(depths))[:, None],
    }
