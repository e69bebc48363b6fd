"""MethodCost: what a method costs for an image, measured on random weights and random images."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import untrained
from tta_apm.backbones.image_tower import suited
from tta_apm.bench import measure
from tta_apm.bench.deeds import Deeds
from tta_apm.bench.measure import Flops
from tta_apm.config import Row
from tta_apm.errors import UserError
from tta_apm.method import Method
from tta_apm.registry import METHODS

SIDE = 32  # in pixels, of images for a backbone that takes any


@dataclass(frozen=True)
class MethodCost:
    """The cost of one row of METHODS. FLOPs count two per multiply-add.

    Args:
        method: the row as the config has it.
        backbone: its architecture.
        backbone_parameters: of the frozen network.
        adapted_parameters: that an optimiser updates, for one image or for all.
        steps: updates per image or batch; None if the method has no such number.
        step_forward, step_backward: FLOPs of one more update; NaN where steps is None.
        forward, backward: FLOPs per image in all; NaN where they cannot be counted.
        peak_memory_mb: while a batch is adapted; of the whole process on a CPU.
        seconds: per image, in a batch of num_images.
        num_images: in the batch that was timed.
        share_updated: of them, those of which an update was made.
        forwards_per_image, backwards_per_image: images, views one by one, that went through the
            backbone or a copy, and that a gradient went back for.
    """

    method: str
    backbone: str
    backbone_parameters: int
    adapted_parameters: int
    steps: int | None
    step_forward: float
    step_backward: float
    forward: float
    backward: float
    peak_memory_mb: float
    seconds: float
    num_images: int
    share_updated: float
    forwards_per_image: float
    backwards_per_image: float


class Costs:
    """Measures methods on backbones with random weights: what they cost, not what they say.

    Args:
        cfg: its sections name the architectures.
        class_names: K names.
        device: to measure on.
    """

    def __init__(self, cfg: CfgNode, class_names: Sequence[str], device: torch.device
                 ) -> None:
        self.cfg = cfg
        self.class_names = class_names
        self.device = device
        self._backbones: dict[str, Backbone] = {}

    def measure(self, row: Row, num_images: int) -> MethodCost:
        """The cost of a row, timed once, warmed up, on a batch of `num_images`.

        UserError for an offline row.
        """
        if row.scope == "domain":
            raise UserError("it is offline: its work is on a whole domain, not on a batch; the "
                            "records of a run tell what it took")
        backbone = self.backbone(row.needs)
        images = self.images(backbone, max(num_images, _least(row)))
        adapted, per_step, flops = self._count(row, images)
        method = self.method(row)
        if self.device.type == "cuda":
            with torch.no_grad():
                method(images)
            method.reset()
        gc.collect()
        measure.reset_peak_memory(self.device)
        stopwatch, deeds = measure.Stopwatch(self.device), Deeds()
        deeds.hear(method.did)
        with torch.no_grad(), deeds.of_call(len(images)), stopwatch:
            method(images)
        deeds.hear(method.did)
        did = deeds.share(1 / len(images))
        return MethodCost(
            row.text, backbone.name, sum(value.numel() for value in backbone.parameters()),
            adapted, row.hyper_parameters.get("steps"), *per_step, *flops,
            measure.peak_memory_mb(self.device), stopwatch.seconds / len(images), len(images),
            did["updated"], did["forwards"], did["backwards"])

    def backbone(self, kind: str) -> Backbone:
        """The architecture that the config has for a kind, built once; alone on the device."""
        measure.keep_only([kind], self._backbones, self.device)
        if kind not in self._backbones:
            self._backbones[kind] = untrained(
                kind, self.cfg[kind.upper()].MODEL, class_names=self.class_names,
                device=self.device)
        return self._backbones[kind]

    def method(self, row: Row, **changes: Any) -> Method:
        """The method of a row, with some hyper-parameters changed."""
        cls = METHODS.load(row.method)
        keywords = {**row.hyper_parameters, **changes, **cls.skip_setup}
        backbone = self.backbone(row.needs)
        if "source" in row.signature.defaults:
            keywords["source"] = RandomSource(self.images(backbone, 64), len(self.class_names))
        method: Method = cls(suited(backbone, row.signature.needs), **keywords)
        return method.to(self.device)

    def images(self, backbone: Backbone, count: int) -> Tensor:
        """Random images [count,3,H,W] of the size that a backbone works at."""
        size = backbone.image_size or SIDE
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, 3, size, size, generator=generator).to(self.device)

    def _count(self, row: Row, images: Tensor) -> tuple[int, Flops, Flops]:
        """Adapted parameters, and FLOPs of one more step and of an image in all.

        The first steps tell: every one costs what the second does.
        """
        few = images[:_least(row)]
        steps = row.hyper_parameters.get("steps")
        if not steps:
            adapted, flops = self._run(self.method(row), few)
            return adapted, Flops(float("nan"), float("nan")), flops
        adapted, once = self._run(self.method(row, steps=1), few)
        _, twice = self._run(self.method(row, steps=2), few)
        step = Flops(*(b - a for a, b in zip(once, twice)))
        return adapted, step, Flops(*(a + (steps - 1) * b for a, b in zip(once, step)))

    def _run(self, method: Method, images: Tensor) -> tuple[int, Flops]:
        """Parameters that an optimiser updates, and FLOPs per image."""
        adapted = [0]
        if self.device.type == "cuda":  # where a first call may run to size its chunks
            with torch.no_grad():
                method(images)

        def look(optimizer: Optimizer, *_: object) -> None:
            adapted.append(sum(parameter.numel() for group in optimizer.param_groups
                               for parameter in group["params"]))

        hook = register_optimizer_step_pre_hook(look)
        try:
            with torch.no_grad():
                flops = measure.count_flops(lambda: method(images))
        finally:
            hook.remove()
        flops = flops or Flops(float("nan"), float("nan"))
        return max(adapted), Flops(*(value / len(images) for value in flops))


class RandomSource:
    """Labelled images that mean nothing: see method.Source."""

    def __init__(self, images: Tensor, num_classes: int) -> None:
        self._images = images
        self._labels = torch.arange(len(images), device=images.device) % num_classes

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        chosen = indices.to(self._images.device)
        return self._images[chosen], self._labels[chosen]


def _least(row: Row) -> int:
    """One image for methods that adapt to each alone; others may need a batch's statistics."""
    return 1 if row.scope == "image" else 2
