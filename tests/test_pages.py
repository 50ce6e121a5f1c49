# SPDX-License-Identifier: Apache-2.0
"""The pages name what is there: files, headings, parameters, commands, launch arguments.

Commands of training are read by tests/training/test_documented_commands.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from depth_node.cli.main import parser
from tests.helpers import REPO

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
SOURCES = [
    path.relative_to(REPO).as_posix()
    for name in ("depth_node", "training", "tests", "launch", "config", "docs", "resource")
    for path in (REPO / name).rglob("*")
]
PARAMETERS = set(
    re.findall(r"^\| `([\w.]+)`", (REPO / "docs" / "parameters.md").read_text("utf-8"), re.M)
)
BLOCK = re.compile(r"^ *```\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def commands(program: str) -> Iterator[tuple[str, bool]]:
    """Every call of a program on a page, and whether it stands in a block, to be copied."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.split(r"\s+#", line.strip())[0]
                if command.startswith(program) and "..." not in command:
                    yield command, True
        for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text)):
            if code.startswith(program) and "..." not in code:
                yield " ".join(code.split()), False


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_and_parameters_that_a_page_names_exist(page: Path) -> None:
    sections = {name.split(".")[0] for name in PARAMETERS if "." in name}
    unknown = []
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        if re.fullmatch(r"[\w./-]+\.py", code):
            known = any(f"/{path}".endswith(f"/{code}") for path in SOURCES)
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code) and code.split(".")[0] in sections:
            suffix = Path(code).suffix
            known = suffix in (".onnx", ".yaml", ".safetensors") or any(
                f"{name}.".startswith(f"{code}.") for name in PARAMETERS
            )
        else:
            continue
        if not known:
            unknown.append(code)
    assert not unknown


@pytest.mark.parametrize("package", ["depth_node", "training"])
def test_every_module_has_its_place_in_the_tree(package: str) -> None:
    tree = (REPO / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[3]
    modules = {path.stem for path in (REPO / package).rglob("*.py")} - {"__init__", "__main__"}
    assert not modules - set(re.findall(r"\w+", tree)), "docs/architecture.md does not name them"


@pytest.mark.parametrize(("command", "whole"), sorted(set(commands("depth_tools "))))
def test_a_command_of_depth_tools_is_understood(
    command: str, whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the last option; a sentence may name a command without what it works on."""
    words = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    try:
        assert callable(parser().parse_args(words).run)
    except SystemExit:
        refusal = capsys.readouterr().err
        assert not whole and re.search("are required|expected one argument", refusal), refusal


@pytest.mark.parametrize(("command", "whole"), sorted(set(commands("ros2 launch depth_node "))))
def test_a_launch_file_takes_the_arguments_that_a_page_gives_it(command: str, whole: bool) -> None:
    name, *arguments = shlex.split(command)[3:]
    source = (REPO / "launch" / name).read_text(encoding="utf-8")
    for argument in arguments:
        given = argument.split(":=")[0]
        assert f'"{given}"' in source, f"{name} declares no argument {given}"


def test_the_readme_has_every_topic_and_launch_argument() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    pytest.importorskip("rclpy", reason="ROS 2 is not installed")
    from depth_node.ros.inputs.subscriptions import INPUTS
    from depth_node.ros.outputs.results import OUTPUTS

    launch = (REPO / "launch" / "depth_node.launch.py").read_text(encoding="utf-8")
    table = launch.split("ARGUMENTS = {")[1].split("\n}")[0]
    arguments = re.findall(r'^    "(\w+)": ', table, re.MULTILINE)
    assert len(arguments) > 10
    missing = [name for name in (*INPUTS, *OUTPUTS, *arguments) if f"`{name}`" not in readme]
    assert not [name for name in missing if name != "~/depth/image/compressedDepth"]
