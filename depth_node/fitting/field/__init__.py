# SPDX-License-Identifier: Apache-2.0
"""Method `field`: the residual of the points spread over the image (solve.py shows it whole)."""
