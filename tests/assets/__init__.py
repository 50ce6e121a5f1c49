# SPDX-License-Identifier: Apache-2.0
"""Frames of our own and the numbers that the methods reach on them (README.md)."""
