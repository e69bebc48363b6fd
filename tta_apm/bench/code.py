"""Code: one hash of all source code that decides a row's numbers. Imports no torch.

It covers the import closure of a few modules (the method's, `evaluate`, the data set's, the
backbone's), each as its syntax tree without comments, docstrings and module paths. So the hash does
not change if a comment is edited or a file is moved, nor if code changes that none of them imports,
e.g. pretraining, reports and the command line.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Modules that the closure imports but that decide no number: errors, names, writing, downloads,
# measurements, records. A module that is missing here only makes hashes change too often.
WITHOUT_NUMBERS = frozenset(f"tta_apm.{name}" for name in (
    "errors", "registry", "atomic", "cache", "config", "bench.counts", "bench.measure",
    "bench.predictions", "bench.records", "backbones.build", "backbones.passes",
    "backbones.text_cache", "backbones.weights.downloads", "backbones.weights.lookalikes",
    "console", "lock", "online", "plugins", "progress", "data.hub", "data.official",
    "data.prepare", "data.provenance", "api"))
# Fields of syntax trees without meaning, or which only some versions of Python have.
SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})


class Import(NamedTuple):
    """One import statement: the modules that it may import, and the names that it binds."""

    modules: tuple[str, ...]
    names: str


class ParsedFile(NamedTuple):
    """A parsed source file."""

    digest: str  # a hash of its syntax tree without import statements
    imports: tuple[Import, ...]


def hash_code(roots: Iterable[str | Path]) -> str:
    """A hash of the import closure of `roots`, 16 hexadecimal digits.

    Args:
        roots: names of modules, or paths of source files.
    """
    lines = set()
    for root in roots:
        lines |= _closure(root)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def closure_files(root: str | Path) -> set[Path]:
    """The source files in the import closure of a module."""
    file = root if isinstance(root, Path) else find_module(root)
    found: set[Path] = set()
    waiting = [file] if file and file.is_file() else []
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _followed(file, _home(file))
    return found


def _closure(root: str | Path) -> set[str]:
    """The closure as lines: one for each file, and one for each import between files."""
    lines = set()
    for file in closure_files(root):
        source = _read(file, file.stat().st_mtime_ns)
        lines.add(source.digest)
        for statement in source.imports:
            targets = list(_targets(statement, file, _home(file)))
            for target in targets:
                inside = _read(target, target.stat().st_mtime_ns).digest
                lines.add(f"{source.digest} takes {statement.names} of {inside}")
            if not targets and not statement.modules[0].startswith("tta_apm"):
                lines.add(f"{source.digest} takes {statement.names} of {statement.modules[0]}")
    return lines


def _followed(file: Path, home: Path) -> Iterator[Path]:
    for statement in _read(file, file.stat().st_mtime_ns).imports:
        yield from _targets(statement, file, home)


def _targets(statement: Import, file: Path, home: Path) -> Iterator[Path]:
    for name in statement.modules:
        target = _resolve(name, home)
        if target is not None and target != file:
            yield target


@cache
def _resolve(name: str, home: Path) -> Path | None:
    """The file of a module if it belongs to this package, its extensions or a user's code; None for
    libraries and for WITHOUT_NUMBERS."""
    if any(name == quiet or name.startswith(f"{quiet}.") for quiet in WITHOUT_NUMBERS):
        return None
    file = find_module(name)
    if file is None:
        beside = home.joinpath(*name.split(".")).with_suffix(".py")  # in the folder of a plugin
        file = beside if beside.is_file() else None
    if file is None or file.name == "__init__.py" and name.split(".")[0].startswith("tta_apm"):
        return None
    own = name.split(".")[0].startswith("tta_apm") or home in file.parents
    return file if own or not _is_library(file) else None


@cache
def find_module(name: str) -> Path | None:
    """The source file of a module, found without importing it or its parent packages."""
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    file = Path(spec.origin)
    if inner:
        inside = file.parent.joinpath(*inner)
        choices = [inside.with_name(f"{inside.name}.py"), inside / "__init__.py"]
        return next((choice for choice in choices if choice.is_file()), None)
    return file


@cache
def _libraries() -> tuple[Path, ...]:
    return tuple(Path(path).resolve() for name, path in sysconfig.get_paths().items()
                 if name in ("stdlib", "platstdlib", "purelib", "platlib"))


@cache
def _is_library(file: Path) -> bool:
    """Whether a file belongs to an installed package, whose version is in the record."""
    inside = file.resolve()
    return "site-packages" in inside.parts or any(
        folder in inside.parents for folder in _libraries())


@cache
def _home(file: Path) -> Path:
    """The folder of the code that belongs with `file`: that of its package, or its own folder."""
    home = file.parent
    while (home / "__init__.py").is_file() and home.parent != home:
        home = home.parent
    # For an installed package, that package and not the folder of all installed ones.
    package = file.parent if home == file.parent else home / file.relative_to(home).parts[0]
    return package if _is_library(file) else home


@cache
def _read(file: Path, time_ns: int) -> ParsedFile:
    """Parse a file; `time_ns`, its modification time, makes the cache notice changes."""
    package = _package(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # the import of the file reports it
        return ParsedFile(hashlib.sha256(file.read_bytes()).hexdigest()[:16], ())
    imports: list[Import] = []
    digest = hashlib.sha256("\n".join(_meaning(tree, imports, package)).encode())
    return ParsedFile(digest.hexdigest()[:16], tuple(imports))


def _package(file: Path) -> str:
    """The dotted name of the package that contains a file; "" outside of a package."""
    parts: list[str] = []
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    # setup.cfg installs this folder under another name.
    if parts[:1] == ["baselines"]:
        parts[0] = "tta_apm_baselines"
    return ".".join(parts)


def _meaning(node: ast.AST, imports: list[Import], package: str) -> Iterator[str]:
    """A syntax tree as lines that do not depend on Python's version; imports go to `imports`."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return  # never executed
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        found = list(_imports(node, package))
        imports += found
        yield "import"
        return
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) \
            and isinstance(node.value.value, str):
        return  # a docstring
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name in SILENT_FIELDS or value is None or value == []:
            continue
        yield name
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield from _meaning(item, imports, package)
            else:
                yield repr(item)
    yield "end"


def _imports(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import((alias.name,), alias.asname or "")
        return
    module = node.module or ""
    if node.level:
        base = package.split(".")[:len(package.split(".")) - node.level + 1]
        module = ".".join([*base, module]).strip(".")
    for alias in node.names:  # a name may be a module itself
        yield Import((module, f"{module}.{alias.name}"), f"{alias.name} {alias.asname or ''}")
