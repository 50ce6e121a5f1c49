# SPDX-License-Identifier: Apache-2.0
"""Evaluation of the soak test: frames, growth, a stuck node and log lines; without ROS or clock."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

_BEGINS = ("Traceback (most recent call last)", "Fatal Python error", "Exception ignored in")
EXPIRY_S = 5.0  # an image whose depth has not arrived by then is unanswered
FATES = ("dropped", "refused", "failed", "skipped_no_subscribers")


@dataclass(frozen=True)
class Limits:
    """Limits beyond which something is a failure.

    Growth is judged only in a life of the node of at least warm_up_s + judged_s, after warm_up_s.
    """

    stuck_s: float = 5.0  # without depth, although inputs arrive and the node is active
    blind_s: float = 15.0  # with depth of which no pixel is known
    grace_s: float = 5.0  # after a fault has ended
    warm_up_s: float = 300.0
    judged_s: float = 600.0
    rss_mb_per_h: float = 30.0
    rss_mb: float = 15.0  # growth must exceed this too, because a slope may be large by chance
    threads: int = 2
    files: int = 8


@dataclass(frozen=True)
class Sample:
    """The state of the node's process at one time; rss, anon and shmem in MB (parts of rss)."""

    at_s: float
    life: int  # number of the node's start
    age_s: float
    rss: float
    anon: float
    shmem: float
    threads: int
    files: int


@dataclass
class Failure:
    """A kind of failure: its first time, the fault that was being injected, and its count."""

    kind: str
    text: str
    at_s: float
    fault: str
    recent: list[str] = field(default_factory=list)
    count: int = 1


class Failures:
    """All failures; those that differ only in the numbers of their text count as one."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Failure] = {}

    def add(self, kind: str, text: str, at_s: float, fault: str, recent: Iterable[str]) -> bool:
        """Add a failure; return True if it is a new one."""
        key = (kind, re.sub(r"\d+(\.\d+)?", "#", text.strip().splitlines()[-1] if text else ""))
        if key in self.found:
            self.found[key].count += 1
            return False
        self.found[key] = Failure(kind, text, round(at_s, 1), fault, list(recent))
        return True

    def as_dicts(self) -> list[dict[str, Any]]:
        return [asdict(failure) for failure in self.found.values()]


class Frames:
    """Counts of what became of the images, matched by stamp, separately for times with a fault."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.latency_ms: list[float] = []
        self._pending: dict[int, tuple[float, bool]] = {}
        self._last: dict[str, int] = {}

    def sent(self, stamp_ns: int, at_s: float, calm: bool) -> None:
        self.counts["in"] += 1
        if stamp_ns:  # a stamp of zero has no identity
            self._pending[stamp_ns] = (at_s, calm)

    def received(self, stamp_ns: int, at_s: float) -> None:
        self.counts["out"] += 1
        sent = self._pending.pop(stamp_ns, None)
        if sent is not None and sent[1]:
            self.latency_ms.append((at_s - sent[0]) * 1e3)

    def expire(self, now_s: float, calm: bool) -> None:
        """Count images sent more than EXPIRY_S ago as unanswered."""
        old = [stamp for stamp, sent in self._pending.items() if sent[0] < now_s - EXPIRY_S]
        for stamp in old:
            _, then_calm = self._pending.pop(stamp)
            self.counts["unanswered, calm" if calm and then_calm else "unanswered, fault"] += 1

    def told(self, values: dict[str, str], calm: bool) -> None:
        """Take the node's own counters from /diagnostics, which a reset sets to zero."""
        for fate in FATES:
            if f"frames {fate}" not in values:
                continue
            total = int(values[f"frames {fate}"])
            new = total - self._last.get(fate, 0)
            new = total if new < 0 else new
            self._last[fate] = total
            self.counts[fate] += new
            self.counts["explained, calm"] += new if calm else 0

    @property
    def lost(self) -> int:
        """Number of images of calm times with neither depth nor a counted fate.

        It may be wrong by a few at the edges of calm times.
        """
        return max(0, self.counts["unanswered, calm"] - self.counts["explained, calm"])

    def percentiles(self) -> list[float] | None:
        """Return p50, p95 and p99 from publication to receipt of images of calm times, ms."""
        if not self.latency_ms:
            return None
        return [round(float(x), 1) for x in np.percentile(self.latency_ms, (50, 95, 99))]


