# SPDX-License-Identifier: Apache-2.0
"""The command line `depth_tools`, a module for each command."""
