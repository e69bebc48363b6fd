"""`tta-apm import`: import results of other repositories, to show beside ours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tta_apm.cli import INCOMPLETE, OK
from tta_apm.commands import options as shared
from tta_apm.errors import UserError
from tta_apm.interop import logs
from tta_apm.names import clean, clean_lines
from tta_apm.report import imported, phrases
from tta_apm.report.external import NOT_STATED
from tta_apm.report.imported_log import Log


def run(options: argparse.Namespace) -> int:
    """Copy logs into a results folder; returns INCOMPLETE if some files were skipped.

    Raises:
        UserError: if all were skipped.
    """
    kept, skipped = imported.load(options.into), []
    for file in options.logs:
        try:
            for log in logs.read(file, dataset=options.dataset, models=options.models):
                if log not in kept:
                    imported.rows([*kept, log])  # raises if it holds a cell that is kept already
                    kept.append(log)
                print(f"{_summary(log)}  ->  {clean(str(imported.save(log, options.into)))}")
        except UserError as error:
            skipped.append(file)
            why = str(error).replace(f"{file} ", "it ").removeprefix(f"{file}: ")
            print(f"skipped {clean(str(file))}: {clean_lines(why)}", file=sys.stderr)
    if len(skipped) == len(options.logs):
        raise UserError(f"nothing is imported: none of the {len(skipped)} files can be read")
    left_out = f", {len(skipped)} skipped" if skipped else ""
    print(f"{len(options.logs) - len(skipped)} of {len(options.logs)} files are imported{left_out}."
          f" tta-apm table {clean(str(options.into))} shows them beside the results there, marked "
          "as imported.")
    return INCOMPLETE if skipped else OK


def _summary(log: Log) -> str:
    """One line on a log: the method, its images and its mean error."""
    severities = sorted({severity for _, severity, _, _ in log.errors} - {0})
    counts = sorted({count for *_, count in log.errors if count is not None})
    at = f" at severity {' '.join(map(str, severities))}" if severities else ""
    parts = [f"{log.host} {log.method}", log.backbone,
             f"{log.dataset}: {phrases.corruptions({name for name, *_ in log.errors})}{at}",
             f"{' or '.join(map(str, counts)) or 'an unknown number of'} images each",
             f"images {log.settings.get('images', NOT_STATED)}",
             f"seed {NOT_STATED if log.seed is None else log.seed}"]
    if log.missing:
        return " · ".join([*parts, f"{len(log.missing)} domains missing, no mean"])
    mean = sum(error for _, _, error, _ in log.errors) / len(log.errors)
    return " · ".join([*parts, f"mean error {100 * mean:.2f} % over {len(log.errors)} domains"])


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = shared.make_parser(
        "import", "Import results of other repositories, to show them beside ours: logs "
        "of mariodoebler/test-time-adaptation, yuyongcan/Benchmark-TTA and DequanWang/tent, "
        "log-1.json of LINs-lab/ttab, unaggregated_results.csv of robustbench.")
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="a file to import")
    parser.add_argument("--into", required=True, type=Path, metavar="FOLDER",
                        help="the OUTPUT_DIR of a sweep, or a new folder")
    parser.add_argument("--dataset", default="", metavar="NAME",
                        help="the DATASET of files that do not state it")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME",
                        help="the models to take from a robustbench table; all by default")
    return parser
