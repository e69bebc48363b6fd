"""RobustBench's format: a model's JSON, and its line in unaggregated_results.csv. No torch.

It is the format only. RobustBench's rules (its README) take no defence with an optimisation loop,
so a method that adapts at test time is no entry for its leaderboard unless its maintainers say so.
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

# RobustBench's own order of the corruptions, each with AlexNet's error: the mean over severities on
# its 5,000 images of ImageNet-C (model_info/imagenet/corruptions/unaggregated_results.csv).
ALEXNET = {
    "shot_noise": 0.88832, "motion_blur": 0.78724, "snow": 0.86800, "pixelate": 0.71856,
    "gaussian_noise": 0.88160, "defocus_blur": 0.82204, "brightness": 0.55848, "fog": 0.82364,
    "zoom_blur": 0.79572, "frost": 0.83148, "glass_blur": 0.83080, "impulse_noise": 0.91724,
    "contrast": 0.85432, "jpeg_compression": 0.60680, "elastic_transform": 0.64804,
}
DOMAINS = [(name, severity) for name in ALEXNET for severity in SEVERITIES]
OURS = "Measured with tta-apm."  # the end of the footnote of each entry of ours


def find_row(rows: Rows, text: str) -> TableRow:
    """The row that METHODS names `text`. UserError if there is none, or more than one."""
    found = [row for row in rows if row.protocol.row == text]
    if not found:
        raise UserError(f"--row {text!r}: {nearest(text, {row.protocol.row for row in rows})}")
    if len(found) > 1:
        raise UserError(f"--row {text!r}: {len(found)} rows are called so, which differ in their "
                        "setting, data set or images: export from a folder with one of them")
    return found[0]


def write_entry(row: TableRow, name: str, folder: Path, *, additional_data: bool) -> list[Path]:
    """Write folder/<board>/corruptions/<name>.json and its line of unaggregated_results.csv there.

    Args:
        row: of results on CIFAR-10-C, CIFAR-100-C or RobustBench's images of ImageNet-C.
        name: of the model: NameYearWord.
        additional_data: whether the backbone learnt from more than the data set's training images.

    Returns:
        The two files.

    Raises:
        UserError: if the results are not all that RobustBench's format holds, or `name` has other
            characters or is somebody else's; nothing is written.
    """
    if not re.fullmatch(r"\w+", name):
        raise UserError("--name NameYearWord of letters and digits, such as Modi2024Asynchronous, "
                        "is what RobustBench calls a model")
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
    """The leaderboard that a row fits. UserError that says what is missing if it fits none."""
    dataset = row.protocol.dataset
    if dataset not in LEADERBOARDS.values():
        raise UserError(f"RobustBench has no leaderboard for {dataset}: it has them for "
                        f"{', '.join(LEADERBOARDS.values())}")
    board = BOARDS[dataset]
    require(row, "RobustBench", [*DOMAINS, CLEAN_KEY],
            f"{len(DOMAINS)} domains and the clean images", board.num_images,
            "run it with SEVERITY [0,1,2,3,4,5] and all CORRUPTIONS")
    return board


def model_info(row: TableRow, board: Board, additional_data: bool) -> dict[str, Any]:
    """The fields of RobustBench's ModelInfo; figures are text, in per cent."""
    protocol = row.protocol
    paper = paper_of(protocol.method) or {"title": protocol.row, "author": "", "url": "",
                                          "year": ""}
    venue = f"{paper.get('booktitle', paper.get('journal', ''))} {paper['year']}".strip()
    hyper_parameters = protocol.hyper_parameters or {}
    errors = {name: 1 - float(np.mean([accuracy(row, (name, severity))
                                       for severity in SEVERITIES])) for name in ALEXNET}
    info: dict[str, Any] = {
        "link": paper["url"], "name": paper["title"], "authors": _names(paper["author"]),
        # What it means for test-time training RobustBench does not say; we give the updates.
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
    """On what images its figures are."""
    sources = sorted({result.record.images_from for result in row.within(DOMAINS)})
    return (f"{'; '.join(sources)}, {row.protocol.num_images} images per domain, "
            f"{len(ALEXNET)} corruptions at severities {' '.join(map(str, SEVERITIES))}, "
            f"{phrases.seeds(row.seeds)}")


def _names(authors: str) -> str:
    """BibTeX's "Last, First and ..." as "First Last, ..."."""
    return ", ".join(" ".join(reversed(author.split(", "))) for author in authors.split(" and "))


def _keep_others(folder: Path, name: str, table: Path) -> None:
    """Raise UserError if `name` is somebody else's model there, on any file system."""
    for file in sorted(folder.glob("*.json")):
        if file.stem.lower() == name.lower():
            if file.stem == name and _is_ours(file):
                return
            raise UserError(f"{file} is an entry of somebody else, or under other letters: give "
                            "--name another name")
    if name in _read(table).index:
        raise UserError(f"{table} has a line {name} that comes from somebody else: give --name "
                        "another name")


def _is_ours(file: Path) -> bool:
    try:
        footnote = json.loads(file.read_text(encoding="utf-8"))["footnote"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
    return isinstance(footnote, str) and footnote.endswith(OURS)


def accuracy(row: TableRow, domain: tuple[str, int]) -> float:
    """On a domain, the mean over the row's seeds."""
    return float(np.mean([result.correct.mean() for result in row.within([domain])]))


def _with_line(file: Path, name: str, values: Sequence[float]) -> pd.DataFrame:
    """The table of `file`, if it is there, with the model's line in it."""
    import pandas as pd

    line = pd.DataFrame([[round(value, 6) for value in values]], index=[name],
                        columns=pd.MultiIndex.from_tuples(DOMAINS))
    known = _read(file).drop(index=name, errors="ignore")
    return line if known.empty else pd.concat([known, line])


def _read(file: Path) -> pd.DataFrame:
    """The table of `file`, empty if it is not there."""
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
