# SPDX-License-Identifier: Apache-2.0
"""Which constants could be wrong without a test noticing: python -m tests.mutants (make mutants).

Every numeric constant of FOLDERS is halved and doubled, one at a time, in a copy of the package,
and the tests of TESTS run there until one fails. Constants are numbers assigned in modules and
classes (also inside tuples, lists and the values of dictionaries), defaults of options and of
parameters. Numbers of an Enum are names and stay.

    python -m tests.mutants --list                what would be changed
    python -m tests.mutants --only FAR_GROWTH     one constant, or whatever matches
    python -m tests.mutants --only fitting/field  one folder or file
    python -m tests.mutants --new                 does not try those that SURVIVORS excuses

The exit status is 1 when more than one mutant in ten survives, or one survives that SURVIVORS gives
no reason for. Mutants that change only how fast it is are equal to the original for a test, which
asserts no time: they are named, and count nowhere. The working tree is never changed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

REPO = Path(__file__).resolve().parents[1]
PACKAGE = "depth_node"
FOLDERS = ("fitting", "geometry")
# The tests of a folder or file, the fastest first. They take seconds and need no data.
GOLDEN = "tests/fitting/test_golden_metrics.py"
OVER_TIME = ("tests/fitting/test_sequences.py", GOLDEN, "tests/fitting/field")
TESTS = {
    "fitting/anchor.py": ("tests/fitting/test_anchor.py",),
    "fitting/network.py": ("tests/fitting/test_network.py", "tests/test_completion.py"),
    "fitting/field/memory.py": ("tests/fitting/field/test_memory.py", *OVER_TIME),
    "fitting/field/motion_loops.py": ("tests/fitting/field/test_trust.py", *OVER_TIME),
    "fitting/field/trust.py": ("tests/fitting/field/test_trust.py", *OVER_TIME),
    "fitting/field": ("tests/fitting/test_constants.py", GOLDEN, "tests/fitting/field"),
    "fitting": (
        "tests/fitting/test_constants.py",
        "tests/fitting/test_anchor.py",
        GOLDEN,
        "tests/fitting/test_methods.py",
    ),
    "geometry": ("tests/geometry", GOLDEN),
}
# Tests left out: they start interpreters or take longer than all others, and check no constant.
LEFT_OUT = (
    "folder_for_machine_code",
    "numba_that",
    "far_less_than_the_plain_loop",
    "moving_camera",
    "flickers_a_third",
)
PRELOADED = ["numpy", "cv2", "scipy.sparse", "scipy.special", "scipy.spatial", "yaml", "pytest"]
CPU_LIMIT_S = 240  # processor time, which a busy machine does not change: five times a survivor's
END_S = 3600.0  # wall-clock limit, for a mutant that waits without using the processor
ACCEPTED_SHARE = 0.1

ONLY_SPEED = "only how fast it is"
SPEED = f"{ONLY_SPEED}: as much is worked on at a time"
# Constants whose mutants may survive, with the reason. Keys: `NAME`, `NAME[2]`, `Class.name`,
# `function(x)`, or `module:NAME` if two modules have the name; the suffix ` halved` or ` doubled`
# excuses only that mutant.
SURVIVORS: dict[str, str] = {
    "_CHUNK": SPEED,
    "LANES": SPEED,
    "_BLOCK": SPEED,
    "_MOST_POINTS doubled": "only how fast it is: more points give the same line",
    "_FLOATS": SPEED,
    "_FAR": "only that it is farther than any cell",
    "_RANKED": "only how fast it is: two ways to the same order",
    "_MAX_VISITED": SPEED,
    "_BLOCK_PX": SPEED,
    "RANK_TOLERANCE": "any value between rounding (1e-13) and a real slope (1e-6) does",
    "_RAY_TOLERANCE_PX": "Newton's method misses by rounding or by pixels: any value between does",
    "_newton(iterations)": "fewer suffice from the table's start, and what is missed is followed",
    "point_map:_STEPS": "the least squares have converged after four steps",
    "point_map:_SAMPLES": SPEED,
    "point_times:_SAMPLES": SPEED,
    "_MOST_FINE doubled": "only a bound on memory",
    "_FINE_S halved": "only how fast it is: more exact than the poses are",
    "scan_buffer:_SAMPLES": SPEED,
    "memory:MAX_MEDIAN_POINTS": SPEED,
    "memory:MAX_FRACTION doubled": "left-out points never want three times the weight",
    "memory:MIN_ERROR": "any value between rounding and a real error does",
    "memory:MIN_POINTS halved": "the field itself needs four points",
    "memory:MIN_JUDGED_WEIGHT halved": "in no sequence does it move the weights by one in 300",
    "outliers:MIN_JUDGED_POINTS halved": "the field itself needs four points",
    "MIN_EDGE_POINTS doubled": "rooms with 110 to 190 points have the same interval to 4 digits",
    "LINES doubled": "scan lines reach MAX_ELONGATION, which is as much",
    "OWN_HOLE": "any value between rounding and a pixel leaves out the point itself alone",
    "CIRCLE": "the form of a hole without size, which leaves out the point itself alone",
    "kernels(threads)": SPEED,
    "_SHARES": SPEED,
    "_CONSTANT_RATIO": "any value between rounding and a real difference does",
    "_COLUMNS['field']": "never fitted: with too few points for the field there is one scale",
    "LINE_GAPS doubled": "the reach is LINE_CELLS there already",
}


# --- finding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """A number in a source file. start, end: its byte range there. path: within the package."""

    path: Path
    name: str
    text: str
    start: int
    end: int
    whole: bool  # whether it is an int, which must stay one

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that may name it in SURVIVORS, the most specific first."""
        short = self.name.partition("[")[0]
        return (f"{self.path.stem}:{self.name}", f"{self.path.stem}:{short}", self.name, short)


