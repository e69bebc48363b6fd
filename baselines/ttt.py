"""TTT: test-time training by rotation prediction, standard and online."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from tta_apm.backbones.rotation import NUM_ROTATIONS, Rotation, rotate
from tta_apm.errors import at_least
from tta_apm.method import Method
from tta_apm.toolbox.episodes import Parameters, adapt, chunk_size, chunks, image_generators, stack
from tta_apm.toolbox.views import Generators, crop_views, pad_crop_views


class RotationTraining(Method):
    """What both methods share: steps on the rotation loss of random views of an image.

    Weights [B,...] are those of the trunk and of the rotation branch, one set per image; the
    classifier's branch is shared and never changes.
    """

    needs = "rotation"

    def __init__(self, name: str, backbone: Rotation, *, steps: int, lr: float, num_views: int,
                 flip: bool, seed: int) -> None:
        super().__init__()
        at_least(0, name, steps=steps, lr=lr)
        at_least(1, name, num_views=num_views)
        self.backbone = backbone
        self.steps = steps
        self.lr = lr
        self.num_views = num_views
        self.flip = flip
        self.seed = seed

    def fresh_weights(self, num_images: int) -> Parameters:
        """The source's weights, a copy for each image."""
        return stack({name: value for name, value in self.backbone.net.named_parameters()
                      if not name.startswith("classifier.")}, num_images)

    def adapt(self, weights: Parameters, images: Tensor) -> Tensor:
        """Adapt weights [B,...], in place, to images [B,3,H,W]; logits [B,K] thereafter."""
        generators = image_generators(images, self.seed)
        adapt(weights, lambda weights: self.rotation_loss(weights, images, generators),
              steps=self.steps, optimizer=partial(torch.optim.SGD, lr=self.lr))
        inputs = self.backbone.prepare(images)
        return self.backbone.kept(self._run(weights, inputs[:, None], "classifier").squeeze(1))

    def rotation_loss(self, weights: Parameters, images: Tensor, generators: Generators) -> Tensor:
        """Cross-entropy [B] of the rotations of fresh views, each turned at random."""
        size = (len(images), self.num_views)
        turns = torch.stack([torch.randint(NUM_ROTATIONS, (self.num_views,), generator=generator)
                             for generator in generators])
        turns = turns.to(images.device)
        inputs = self.backbone.prepare(self._views(images, generators).flatten(0, 1))
        inputs = rotate(inputs, turns.flatten()).unflatten(0, size)
        logits = self._run(weights, inputs, "rotation")
        losses = F.cross_entropy(logits.flatten(0, 1), turns.flatten(), reduction="none")
        return losses.view(size).mean(1)

    def _views(self, images: Tensor, generators: Generators) -> Tensor:
        """Views [B,V,3,H,W] like those that the network was trained on."""
        if self.backbone.resized_crops:
            return crop_views(images, self.num_views, generators, size=self.backbone.image_size,
                              flip=self.flip)
        return pad_crop_views(images, self.num_views, generators, flip=self.flip)

    def _run(self, weights: Parameters, inputs: Tensor, branch: str) -> Tensor:
        """Outputs [B,V,·] of a branch for inputs [B,V,3,S,S], those of image b with weights[b]."""
        def one(weights: Parameters, inputs: Tensor) -> Tensor:
            return functional_call(self.backbone.net, weights, (inputs, branch))
        # Before torch 2.3, GroupNorm under vmap takes no other memory format.
        return vmap(one)(weights, inputs.contiguous())

    def _bytes_per_episode(self) -> int:
        """Weights with gradients, and about twice what the layers make of the views."""
        net, size = self.backbone.net, self.backbone.image_size
        outputs: list[int] = []
        layers = [layer for layer in net.modules() if not list(layer.children())]
        hooks = [layer.register_forward_hook(lambda layer, inputs, output:
                                             outputs.append(output.numel())) for layer in layers]
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size).to(self.backbone.mean), "rotation")
        for hook in hooks:
            hook.remove()
        weights = sum(value.numel() for value in self.fresh_weights(1).values())
        return 2 * (weights + self.num_views * sum(outputs)) * self.backbone.mean.element_size()


class Ttt(RotationTraining):
    """Test-time training by rotation prediction (Sun et al., ICML 2020), the standard version.

    For each image alone: start from the source's weights; at each step draw random views of the
    image, turn each by a random multiple of 90 degrees and take a gradient step on the
    cross-entropy of telling the turns; then classify the image itself. Trunk and rotation branch
    are adapted, the classifier's branch is not. Predicts after the last update. Nothing survives
    from one image to the next.

    Every image is adapted: the gate by the rotation branch's confidence in the authors' code is
    open in their scripts, and left out here. It departs from their ImageNet code in one way: views
    are cropped from the image as the data set gives it, not from the file.

    Args:
        backbone: a classifier that was trained jointly with a rotation branch.
        steps: updates of SGD, without momentum or weight decay, per image; 0 is the joint model
            without adaptation.
        lr: learning rate.
        num_views: per step; 32 is CIFAR-10-C's, 64 ImageNet-C's.
        flip: mirror half of the views.
        seed: of views and turns, together with the image's pixels.

    Raises:
        UserError: for values out of range.
    """

    needs = "rotation"
    scope = "image"

    def __init__(self, backbone: Rotation, *, steps: int = 10, lr: float = 1e-3,
                 num_views: int = 32, flip: bool = True, seed: int = 42) -> None:
        super().__init__("ttt", backbone, steps=steps, lr=lr, num_views=num_views, flip=flip,
                         seed=seed)
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.mean.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        parts = [images[part] for part in chunks(len(images), self.chunk)]
        return torch.cat([self.adapt(self.fresh_weights(len(part)), part) for part in parts])

    def reset(self) -> None:
        """Nothing to do: every image starts from the source's weights."""


class TttOnline(RotationTraining):
    """Test-time training by rotation prediction (Sun et al., ICML 2020), the online version.

    As Ttt, but each image starts from the weights that the image before it left, also where
    they come in one batch: one after the other, in order, each classified right after its own
    update. Weights live on until `reset()`.

    Args:
        backbone, lr, num_views, flip, seed: see Ttt.
        steps: updates of SGD, without momentum or weight decay, per image.

    Raises:
        UserError: for values out of range.
    """

    needs = "rotation"
    scope = "stream"
    survives = "weights"

    def __init__(self, backbone: Rotation, *, steps: int = 1, lr: float = 1e-3,
                 num_views: int = 32, flip: bool = True, seed: int = 42) -> None:
        super().__init__("ttt_online", backbone, steps=steps, lr=lr, num_views=num_views, flip=flip,
                         seed=seed)
        self.reset()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._adapt_to_next(image) for image in images.split(1)])

    def _adapt_to_next(self, image: Tensor) -> Tensor:
        for value in self.weights.values():
            value.requires_grad_()  # adapting ends with freezing them
        return self.adapt(self.weights, image)

    def reset(self) -> None:
        """The source's weights; the optimiser has no state."""
        self.weights = self.fresh_weights(1)
