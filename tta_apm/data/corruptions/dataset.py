"""Corrupted: a clean data set under the 15 common corruptions, computed on the fly."""

from __future__ import annotations

import math

import numpy as np

from tta_apm.data.corruptions import frost, functions
from tta_apm.data.corruptions.constants import SIDES
from tta_apm.data.dataset import CLEAN, DataSet, Domain, hash_files, hash_text
from tta_apm.data.workers import in_threads, num_workers

AUTO = "auto"


class Corrupted(DataSet):
    """A clean data set under the 15 common corruptions, computed on the fly and seeded per image.

    Args:
        name: name of the corrupted data set, e.g. "digits_c".
        clean: the data set to corrupt.
        constants: "cifar" or "imagenet", the benchmark whose severities are used.
        chosen: how the constants were chosen, for the record; "" if they belong to the data set.
        frost_dir: folder of the official frost pictures; None for the best installed source.
    """

    def __init__(self, name: str, clean: DataSet, *, constants: str, chosen: str = "",
                 frost_dir: str | None = None) -> None:
        self.name = name
        self.clean = clean
        self.constants = constants
        self.chosen = chosen
        self.frost_dir = frost_dir
        self.labels = clean.labels
        self.class_names = clean.class_names
        self.template_set = clean.template_set
        self.templates = clean.templates
        self.outputs = clean.outputs

    def images(self, domain: Domain, indices: np.ndarray) -> np.ndarray:
        clean = self.clean.images(self._clean_domain(), indices)
        if domain.severity == 0:
            return clean

        def corrupt(part: np.ndarray) -> np.ndarray:
            return functions.corrupt(
                clean[part], domain.corruption, domain.severity, indices=indices[part],
                constants=self.constants, frost_dir=self.frost_dir)

        # Threads run in parallel here, since numpy and scipy release the GIL.
        parts = np.array_split(np.arange(len(clean)), min(len(clean), num_workers()) or 1)
        return np.concatenate(in_threads(corrupt, parts))

    def check(self, domain: Domain) -> None:
        self.clean.check(self._clean_domain())
        if domain.corruption == "frost":  # raises for a folder without the pictures
            frost.frost_source(self.frost_dir)

    def source(self) -> DataSet | None:
        return self.clean.source()

    def describe(self, domain: Domain) -> str:
        text = self.clean.describe(self._clean_domain())
        if domain.severity == 0:
            return text
        text += f", corrupted on the fly with {self.constants}-C constants"
        text += f" ({self.chosen})" if self.chosen else ""
        if domain.corruption == "frost":
            text += f", {frost.frost_source(self.frost_dir)} frost pictures"
        return text

    def signature(self, domain: Domain, count: int) -> str | None:
        clean = self.clean.signature(self._clean_domain(), count)
        if clean is None or domain.severity == 0:
            return clean
        parts = [clean, str(domain[1:]), self.constants]
        if domain.corruption == "frost":
            folder = frost.frost_folder(self.frost_dir)
            parts.append(hash_files([folder / name for name in frost.PICTURES], folder)
                         if folder else "drawn")
        return hash_text(*parts)

    def _clean_domain(self) -> Domain:
        return Domain(self.clean.name, CLEAN, 0)


def on_the_fly(clean: DataSet, frost_dir: str | None, constants: str = AUTO) -> Corrupted:
    """The data set `clean` under the corruptions.

    Args:
        constants: the benchmark whose severities are used, see Corrupted; AUTO chooses the one with
            images of the nearest size on a logarithmic scale: CIFAR-C up to a side of 84 pixels.
    """
    if constants != AUTO:
        return Corrupted(clean.name, clean, constants=constants, chosen="by CORRUPTION_CONSTANTS",
                         frost_dir=frost_dir)
    height, width = clean.images(Domain(clean.name, CLEAN, 0), np.array([0])).shape[1:3]
    side = math.sqrt(height * width)
    nearest = min(SIDES, key=lambda name: abs(math.log(side / SIDES[name])))
    return Corrupted(clean.name, clean, constants=nearest, frost_dir=frost_dir,
                     chosen=f"the nearest to {height}×{width}")
