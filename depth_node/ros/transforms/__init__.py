# SPDX-License-Identifier: Apache-2.0
"""TF of a live node: the buffer, and the poses that are looked up in it."""