@dataclass
class Flow:
    """Times of the last input and depth, by which a stuck or blind node is found."""

    limits: Limits
    last_in: float = -1e9
    flowing_since: float = -1e9
    last_out: float = -1e9
    last_metres: float = -1e9

    def image(self, now_s: float) -> None:
        if now_s - self.last_in > 1.0:
            self.flowing_since = now_s
        self.last_in = now_s

    def depth(self, now_s: float, known: float) -> None:
        self.last_out = now_s
        if known > 0:
            self.last_metres = now_s

    def trouble(self, now_s: float, calm_since_s: float) -> str:
        """Return "stuck" or "blind" if inputs arrive and it has been calm for long enough without
        an answer, else "".

        calm_since_s: when the last fault's window and grace ended, +Inf while they last.
        """
        if now_s - self.last_in > 1.0:
            return ""
        begin = max(calm_since_s, self.flowing_since)
        if now_s - max(begin, self.last_out) > self.limits.stuck_s:
            return "stuck"
        if now_s - max(begin, self.last_metres) > self.limits.blind_s:
            return "blind"
        return ""


def slope(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Return the Theil-Sen slope per hour, which one jump or peak does not change much."""
    t, v = np.asarray(times_s, float), np.asarray(values, float)
    if len(t) < 2:
        return float("nan")
    every = max(1, len(t) // 400)
    t, v = t[::every], v[::every]
    first, second = np.triu_indices(len(t), 1)
    apart = t[second] - t[first]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = (v[second] - v[first]) / apart
    return float(np.median(slopes[apart > 0])) * 3600.0


def growth(samples: Sequence[Sample], limits: Limits) -> dict[str, Any]:
    """Return memory, threads and descriptors of the node's longest life, and what grew too much.

    If that life is shorter than warm_up_s + judged_s, its last two thirds are described and
    `judged` is False.
    """
    if not samples:
        return {"judged": False, "grown": []}
    lives = Counter(sample.life for sample in samples)
    life = max(lives, key=lambda number: lives[number])
    mine = [sample for sample in samples if sample.life == life]
    length = mine[-1].age_s
    judged = length >= limits.warm_up_s + limits.judged_s
    warm = limits.warm_up_s if judged else length / 3
    later = [sample for sample in mine if sample.age_s >= warm] or mine
    part = max(1, min(60, len(later) // 4))
    facts: dict[str, Any] = {
        "judged": judged, "life": life, "life_s": round(length, 1), "warm_up_s": round(warm, 1),
        "rss_start_mb": round(mine[0].rss, 1),
        "rss_5min_mb": next((round(s.rss, 1) for s in mine if s.age_s >= 300), None),
        "rss_end_mb": round(mine[-1].rss, 1),
    }  # fmt: skip
    grown = []
    for name in ("rss", "anon", "shmem"):
        values = [getattr(sample, name) for sample in later]
        per_hour = slope([sample.age_s for sample in later], values)
        gain = float(np.median(values[-part:]) - np.median(values[:part]))
        facts[f"{name}_mb_per_h"], facts[f"{name}_gain_mb"] = round(per_hour, 1), round(gain, 1)
        if name == "rss" and per_hour > limits.rss_mb_per_h and gain > limits.rss_mb:
            grown.append(f"memory grows by {per_hour:.0f} MB/h ({gain:.0f} MB after warm-up)")
    for name, limit in (("threads", limits.threads), ("files", limits.files)):
        values = [getattr(sample, name) for sample in later]
        first, last = float(np.median(values[:part])), float(np.median(values[-part:]))
        facts[f"{name}_first"], facts[f"{name}_last"] = first, last
        facts[f"{name}_max"] = max(values)
        if last - first > limit:
            grown.append(f"{name} grow from {first:g} to {last:g}")
    facts["grown"] = grown if judged else []
    facts["would_be"] = grown
    return facts


class LogReader:
    """Reader of a log that finds tracebacks and fatal errors and counts errors and warnings."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()
        self.last: list[str] = []
        self._block: list[str] = []

    def line(self, text: str) -> str:
        """Take a line; return the whole traceback when its last line has arrived, else ""."""
        self.last = [*self.last[-29:], text]
        done = ""
        if self._block:
            self._block.append(text)
            head = self._block[0]
            inside = text.startswith((" ", "\t", "Traceback")) or not text.strip()
            fatal = "Fatal Python error" in head
            if (not inside and not fatal) or len(self._block) > 40:
                done = self.flush()
        elif any(words in text for words in _BEGINS):
            self._block = [text]
        elif re.search(r"\[ERROR\]|\[FATAL\]|\b\w+Warning: ", text):
            # Remove time and numbers, so that equal lines count as one.
            words = re.sub(r"^.*?\]: ", "", text)
            self.errors[re.sub(r"\d+(\.\d+)?", "#", words)[:300]] += 1
        return done

    def flush(self) -> str:
        """Return the unfinished traceback at the end of the log, or ""."""
        block, self._block = "\n".join(self._block), []
        return block


def table(result: dict[str, Any]) -> str:
    """Return a Markdown table of a result as stored in `soak.json`."""
    frames, growth_ = result["frames"], result["growth"]
    latency = result["latency_ms"]

    def mb(key: str) -> str:
        value = growth_.get(key)
        return "-" if value is None else f"{value:.0f} MB"

    rows = [
        ("time", f"{result['minutes']:.1f} min, {result['rate']:g} Hz, seed {result['seed']}"),
        ("images in", frames["in"]),
        ("depth images out", frames["out"]),
        ("dropped for a newer one", frames["dropped"]),
        ("refused (hostile, wrong size)", frames["refused"]),
        ("failed in the node", frames["failed"]),
        ("skipped, no subscriber", frames["skipped_no_subscribers"]),
        ("unanswered during a fault", frames["unanswered, fault"]),
        ("lost in calm times", frames["lost"]),
        (
            "publish to receive p50 / p95 / p99",
            " / ".join(f"{x:.0f}" for x in latency) + " ms" if latency else "-",
        ),
        (
            "memory at start / 5 min / end",
            f"{mb('rss_start_mb')} / {mb('rss_5min_mb')} / {mb('rss_end_mb')}",
        ),
        (
            "memory slope after warm-up",
            f"{growth_.get('rss_mb_per_h', float('nan')):.1f} MB/h"
            + ("" if growth_["judged"] else " (too short to judge)"),
        ),
        ("threads first / last", _pair(growth_, "threads")),
        ("file descriptors first / last", _pair(growth_, "files")),
        ("restarts of the node, after a failure, of the publisher",
         ", ".join(str(result["restarts"][key])
                   for key in ("node", "node, after a failure", "publisher"))),
        ("injected faults", f"{sum(result['faults'].values())}: "
         + ", ".join(f"{name} {count}" for name, count in sorted(result["faults"].items()))),
        ("failures", f"{sum(f['count'] for f in result['failures'])}"
         f" of {len(result['failures'])} kinds"),
    ]  # fmt: skip
    lines = ["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    for failure in result["failures"]:
        last = failure["text"].strip().splitlines()[-1].replace("|", "\\|")
        lines.append(f"| {failure['kind']} × {failure['count']} ({failure['fault']}) | {last} |")
    return "\n".join(lines)


def _pair(facts: dict[str, Any], name: str) -> str:
    if f"{name}_first" not in facts:
        return "-"
    return f"{facts[f'{name}_first']:g} / {facts[f'{name}_last']:g}"
