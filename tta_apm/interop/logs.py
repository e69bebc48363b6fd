"""Logs: result files of other repositories, read into one form. Imports no torch.

For the repositories, see text_logs, ttab_log and accuracies.
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
    """The runs in a log of any known kind.

    Args:
        dataset: name of the data set here, for a file that does not state it.
        models: the models to read from a table with one line per model; () for all.

    Raises:
        UserError: if the file is of no known kind, does not state its data set, or has an invalid
            value.
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
