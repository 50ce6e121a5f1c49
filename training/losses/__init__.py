# SPDX-License-Identifier: Apache-2.0
"""Losses and normalisations of the recipes, each with its paper and equation."""
