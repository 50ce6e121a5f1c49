# SPDX-License-Identifier: Apache-2.0
"""What the node publishes: topics, messages, diagnostics, and layouts that show them."""
