"""Hosted: a method of this package with the interface of other repositories' loops."""

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
    """A method under the rules of a host: `model(images)` returns logits, `model.reset()` resets.

    Hosts adapt to a single image (batch size 1, or the last image of a domain) in a batch with the
    images before it, the window. Methods of scope "image" do not need that and get the image alone.
    The others get the window as a batch; they are adapted once per `window` images, and for the
    predictions in between a copy is used. If there is no image before (at the start, or for
    `window` 1), methods that refuse a batch of one get the image twice, so that the batch's
    statistics are the image's own, as in the hosts' methods.

    Args:
        method: on the device of the images.
        window: number of images in a window, including the new one.
        episodic: whether to reset before every batch.
        reset_every: number of batches after which to reset; 0 for never.
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
        self.is_window = False  # whether `recent` consists of single images, not of a batch

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]; of a list of views, the first is used."""
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
        """Reset the method; the window is kept, as in the hosts."""
        self.method.reset()

    def _adapt(self, images: Tensor) -> Tensor:
        logits = predict(self.method, images)
        self.num_batches += 1
        if self.reset_every and self.num_batches % self.reset_every == 0:
            self.method.reset()
        return logits

    def _single(self, image: Tensor) -> Tensor:
        """Logits [1,K] of one image in its window."""
        index = self._add_to_window(image)
        assert self.recent is not None
        self.num_single += 1
        if self.method.scope == "stream" and self.num_single % self.window:
            return predict(copy.deepcopy(self.method), self.recent)[index][None]
        return self._adapt(self.recent)[index][None]

    def _add_to_window(self, image: Tensor) -> int:
        """Add an image to the window and return its index there.

        In a full window the oldest image is replaced in place, as in the hosts, so that sums over
        the window are bit-identical to theirs.
        """
        if self.recent is None:
            self.recent, self.is_window = image, True
            return 0
        if not self.is_window:  # the last image of a domain: the window is the batch before it
            size = max(self.window, len(self.recent))
            self.recent = torch.cat([self.recent, image])[-size:]
            return len(self.recent) - 1
        if len(self.recent) < self.window:
            self.recent = torch.cat([self.recent, image])
            return len(self.recent) - 1
        index = self.num_single % self.window
        self.recent = torch.cat([self.recent[:index], image, self.recent[index + 1:]])
        return index


def predict(method: Method, images: Tensor) -> Tensor:
    """Logits [B,K]; a method that refuses a batch of one image gets the image twice."""
    try:
        return method(images)
    except SingleImage:  # raised before the method's state has changed
        return method(torch.cat([images, images]))[:1]


def make_method(name: str, keywords: Mapping[str, Any], backbone: Backbone, seed: int) -> Method:
    """The method `name` of this package, built as in a sweep but without source images.

    Raises:
        UserError: for an offline method.
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
