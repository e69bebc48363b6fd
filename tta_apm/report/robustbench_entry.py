"""RobustBench's format: a model's JSON, and its line in unaggregated_results.csv. No torch.

It is the format only. RobustBench's rules (its README) take no defence with an optimisation loop,
so a method that adapts at test time is no entry for its leaderboard unless its maintainers say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tta_apm.data.corruption_constants import SEVERITIES
from tta_apm.errors import UserError
from tta_apm.report.blocks import CLEAN_KEY
from tta_apm.report.results import TableRow
from tta_apm.writing import write_aside

# RobustBench's own order of the corruptions, each with AlexNet's error: the mean over severities on
# its 5,000 images of ImageNet-C (model_info/imagenet/corruptions/unaggregated_results.csv).
ALEXNET = {
    "shot_noise": 0.88832, "motion_blur": 0.78724, "snow": 0.86800, "pixelate": 0.71856,
    "gaussian_noise": 0.88160, "defocus_blur": 0.82204, "brightness": 0.55848, "fog": 0.82364,
    "zoom_blur": 0.79572, "frost": 0.83148, "glass_blur": 0.83080, "impulse_noise": 0.91724,
    "contrast": 0.85432, "jpeg_compression": 0.60680, "elastic_transform": 0.64804,
}
DOMAINS = [(name, severity) for name in ALEXNET for severity in SEVERITIES]


@dataclass(frozen=True)
class Board:
    """One of its three leaderboards of common corruptions."""

    name: str
    num_images: int
    has_mce: bool


BOARDS = {"cifar10_c": Board("cifar10", 10_000, False),
          "cifar100_c": Board("cifar100", 10_000, False),
          "imagenet_c": Board("imagenet", 5_000, True)}


def write_entry(row: TableRow, name: str, paper: Mapping[str, str], folder: Path, *,
                additional_data: bool) -> list[Path]:
    """Write folder/<board>/corruptions/<name>.json and its line of unaggregated_results.csv there.

    Args:
        row: of results on CIFAR-10-C, CIFAR-100-C or RobustBench's images of ImageNet-C.
        name: of the model, as NameYearWord.
        paper: its title, author, venue and link.
        additional_data: whether the backbone learnt from more than the data set's training images.

    Returns:
        The two files.

    Raises:
        UserError: if the results are not all that RobustBench's format holds; nothing is written.
    """
    board = check(row)
    inside = folder / board.name / "corruptions"
    files = inside / f"{name}.json", inside / "unaggregated_results.csv"
    table = _with_line(files[1], name, [accuracy(row, domain) for domain in DOMAINS])
    text = json.dumps(model_info(row, board, paper, additional_data), indent=2)
    write_aside(files[1], table.to_csv().encode())
    write_aside(files[0], text.encode())
    return list(files)


def check(row: TableRow) -> Board:
    """The leaderboard that a row fits. UserError that says what is missing if it fits none."""
    record = row.protocol
    if record.dataset not in BOARDS:
        raise UserError(f"RobustBench has no leaderboard for {record.dataset}: it has them for "
                        f"{', '.join(BOARDS)}")
    board = BOARDS[record.dataset]
    missing = sorted({f"{name} {severity}" if severity else name
                      for name, severity in row.missing([*DOMAINS, CLEAN_KEY])})
    if missing:
        raise UserError(f"row {record.row!r} lacks {len(missing)} of RobustBench's {len(DOMAINS)} "
                        f"domains and the clean images ({', '.join(missing[:5])}"
                        f"{', ...' * (len(missing) > 5)}): run it with SEVERITY [0,1,2,3,4,5] and "
                        "all CORRUPTIONS")
    if record.num_images != board.num_images:
        raise UserError(f"row {record.row!r} is over {record.num_images} images per domain, "
                        f"RobustBench's {board.name} over {board.num_images}: run it with "
                        "NUM_IMAGES -1")
    strangers = {result.record.images_from for result in row.within(DOMAINS)
                 if not result.record.images_from.startswith("official")}
    if strangers:
        raise UserError(f"row {record.row!r} is not on the published images but on "
                        f"{sorted(strangers)[0]}: put those into DATA_DIR and run it again")
    return board


def model_info(row: TableRow, board: Board, paper: Mapping[str, str],
               additional_data: bool) -> dict[str, Any]:
    """The fields of RobustBench's ModelInfo; figures are text, in per cent."""
    record = row.protocol
    errors = {name: 1 - float(np.mean([accuracy(row, (name, severity))
                                       for severity in SEVERITIES])) for name in ALEXNET}
    steps = record.hyper_parameters.get("steps", 0)
    settings = ", ".join(f"{key} {value}" for key, value in record.hyper_parameters.items()
                         if value is not None)
    info: dict[str, Any] = {
        "link": paper["link"], "name": paper["title"], "authors": paper["author"],
        # What it means for test-time training RobustBench does not say; we give the updates.
        "additional_data": additional_data, "number_forward_passes": max(1, steps),
        "dataset": board.name, "venue": paper["venue"], "architecture": record.backbone,
        "eps": None, "clean_acc": _percent(accuracy(row, CLEAN_KEY)), "reported": "",
        "corruptions_acc": _percent(1 - float(np.mean(list(errors.values())))),
        "footnote": f"Adapts at test time: {record.method} ({settings}), {record.setting}, "
                    f"batches of {record.batch_size}. Measured with tta-apm.",
    }
    if board.has_mce:
        info["corruptions_mce"] = _percent(float(np.mean([
            error / ALEXNET[name] for name, error in errors.items()])))
    return info


def accuracy(row: TableRow, domain: tuple[str, int]) -> float:
    """On a domain, the mean over the row's seeds."""
    return float(np.mean([result.correct.mean() for result in row.within([domain])]))


def _with_line(file: Path, name: str, values: Sequence[float]) -> pd.DataFrame:
    """The table of `file`, if it is there, with the model's line in it."""
    line = pd.DataFrame([[round(value, 6) for value in values]], index=[name],
                        columns=pd.MultiIndex.from_tuples(DOMAINS))
    if not file.is_file():
        return line
    try:
        known = pd.read_csv(file, header=[0, 1], index_col=0)
        known.columns = pd.MultiIndex.from_tuples(
            [(corruption, int(severity)) for corruption, severity in known.columns])
        return pd.concat([known.drop(index=name, errors="ignore")[DOMAINS], line])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no unaggregated_results.csv of robustbench: {error}") from error


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
