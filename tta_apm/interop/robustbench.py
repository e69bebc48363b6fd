"""RobustBench's format: a model's JSON, and its line in unaggregated_results.csv. No torch.

This is the format only. RobustBench's rules (in its README) exclude defences with an optimisation
loop, so a method that adapts at test time is an entry for its leaderboard only if its maintainers
agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tta_apm.atomic import atomic_write
from tta_apm.data.corruptions.constants import SEVERITIES
from tta_apm.errors import UserError, nearest
from tta_apm.interop.boards import ACCURACIES, BOARDS, LEADERBOARDS, Board, not_accuracies
from tta_apm.interop.citations import paper_of
from tta_apm.interop.official import require
from tta_apm.report import phrases
from tta_apm.report.results import Rows, TableRow
from tta_apm.report.table import CLEAN_KEY

if TYPE_CHECKING:
    import pandas as pd

# The corruptions in RobustBench's order, with AlexNet's error: the mean over severities on its
# 5,000 images of ImageNet-C (model_info/imagenet/corruptions/unaggregated_results.csv).
ALEXNET = {
    "shot_noise": 0.88832, "motion_blur": 0.78724, "snow": 0.86800, "pixelate": 0.71856,
    "gaussian_noise": 0.88160, "defocus_blur": 0.82204, "brightness": 0.55848, "fog": 0.82364,
    "zoom_blur": 0.79572, "frost": 0.83148, "glass_blur": 0.83080, "impulse_noise": 0.91724,
    "contrast": 0.85432, "jpeg_compression": 0.60680, "elastic_transform": 0.64804,
}
DOMAINS = [(name, severity) for name in ALEXNET for severity in SEVERITIES]
OURS = "Measured with tta-apm."  # the end of the footnote of each entry that is written here


def find_row(rows: Rows, text: str) -> TableRow:
    """The row with the text `text` in METHODS; UserError if there is none, or more than one."""
    found = [row for row in rows if row.protocol.row == text]
    if not found:
        raise UserError(f"--row {text!r}: {nearest(text, {row.protocol.row for row in rows})}")
    if len(found) > 1:
        raise UserError(f"--row {text!r}: {len(found)} rows have this name, which differ in their "
                        "setting, data set or images: export from a folder with one of them")
    return found[0]


def write_entry(row: TableRow, name: str, folder: Path, *, additional_data: bool) -> list[Path]:
    """Write folder/<board>/corruptions/<name>.json and its line of unaggregated_results.csv there.

    Args:
        row: results on CIFAR-10-C, CIFAR-100-C or RobustBench's images of ImageNet-C.
        name: name of the model in RobustBench's form NameYearWord.
        folder: where to write.
        additional_data: whether the backbone was trained on more than the data set's training
            images.

    Returns:
        The two files.

    Raises:
        UserError: if results are missing, or if `name` has invalid characters or belongs to
            another entry; nothing is written then.
    """
    if not re.fullmatch(r"\w+", name):
        raise UserError("--name must be RobustBench's NameYearWord of letters and digits, e.g. "
                        "Modi2024Asynchronous")
    board = check(row)
    inside = folder / board.robustbench / "corruptions"
    files = inside / f"{name}.json", inside / ACCURACIES
    _keep_others(inside, name, files[1])
    table = _with_line(files[1], name, [accuracy(row, domain) for domain in DOMAINS])
    text = json.dumps(model_info(row, board, additional_data), indent=2)
    atomic_write(files[1], table.to_csv().encode())
    atomic_write(files[0], text.encode())
    return list(files)


def check(row: TableRow) -> Board:
    """The leaderboard for a row; UserError, which says what is missing, if there is none."""
    dataset = row.protocol.dataset
    if dataset not in LEADERBOARDS.values():
        raise UserError(f"RobustBench has no leaderboard for {dataset}, only for "
                        f"{', '.join(LEADERBOARDS.values())}")
    board = BOARDS[dataset]
    require(row, "RobustBench", [*DOMAINS, CLEAN_KEY],
            f"{len(DOMAINS)} domains and the clean images", board.num_images,
            "run it with SEVERITY [0,1,2,3,4,5] and all CORRUPTIONS")
    return board


def model_info(row: TableRow, board: Board, additional_data: bool) -> dict[str, Any]:
    """The fields of RobustBench's ModelInfo; figures are strings, in per cent."""
    protocol = row.protocol
    paper = paper_of(protocol.method) or {"title": protocol.row, "author": "", "url": "",
                                          "year": ""}
    venue = f"{paper.get('booktitle', paper.get('journal', ''))} {paper['year']}".strip()
    hyper_parameters = protocol.hyper_parameters or {}
    errors = {name: 1 - float(np.mean([accuracy(row, (name, severity))
                                       for severity in SEVERITIES])) for name in ALEXNET}
    info: dict[str, Any] = {
        "link": paper["url"], "name": paper["title"], "authors": _names(paper["author"]),
        # RobustBench does not define the number of passes for test-time training; these are the
        # updates.
        "additional_data": additional_data,
        "number_forward_passes": max(1, hyper_parameters.get("steps", 0)),
        "dataset": board.robustbench, "venue": venue, "architecture": protocol.backbone,
        "eps": None, "clean_acc": _percent(accuracy(row, CLEAN_KEY)), "reported": "",
        "corruptions_acc": _percent(1 - float(np.mean(list(errors.values())))),
        "footnote": f"Adapts at test time: {protocol.method} "
                    f"({', '.join(phrases.settings(hyper_parameters))}), {protocol.setting}, "
                    f"batches of {protocol.batch_size}; {conditions(row)}. {OURS}",
    }
    if board.has_mce:
        info["corruptions_mce"] = _percent(float(np.mean([
            error / ALEXNET[name] for name, error in errors.items()])))
    return info


