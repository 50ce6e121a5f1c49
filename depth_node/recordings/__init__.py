# SPDX-License-Identifier: Apache-2.0
"""Recorded frames from folders, and their replay through the pipeline."""
