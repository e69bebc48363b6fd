"""TTT: test-time training with rotation prediction, the standard and the online version."""

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
    """Base of both versions: gradient steps on the rotation loss of random views of an image.

    The adapted weights [B,...] are those of the trunk and the rotation branch, one set per image.
    The classification branch is never changed.
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
        """Copies of the source's weights, stacked [B,...] for B = `num_images`."""
        return stack({name: value for name, value in self.backbone.net.named_parameters()
                      if not name.startswith("classifier.")}, num_images)

    def adapt(self, weights: Parameters, images: Tensor) -> Tensor:
        """Adapt weights [B,...], in place, to images [B,3,H,W] and return the images' logits [B,K].
        """
        generators = image_generators(images, self.seed)
        adapt(weights, lambda weights: self.rotation_loss(weights, images, generators),
              steps=self.steps, optimizer=partial(torch.optim.SGD, lr=self.lr))
        inputs = self.backbone.prepare(images)
        logits = self._run(weights, inputs[:, None], "classifier").squeeze(1)
        return self.backbone.select_classes(logits)

    def rotation_loss(self, weights: Parameters, images: Tensor, generators: Generators) -> Tensor:
        """Cross-entropy [B] of predicting the random rotation of each of an image's new views."""
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
        """Views [B,V,3,H,W], augmented as the network's training images were."""
        if self.backbone.resized_crops:
            return crop_views(images, self.num_views, generators, size=self.backbone.image_size,
                              flip=self.flip)
        return pad_crop_views(images, self.num_views, generators, flip=self.flip)

    def _run(self, weights: Parameters, inputs: Tensor, branch: str) -> Tensor:
        """Outputs [B,V,·] of a branch for inputs [B,V,3,S,S], where inputs[b] use weights[b]."""
        def one(weights: Parameters, inputs: Tensor) -> Tensor:
            return functional_call(self.backbone.net, weights, (inputs, branch))
        # Before torch 2.3, GroupNorm under vmap supports contiguous inputs only.
        return vmap(one)(weights, inputs.contiguous())

    def _bytes_per_episode(self) -> int:
        """Memory of one image: weights, gradients, and about twice the layers' outputs."""
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
    """Test-time training with rotation prediction (Sun et al., ICML 2020), the standard version.

    For each image alone: start from the source's weights; at each step make random views of the
    image, rotate each by a random multiple of 90 degrees and take a gradient step on the
    cross-entropy of predicting the rotations; after the last update, classify the image itself.
    Trunk and rotation branch are adapted, the classification branch is not. No state is carried
    from one image to the next.

    Every image is adapted. The authors' code can skip images by the confidence of the rotation
    branch; their scripts do not use that, and it is left out here. Departure from their ImageNet
    code: views are cropped from the image as the data set returns it, not from the file.

    Args:
        backbone: a classifier that was trained jointly with a rotation branch.
        steps: updates of SGD, without momentum or weight decay, per image; 0 is the joint model
            without adaptation.
        lr: learning rate.
        num_views: views per step; the authors' number is 32 for CIFAR-10-C, 64 for ImageNet-C.
        flip: whether to mirror each view with probability 1/2.
        seed: of views and rotations, together with the image's pixels.

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
        """Do nothing: every image starts from the source's weights."""


class TttOnline(RotationTraining):
    """Test-time training with rotation prediction (Sun et al., ICML 2020), the online version.

    As Ttt, but each image starts from the adapted weights of the image before it. The images of a
    batch are adapted one after the other, in order, and each is classified right after its own
    updates. The weights survive until `reset()`.

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
            value.requires_grad_()  # `adapt` has frozen them
        return self.adapt(self.weights, image)

    def reset(self) -> None:
        """Return to the source's weights; the optimiser has no state."""
        self.weights = self.fresh_weights(1)