def conditions(row: TableRow) -> str:
    """The images, corruptions and seeds of a row's figures, in words."""
    named = sorted({result.record.images_from for result in row.within(DOMAINS)})
    return (f"{phrases.origins(named)}, {row.protocol.num_images} images per domain, "
            f"{len(ALEXNET)} corruptions at severities {' '.join(map(str, SEVERITIES))}, "
            f"{phrases.seeds(row.seeds)}")


def _names(authors: str) -> str:
    """Convert BibTeX's "Last, First and ..." to "First Last, ..."."""
    return ", ".join(" ".join(reversed(author.split(", "))) for author in authors.split(" and "))


def _keep_others(folder: Path, name: str, table: Path) -> None:
    """Raise UserError if `name` belongs to another entry there, also if it differs in case only."""
    for file in sorted(folder.glob("*.json")):
        if file.stem.lower() == name.lower():
            if file.stem == name and _is_ours(file):
                return
            raise UserError(f"{file} is another entry, or has this name in other letters: give "
                            "--name another name")
    if name in _read(table).index:
        raise UserError(f"{table} has a line {name} of another entry: give --name another name")


def _is_ours(file: Path) -> bool:
    try:
        footnote = json.loads(file.read_text(encoding="utf-8"))["footnote"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return isinstance(footnote, str) and footnote.endswith(OURS)


def accuracy(row: TableRow, domain: tuple[str, int]) -> float:
    """The accuracy on a domain, as a mean over the row's seeds."""
    return float(np.mean([result.correct.mean() for result in row.within([domain])]))


def _with_line(file: Path, name: str, values: Sequence[float]) -> pd.DataFrame:
    """The table of `file`, or an empty one, with the model's line added or replaced."""
    import pandas as pd

    line = pd.DataFrame([[round(value, 6) for value in values]], index=[name],
                        columns=pd.MultiIndex.from_tuples(DOMAINS))
    known = _read(file).drop(index=name, errors="ignore")
    return line if known.empty else pd.concat([known, line])


def _read(file: Path) -> pd.DataFrame:
    """The table of `file`, empty if it does not exist."""
    import pandas as pd

    if not file.is_file():
        return pd.DataFrame()
    try:
        known = pd.read_csv(file, header=[0, 1], index_col=0)
        known.columns = pd.MultiIndex.from_tuples(
            [(corruption, int(severity)) for corruption, severity in known.columns])
        return known[DOMAINS]
    except (ValueError, KeyError, TypeError) as error:
        raise not_accuracies(file, error) from error


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
