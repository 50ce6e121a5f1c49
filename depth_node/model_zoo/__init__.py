# SPDX-License-Identifier: Apache-2.0
"""Networks known by name: registry, download, conversion to FP16, comparison."""
