# SPDX-License-Identifier: Apache-2.0
"""One module per recipe: each supplies the model, the batches and the loss of a step;
training/loop.py does the rest.
"""
