# SPDX-License-Identifier: Apache-2.0
"""Networks that are trained, that teach, and their low-rank updates."""
