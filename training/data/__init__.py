# SPDX-License-Identifier: Apache-2.0
"""What a network learns from: readers, augmentation, masks and labels."""
