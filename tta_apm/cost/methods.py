"""MethodCost: the cost of a method per image, measured with random weights and random images."""

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
from tta_apm.bench.counts import Counts
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
        method: the text of the row.
        backbone: its architecture.
        backbone_parameters: the number of parameters of the frozen network.
        adapted_parameters: the number of parameters that an optimiser updates.
        steps: updates per image or batch; None if the method has no such hyper-parameter.
        step_forward, step_backward: FLOPs of one more update; NaN if steps is None.
        forward, backward: all FLOPs per image; NaN if they cannot be counted.
        peak_memory_mb: during the adaptation to a batch, in MiB; that of the process on a CPU.
        seconds: per image, in a batch of num_images.
        num_images: the size of the batch that was timed.
        share_updated: the share of its images that an update was made on.
        forwards_per_image, backwards_per_image: passes through the backbone or a copy of it; each
            view of an image counts.
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
    """Measures the cost of methods on backbones with random weights.

    Args:
        cfg: its sections name the architectures.
        class_names: the names of the K classes.
        device: the device to measure on.
    """

    def __init__(self, cfg: CfgNode, class_names: Sequence[str], device: torch.device
                 ) -> None:
        self.cfg = cfg
        self.class_names = class_names
        self.device = device
        self._backbones: dict[str, Backbone] = {}

    def measure(self, row: Row, num_images: int) -> MethodCost:
        """The cost of a row, timed once on a batch of `num_images`; on a GPU after a warm-up.

        Raises:
            UserError: for an offline method.
        """
        if row.scope == "domain":
            raise UserError("it is offline: it adapts to a whole domain, not to a batch; the "
                            "records of a run have its cost")
        backbone = self.backbone(row.needs)
        images = self.images(backbone, max(num_images, _min_images(row)))
        adapted, per_step, flops = self._count(row, images)
        method = self.method(row)
        if self.device.type == "cuda":
            with torch.no_grad():
                method(images)
            method.reset()
        gc.collect()
        measure.reset_peak_memory(self.device)
        stopwatch, counts = measure.Stopwatch(self.device), Counts()
        counts.note(method.did)
        with torch.no_grad(), counts.during_call(len(images)), stopwatch:
            method(images)
        counts.note(method.did)
        did = counts.share(1 / len(images))
        return MethodCost(
            row.text, backbone.name, sum(value.numel() for value in backbone.parameters()),
            adapted, row.hyper_parameters.get("steps"), *per_step, *flops,
            measure.peak_memory_mb(self.device), stopwatch.seconds / len(images), len(images),
            did["updated"], did["forwards"], did["backwards"])

    def backbone(self, kind: str) -> Backbone:
        """The backbone of a kind, built once with random weights; the others leave the device."""
        measure.keep_only([kind], self._backbones, self.device)
        if kind not in self._backbones:
            self._backbones[kind] = untrained(
                kind, self.cfg[kind.upper()].MODEL, class_names=self.class_names,
                device=self.device)
        return self._backbones[kind]

    def method(self, row: Row, **changes: Any) -> Method:
        """Build the method of a row, with some hyper-parameters changed."""
        cls = METHODS.load(row.method)
        keywords = {**row.hyper_parameters, **changes, **cls.skip_setup}
        backbone = self.backbone(row.needs)
        if "source" in row.signature.defaults:
            keywords["source"] = RandomSource(self.images(backbone, 64), len(self.class_names))
        method: Method = cls(suited(backbone, row.signature.needs), **keywords)
        return method.to(self.device)

    def images(self, backbone: Backbone, count: int) -> Tensor:
        """Random images [count,3,H,W] of a backbone's image size."""
        size = backbone.image_size or SIDE
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, 3, size, size, generator=generator).to(self.device)

    def _count(self, row: Row, images: Tensor) -> tuple[int, Flops, Flops]:
        """The number of adapted parameters, the FLOPs of one more step, and all FLOPs of an image.

        Runs with one and with two steps suffice: every later step costs as much as the second.
        """
        few = images[:_min_images(row)]
        steps = row.hyper_parameters.get("steps")
        if not steps:
            adapted, flops = self._run(self.method(row), few)
            return adapted, Flops(float("nan"), float("nan")), flops
        adapted, once = self._run(self.method(row, steps=1), few)
        _, twice = self._run(self.method(row, steps=2), few)
        step = Flops(*(b - a for a, b in zip(once, twice)))
        return adapted, step, Flops(*(a + (steps - 1) * b for a, b in zip(once, step)))

    def _run(self, method: Method, images: Tensor) -> tuple[int, Flops]:
        """The number of parameters that an optimiser updates, and the FLOPs per image."""
        adapted = [0]
        if self.device.type == "cuda":  # the first call may run extra passes to find a chunk size
            with torch.no_grad():
                method(images)

        def count(optimizer: Optimizer, *_: object) -> None:
            adapted.append(sum(parameter.numel() for group in optimizer.param_groups
                               for parameter in group["params"]))

        hook = register_optimizer_step_pre_hook(count)
        try:
            with torch.no_grad():
                flops = measure.count_flops(lambda: method(images))
        finally:
            hook.remove()
        flops = flops or Flops(float("nan"), float("nan"))
        return max(adapted), Flops(*(value / len(images) for value in flops))


class RandomSource:
    """Random images with arbitrary labels, as a method.SourceImages."""

    def __init__(self, images: Tensor, num_classes: int) -> None:
        self._images = images
        self._labels = torch.arange(len(images), device=images.device) % num_classes

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        chosen = indices.to(self._images.device)
        return self._images[chosen], self._labels[chosen]


def _min_images(row: Row) -> int:
    """The smallest batch for a row: 1 for scope "image", else 2, for batch statistics."""
    return 1 if row.scope == "image" else 2
