# SPDX-License-Identifier: Apache-2.0
"""Instruments: how accurate and how fast the methods and the node are."""
