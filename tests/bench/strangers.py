"""Methods of strangers, a plugin: what they do to what they share, how they end, what they tell."""

from __future__ import annotations

import copy
import random
import sys
import time

import numpy as np
import torch
from torch import nn
from tta_apm_baselines.tent import Tent

import tampering
from tta_apm.method import Method, register


@register("plain")
class Plain(Method):
    needs, scope = "classifier", "image"

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        return self.backbone(images)

    def reset(self):
        pass


# What they do to what they share

@register("spoiler")
class Spoiler(Plain):
    needs, scope = "classifier", "image"

    def __init__(self, backbone, *, change=0, at="forward"):
        super().__init__(backbone)
        self.change, self.at = change, at
        self.do("init")

    def forward(self, images):
        logits = self.backbone(images)
        self.do("forward", images)
        return logits

    def reset(self):
        self.do("reset")

    def do(self, at, images=None):
        if at == self.at:
            tampering.do(self.change, self.backbone, images)


@register("clip_spoiler")
class ClipSpoiler(Spoiler):
    needs, scope = "clip", "image"


@register("late_spoiler")
class LateSpoiler(Plain):
    needs, scope = "classifier", "stream"
    survives = "a count"
    calls = 0

    def forward(self, images):
        self.calls += 1
        if self.calls == 4:  # the warm-up, and three batches
            with torch.no_grad():
                next(self.backbone.parameters()).data.mul_(2)
        return self.backbone(images)


@register("tent_without_a_copy")
class TentWithoutACopy(Tent):
    needs, scope, survives = "classifier", "stream", "weights"

    def __init__(self, backbone):
        kept, copy.deepcopy = copy.deepcopy, lambda network: network
        try:
            super().__init__(backbone)
        finally:
            copy.deepcopy = kept


@register("grasping")
class Grasping(Plain):
    needs, scope = "classifier", "image"

    def forward(self, images):
        images.requires_grad_()
        with torch.enable_grad():
            self.backbone.prepare(images).sum().backward()
        return self.backbone(images.detach())


@register("noisy")
class Noisy(Plain):
    needs, scope = "classifier", "stream"
    survives = "random state"

    def forward(self, images):
        noise = torch.rand(()).item() + np.random.random() + random.random()
        return self.backbone(images) + noise * torch.randn(len(images), 10)


# What they do as they prepare

@register("greedy")
class Greedy(Plain):
    needs, scope = "classifier", "domain"

    def prepare(self, images):
        torch.set_default_dtype(torch.float64)


@register("failing")
class Failing(Plain):
    needs, scope = "classifier", "domain"

    def prepare(self, images):
        raise RuntimeError(f"cannot learn from {len(images)} images")


# What they take: time, memory

@register("sleepy")
class Sleepy(Plain):
    needs, scope = "classifier", "image"

    def forward(self, images):
        time.sleep(0.3)
        return self.backbone(images)


@register("heavy")
class Heavy(Plain):
    needs, scope = "classifier", "image"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.load = nn.Parameter(torch.ones(60_000_000), requires_grad=False)


@register("broke")
class Broke(Plain):
    needs, scope = "classifier", "image"
    built = 0

    def __init__(self, backbone):
        super().__init__(backbone)
        type(self).built += 1

    def forward(self, images):
        if self.built == 1:
            raise MemoryError("beside the others")
        return self.backbone(images)


class Slow(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images):
        type(self).calls += 1
        time.sleep(0.05)
        return self.head(images.mean((2, 3)))


def slow():
    torch.manual_seed(0)
    return Slow()


# How they end

class Text(Exception):
    def __str__(self):
        raise RuntimeError("no text")


ENDS = {
    "exits": lambda: sys.exit(),
    "exits_with_3": lambda: sys.exit(3),
    "closes_a_generator": lambda: (_ for _ in ()).throw(GeneratorExit()),
    "stops": lambda: next(iter(())),
    "has_no_text": lambda: (_ for _ in ()).throw(Text()),
    "interrupts": lambda: (_ for _ in ()).throw(KeyboardInterrupt()),
    "another": lambda: (_ for _ in ()).throw(BaseException("other")),
}


@register("ends")
class Ends(Plain):
    needs, scope = "classifier", "image"

    def __init__(self, backbone, *, how=""):
        super().__init__(backbone)
        self.how = how

    def forward(self, images):
        ENDS[self.how]()


# What they tell of themselves

TELLS = {
    "resolved_tensor": ("resolved", {"lr": torch.ones(())}),
    "resolved_nan": ("resolved", {"lr": float("nan")}),
    "resolved_inf": ("resolved", {"lr": [1.0, float("inf")]}),
    "resolved_list": ("resolved", ["lr"]),
    "resolved_key": ("resolved", {1: 2}),
    "details_list": ("details", ["cosine"]),
}


@register("tells")
class Tells(Plain):
    needs, scope = "classifier", "image"

    def __init__(self, backbone, *, what=""):
        super().__init__(backbone)
        self.what = what

    def forward(self, images):
        if self.what == "details_nan":
            self.details = {"cosine": torch.full((len(images),), float("nan"))}
        else:
            name, value = TELLS[self.what]
            setattr(self, name, value)
        return self.backbone(images)
