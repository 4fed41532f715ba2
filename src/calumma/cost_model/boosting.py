"""XGBoost, loaded when a model is made: compiling needs none, and it brings all of scikit-learn where that is there."""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def xgboost() -> Any:
    """The module. The models ask for it when they are made, so that its loading is no part of a first fit."""
    return importlib.import_module("xgboost")
