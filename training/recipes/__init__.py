# SPDX-License-Identifier: Apache-2.0
"""A module per recipe: it supplies model, batches and loss of a step, loop.py does the rest."""
