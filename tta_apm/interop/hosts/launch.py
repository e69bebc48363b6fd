"""Launch: what it takes to start another repository's program inside ours."""

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
    """The folder of a host's program below the user's clone.

    Args:
        repo: the clone, or that folder itself.
        marker: a file that lies in it.
        inside: where in the clone it is.

    Raises:
        UserError: if it is not there.
    """
    for folder in (Path(repo, inside), Path(repo)):
        if (folder / marker).is_file():
            return folder.resolve()
    if not Path(repo).is_dir():
        raise UserError(f"there is no folder {repo}: give the folder of your clone")
    raise UserError(f"there is no {Path(inside, marker)} in {repo}: give the folder of your clone")


def tell_commit(folder: Path, tested: str) -> None:
    """Say so, in one line, if a clone is at another commit than the tested one or was changed.

    Nothing is said of a folder that is no clone of git's own, such as an unpacked archive.
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
    """What a host's command line refuses is a UserError, with the nearest flag that it knows."""
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
    """Raise UserError for data that is not there: hosts would download it, or fail.

    Args:
        paths: relative to the working folder, the host's.
        advice: what to do, for the sentence.
    """
    for path in paths:
        if not path.exists():
            # The first folder that is missing says most.
            lacking = next((parent for parent in reversed(path.parents) if not parent.exists()),
                           path)
            kind = "file" if lacking == path and path.suffix else "folder"
            raise UserError(f"there is no {kind} {lacking} in {Path.cwd()}: {advice}")


def require(packages: Mapping[str, str]) -> None:
    """Raise UserError naming what to install, unless all modules are there.

    Args:
        packages: modules and the names that pip knows them by.
    """
    absent = [name for module, name in packages.items() if not _is_there(module)]
    if absent:
        raise UserError(f"the host needs packages that are not installed: pip install "
                        f"{' '.join(absent)}")


def _is_there(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


@contextmanager
def inside(folder: Path, words: Sequence[str] = ()) -> Iterator[None]:
    """Be in a host's folder, with its modules first on the path and `words` as the command line.

    Hosts read files relative to the working folder.
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
    """Import a host's modules beside installed packages of the same names.

    Args:
        names: of its top-level modules.
        loaded: its modules so far; they are known inside, and what is imported inside is added.
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
    """The type of what stands in for everything in a module that is not installed."""

    def __getattr__(cls, name: str) -> _Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        raise UserError(f"{cls.__name__} is not installed; the host needs it to make corruptions "
                        "on the fly, but not for those that lie on disk")


def lend(*modules: str) -> None:
    """Let a host import modules that are missing here and that it needs for a side job only."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = _Absent(name, (), {})  # type: ignore[assignment]