@dataclass(frozen=True)
class Mutant:
    """A constant with another value. change: halved or doubled."""

    constant: Constant
    text: str
    change: str

    def __str__(self) -> str:
        constant = self.constant
        return f"{constant.path}  {constant.name}  {constant.text} -> {self.text}"

    def source(self, original: bytes) -> bytes:
        """Return the file's content with the other value."""
        constant = self.constant
        return original[: constant.start] + self.text.encode() + original[constant.end :]


def constants_of(path: Path, package: Path) -> list[Constant]:
    """Return all numeric constants of a source file."""
    source = path.read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    found = []
    for name, node in _named(ast.parse(source).body, ""):
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = lines[node.lineno - 1] + node.col_offset
        end = lines[node.end_lineno - 1] + node.end_col_offset
        text = source[start:end].decode()
        whole = not any(
            isinstance(part, ast.Div | ast.Name)
            or (isinstance(part, ast.Constant) and isinstance(part.value, float))
            for part in ast.walk(node)
        )
        found.append(Constant(path.relative_to(package), name, text, start, end, whole))
    return found


def _named(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, ast.expr]]:
    """Yield names and numbers of the statements of a module or class."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                yield from _assigned(target, statement.value, owner)
        elif isinstance(statement, ast.AnnAssign | ast.AugAssign) and statement.value is not None:
            yield from _assigned(statement.target, statement.value, owner)
        elif isinstance(statement, ast.ClassDef):
            if not any("Enum" in ast.unparse(base) for base in statement.bases):
                yield from _named(statement.body, f"{owner}{statement.name}.")
        elif isinstance(statement, ast.FunctionDef):
            arguments = statement.args
            placed = [*arguments.posonlyargs, *arguments.args][-len(arguments.defaults) or None :]
            pairs = [*zip(placed, arguments.defaults, strict=False)]
            pairs += [
                (each, default)
                for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                if default is not None
            ]
            for argument, default in pairs:
                yield from _numbers(f"{owner}{statement.name}({argument.arg})", default)


def _assigned(target: ast.expr, value: ast.expr, owner: str) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for each, part in zip(target.elts, value.elts, strict=True):
            yield from _assigned(each, part, owner)
    elif isinstance(target, ast.Name):
        if isinstance(value, ast.Call) and ast.unparse(value.func) in ("option", "field"):
            defaults = [word.value for word in value.keywords if word.arg == "default"]
            for default in [*value.args[:1], *defaults]:
                yield from _numbers(owner + target.id, default)
        else:
            yield from _numbers(owner + target.id, value)


def _numbers(name: str, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(value, ast.Tuple | ast.List):
        for place, part in enumerate(value.elts):
            yield from _numbers(f"{name}[{place}]", part)
    elif isinstance(value, ast.Dict):
        for key, part in zip(value.keys, value.values, strict=True):
            yield from _numbers(f"{name}[{ast.unparse(key) if key else '**'}]", part)
    elif _is_number(value) and any(isinstance(part, ast.Constant) for part in ast.walk(value)):
        yield name, value


def _is_number(value: ast.expr) -> bool:
    """Return whether an expression is a number or computed from numbers and names."""
    if isinstance(value, ast.Constant):
        return isinstance(value.value, int | float) and not isinstance(value.value, bool)
    if isinstance(value, ast.BinOp):
        return all(_is_number(part) or isinstance(part, ast.Name) for part in
                   (value.left, value.right))  # fmt: skip
    return isinstance(value, ast.UnaryOp) and _is_number(value.operand)


def mutants_of(constant: Constant) -> list[Mutant]:
    """Return the mutants with half and double the value, as far as these differ from it."""
    half = "//" if constant.whole else "/"
    other: dict[str, Any]
    with contextlib.suppress(ValueError):
        value = ast.literal_eval(constant.text)
        other = {"halved": value // 2 if constant.whole else value / 2, "doubled": value * 2}
        return [Mutant(constant, repr(to), how) for how, to in other.items() if to != value]
    other = {"halved": half, "doubled": "*"}
    return [Mutant(constant, f"({constant.text}) {by} 2", how) for how, by in other.items()]


# --- trying --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result for a mutant. noticed_by: the test that failed first, "" for a survivor."""

    mutant: Mutant
    noticed_by: str
    seconds: float


