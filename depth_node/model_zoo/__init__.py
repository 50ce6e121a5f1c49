# SPDX-License-Identifier: Apache-2.0
"""Networks that are known by name: registry, download, conversion to FP16, comparison."""
