"""`tta-apm data make`: corrupt a clean data set and save the images; or convert CIFAR's files."""

from __future__ import annotations

import argparse

from tta_apm.cli import OK
from tta_apm.commands import data_options
from tta_apm.commands import options as shared

EXAMPLES = """\
examples:
  tta-apm data make imagenet_c --severity 5 --corruptions fog,frost
  tta-apm data make cifar10_jpeg                      from the official CIFAR-10 in DATA_DIR
  tta-apm data make cifar10_python                    the files that ttab and torchvision read
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("data make", "Corrupt a clean data set and save the images in the "
                                "official layout; or write CIFAR in its Python version, or "
                                "CIFAR-10 as JPEG files.", EXAMPLES)
    parser.add_argument("name", metavar="NAME",
                        help="cifar10_c, cifar100_c, imagenet_c, imagenet_c_50k, cifar10_python, "
                        "cifar100_python or cifar10_jpeg")
    parser.add_argument("--clean", default="", metavar="NAME",
                        help="the clean images, for cifar10_c and cifar10_python: cifar10 or "
                        "cifar10_jpeg (default: cifar10)")
    data_options.add_domains(parser)
    parser.add_argument("--frost-dir", default="", help="folder of the official frost pictures")
    data_options.add_data_dir(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Make the files that are missing."""
    from tta_apm.data.prepare.make import prepare
    from tta_apm.progress import bar

    making = prepare(options.name, data_dir=options.data_dir, frost_dir=options.frost_dir or None,
                     corruptions=data_options.corruptions(options),
                     severities=data_options.severities(options), clean=options.clean)
    print(f"{len(making)} images to {making.folder}", flush=True)
    with bar(len(making), "img", options.name) as shown:
        for count in making.run():
            shown.update(count)
    print(making.done)
    return OK
