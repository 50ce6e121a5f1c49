# SPDX-License-Identifier: Apache-2.0
"""What the command line says where a package is missing. The package is really missing: another
Python runs the command, in which a finder refuses it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

CONFIGS = "training/configs"
REFUSED = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {package!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refused())
"""


def without(package: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m training words` on a machine that lacks a package."""
    (folder / "sitecustomize.py").write_text(REFUSED.format(package=package), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "training", *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("torch", ["supervised", "--config", f"{CONFIGS}/debug.yaml", "--dry-run"]),
        ("torch", ["export", "runs/mine", "--out", "mine.onnx"]),
        ("rich", ["evaluate", "--model", "embedded"]),
        ("transformers", ["distill", "--config", f"{CONFIGS}/distill_debug.yaml", "--run"]),
        ("diffusers", ["depthmaster", "--config", f"{CONFIGS}/depthmaster_debug.yaml", "--run"]),
    ],
)
def test_a_missing_package_is_named_in_one_sentence(
    package: str, words: list[str], tmp_path: Path
) -> None:
    if package in ("transformers", "diffusers"):
        pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")
    run = [str(tmp_path / "run")] if words[-1] == "--run" else []
    done = without(package, tmp_path, *words, *run)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"package {package} is not installed" in done.stderr
    assert "pip install -r requirements-training.txt" in done.stderr


def test_help_needs_no_package_of_training(tmp_path: Path) -> None:
    done = without("torch", tmp_path, "--help")
    assert done.returncode == 0 and "westar" in done.stdout and not done.stderr


def test_a_module_of_ours_that_is_missing_is_a_mistake_of_ours(tmp_path: Path) -> None:
    done = without("depth_node", tmp_path, "--help")
    assert done.returncode == 1 and "Traceback" in done.stderr
