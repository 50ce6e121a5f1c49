# SPDX-License-Identifier: Apache-2.0
"""Training of depth networks, off line: run from the checkout as `python -m training`; not installed on a robot."""
