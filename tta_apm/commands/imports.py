"""`tta-apm import`: results of other repositories, put beside ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tta_apm.report import logs
from tta_apm.report.imported import save


def main(words: Sequence[str]) -> int:
    """Keep the logs in a results folder; returns 0."""
    options = _parser().parse_args(words)
    found = [log for file in options.logs
             for log in logs.read(file, dataset=options.dataset, models=options.models)]
    for log in found:
        path = save(log, options.into)
        mean = sum(error for _, _, error, _ in log.errors) / len(log.errors)
        print(f"{log.host} {log.method} · {log.backbone} · {log.dataset}: {len(log.errors)} "
              f"domains, mean error {100 * mean:.2f} %  ->  {path}")
    print(f"tta-apm table {options.into} shows them beside the results there, marked as imported.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tta-apm import", description="Put results of other repositories beside ours: logs "
        "of mariodoebler/test-time-adaptation, yuyongcan/Benchmark-TTA and DequanWang/tent, "
        "log-1.json of LINs-lab/ttab, unaggregated_results.csv of robustbench.")
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    parser.add_argument("--into", required=True, type=Path, metavar="FOLDER",
                        help="the OUTPUT_DIR of a sweep, or a new folder")
    parser.add_argument("--dataset", default="", help="where a file does not tell it: one of ours")
    parser.add_argument("--models", nargs="+", default=(), metavar="NAME",
                        help="of a robustbench table, the models to take; all by default")
    return parser
