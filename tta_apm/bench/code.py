"""Code: what of the source text makes a row's numbers, as one hash. Imports no torch.

It is the import closure of a few modules (the method's, `evaluate`, the data set's, the
backbone's), each as its syntax tree without comments, docstrings and the paths of modules. So a
comment or a file that moves changes nothing, and neither does an edit in what none of them imports:
pretraining, reports, the command line.
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

# Imported by modules of the closure, but without a say in any number: errors and names, writing,
# downloads, the stopwatch, the record. What is forgotten here only makes a hash change too often.
WITHOUT_NUMBERS = frozenset(f"tta_apm.{name}" for name in (
    "errors", "registry", "atomic", "cache", "config", "bench.measure", "bench.records",
    "bench.deeds",
    "backbones.build", "backbones.passes", "backbones.text_cache", "backbones.weights.downloads",
    "backbones.weights.lookalikes", "console", "lock", "online", "plugins", "progress", "data.hub",
    "data.official", "data.prepare", "data.provenance", "api"))
# Fields of syntax trees that hold no meaning, or that some versions of Python have and others not.
SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})


class Import(NamedTuple):
    """One import statement: the modules that it may mean, and the names that it brings."""

    modules: tuple[str, ...]
    names: str


class ParsedFile(NamedTuple):
    """What is known of a source file."""

    digest: str  # of its tree, without imports of modules that are followed
    imports: tuple[Import, ...]


def hash_code(roots: Iterable[str | Path]) -> str:
    """Hash of the import closure of `roots`, 16 hexadecimal digits.

    Args:
        roots: names of modules, or paths of source files.
    """
    lines = set()
    for root in roots:
        lines |= _closure(root)
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def closure_files(root: str | Path) -> set[Path]:
    """The source files that the closure of a module holds."""
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
    """A line for each file, and one for each import of one by another."""
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
    """The file of a module that is followed: of this package, of its neighbours or of a user's."""
    if any(name == quiet or name.startswith(f"{quiet}.") for quiet in WITHOUT_NUMBERS):
        return None
    file = find_module(name)
    if file is None:
        beside = home.joinpath(*name.split(".")).with_suffix(".py")  # of a plugin's own folder
        file = beside if beside.is_file() else None
    if file is None or file.name == "__init__.py" and name.split(".")[0].startswith("tta_apm"):
        return None
    own = name.split(".")[0].startswith("tta_apm") or home in file.parents
    return file if own or not _is_library(file) else None


@cache
def find_module(name: str) -> Path | None:
    """The source file of a module, looked up without importing it or what it lies in."""
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
    """Whether a file was installed by somebody: its version stands in the record."""
    inside = file.resolve()
    return "site-packages" in inside.parts or any(
        folder in inside.parents for folder in _libraries())


@cache
def _home(file: Path) -> Path:
    """The folder whose files belong together with `file`: of its package, or its own."""
    home = file.parent
    while (home / "__init__.py").is_file() and home.parent != home:
        home = home.parent
    # An installed package is its own home, not the folder of all installed ones.
    package = file.parent if home == file.parent else home / file.relative_to(home).parts[0]
    return package if _is_library(file) else home


@cache
def _read(file: Path, time_ns: int) -> ParsedFile:
    """What is known of a file as it is at that time."""
    package = _package(file)
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # it is told where it is imported
        return ParsedFile(hashlib.sha256(file.read_bytes()).hexdigest()[:16], ())
    imports: list[Import] = []
    digest = hashlib.sha256("\n".join(_meaning(tree, imports, package)).encode())
    return ParsedFile(digest.hexdigest()[:16], tuple(imports))


def _package(file: Path) -> str:
    """The dotted name of the package that a file lies in, "" outside of any."""
    parts: list[str] = []
    folder = file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    # Where a package is installed under another name than its folder's.
    if parts[:1] == ["baselines"]:
        parts[0] = "tta_apm_baselines"
    return ".".join(parts)


def _meaning(node: ast.AST, imports: list[Import], package: str) -> Iterator[str]:
    """The tree as lines, the same in every version of Python; imports are put aside."""
    if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
        return  # never runs
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
