"""Plugins: import the modules and files that a config names, which register their methods.

Importing runs them: a config that names plugins is code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tta_apm.errors import UserError, name_and_text, raised_at


def import_plugin(plugin: str, key: str = "PLUGINS") -> ModuleType:
    """Import a module by its name, or a .py file by its path.

    Args:
        key: the config key that names the plugin, for errors.

    Raises:
        UserError: if the import raises anything; it names the line that raised.
    """
    if not plugin:
        raise UserError(f"{key}: an entry is empty")
    file = Path(plugin) if plugin.endswith(".py") else None
    try:
        return _import_file(file) if file is not None else importlib.import_module(plugin)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: a plugin must not end the command
        raise UserError(f"{key}: {plugin!r} cannot be imported: "
                        f"{name_and_text(error)}{raised_at(error, file)}") from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    # The hash keeps files of the same name in different folders apart.
    name = f"tta_apm_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
