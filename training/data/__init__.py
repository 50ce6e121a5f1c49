# SPDX-License-Identifier: Apache-2.0
"""Training data: readers, augmentation, masks and labels."""
