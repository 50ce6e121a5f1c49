# SPDX-License-Identifier: Apache-2.0
"""What several tests need: a rig for the live node, recordings, tiny models, a played GPU."""

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
