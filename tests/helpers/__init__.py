# SPDX-License-Identifier: Apache-2.0
"""Helpers of several tests: a rig for the live node, recordings, tiny models, a simulated GPU."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
