# SPDX-License-Identifier: Apache-2.0
"""The life of a process of nodes: threads, signals, memory, and callbacks that may fail."""
