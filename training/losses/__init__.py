# SPDX-License-Identifier: Apache-2.0
"""Losses and normalisations that the recipes use, each with its paper and equation."""
