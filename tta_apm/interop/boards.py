"""Boards: the names of data sets in other benchmarks, and the results that these accept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tta_apm.errors import UserError

# RobustBench's file of accuracies, one line per model.
ACCURACIES = "unaggregated_results.csv"


@dataclass(frozen=True)
class Board:
    """A data set in other benchmarks.

    Attributes:
        online_tta: its heading in online-tta's benchmark.md.
        num_images: images per domain in these benchmarks.
        robustbench: the folder of its leaderboard; "" if RobustBench has none.
        logged: its name in logs, if it differs from the folder's.
        has_corruptions: whether its domains are the 15 corruptions.
        has_mce: whether RobustBench's entry states the mCE.
    """

    online_tta: str
    num_images: int
    robustbench: str = ""
    logged: str = ""
    has_corruptions: bool = True
    has_mce: bool = False


# One table, no fields of the data sets: these names are others', and one set has several.
BOARDS = {
    "cifar10_c": Board("CIFAR10-C", 10_000, "cifar10"),
    "cifar100_c": Board("CIFAR100-C", 10_000, "cifar100"),
    "imagenet_c": Board("ImageNet-C", 5_000, "imagenet", has_mce=True),
    "imagenet_r": Board("ImageNet-R", 30_000, has_corruptions=False),
    "imagenet_sketch": Board("ImageNet-Sketch", 50_889, logged="imagenet_k",
                             has_corruptions=False),
}
# Names of data sets here, by their names in other benchmarks' logs.
LOGGED = {name: dataset for dataset, board in BOARDS.items()
          if (name := board.logged or board.robustbench)}
# Names of data sets here, by the folders of RobustBench's leaderboards.
LEADERBOARDS = {board.robustbench: dataset for dataset, board in BOARDS.items()
                if board.robustbench}


def not_accuracies(file: Path, error: Exception) -> UserError:
    """The error for a file that is not RobustBench's file of accuracies."""
    return UserError(f"{file} is not an {ACCURACIES} of robustbench: {error}")
