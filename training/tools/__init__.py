# SPDX-License-Identifier: Apache-2.0
"""Tools around training: labelling by hand, throughput, shards."""
