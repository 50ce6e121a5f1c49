# SPDX-License-Identifier: Apache-2.0
"""The study of labels: its places, its measure, and the whole command in small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch (requirements-training.txt)")

from tests.training.recipes.test_westar import samples
from training.__main__ import main
from training.studies import labels as study


def test_upside_down_turns_image_and_depth_together() -> None:
    (first, *_), (turned, *_) = samples(2), study.seen_from("upside_down", samples(2))
    assert first.depth is not None and turned.depth is not None
    np.testing.assert_array_equal(turned.image[::-1, ::-1], first.image)
    np.testing.assert_array_equal(turned.depth[::-1, ::-1], first.depth)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 1.0), (-1.0, 0.0), (0.0, 0.0)])
def test_agreement_counts_pairs_in_their_order_and_no_ties(sign: float, expected: float) -> None:
    from training.models.network_io import NetworkInput, NetworkOutput

    class Bright(torch.nn.Module):
        """A network that outputs brightness, the disparity of these images, times `sign`."""

        spec = NetworkInput((0.0,) * 3, (1.0,) * 3, 1)

        def answer(self, x: torch.Tensor) -> NetworkOutput:
            return NetworkOutput(sign * x.mean(1, keepdim=True), None, x)

    images = samples(4)
    labels = study.labels_of(images)
    assert len(labels) == 12
    seen = study.agreement(Bright(), images, labels, images[0].image.shape[:2])  # type: ignore[arg-type]
    assert seen == pytest.approx(expected, abs=0.2)


def test_the_command_in_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--images", "3", "--rooms", "2", "--transformer", "2", "--set", "loop.steps=2",
             "loop.tensorboard=false"]  # fmt: skip
    assert main(["study", "labels", "--out", str(tmp_path), *small]) == 0
    printed = capsys.readouterr().out
    assert "| learnt | 9 |" in printed and "| held back | 6 |" in printed
