# SPDX-License-Identifier: Apache-2.0
"""How good a network is: predictions once, scores many times."""
