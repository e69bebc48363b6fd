"""Launch: running another repository's program in this process."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from tta_apm.bench.provenance import ask_git, commit_of
from tta_apm.errors import UserError, nearest


def find_folder(repo: str | Path, marker: str, inside: str = "") -> Path:
    """The folder of a host's program in the user's clone.

    Args:
        repo: the clone, or that folder itself.
        marker: name of a file in that folder.
        inside: its path in the clone.

    Raises:
        UserError: if it is not found.
    """
    for folder in (Path(repo, inside), Path(repo)):
        if (folder / marker).is_file():
            return folder.resolve()
    if not Path(repo).is_dir():
        raise UserError(f"there is no folder {repo}: give the folder of your clone")
    raise UserError(f"there is no {Path(inside, marker)} in {repo}: give the folder of your clone")


def tell_commit(folder: Path, tested: str) -> None:
    """Print a line if a clone was changed or is not at the commit that was tested.

    Nothing is printed for a folder that is not a clone, e.g. an unpacked archive.
    """
    commit = commit_of(folder)
    if not commit:
        return
    changed = len(ask_git(folder, "status", "--porcelain", "--untracked-files=no").splitlines())
    said = [f"is at commit {commit[:len(tested)]}, tested is {tested}"] * (
        not commit.startswith(tested))
    said += [f"differs from its commit in {changed} file{'s' * (changed > 1)}"] * bool(changed)
    if said:
        print(f"tta-apm: the clone {' and '.join(said)}", file=sys.stderr)


@contextmanager
def telling_flags() -> Iterator[None]:
    """A context in which errors of a host's argparse are UserErrors with the nearest known flag."""
    theirs = argparse.ArgumentParser.error

    def error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        unknown = [word for word in message.replace(":", " ").split() if word.startswith("--")
                   and word.partition("=")[0] not in known]
        advice = f"; {unknown[0]}: {nearest(unknown[0], known)}" if unknown else ""
        raise UserError(f"the host's command line: {message}{advice}")

    setattr(argparse.ArgumentParser, "error", error)
    try:
        yield
    finally:
        setattr(argparse.ArgumentParser, "error", theirs)


def require_paths(paths: Iterable[Path], advice: str) -> None:
    """Raise UserError for data that is not found, which hosts would download or fail on.

    Args:
        paths: relative to the working folder, which is the host's.
        advice: what to do, for the error message.
    """
    for path in paths:
        if not path.exists():
            # Name the first missing folder, not the file in it.
            lacking = next((parent for parent in reversed(path.parents) if not parent.exists()),
                           path)
            kind = "file" if lacking == path and path.suffix else "folder"
            raise UserError(f"there is no {kind} {lacking} in {Path.cwd()}: {advice}")


def require(packages: Mapping[str, str]) -> None:
    """Raise UserError that says what to install, unless all modules are found.

    Args:
        packages: names of modules -> names of their packages for pip.
    """
    absent = [name for module, name in packages.items() if not _is_installed(module)]
    if absent:
        raise UserError(f"the host needs packages that are not installed: pip install "
                        f"{' '.join(absent)}")


def _is_installed(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


@contextmanager
def inside(folder: Path, words: Sequence[str] = ()) -> Iterator[None]:
    """A context with a host's folder as working folder and first on sys.path.

    Args:
        words: the new sys.argv; () keeps it.
    """
    before = Path.cwd(), list(sys.path), list(sys.argv)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    if words:
        sys.argv = list(words)
    try:
        yield
    finally:
        os.chdir(before[0])
        sys.path[:], sys.argv = before[1], before[2]


@contextmanager
def own_modules(names: Sequence[str], loaded: dict[str, ModuleType]) -> Iterator[None]:
    """A context in which a host's modules hide installed packages of the same names.

    Args:
        names: names of its top-level modules.
        loaded: its modules that were imported before; those imported in the context are added.
    """
    def theirs() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items()
                if name.split(".")[0] in names}

    others = theirs()
    for name in others:
        del sys.modules[name]
    sys.modules.update(loaded)
    try:
        yield
    finally:
        loaded.update(theirs())
        for name in loaded:
            sys.modules.pop(name, None)
        sys.modules.update(others)


class _Absent(type):
    """The type of the placeholders for a module that is not installed and its contents."""

    def __getattr__(cls, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        raise UserError(f"{cls.__name__} is not installed; the host needs it to make corruptions "
                        "on the fly, but not for those on disk")


def add_placeholders(*modules: str) -> None:
    """Add placeholders for optional modules of a host that are not installed, so that their import
    does not fail."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = _Absent(name, (), {})  # type: ignore[assignment]
