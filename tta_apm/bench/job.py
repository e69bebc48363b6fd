"""Job: a sweep from its config, to find and run its missing cells. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from yacs.config import CfgNode

from tta_apm.atomic import atomic_path
from tta_apm.bench.claims import Claims
from tta_apm.bench.identity import Images
from tta_apm.bench.plan import Cell, missing, plan
from tta_apm.bench.records import find_records, remove_cell
from tta_apm.bench.series import Series
from tta_apm.data.dataset import DataSet
from tta_apm.errors import UserError, writing

# Keys that change no number: they may differ between the processes that share a folder.
MACHINE_KEYS = ("DEVICE", "TOGETHER", "NUM_WORKERS", "LAUNCH", "OUTPUT_DIR")
# Keys that are not saved with the results.
NOT_SAVED = ("LAUNCH",)


class Job:
    """A sweep to run.

    Args:
        cfg: the config, from `config.load`.
        redo: replace cells that were made under another config or with other code.
        needs_images: load the data set; without it, images are not compared with records.

    Attributes:
        cells: all cells of the config.
        dataset: the data set; None if it is not found or not needed.
        reason: why the data set is not found; None if it is.
    """

    def __init__(self, cfg: CfgNode, *, redo: bool = False, needs_images: bool = True) -> None:
        self.cfg = cfg
        self.redo = redo
        self.folder = Path(cfg.OUTPUT_DIR)
        self.dataset, self.reason = find_dataset(cfg) if needs_images else (None, None)
        self.cells = plan(cfg, self.dataset)

    @cached_property
    def images(self) -> Images | None:
        if self.dataset is None:
            return None
        return Images(self.dataset, self.cfg.NUM_IMAGES, self.cfg.TEMPLATES)

    def missing(self) -> list[Cell]:
        """The cells to run.

        Raises:
            UserError: as `plan.missing`.
        """
        return missing(self.cells, self.folder, redo=self.redo, images=self.images)

    def units(self, todo: Sequence[Cell]) -> list[tuple[str, list[str]]]:
        """The units of the cells in `todo`: for each a title (row and seed) and the names of its
        cells."""
        names = {cell.name for cell in todo}
        return [(f"{series.row.text}, seed {series.seed}", list(series.names(unit, names)))
                for series in Series.of(self.cells, self.cfg.SETTING)
                for unit in series.units(names)]

    def require_images(self) -> None:
        """Raise UserError if the images are not found."""
        if self.reason:
            raise self.reason

    def save_config(self) -> None:
        """Write config.yaml to the folder. UserError if it cannot be written."""
        advice = "set OUTPUT_DIR to a folder of yours"
        with writing(f"to OUTPUT_DIR {self.folder}", advice), \
                atomic_path(self.folder / "config.yaml") as temporary:
            temporary.write_bytes(_without(self.cfg, NOT_SAVED).dump().encode())

    def run(self, todo: Sequence[Cell], claims: Claims) -> dict[str, str]:
        """Run the cells in `todo`; returns the names of those that failed, with the reasons.

        Raises:
            UserError: as Sweep.run.
        """
        from tta_apm.bench.sweep import Sweep

        assert self.dataset is not None  # else the reason was raised
        claims.watch({cell.name: cell.record_file(self.folder) for cell in todo})
        failed = Sweep(self.cfg, self.cells, todo, self.folder, self.dataset, claims).run()
        if self.redo:  # the old records of failed cells are not results of this config
            for cell in self.cells:
                if cell.name in failed:
                    remove_cell(cell.path(self.folder))
        return failed


def shared_work(cfg: CfgNode) -> str:
    """A text of everything that processes which share a folder must have in common."""
    text: str = _without(cfg, MACHINE_KEYS).dump()
    return text


def has_records(folder: Path) -> bool:
    """Whether a results folder has any record."""
    return any(find_records(folder / "cells"))


def find_dataset(cfg: CfgNode) -> tuple[DataSet | None, UserError | None]:
    """The data set of a config, or the error if it is not found: tables can be shown without it."""
    from tta_apm.data.load import load_dataset
    from tta_apm.data.streams import domains

    try:
        return load_dataset(cfg.DATASET, data_dir=cfg.DATA_DIR, frost_dir=cfg.FROST_DIR,
                            corrupt=cfg.CORRUPT, constants=cfg.CORRUPTION_CONSTANTS,
                            domains=domains(cfg.DATASET, cfg.CORRUPTIONS, cfg.SEVERITY)), None
    except UserError as error:
        return None, error


def _without(cfg: CfgNode, keys: tuple[str, ...]) -> CfgNode:
    return CfgNode({key: value for key, value in cfg.items() if key not in keys})
