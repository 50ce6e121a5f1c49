# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while a program is imported: no traceback, and the process ends by SIGINT."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO

# Interrupts the process when a module is imported, and says so to the test.
INTERRUPT = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            open({mark!r}, "w").close()
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""


def interrupted(
    folder: Path, module: str, *command: str, ignored: bool = False
) -> tuple[int, str, bool]:
    """Run Python with a command and interrupt it when it imports a module.

    ignored: whether SIGINT is ignored from the start. Returns the status, all output, and whether
    the module was imported.
    """
    program, mark = folder / "sitecustomize.py", folder / "reached"
    program.write_text(INTERRUPT.format(module=module, mark=str(mark)), encoding="utf-8")
    mark.unlink(missing_ok=True)
    trap = "trap '' INT; " if ignored else ""
    done = subprocess.run(
        ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, *command],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPO)])}, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, mark.exists()


PROGRAM = "import sys; from depth_node.start import tools; sys.exit(tools())"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "depth_node.cli.demo", "cv2", "rich.console"])
def test_an_interrupt_among_the_imports_of_a_tool_is_no_traceback(
    module: str, tmp_path: Path
) -> None:
    status, output, reached = interrupted(tmp_path, module, "-c", PROGRAM, "models", "list")
    assert reached and status == -signal.SIGINT
    assert output in ("", "depth_tools: interrupted\n")
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {"__pycache__"} == {"reached", "sitecustomize.py"}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["depth_node.cli.demo", "rich.console"])
def test_an_interrupt_among_the_imports_of_the_module_is_no_traceback(
    module: str, tmp_path: Path
) -> None:
    status, output, reached = interrupted(
        tmp_path, module, "-m", "depth_node.cli.main", "models", "list"
    )
    assert reached and status == -signal.SIGINT
    assert output in ("", "depth_tools: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "training.recipes", "rich.console", "torch"])
def test_an_interrupt_among_the_imports_of_training_is_no_traceback(
    module: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("training needs torch (requirements-training.txt)")
    command = ["-m", "training", "cka", "a", "b", "--data", "data", "--out", "out"]
    status, output, reached = interrupted(tmp_path, module, *command)
    assert reached and status == -signal.SIGINT
    assert output in ("", "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["node", "cameras"])
def test_an_interrupt_among_the_imports_of_the_node_ends_it_quietly(
    program: str, tmp_path: Path
) -> None:
    code = f"import sys; from depth_node.start import {program} as run; sys.exit(run())"
    assert interrupted(tmp_path, "numpy", "-c", code) == (0, "", True)


@pytest.mark.slow
def test_an_interrupt_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup, and in the background of a script."""
    status, output, reached = interrupted(
        tmp_path, "numpy", "-c", PROGRAM, "models", "list", ignored=True
    )
    assert reached and status == 0 and "embedded" in output


@pytest.mark.slow
def test_an_interrupt_is_seen_by_the_shell_that_runs_the_tool(tmp_path: Path) -> None:
    """A loop in a script ends at Ctrl-C only if its command was ended by the signal."""
    status, output, _ = interrupted(tmp_path, "rich.console", "-c", PROGRAM, "models", "list")
    assert (status, output) == (-signal.SIGINT, "depth_tools: interrupted\n")
    status, output, _ = interrupted(tmp_path, "rich.table", "-c", PROGRAM, "models", "list")
    assert (status, output) == (-signal.SIGINT, "depth_tools: interrupted\n")
