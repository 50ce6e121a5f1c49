# SPDX-License-Identifier: Apache-2.0
"""Engines that run networks. A manifest describes a model file; an engine runs it."""


class EngineError(RuntimeError):
    """A model cannot be opened or run; the message is one sentence with cause and cure."""


class BackendError(EngineError):
    """This machine cannot use a back end, whatever the model."""
