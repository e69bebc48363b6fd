"""MEMO: marginal entropy minimisation over augmented views of one image."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import at_least, choose
from tta_apm.method import Method
from tta_apm.toolbox.augmix import augmix
from tta_apm.toolbox.batch_norm import mixed_statistics
from tta_apm.toolbox.entropy import marginal_entropy
from tta_apm.toolbox.episodes import (
    Parameters, chunk_size, chunks, image_generators, saved_bytes, stack)
from tta_apm.toolbox.surviving import SurvivingOptimizer
from tta_apm.toolbox.views import crop_views, pad_crop_views

CROPS = ("pad", "resize")
OPTIMIZERS = ("adamw", "sgd")
# AugMix's fill colour: the authors pass Pillow the number 128, which it reads as dark red.
FILL = (128, 0, 0)


class Memo(Method):
    """Marginal entropy minimisation with one test point (Zhang et al., NeurIPS 2022).

    For each image alone: make views of it by random crops and AugMix, take one step on all
    weights to lower the entropy of the views' mean prediction, and classify the image itself after
    that update. No state is carried from one image to the next.

    Batch normalisation interpolates the statistics of source and inputs, as BN-adapt does for a
    single image: the source's have weight N / (N + 1), and those of the views (in adaptation) or
    of the image (in prediction) 1 / (N + 1). No gradient flows through the statistics.

    Departures from the authors' code: the variance of the inputs is the biased one, since one
    image may have a single value per channel; views are cropped from the image as the data set
    returns it, not from the file; AdamW's moments start empty for each image (theirs resets the
    weights only).

    Args:
        backbone: a classifier.
        num_views: views per image; the paper's number is 32 for CIFAR-10, 64 for ImageNet.
        lr: learning rate; the paper's is 5e-3 for CIFAR-10, 2.5e-4 for ImageNet and ResNet-50.
        optimizer: "sgd" (no momentum, no weight decay) or "adamw" (weight decay 0.01; with lr 1e-5
            the authors' choice for ResNeXt-101 and RVT on ImageNet).
        pseudo_count: N; a very large one gives the source's statistics.
        crop: "pad" crops the padded image (for CIFAR-10), "resize" resizes crops of random area
            (for ImageNet).
        flip: whether to mirror each view with probability 1/2.
        seed: of the views.

    Raises:
        UserError: for values out of range.
    """

    needs = "classifier"
    scope = "image"

    def __init__(self, backbone: Classifier, *, num_views: int = 32, lr: float = 5e-3,
                 optimizer: str = "sgd", pseudo_count: float = 16.0, crop: str = "pad",
                 flip: bool = True, seed: int = 42) -> None:
        super().__init__()
        at_least(1, "memo", num_views=num_views)
        at_least(0, "memo", pseudo_count=pseudo_count, lr=lr)
        choose("memo", "optimizer", optimizer, OPTIMIZERS)
        choose("memo", "crop", crop, CROPS)
        # On a CPU, classifiers are in the channels-last format, which is slower under vmap.
        self.model = copy.deepcopy(backbone).to(memory_format=torch.contiguous_format)
        self.num_views = num_views
        self.lr = lr
        self.optimizer_name = optimizer
        self.crop = crop
        self.flip = flip
        self.seed = seed
        self._chunk_sizes: dict[torch.Size, int] = {}
        for layer in self.model.modules():
            if isinstance(layer, _BatchNorm) and layer.track_running_stats:
                layer.register_forward_pre_hook(partial(_mix, 1 / (pseudo_count + 1)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        shape = images.shape[1:]
        if shape not in self._chunk_sizes:
            self._chunk_sizes[shape] = chunk_size(self._bytes_per_image(images[:1]), images.device)
        return torch.cat([self._adapt(images[part])
                          for part in chunks(len(images), self._chunk_sizes[shape])])

    def reset(self) -> None:
        """Do nothing: every image starts from the source's weights and an empty optimiser."""

    def _adapt(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W], each with its own adapted weights."""
        weights = self.adapted(self.views(images))
        return vmap(self.run)(weights, images[:, None]).squeeze(1)

    def views(self, images: Tensor) -> Tensor:
        """Views [B,V,3,H,W] of images [B,3,H,W]."""
        generators = image_generators(images, self.seed)
        crop = pad_crop_views if self.crop == "pad" else partial(
            crop_views, size=self.model.image_size)
        views = crop(images, self.num_views, generators, flip=self.flip)
        return augmix(views, generators, fill=FILL)

    def adapted(self, views: Tensor) -> Parameters:
        """Weights [B,...] after one step on views [B,V,3,H,W], one set for each image."""
        source = self.source()
        # All images start from the same weights, so the views of all images can pass through the
        # network as one batch. Only the gradients differ between images.
        gradients = vmap(grad(self.loss), in_dims=(None, 0))(source, views)
        weights = stack(source, len(views))
        for name, weight in weights.items():
            weight.grad = gradients[name]
        self.make_optimizer(list(weights.values())).step()
        return {name: weight.detach() for name, weight in weights.items()}

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """A new optimiser for the weights of a chunk of images."""
        if self.optimizer_name == "sgd":
            return torch.optim.SGD(leaves, lr=self.lr)
        return torch.optim.AdamW(leaves, lr=self.lr, weight_decay=0.01)

    def loss(self, weights: Parameters, views: Tensor) -> Tensor:
        """Entropy of the mean prediction over views [V,3,H,W], a scalar."""
        return marginal_entropy(self.run(weights, views))

    def run(self, weights: Parameters, images: Tensor) -> Tensor:
        """Logits [N,K] of images [N,3,H,W], which share their batch statistics."""
        # The buffers are passed too, so that what _mix changes is restored after the call.
        return functional_call(self.model, {**weights, **dict(self.model.named_buffers())},
                               (images,))

    def source(self) -> Parameters:
        """The source's weights by name."""
        return {name: weight.detach() for name, weight in self.model.named_parameters()}

    def _bytes_per_image(self, image: Tensor) -> int:
        """Memory of one image: weights before and after the step, gradients and, on a GPU, the
        views' activations.

        On a CPU a chunk is meant to fit into the processor's cache, which does not help
        activations: there is one step only.
        """
        weights = sum(weight.nbytes for weight in self.source().values())
        if image.device.type == "cpu":
            return 3 * weights
        leaves = {name: weight.requires_grad_() for name, weight in self.source().items()}
        activations = max(0, saved_bytes(lambda: self.run(leaves, image)) - weights)
        return 3 * weights + 2 * self.num_views * activations


class MemoSurviving(SurvivingOptimizer, Memo):
    """MEMO whose AdamW survives from image to image, for the audit only.

    With the default optimiser, SGD without momentum, it equals Memo.
    """


def _mix(share: float, layer: _BatchNorm, inputs: tuple[Tensor]) -> None:
    """Forward pre-hook: interpolate a layer's statistics with those of its inputs."""
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean, layer.running_var = mixed_statistics(
        inputs[0], layer.running_mean, layer.running_var, share)
