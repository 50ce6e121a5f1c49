# SPDX-License-Identifier: Apache-2.0
"""An image into regions: label maps, classical or from a network, carried between frames."""
