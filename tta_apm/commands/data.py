"""`tta-apm data check`, `get`, `make`: look for data sets, download them, make corrupted ones."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tta_apm.data.corruptions.constants import CORRUPTIONS, SEVERITIES
from tta_apm.errors import UserError, nearest

OK, NOT_IN_ORDER, REFUSED = 0, 1, 1
WIDTH = 100

EPILOG = """\
examples:
  tta-apm data check                                  every data set: is it here, what to get
  tta-apm data check imagenet_c --severity 5
  tta-apm data get cifar10_c                          from Zenodo, after asking
  tta-apm data make imagenet_c --severity 5 --corruptions fog,frost
  tta-apm data make cifar10_jpeg                      of the official CIFAR-10 in DATA_DIR
"""


def main(words: Sequence[str]) -> int:
    """Run `tta-apm data ...`; returns the exit code (1: something named is not in order)."""
    options = _parser().parse_args(words)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tta-apm data", description="Look for data sets, download them, make corrupted ones.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="check|get|make")
    check = commands.add_parser(
        "check", help="say what is here, whole and in order, and what to get from where")
    check.add_argument("names", nargs="*", metavar="NAME", help="a DATASET (default: all)")
    _add_domains(check)
    check.set_defaults(run=_check)
    get = commands.add_parser("get", help="download a corrupted set from Zenodo")
    get.add_argument("name", metavar="NAME", help="cifar10_c, cifar100_c or imagenet_c")
    get.add_argument("--yes", action="store_true", help="do not ask before downloading")
    get.set_defaults(run=_get)
    make = commands.add_parser(
        "make", help="corrupt a clean set, once, into files in the official layout; or pack "
        "CIFAR-10 as JPEG files")
    make.add_argument("name", metavar="NAME",
                      help="cifar10_c, cifar100_c, imagenet_c, imagenet_c_50k or cifar10_jpeg")
    _add_domains(make)
    make.add_argument("--frost-dir", default="", help="folder of the official frost pictures")
    make.set_defaults(run=_make)
    for command in (check, get, make):
        command.add_argument("--data-dir", default="data", metavar="FOLDER",
                             help="that holds the data sets, as DATA_DIR (default: data)")
    return parser


def _add_domains(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--corruptions", default=",".join(CORRUPTIONS), metavar="A,B,...",
                        help="default: all 15")
    parser.add_argument("--severity", default=",".join(map(str, SEVERITIES)), metavar="N,M,...",
                        help="default: 1 to 5")


def _corruptions(options: argparse.Namespace) -> list[str]:
    names = options.corruptions.split(",")
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"--corruptions: unknown {name!r}: {nearest(name, CORRUPTIONS)}")
    return list(dict.fromkeys(names))


def _severities(options: argparse.Namespace) -> list[int]:
    levels = options.severity.split(",")
    if not set(levels) <= set(map(str, SEVERITIES)):
        raise UserError(f"--severity {options.severity}: severities are 1 to 5, as in 3,5")
    return sorted({int(level) for level in levels})


def _check(options: argparse.Namespace) -> int:
    from tta_apm.registry import DATASETS

    # A name with a star stands for sets of other people.
    names = options.names or [name for name in DATASETS.names() if not name.endswith("*")]
    for name in names:
        DATASETS.check(name)
    in_order = _report(names, options.data_dir, _corruptions(options), _severities(options))
    return OK if in_order or not options.names else NOT_IN_ORDER


def _report(names: Sequence[str], data_dir: str, corruptions: Sequence[str] = CORRUPTIONS,
            severities: Sequence[int] = SEVERITIES) -> bool:
    """Print what there is to say of data sets; returns whether all are in order."""
    from tta_apm.data.prepare.check import inspect

    print(f"Below DATA_DIR {Path(data_dir).resolve()}:")
    in_order = True
    for name in names:
        finding = inspect(name, data_dir=data_dir, corruptions=corruptions, severities=severities)
        in_order &= finding.in_order
        print(f"\n{name}: {'in order' if finding.in_order else 'NOT IN ORDER'}")
        print(textwrap.fill(finding.text, WIDTH, initial_indent="  ", subsequent_indent="  ",
                            break_long_words=False, break_on_hyphens=False), flush=True)
    return in_order


def _get(options: argparse.Namespace) -> int:
    from tta_apm.data.prepare.zenodo import Download, gigabytes

    download = Download(options.name, Path(options.data_dir))
    if not download.missing:
        print(f"{options.name} is here already; `tta-apm data check {options.name} --data-dir "
              f"{options.data_dir}` says whether it is whole.")
        return OK
    size = download.ask()
    files = ", ".join(archive.file for archive in download.missing)
    print(f"{files} of {download.page}, {gigabytes(size)}, to be unpacked in {download.folder}")
    if not (options.yes or _agreed()):
        print("Nothing was downloaded.")
        return REFUSED
    download.run()
    return OK if _report([options.name], options.data_dir) else NOT_IN_ORDER


def _agreed() -> bool:
    try:
        return input("Download? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("nobody is there to agree to the download: say --yes") from None


def _make(options: argparse.Namespace) -> int:
    from tta_apm.data.prepare.make import prepare
    from tta_apm.progress import bar

    making = prepare(options.name, data_dir=options.data_dir, frost_dir=options.frost_dir or None,
                     corruptions=_corruptions(options), severities=_severities(options))
    print(f"{len(making)} images to {making.folder}", flush=True)
    with bar(len(making), "img", options.name) as shown:
        for count in making.run():
            shown.update(count)
    print(making.done)
    return OK
