"""Hosted: a method of ours as other repositories' loops call it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tta_apm.backbones.backbone import Backbone
from tta_apm.errors import UserError
from tta_apm.interop.hosts.settings import describe
from tta_apm.method import Method
from tta_apm.registry import METHODS
from tta_apm.toolbox.norm_layers import SingleImage

logger = logging.getLogger(__name__)


class Hosted(nn.Module):
    """A method under the rules of a host: `model(images)` gives logits, `model.reset()` resets.

    Hosts adapt to a single image (a batch size of one, or the last image of a domain) in the
    company of the images before it. Methods whose result depends on the image alone need none and
    get none. The others see the last images as a batch; their state moves on once per `window`
    images, and for the predictions in between it is put back. An image without any company (the
    first of all, or each where `window` is 1) is seen twice by methods that refuse a batch of one:
    its batch's statistics are then its own, as in the hosts' methods.

    Args:
        method: on the device of the images.
        window: how many images a single one is seen with, itself included.
        episodic: reset before every batch.
        reset_every: reset after so many batches; 0 never does.
    """

    def __init__(self, method: Method, *, window: int = 1, episodic: bool = False,
                 reset_every: int = 0) -> None:
        super().__init__()
        self.method = method
        self.window = window
        self.episodic = episodic
        self.reset_every = reset_every
        self.num_batches = 0
        self.num_single = 0
        self.recent: Tensor | None = None
        self.is_window = False  # of single images; else a batch

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]; of a list of views the first is the image."""
        if not isinstance(images, Tensor):
            images = images[0]
        if self.episodic:
            self.method.reset()
        if len(images) == 1 and self.method.scope != "image":
            return self._single(images)
        if self.method.scope != "image":
            self.recent, self.is_window = images, False
        return self._adapt(images)

    def reset(self) -> None:
        """The method as it was built; images seen before stay as company, as in the hosts."""
        self.method.reset()

    def _adapt(self, images: Tensor) -> Tensor:
        logits = predict(self.method, images)
        self.num_batches += 1
        if self.reset_every and self.num_batches % self.reset_every == 0:
            self.method.reset()
        return logits

    def _single(self, image: Tensor) -> Tensor:
        """Logits [1,K] of one image, seen with those before it."""
        place = self._join(image)
        assert self.recent is not None
        self.num_single += 1
        if self.method.scope == "stream" and self.num_single % self.window:
            return predict(copy.deepcopy(self.method), self.recent)[place][None]
        return self._adapt(self.recent)[place][None]

    def _join(self, image: Tensor) -> int:
        """Put an image among those before it; returns its place there.

        A window that is full has its oldest image replaced, as in the hosts: sums over the window
        are then theirs to the bit.
        """
        if self.recent is None:
            self.recent, self.is_window = image, True
            return 0
        if not self.is_window:  # the last image of a domain has the batch before it as company
            company = max(self.window, len(self.recent))
            self.recent = torch.cat([self.recent, image])[-company:]
            return len(self.recent) - 1
        if len(self.recent) < self.window:
            self.recent = torch.cat([self.recent, image])
            return len(self.recent) - 1
        place = self.num_single % self.window
        self.recent = torch.cat([self.recent[:place], image, self.recent[place + 1:]])
        return place


def predict(method: Method, images: Tensor) -> Tensor:
    """Logits [B,K]; a single image that the method refuses as a batch of one is shown twice."""
    try:
        return method(images)
    except SingleImage:  # raised before anything has changed
        return method(torch.cat([images, images]))[:1]


def make_method(name: str, keywords: Mapping[str, Any], backbone: Backbone, seed: int) -> Method:
    """Our method `name` over a backbone, as a sweep of ours builds it but without source images.

    UserError for an offline one.
    """
    if METHODS.signature(name).scope == "domain":
        raise UserError(f"{name} is offline: it sees all images of a domain before it predicts any,"
                        " which the loops of other benchmarks do not show it; run it in a sweep of "
                        "tta-apm")
    keywords = dict(keywords)
    if "seed" in METHODS.signature(name).defaults:
        keywords["seed"] = seed
    method: Method = METHODS.load(name)(backbone, **keywords)
    logger.info(describe(name, backbone.name, keywords))
    return method
