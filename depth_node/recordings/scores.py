# SPDX-License-Identifier: Apache-2.0
"""Errors of the depth of recorded frames, for the pipeline's method and others to compare with.

Every method gets the same prediction, regions and points as the pipeline's own. Points that were
used are never scored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from depth_node.config import replace
from depth_node.frame import FrameInput
from depth_node.metrics import coverage, evaluate, mean_over_sources
from depth_node.pipeline import DepthPipeline, DepthResult
from depth_node.recordings.sources import ScoredFrame

COMPARED = ("global_depth", "global_disparity", "slf", "ssf")
SCORES = ("abs_rel", "delta1", "rmse", "coverage95", "answered")


class MethodComparison:
    """Runs other methods on the prediction, regions and points of the pipeline's result."""

    def __init__(self, pipeline: DepthPipeline, methods: Sequence[str] = COMPARED) -> None:
        own = pipeline.config.fit.method
        self.own = own
        self._rivals = {
            method: DepthPipeline(
                replace(pipeline.config, {"fit.method": method}),
                pipeline.depth_model,
                pipeline.region_model,
            )
            for method in methods
            if method != own
        }
        self.methods = (*self._rivals, own)

    def results(self, frame: FrameInput, result: DepthResult) -> dict[str, DepthResult]:
        """Return the result of each method, the pipeline's own last."""
        by_method = {}
        labels = result.labels if result.labels is not None else frame.labels
        # Without a stamp each method works on this frame alone, without memory.
        frame = dataclasses.replace(
            frame, stamp_ns=None, prediction=result.prediction, sparse=result.sparse
        )
        for method, rival in self._rivals.items():
            by_method[method] = rival.process(dataclasses.replace(frame, labels=labels))
            if labels is None:  # segment once, for all methods that need regions
                labels = by_method[method].labels
        by_method[self.own] = result
        return by_method


def score(frame: ScoredFrame, method: str, result: DepthResult) -> dict[str, Any]:
    """Return the row of a frame and method: its status and errors, None where there is no truth."""
    row: dict[str, Any] = {
        "source": frame.source,
        "frame": frame.name,
        "method": method,
        "points": len(result.sparse),
        "status": result.fit.status.name,
        "message": result.fit.message,
        **dict.fromkeys(SCORES),
        "scored_pixels": 0,
        "stage_ms": {stage: round(ms, 3) for stage, ms in result.stage_ms.items()},
        "ms": round(result.stage_ms["total"], 3),
    }
    truth = frame.scored_truth
    if truth is not None:
        metrics = evaluate(result.depth, truth)
        values = {**metrics.as_dict(), "coverage95": coverage(result.depth, result.std, truth)}
        row.update({key: _number(values[key]) for key in SCORES})
        row["scored_pixels"] = int(metrics.pixels)
    return row


def summarise(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return for each method the scores averaged over the frames of a source, then over sources.

    A frame without depth has no error; `answered` shows that it is missing.
    """
    table: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        table.setdefault(row["method"], {}).setdefault(row["source"], []).append(row)
    return [
        {
            "method": method,
            "sources": len(sources),
            "frames": sum(len(found) for found in sources.values()),
            **{
                key: _number(mean_over_sources(_values(key, sources)))
                for key in (*SCORES, "points", "ms")
            },
        }
        for method, sources in table.items()
    ]


def _values(key: str, sources: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """Return the values of a column for each source; NaN where a row has none."""
    return {
        name: [math.nan if row[key] is None else row[key] for row in rows]
        for name, rows in sources.items()
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def metric_cells(row: Mapping[str, Any]) -> list[str]:
    """Return a row's AbsRel, delta1, RMSE, coverage and answered fraction as text."""
    forms = (("abs_rel", "{:.4f}"), ("delta1", "{:.3f}"), ("rmse", "{:.3f} m"))
    shares = (("coverage95", "{:.1%}"), ("answered", "{:.1%}"))
    return [
        "-" if row.get(key) is None else form.format(row[key]) for key, form in (*forms, *shares)
    ]


METRIC_HEAD = ("AbsRel", "delta1", "RMSE", "in 95 % band", "answered")


def markdown(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary as a Markdown table."""
    lines = [
        "| method | " + " | ".join(METRIC_HEAD) + " |",
        "|---|" + "--:|" * len(METRIC_HEAD),
    ]
    lines += [f"| {row['method']} | " + " | ".join(metric_cells(row)) + " |" for row in summary]
    return "\n".join(lines) + "\n"
