"""Compat: the one place that works around what dependencies do wrong."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

from tta_apm.errors import UserError


def import_robustbench() -> ModuleType:
    """Import robustbench. UserError if that fails."""
    try:
        lend_autoattack()
        with warnings.catch_warnings():  # our pin of setuptools sees to it
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            return importlib.import_module("robustbench")
    except ImportError as error:
        raise UserError(f"robustbench does not import ({error}): pip install -U robustbench "
                        "pyautoattack 'setuptools<82'") from error


def lend_autoattack() -> None:
    """Let robustbench, and copies of it, import `autoattack`.

    robustbench 1.1.1 depends on the distribution pyautoattack, whose module has that name too.
    ImportError if neither is installed.
    """
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        for name in ("", ".state"):
            sys.modules["autoattack" + name] = importlib.import_module("pyautoattack" + name)
