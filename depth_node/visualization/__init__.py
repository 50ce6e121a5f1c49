# SPDX-License-Identifier: Apache-2.0
"""Images for people: colours, points, clouds, text and panels."""
