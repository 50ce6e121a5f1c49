# SPDX-License-Identifier: Apache-2.0
"""Training of depth networks: run from the checkout as `python -m training`, not on a robot."""
