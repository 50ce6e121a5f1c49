# SPDX-License-Identifier: Apache-2.0
"""Data sets as WebDataset shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.data_sets import sample_image
from training.data.open import DataConfig, open_samples
from training.data.samples import DataError, DataSet, Sample
from training.tools import pack_shards


def names(samples: DataSet) -> list[str]:
    return [samples[k].name for k in range(len(samples))]


def rooms(count: int = 5) -> DataSet:
    return open_samples(DataConfig(kind="procedural", seed=4, limit=count, height=24, width=32))


def test_shards_give_back_what_went_in(tmp_path: Path) -> None:
    written = list(rooms())
    masks = np.arange(24 * 32, dtype=np.int32).reshape(24, 32)
    assert written[0].depth is not None
    hole = written[0].depth.copy()
    hole[:4] = np.nan
    written[0] = Sample("holes", written[0].image, hole, written[0].camera, masks)
    written[1] = Sample("no truth", written[1].image)
    assert pack_shards.write_shards(written, tmp_path / "out", per_shard=2) == 5
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3
    read = open_samples(DataConfig(kind="shards", folder=str(tmp_path / "out")))
    assert names(read) == [sample.name for sample in written]
    for sample, before in zip(read, written, strict=True):
        np.testing.assert_array_equal(sample.image, before.image)
        assert sample.camera == before.camera
        if before.depth is None:
            assert sample.depth is None
            continue
        assert sample.depth is not None
        half_step = np.nanmax(before.depth) / 65535 / 2
        np.testing.assert_allclose(sample.depth, before.depth, atol=half_step * 1.01)
    assert read[0].masks is not None
    np.testing.assert_array_equal(read[0].masks, masks)


# The library does not close its files; the garbage collector does.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    import webdataset

    pack_shards.write_shards(rooms(), tmp_path / "out", per_shard=3, jpeg=95)
    urls = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [set(sample) >= {"jpg", "depth.png", "json"} for sample in samples] == [True] * 5


def shard(folder: Path, **members: bytes) -> DataSet:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for end, data in members.items():
            about = tarfile.TarInfo(f"000.{end.replace('_', '.')}")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return open_samples(DataConfig(kind="shards", folder=str(folder)))


@pytest.mark.parametrize(
    "about",
    ["null", "[]", "{}", '{"name": 3}', '{"name": "a", "depth_step_m": "x"}',
     '{"name": "a", "depth_step_m": NaN}', '{"name": "a", "depth_step_m": true}',
     '{"name": "a", "depth_step_m": 0.1, "camera": {"fx": true, "fy": 1, "cx": 1, "cy": 1,'
     ' "width": 16, "height": 12, "distortion": []}}',
     '{"name": "a", "depth_step_m": 0.1, "camera": {"fx": 9, "fy": 9, "cx": 1, "cy": 1,'
     ' "width": 16.5, "height": 12, "distortion": []}}',
     '{"name": "a", "depth_step_m": 0.1, "camera": null}', "[" * 100_000],
)  # fmt: skip
def test_a_shard_with_impossible_values_is_named(tmp_path: Path, about: str) -> None:
    image, depth = (
        cv2.imencode(".png", content)[1].tobytes()
        for content in (sample_image(), np.ones((12, 16), np.uint16))
    )
    whole = shard(tmp_path / "good", png=image, depth_png=depth,
                  json=b'{"name": "a", "depth_step_m": 0.1}')  # fmt: skip
    assert whole[0].depth is not None
    samples = shard(tmp_path / "bad", png=image, depth_png=depth, json=about.encode())
    with pytest.raises(DataError, match=r"shard-000000\.tar cannot be read"):
        samples[0]


@pytest.mark.parametrize("masks", [np.ones((6, 8), np.uint16), np.ones((12, 16, 3), np.uint8)])
def test_a_shard_with_masks_of_another_image_is_named(tmp_path: Path, masks: np.ndarray) -> None:
    image, stored = (
        cv2.imencode(".png", content)[1].tobytes() for content in (sample_image(), masks)
    )
    samples = shard(tmp_path, png=image, masks_png=stored, json=b'{"name": "a"}')
    with pytest.raises(DataError, match=r"a: the masks have the shape .* do not belong together"):
        samples[0]


def test_a_shard_without_an_image_is_named(tmp_path: Path) -> None:
    samples = shard(tmp_path, json=b'{"name": "a"}')
    with pytest.raises(DataError, match=r"000 has no \.png"):
        samples[0]
