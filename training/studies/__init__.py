# SPDX-License-Identifier: Apache-2.0
"""What an experiment shows: the arguments behind the defaults (docs/studies)."""
