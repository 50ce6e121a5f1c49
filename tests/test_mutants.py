# SPDX-License-Identifier: Apache-2.0
"""The mutants of constants: which constants are found, how they are changed and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.mutation import bounded
from tests.mutants import all_constants, constants_of, main, mutants_of, unknown_survivors

SOURCE = '''"""Depth, in Δm."""
ONE, OTHER = 1.5, 3  # of something
SIZES: tuple[float, ...] = (0.5, -2, math.inf)
TABLE = {"a": (1, 2), "b": True}
SHARE = ONE / 4
NAME = "4"
class Kind(IntEnum):
    A = 7
class Config:
    width: int = option(5, "pixels", minimum=1)
    depth: float = 2.0
    on: bool = option(True, "9")
    def go(self, step: int = 8, *, far: float = 6.0, near: int | None = None) -> int:
        inner = 3
        return inner
'''


def test_every_number_is_found_under_its_name_and_changed_alone(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE, encoding="utf-8")
    constants = constants_of(path, tmp_path)
    assert {constant.name: constant.text for constant in constants} == {
        "ONE": "1.5",
        "OTHER": "3",
        "SIZES[0]": "0.5",
        "SIZES[1]": "-2",
        "TABLE['a'][0]": "1",
        "TABLE['a'][1]": "2",
        "SHARE": "ONE / 4",
        "Config.width": "5",
        "Config.depth": "2.0",
        "Config.go(step)": "8",
        "Config.go(far)": "6.0",
    }
    by_name = {constant.name: mutants_of(constant) for constant in constants}
    halved, doubled = by_name["OTHER"]
    assert (halved.text, doubled.text) == ("1", "6")  # an integer stays one
    changed = by_name["SIZES[1]"][1].source(path.read_bytes()).decode()
    assert changed == SOURCE.replace("-2", "-4", 1)
    changed = by_name["SHARE"][0].source(path.read_bytes()).decode()
    assert changed == SOURCE.replace("ONE / 4", "(ONE / 4) / 2")


def test_every_excused_survivor_is_a_constant() -> None:
    assert unknown_survivors(all_constants()) == []


def test_a_name_that_matches_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "no such constant"]) == 2
    assert "see --list" in capsys.readouterr().out


@pytest.mark.parametrize("allowed", [1, 60])
def test_what_takes_more_memory_than_is_allowed_is_noticed(allowed: int) -> None:
    """Also if it is given back at once."""
    with bounded(seconds=60, megabytes=allowed):
        bytes(allowed * 500_000)
    with pytest.raises(AssertionError, match="MB"), bounded(seconds=60, megabytes=allowed):
        bytearray(b"x") * (allowed * 1_500_000)
