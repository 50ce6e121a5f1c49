# SPDX-License-Identifier: Apache-2.0
"""Trained networks into ONNX files with a manifest."""
