"""Test-time adaptation methods side by side, with APM, the Asynchronous Perception Machine.

Each exported name is imported when it is first used: `import tta_apm` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tta_apm.api import evaluate, load_backbone, load_method, load_results
    from tta_apm.backbones.classifiers import Classifier
    from tta_apm.data.load import load_dataset
    from tta_apm.method import Method, register

__version__ = "0.1.0"
__all__ = ["Classifier", "Method", "evaluate", "load_backbone", "load_dataset", "load_method",
           "load_results", "register"]

_HOMES = {"Classifier": "tta_apm.backbones.classifiers", "Method": "tta_apm.method",
          "register": "tta_apm.method", "load_dataset": "tta_apm.data.load"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "tta_apm.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
