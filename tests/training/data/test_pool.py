# SPDX-License-Identifier: Apache-2.0
"""The pool of rendered rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from depth_node import config
from training.data.pool import Pool, PoolConfig
from training.data.samples import DataError


def pool_config(folder: Path, samples: int, views: int) -> PoolConfig:
    return PoolConfig(str(folder), samples, 24, 32, views_per_scene=views, seed=5)


def fill(cfg: PoolConfig, until: int, processes: int = 1) -> Pool:
    pool = Pool(cfg, write=True)
    for _ in pool.fill(until, processes):
        pass
    return pool


def test_the_pool_repeats_itself_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path / "a", 12, 3)
    fill(cfg, 9)
    fill(cfg, 12)
    whole = fill(config.replace(cfg, {"folder": str(tmp_path / "b")}), 12)
    parts = Pool(cfg)
    assert len(parts) == len(whole) == 12
    np.testing.assert_array_equal(parts.image, whole.image)
    np.testing.assert_array_equal(parts.depth, whole.depth)
    assert np.unique(parts.image.reshape(12, -1), axis=0).shape[0] == 12


def test_several_processes_render_what_one_renders(tmp_path: Path) -> None:
    one = fill(pool_config(tmp_path / "one", 12, 2), 9)
    several = fill(pool_config(tmp_path / "several", 12, 2), 9, processes=2)
    assert len(one) == len(several) == 10  # whole scenes
    np.testing.assert_array_equal(one.image, several.image)
    np.testing.assert_array_equal(one.depth, several.depth)


def test_labels_are_masks(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path / "a", 6, 3)
    plain = fill(cfg, 6)
    labelled = fill(config.replace(cfg, {"folder": str(tmp_path / "b"), "labels": True}), 6, 2)
    np.testing.assert_array_equal(labelled.image, plain.image)
    masks = labelled[5].masks
    assert plain[5].masks is None and masks is not None
    assert masks.shape == (24, 32) and masks.min() >= 1 and len(np.unique(masks)) > 2


def test_a_full_pool_replaces_its_oldest(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path, 4, 2)
    before = fill(cfg, 4).image.copy()
    pool = fill(cfg, 6)
    assert (len(pool), pool.written) == (4, 6)
    np.testing.assert_array_equal(pool.image[2:], before[2:])
    assert not np.array_equal(pool.image[:2], before[:2])


def test_a_pool_of_other_settings_is_refused(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path / "p", 4, 6)
    with pytest.raises(DataError, match="no pool"):
        Pool(cfg)
    Pool(cfg, write=True)
    with pytest.raises(DataError, match="other settings"):
        Pool(config.replace(cfg, {"seed": 6}))
    with pytest.raises(DataError, match=r"pool\.seed"):
        Pool(config.replace(cfg, {"seed": -1}))


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("name", ["image.u8", "depth.f16", "count.i64"])
def test_a_pool_with_a_file_that_is_cut_is_refused(tmp_path: Path, name: str, write: bool) -> None:
    cfg = pool_config(tmp_path, 2, 2)
    fill(cfg, 2)
    path = tmp_path / name
    content = path.read_bytes()
    for data in (content[: len(content) // 2], None):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(DataError, match=rf"{name} has \d+ bytes and needs {len(content)}"):
            Pool(cfg, write=write)
        path.write_bytes(content)
    assert len(Pool(cfg, write=write)) == 2


def test_a_pool_whose_settings_cannot_be_read_is_named(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path, 2, 2)
    Pool(cfg, write=True)
    (tmp_path / "pool.yaml").write_text("height: [")
    with pytest.raises(DataError, match=r"pool\.yaml cannot be read"):
        Pool(cfg)


def test_a_pool_whose_making_was_interrupted_is_made(tmp_path: Path) -> None:
    cfg = pool_config(tmp_path, 2, 2)
    Pool(cfg, write=True)
    (tmp_path / "pool.yaml").unlink()
    (tmp_path / "image.u8").write_bytes(b"")
    (tmp_path / "count.i64").unlink()
    assert len(fill(cfg, 2)) == 2
