# SPDX-License-Identifier: Apache-2.0
"""Networks of others: which are known by name, fetching, converting and comparing them."""
