# SPDX-License-Identifier: Apache-2.0
"""Recipes, one module each: model, batches and loss (training/recipe.py); loop.py does the rest.

Each module has `Config`, a frozen dataclass with a section `loop` (LoopConfig), and
`build(cfg, console)`, which returns the Recipe.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from depth_node import config
from depth_node.sentences import nearest

# Name of a recipe, on the command line and in checkpoints -> its help text.
RECIPES = {
    "supervised": "train a student on rendered rooms",
    "westar": "adapt a network to the images of a new place",
    "distill": "train a student on the predictions of teachers",
    "depthmaster": "train a diffusion network that predicts depth in one step, a teacher",
    "refine": "train the network that refines method field",
    "mesa": "pre-train an encoder masked, geometrically and supervised, or fine-tune it",
}


def find(name: str) -> ModuleType:
    """Import and return the module of a recipe; no other one, as some need large libraries.

    Raises ConfigError for an unknown name.
    """
    if name not in RECIPES:
        guess = nearest(name, RECIPES)
        hint = f"; did you mean {guess!r}?" if guess else f"; there are {', '.join(RECIPES)}"
        raise config.ConfigError(f"no recipe is called {name!r}{hint}")
    return importlib.import_module(f"training.recipes.{name}")
