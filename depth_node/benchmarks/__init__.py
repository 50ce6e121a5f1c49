# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: accuracy and speed of the methods, the engines and the node."""
