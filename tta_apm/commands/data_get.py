"""`tta-apm data get`: download a corrupted data set from Zenodo."""

from __future__ import annotations

import argparse
from pathlib import Path

from tta_apm.cli import INCOMPLETE, OK
from tta_apm.commands import data_options, options as shared
from tta_apm.errors import UserError

EXAMPLES = """\
examples:
  tta-apm data get cifar10_c                          after asking
  tta-apm data get imagenet_c --yes --data-dir DIR
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("data get", "Download a corrupted data set from Zenodo, check it "
                                "and unpack it.", EXAMPLES)
    parser.add_argument("name", metavar="NAME",
                        help="of the data set: cifar10_c, cifar100_c, imagenet_c")
    parser.add_argument("--yes", action="store_true", help="do not ask before downloading")
    data_options.add_data_dir(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Download what is missing; returns INCOMPLETE if that is declined or not in order."""
    from tta_apm.data.prepare.zenodo import Download, gigabytes

    download = Download(options.name, Path(options.data_dir))
    if not download.missing:
        print(f"{options.name} is here already; `tta-apm data check {options.name} --data-dir "
              f"{options.data_dir}` says whether it is complete.")
        return OK
    size = download.ask()
    files = ", ".join(archive.file for archive in download.missing)
    print(f"{files} of {download.page}, {gigabytes(size)}, to be unpacked in {download.folder}")
    if not (options.yes or _agreed()):
        print("Nothing was downloaded.")
        return INCOMPLETE
    download.run()
    return OK if data_options.report([options.name], options.data_dir) else INCOMPLETE


def _agreed() -> bool:
    try:
        return input("Download? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise UserError("not a terminal: pass --yes to download without asking") from None
