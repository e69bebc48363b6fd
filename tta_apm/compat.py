"""Compat: the one place that works around what dependencies do wrong."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from tta_apm.errors import UserError


def import_robustbench() -> ModuleType:
    """Import robustbench.

    robustbench 1.1.1 depends on the distribution pyautoattack, whose module has that name too, but
    imports `autoattack`: lend it that name.

    Raises:
        UserError: if robustbench does not import.
    """
    try:
        if importlib.util.find_spec("autoattack") is None:
            for name in ("", ".state"):
                module = importlib.import_module("pyautoattack" + name)
                sys.modules["autoattack" + name] = module
        return importlib.import_module("robustbench")
    except ImportError as error:
        raise UserError(f"robustbench does not import ({error}): pip install -U robustbench "
                        "pyautoattack 'setuptools<82'") from error
