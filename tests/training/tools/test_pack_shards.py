# SPDX-License-Identifier: Apache-2.0
"""Packing of a data set into shards by the command."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
from tests.helpers.data_sets import opened, put, sample_image
from training.__main__ import main
from training.data.samples import DataError


def test_shards_by_command_and_their_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a folder whose name is longer than a line of a terminal" / ("o" * 80)
    put(tmp_path / "in" / "a.png", sample_image())
    settings = ["kind=images", f"folder={tmp_path / 'in'}"]
    assert main(["shards", "--out", str(out), *settings]) == 0
    assert capsys.readouterr().out.endswith(f"{out}: 1 samples\n"), "no path is broken in two"
    assert main(["shards", "--out", str(out), *settings]) == 1
    assert "is not empty" in capsys.readouterr().err
    (shard,) = out.glob("*.tar")
    with tarfile.open(shard) as tar:
        assert sorted(member.name for member in tar) == ["000000000.json", "000000000.png"]
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(DataError, match=r"tar cannot be read \(.*copy it again"):
        opened("shards", out)
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no shards"):
        opened("shards", tmp_path / "none")