class Workshop:
    """Copies of the package and its tests, each in a folder of its own, with numba's cache.

    numba caches machine code by the path, time and size of a source file and does not notice
    changed constants in other files. A mutant of a name that occurs in a module with compiled code
    is therefore compiled anew into an empty cache; all others use the cache of the unchanged copy.
    """

    def __init__(self, folder: Path, copies: int) -> None:
        self.folder = folder
        self.free: SimpleQueue[Path] = SimpleQueue()
        unwanted = shutil.ignore_patterns("__pycache__", ".*cache")
        for number in range(copies):
            root = folder / f"copy{number}"
            for name in (PACKAGE, "tests"):
                shutil.copytree(REPO / name, root / name, ignore=unwanted)
            shutil.copy(REPO / "setup.cfg", root)
            self.free.put(root)
        self.beside_compiled = _names_beside_compiled_code()
        os.environ.update(
            NUMBA_CACHE_DIR=str(folder / "numba"),
            OMP_NUM_THREADS="1",
            OPENBLAS_NUM_THREADS="1",
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        )
        for promise in [name for name in os.environ if name.startswith("REQUIRE_")]:
            del os.environ[promise]
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload([*PRELOADED, "numba"])

    def unchanged(self, mutants: list[Mutant]) -> list[str]:
        """Run these mutants' tests in every copy without a change, which also fills the caches.

        Returns the tests that fail.
        """
        areas = dict.fromkeys(_area(mutant) for mutant in mutants)
        roots = [self.free.get() for _ in range(self.free.qsize())]
        with ThreadPoolExecutor(len(roots)) as pool:
            failed = list(pool.map(lambda root: self._run(root, *areas), roots))
        for root in roots:
            self.free.put(root)
        return [name for name in failed if name]

    def tried(self, mutant: Mutant, number: int) -> Outcome:
        """Run the tests on a mutant. number: of the mutant, above 0 and unique."""
        begin = time.perf_counter()
        root = self.free.get()
        path = root / PACKAGE / mutant.constant.path
        original, times = path.read_bytes(), path.stat()
        try:
            path.write_bytes(mutant.source(original))
            # Python identifies byte code by its source's size and time in seconds, so give each
            # mutant a time of its own.
            os.utime(path, (times.st_atime, times.st_mtime + 10 * number))
            noticed_by = self._run(
                root,
                _area(mutant),
                first=f"test_{mutant.constant.path.stem}.py",
                own_cache=self._own_cache(mutant),
            )
        finally:
            path.write_bytes(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            self.free.put(root)
        return Outcome(mutant, noticed_by, time.perf_counter() - begin)

    def _own_cache(self, mutant: Mutant) -> bool:
        name = mutant.constant.name.partition("[")[0].rpartition(".")[2]
        return name in self.beside_compiled

    def _run(self, root: Path, *areas: str, first: str = "", own_cache: bool = False) -> str:
        """Return the first test that fails, "" if none does. first: file of the tests to begin
        with.
        """
        tests = list(dict.fromkeys(test for area in areas for test in TESTS[area]))
        tests = [test for test in tests if (root / test).exists()]
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            cache = scratch if own_cache else str(self.folder / "numba")
            here, there = self.processes.Pipe(duplex=False)
            output = str(Path(scratch) / "output")
            if areas == ("fitting/field",):
                first = "[field"  # cases of GOLDEN that notice nearly every mutant
            child = self.processes.Process(
                target=_child, args=(root, tests, first, cache, output, there)
            )
            child.start()
            there.close()
            answered = here.poll(END_S)
            try:
                code, failed = here.recv() if answered else (1, "(no end)")
            except EOFError:
                child.join()
                code, failed = 1, "(no end)" if child.exitcode == -signal.SIGXCPU else "(crash)"
            child.kill()
            child.join()
            if code == 5:  # pytest found no test; 4 means that conftest.py cannot be imported
                raise RuntimeError(f"pytest could not run ({code}):\n{Path(output).read_text()}")
        return failed or ("(does not import)" if code else "")


def _area(mutant: Mutant) -> str:
    place = mutant.constant.path.as_posix()
    return next(area for area in TESTS if f"{place}/".startswith(f"{area}/"))


def _names_beside_compiled_code() -> set[str]:
    """Return all names in modules that use the decorator `compiled`."""
    found: set[str] = set()
    for path in sorted((REPO / PACKAGE).rglob("*.py")):
        names = {
            word
            for node in ast.walk(ast.parse(path.read_bytes()))
            for word in ([node.id] if isinstance(node, ast.Name) else [])
        }
        if "compiled" in names:
            found |= names
    return found


def _child(
    root: Path, tests: list[str], begin: str, cache: str, output: str, answer: Connection
) -> None:
    """Run the tests of a copy in this fresh process and send (exit status, first failed test).

    begin: text in the node ids of the tests to begin with.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT_S, CPU_LIMIT_S + 10))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(output, "wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    for name in [name for name in sys.modules if name.split(".")[0] in (PACKAGE, "tests")]:
        del sys.modules[name]
    os.chdir(root)
    sys.dont_write_bytecode = False  # byte code halves the time of a start; see `tried`
    sys.path.insert(0, str(root))
    os.environ |= {"PYTHONPATH": str(root), "NUMBA_CACHE_DIR": cache}
    import pytest

    with contextlib.suppress(ImportError):
        import numba

        numba.config.CACHE_DIR = cache
    first: list[str] = []

    class Watch:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items.sort(key=lambda item: begin not in item.nodeid)

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed and not first:
                first.append(report.nodeid)

    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    options += ["-k", " and ".join(f"not {word}" for word in LEFT_OUT)]
    code = int(pytest.main([*options, *tests], plugins=[Watch()]))
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == PACKAGE and getattr(module, "__file__", None):
            assert str(module.__file__).startswith(str(root)), f"{name} is not the copy's"
    answer.send((code, first[0] if first else ""))
    answer.close()
    os._exit(0)


# --- reporting -----------------------------------------------------------------------------------


def reason(mutant: Mutant) -> str:
    """Return why a mutant may survive, or ""."""
    keys = [f"{key}{how}" for key in mutant.constant.keys for how in (f" {mutant.change}", "")]
    return next((SURVIVORS[key] for key in keys if key in SURVIVORS), "")


def unknown_survivors(constants: list[Constant]) -> list[str]:
    """Return the names in SURVIVORS that are not those of a constant."""
    known = {key for constant in constants for key in constant.keys}
    return sorted(name for name in SURVIVORS if name.partition(" ")[0] not in known)


def all_constants() -> list[Constant]:
    """Return the constants of FOLDERS."""
    package = REPO / PACKAGE
    paths = [path for folder in FOLDERS for path in sorted((package / folder).rglob("*.py"))]
    return [constant for path in paths for constant in constants_of(path, package)]


def report(outcomes: list[Outcome], constants: list[Constant]) -> int:
    """Print the survivors; return the exit status."""
    survivors = [outcome.mutant for outcome in outcomes if not outcome.noticed_by]
    times = Counter(mutant.constant for mutant in survivors)
    print(f"\n{len(survivors)} of {len(outcomes)} mutants survived", end="")
    print(f" ({len(survivors) / max(len(outcomes), 1):.1%}), of {len(times)} constants:")
    for mutant in sorted(survivors, key=str):
        print(f"  {mutant}: {reason(mutant) or 'NO REASON IS GIVEN (SURVIVORS)'}")
    files = Counter(str(outcome.mutant.constant.path) for outcome in outcomes)
    lost = Counter(str(mutant.constant.path) for mutant in survivors)
    print(
        "\n" + "\n".join(f"  {lost[path]:3} of {files[path]:3}  {path}" for path in sorted(files))
    )
    bad = [mutant for mutant in survivors if not reason(mutant)]
    unknown = unknown_survivors(constants)
    for name in unknown:
        print(f"SURVIVORS has {name}, which is no constant any more: take it out.")
    only_speed = sum(reason(mutant).startswith(ONLY_SPEED) for mutant in survivors)
    counted = max(len(outcomes) - only_speed, 1)
    share = (len(survivors) - only_speed) / counted
    print(f"{only_speed} change only how fast it is; of the other {counted} {share:.1%} survived")
    too_many = share > ACCEPTED_SHARE
    if too_many:
        print("More than one in ten survived: extend the tests.")
    return int(bool(bad or unknown or too_many))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: try the selected mutants; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--only", nargs="+", default=[""], metavar="PART",
        help="part of a constant's name or of a path; several: whatever matches one")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the mutants, try none")
    parser.add_argument("--new", action="store_true",
        help="take those that SURVIVORS excuses for survivors and try the others")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    constants = all_constants()
    mutants = [
        mutant
        for constant in constants
        if any(part in f"{constant.path.as_posix()} {constant.name}" for part in given.only)
        for mutant in mutants_of(constant)
    ]
    tried = [mutant for mutant in mutants if not (given.new and reason(mutant))]
    if given.list:
        print("\n".join(map(str, mutants)))
        print(f"{len(mutants)} mutants of {len({mutant.constant for mutant in mutants})} constants")
        return 0
    if not mutants:
        print(f"no constant matches {' '.join(given.only)}: see --list")
        return 2
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="depth_node_mutants_") as folder:
        workshop = Workshop(Path(folder), given.workers)
        failed = workshop.unchanged(tried)
        if failed:
            print(f"{failed[0]} fails without any change: repair it first")
            return 2
        print(f"{len(tried)} mutants; set up in {time.perf_counter() - begin:.0f} s", flush=True)
        outcomes = [Outcome(mutant, "", 0.0) for mutant in mutants if mutant not in tried]
        with ThreadPoolExecutor(given.workers) as pool:
            running = [pool.submit(workshop.tried, mutant, number + 1)
                       for number, mutant in enumerate(tried)]  # fmt: skip
            for done in as_completed(running):
                outcome = done.result()
                outcomes.append(outcome)
                verdict = outcome.noticed_by.rpartition("::")[2] or "SURVIVED"
                print(f"{outcome.seconds:5.1f} s  {outcome.mutant}  {verdict}", flush=True)
    status = report(outcomes, constants)
    print(f"{time.perf_counter() - begin:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
