"""`tta-apm data check`: which data sets are here and complete, and where to get the others."""

from __future__ import annotations

import argparse

from tta_apm.cli import INCOMPLETE, OK
from tta_apm.commands import data_options, options as shared

EXAMPLES = """\
examples:
  tta-apm data check                                  every data set
  tta-apm data check imagenet_c --severity 5
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser("data check", "Check which data sets are here and complete, and "
                                "say where to get the others.", EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a DATASET (default: all)")
    data_options.add_domains(parser)
    data_options.add_data_dir(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Report on the data sets; returns INCOMPLETE if one that was named is not in order."""
    from tta_apm.registry import DATASETS

    # A name with a star is a prefix, not a data set.
    names = options.names or [name for name in DATASETS.names() if not name.endswith("*")]
    for name in names:
        DATASETS.check(name)
    in_order = data_options.report(names, options.data_dir, data_options.corruptions(options),
                                   data_options.severities(options))
    return OK if in_order or not options.names else INCOMPLETE
