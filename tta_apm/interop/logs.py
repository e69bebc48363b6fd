"""Logs: what other repositories' result files tell, in one form. Imports no torch.

Which repositories: see text_logs, ttab_log and accuracies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tta_apm.bench.records import hash_bytes
from tta_apm.errors import UserError, explain
from tta_apm.interop.accuracies import read_accuracies
from tta_apm.interop.text_logs import text_logs
from tta_apm.interop.ttab_log import ttab_log
from tta_apm.report.imported_log import Log, checked


def read(file: Path, *, dataset: str = "", models: Sequence[str] = ()) -> list[Log]:
    """The runs that a log of any known kind holds.

    Args:
        dataset: ours, where the file does not tell.
        models: of a table with a line per model, those to take; all by default.

    Raises:
        UserError: if the file is of no known kind, does not tell its data set, or has a value that
            no run can have.
    """
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error
    of = {"file": str(file.name), "file_hash": hash_bytes(content)}
    try:
        if file.suffix == ".csv":
            found = read_accuracies(file, of, dataset, models)
        elif file.suffix == ".json":
            found = [ttab_log(file, text, of, dataset)]
        else:
            found = text_logs(file, text, of, dataset)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise UserError(f"{file} is incomplete or not a log of a known kind: {explain(error)}") \
            from error
    return [checked(vars(log), str(file)) for log in found]
