# SPDX-License-Identifier: Apache-2.0
"""`make test-aarch64`: tests of the core on the Jetson's architecture, under qemu's user emulation.

Nothing is installed: qemu, an arm64 Python and its libraries come from Debian's registry, the
wheels from PyPI, all into a folder of the user's cache; no root, chroot or binfmt is needed. Where
that cannot be had it says why and skips (REQUIRE_AARCH64=1: fails). Times mean nothing here; what
is looked for is arithmetic that differs: casts of NaN, infinities and negative numbers, rounding.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import REPO

TESTS = (
    "tests/geometry", "tests/fitting", "tests/regions", "tests/calibration", "tests/visualization",
    "tests/engine", "tests/model_zoo/test_fp16.py", "tests/test_gates.py", "tests/test_metrics.py",
    "tests/test_prediction.py", "tests/test_monitor.py", "tests/test_inference.py",
    "tests/test_roles.py", "tests/test_completion.py", "tests/test_pipeline.py",
)  # fmt: skip
# Tests that need libraries which exist for x86-64 only.
LEFT_OUT = ("tests/engine/test_trt_bindings.py", "tests/engine/test_tensorrt_rtx.py")
TIMED = "tests/regions/test_segmentation.py::test_segmentation_takes_milliseconds"
DEBIAN = "bookworm"  # its Python is 3.11
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = ("python3.11", "libpython3.11-stdlib", "libgomp1", "libatomic1", "libstdc++6", "dash")
WHEELS = ("numpy", "scipy", "opencv-python-headless", "onnxruntime", "numba", "PyYAML", "rich",
          "onnx", "pytest")  # fmt: skip
MANYLINUX = ("2014", "_2_17", "_2_26", "_2_27", "_2_28")
# /proc/cpuinfo: ONNX Runtime reads the processor's features there and crashes on those of an x86.
CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
# sitecustomize.py: child processes of a test must run Python under emulation too.
SITE = """import os, sys
sys.executable = sys._base_executable = os.environ["AARCH64_PYTHON"]
"""


class UnavailableError(Exception):
    """The emulation is not available on this machine; the text is the reason."""


def folder() -> Path:
    """Return the folder that keeps qemu, Python, libraries and wheels."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return base / "depth_node" / "aarch64"


def prepare(place: Path) -> Path:
    """Fetch what is missing; return the emulated Python. Raise UnavailableError if that fails."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UnavailableError(f"it emulates on x86-64 Linux, and this is {platform.platform()}")
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UnavailableError(f"no {tool} here: qemu and arm64 packages come from Debian")
    if not Path(KEYRING).is_file():
        raise UnavailableError(f"no {KEYRING}: Debian's packages cannot be verified")
    python = place / "python-aarch64"
    if (place / "ready").is_file():
        return python
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    qemu = _debian(place / "host", "amd64", ("qemu-user-static",), dependencies=False)
    root = _debian(place / "target", "arm64", PACKAGES, dependencies=True)
    for name, content in (
        ("proc/cpuinfo", CPUINFO),
        ("sys/devices/system/cpu/possible", "0\n"),
        ("sys/devices/system/cpu/present", "0\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (place / "first").mkdir()
    (place / "first" / "sitecustomize.py").write_text(SITE)
    _run(
        "fetch the wheels",
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(place / "site"),
         *(f"--platform=manylinux{version}_aarch64" for version in MANYLINUX),
         "--python-version=3.11", "--implementation=cp", "--only-binary=:all:", "--no-compile",
         *_pinned()],
    )  # fmt: skip
    python.write_text(
        "#!/bin/sh\n"
        f'export AARCH64_PYTHON="{python}" QEMU_CPU=cortex-a72\n'
        f'export PYTHONPATH="{place / "first"}:{place / "site"}:$PYTHONPATH"\n'
        f'exec "{qemu / "usr/bin/qemu-aarch64-static"}" -L "{root}"'
        f' "{root / "usr/bin/python3.11"}" "$@"\n'
    )
    python.chmod(0o755)
    _run("run Python under qemu", [str(python), "-c", "import numpy, cv2, scipy, onnxruntime"])
    (place / "ready").touch()
    return python


def _pinned() -> list[str]:
    """Return WHEELS with the versions that the requirements pin for Python 3.11."""
    found: dict[str, str] = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPO / name).read_text().splitlines():
            requirement, _, marker = (part.strip() for part in line.partition(";"))
            package = requirement.partition("==")[0]
            if package in WHEELS and "<" not in marker:
                found[package] = requirement
    missing = [name for name in WHEELS if name not in found]
    if missing:
        raise UnavailableError(f"the requirements do not pin {', '.join(missing)}")
    return list(found.values())


def _debian(place: Path, architecture: str, packages: Sequence[str], dependencies: bool) -> Path:
    """Unpack Debian packages into a folder and return it; apt's state is in `place` too."""
    for name in ("lists/partial", "cache/archives/partial", "root"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (place / "status").touch()
    (place / "sources.list").write_text(
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {DEBIAN} main\n"
    )
    options = {
        "Dir::State": place, "Dir::State::status": place / "status", "Dir::Cache": place / "cache",
        "Dir::Etc::sourcelist": place / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "APT::Architecture": architecture, "APT::Architectures": architecture,
        "APT::Sandbox::User": "", "Debug::NoLocking": "true",
    }  # fmt: skip
    apt = [
        "apt-get",
        "-qq",
        *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
    ]
    _run("read Debian's index", [*apt, "update"])
    if dependencies:
        command = [*apt, "install", "--yes", "--download-only", "--no-install-recommends"]
        _run("fetch Debian's packages", [*command, *packages])
        files = sorted((place / "cache" / "archives").glob("*.deb"))
    else:
        _run("fetch Debian's packages", [*apt, "download", *packages], place)
        files = sorted(place.glob("*.deb"))
    for file in files:
        _run(f"unpack {file.name}", ["dpkg", "-x", str(file), str(place / "root")])
    return place / "root"


def _run(what: str, command: Sequence[str], inside: Path | None = None) -> None:
    done = subprocess.run(command, cwd=inside, capture_output=True, text=True, timeout=900)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise UnavailableError(f"could not {what} (status {done.returncode}: {told[0][:300]})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return pytest's exit status, 0 if skipped, 1 if required but absent."""
    parser = argparse.ArgumentParser(prog="test-aarch64", description=__doc__)
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="paths and options of pytest")
    options, rest = parser.parse_known_args(arguments)
    try:
        python = prepare(folder())
    except (UnavailableError, OSError, subprocess.TimeoutExpired) as error:
        required = os.environ.get("REQUIRE_AARCH64") == "1"
        print(f"test-aarch64: {'failed' if required else 'skipped'}: {error}", file=sys.stderr)
        return 1 if required else 0
    command = [str(python), "-m", "pytest", "-m", "not slow and not gpu", "-p", "no:cacheprovider"]
    command += [
        f"--deselect={TIMED}",
        *(f"--ignore={path}" for path in LEFT_OUT),
        *options.tests,
        *rest,
    ]
    return subprocess.run(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}).returncode


if __name__ == "__main__":
    sys.exit(main())
