"""FDA-BNN: binary neural networks trained by frequency domain approximation of the sign function.

    create_model("resnet20")             a network; importing it registers all of them with mindcv, as `fda_<name>`
    create_estimator("fda", n=9)         the sign function with a surrogate gradient
    Binarization(estimator="fda")        the options of binarization; it makes binary layers

Importing this package imports no MindSpore: these names do, when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {"Binarization": ".binary", "create_estimator": ".binary", "create_model": ".models"}

__all__ = ["Binarization", "create_estimator", "create_model"]  # noqa: F822  (by __getattr__)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(".models", __name__)  # registers the networks
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
