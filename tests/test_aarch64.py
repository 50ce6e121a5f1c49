# SPDX-License-Identifier: Apache-2.0
"""`make test-aarch64`: it says why if the emulation is not available."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import aarch64


def test_without_debian_it_is_skipped_with_the_reason_or_fails_where_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(aarch64.platform, "system", lambda: "Linux")
    monkeypatch.setattr(aarch64.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("REQUIRE_AARCH64", raising=False)
    assert aarch64.main([]) == 0
    assert "test-aarch64: skipped: no apt-get here" in capsys.readouterr().err
    monkeypatch.setenv("REQUIRE_AARCH64", "1")
    assert aarch64.main([]) == 1
    assert "test-aarch64: failed: no apt-get here" in capsys.readouterr().err


def test_on_another_processor_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aarch64.platform, "machine", lambda: "aarch64")
    monkeypatch.delenv("REQUIRE_AARCH64", raising=False)
    assert aarch64.main([]) == 0
    assert "skipped: it emulates on x86-64 Linux" in capsys.readouterr().err


def test_the_wheels_are_those_of_the_requirements() -> None:
    pinned = aarch64._pinned()
    assert {line.partition("==")[0] for line in pinned} == set(aarch64.WHEELS)
    assert all("==" in line for line in pinned)


def test_its_tests_exist() -> None:
    for path in (*aarch64.TESTS, *aarch64.LEFT_OUT):
        assert (aarch64.REPO / path).exists(), path
