"""Compat: all workarounds for faults of our dependencies.

    python -m tta_apm.compat MODULE ARGUMENT ...

runs a module that imports robustbench, where `import robustbench` alone would fail.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import runpy
import sys
import warnings
from types import ModuleType

from tta_apm.errors import UserError


def import_robustbench() -> ModuleType:
    """Import and return robustbench; UserError if that fails."""
    try:
        alias_pyautoattack()
        with warnings.catch_warnings():  # setup.cfg pins a setuptools that still has it
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
            return importlib.import_module("robustbench")
    except ImportError as error:
        raise UserError(f"robustbench does not import ({error}): pip install -U robustbench "
                        "pyautoattack 'setuptools<82'") from error


def alias_pyautoattack() -> None:
    """Make `import autoattack` find pyautoattack, which robustbench needs.

    robustbench 1.1.1 imports autoattack, but the distribution it depends on is pyautoattack.

    Raises:
        ImportError: if neither is installed.
    """
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        for name in ("", ".state"):
            sys.modules["autoattack" + name] = importlib.import_module("pyautoattack" + name)


def main() -> None:
    """Run a module in which robustbench can be imported."""
    parser = argparse.ArgumentParser(
        "python -m tta_apm.compat",
        description="Run a module, e.g. of robustbench, so that its import of autoattack works.")
    parser.add_argument("module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the module")
    options = parser.parse_args()
    alias_pyautoattack()
    sys.argv = [options.module, *options.arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
