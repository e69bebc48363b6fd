"""Job: a config and its folder; what is missing there, and running it. Imports no torch."""

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

# Keys that change no number: processes that differ in them share the work of a folder.
OF_THE_MACHINE = ("DEVICE", "TOGETHER", "NUM_WORKERS", "LAUNCH", "OUTPUT_DIR")
# The saved config has no such key: how a sweep is launched is no part of it.
NOT_SAVED = ("LAUNCH",)


class Job:
    """A sweep to be run.

    Args:
        cfg: as `config.load` gives it.
        redo: whether cells of another config or other code are replaced.
        needs_images: whether the data set is looked at; if not, signatures of images are not
            compared.
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
        """What can be run apart from the rest, e.g. by several processes: the row and seed, and
        the names of the cells."""
        names = {cell.name for cell in todo}
        return [(f"{series.row.text}, seed {series.seed}", list(series.names(unit, names)))
                for series in Series.of(self.cells, self.cfg.SETTING)
                for unit in series.units(names)]

    def require_images(self) -> None:
        """Raise UserError if the images are not here."""
        if self.reason:
            raise self.reason

    def save_config(self) -> None:
        """Write config.yaml to the folder. UserError if it cannot be written."""
        advice = "set OUTPUT_DIR to a folder of yours"
        with writing(f"to OUTPUT_DIR {self.folder}", advice), \
                atomic_path(self.folder / "config.yaml") as temporary:
            temporary.write_bytes(_without(self.cfg, NOT_SAVED).dump().encode())

    def run(self, todo: Sequence[Cell], claims: Claims) -> dict[str, str]:
        """Run cells; returns the names of those that failed, with the reasons.

        Raises:
            UserError: as Sweep.run.
        """
        from tta_apm.bench.sweep import Sweep

        assert self.dataset is not None  # else the reason was raised
        claims.know({cell.name: cell.record_file(self.folder) for cell in todo})
        failed = Sweep(self.cfg, self.cells, todo, self.folder, self.dataset, claims).run()
        if self.redo:  # what could not be made again is no result of this config
            for cell in self.cells:
                if cell.name in failed:
                    remove_cell(cell.path(self.folder))
        return failed


def shared_work(cfg: CfgNode) -> str:
    """The text of what processes at work on one folder must have in common."""
    text: str = _without(cfg, OF_THE_MACHINE).dump()
    return text


def has_records(folder: Path) -> bool:
    """Whether any cell is recorded there."""
    return any(find_records(folder / "cells"))


def find_dataset(cfg: CfgNode) -> tuple[DataSet | None, UserError | None]:
    """The data set, or why it is not here: what is recorded can be shown without it."""
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
