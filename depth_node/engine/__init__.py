# SPDX-License-Identifier: Apache-2.0
"""Networks behind one door: a manifest says what a model file is, an engine makes it run."""


class EngineError(RuntimeError):
    """A model cannot be opened or run; the sentence names the cause and the cure."""


class BackendError(EngineError):
    """A back end that this machine cannot use, whatever the model."""
