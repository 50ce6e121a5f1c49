# SPDX-License-Identifier: Apache-2.0
"""Tools beside training: labels by hand, throughput, shards."""
