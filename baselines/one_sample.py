"""OneSample: an MLP or a ResNet in place of APM's student (APM's Table 5a)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tta_apm.apm.teacher import at_length_of, teacher_of
from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.errors import UserError, at_least, choose
from tta_apm.method import Method
from tta_apm.toolbox.episodes import Parameters, adam, adapt, chunk_size, chunks, saved_bytes, stack

# Default side in pixels to which images are resized for each network.
NETS = {"mlp": 32, "resnet18": 224, "resnet34": 224}
# Mean and standard deviation of ImageNet, used to normalise the input as in APM (Table 7).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class OneSample(Method):
    """Overfit a randomly initialised network to the teacher's feature of one image.

    From Table 5a of APM (Modi and Rawat, NeurIPS 2024), with APM's loop: for each image alone,
    start from the same random weights; take `steps` steps of Adam on the mean squared error
    between the network's output and the teacher's image feature; after the last update, classify
    the output with the teacher's frozen head. No state is carried from one image to the next. As
    in APM, the teacher is a CLIP with its text features as the head, or a classifier with its last
    linear layer, for which the output is scaled to the length of the teacher's feature.

    Weights are initialised as torch and torchvision do: with APM's N(0, 0.01²) the signal of one
    image vanishes in a ResNet. Batch normalisation uses the statistics over the image's own
    positions, before and after the updates, since there is no other image. The last stage needs
    more than one position, so image_size is at least 33 for a ResNet.

    Args:
        backbone: the teacher, a CLIP or a classifier.
        net: "mlp" (on the flattened image), "resnet18" or "resnet34".
        hidden: widths of the MLP's hidden layers; the paper says only that the MLP has 21 M
            weights, which the default has for D = 768.
        image_size: side in pixels to which images are resized; None: 32 for the MLP, else 224.
        steps: updates of Adam per image.
        lr: learning rate of Adam.
        seed: of the random weights.

    After each forward, `details` holds, per image, the teacher's prediction and the cosine between
    the network's output and the teacher's feature.

    Raises:
        UserError: for values out of range, and for a classifier without a linear head.
    """

    needs = "clip"
    also_takes = "classifier"
    scope = "image"

    def __init__(self, backbone: ClipBackbone | Classifier, *, net: str = "resnet18",
                 hidden: Sequence[int] = (4096, 1792), image_size: int | None = None,
                 steps: int = 20, lr: float = 1e-4, seed: int = 42) -> None:
        super().__init__()
        choose("one_sample", "net", net, NETS)
        self.image_size = NETS[net] if image_size is None else image_size
        smallest = 1 if net == "mlp" else 33
        if self.image_size < smallest or not hidden or min(hidden) < 1:
            raise UserError(f"one_sample: image_size {self.image_size} must be at least {smallest} "
                            f"for {net}, hidden {list(hidden)} positive")
        at_least(0, "one_sample", steps=steps, lr=lr)
        self.backbone = backbone
        self.steps = steps
        self.lr = lr
        self.teacher = teacher_of(backbone, feature_layer="", wants_grid=False, trigger_layer=None,
                                  owner="one_sample")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = build(net, self.image_size, hidden, self.teacher.feature_dim)
        self.net.to(backbone.mean)
        self.initial = {name: weight.detach() for name, weight in self.net.named_parameters()}
        self.mean, self.std = (backbone.mean.new_tensor(values).view(1, 3, 1, 1)
                               for values in (MEAN, STD))
        self.chunk = chunk_size(self._bytes_per_episode(), backbone.mean.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1].

        With a CLIP they are logit_scale · cos(output, text features).
        """
        teacher = self.teacher.encode(images).features
        features = torch.cat([self._adapt(images[part], teacher[part])
                              for part in chunks(len(images), self.chunk)])
        self.details = {
            "teacher_prediction": self.teacher.classify(teacher).argmax(-1),
            "cosine": F.cosine_similarity(features, teacher),
        }
        if self.teacher.reads_length:
            features = at_length_of(features, teacher)
        return self.teacher.classify(features)

    def reset(self) -> None:
        """Do nothing: every image starts from the same weights and an empty optimiser."""

    def _adapt(self, images: Tensor, teacher: Tensor) -> Tensor:
        """Fit one network per image to the teacher's features [B,D]; return their outputs [B,D]."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        images = ((images - self.mean) / self.std)[:, None]  # [B,1,3,H,W]: batches of one
        weights = adapt(
            stack(self.initial, len(images)),
            lambda stacked: (self.run(stacked, images) - teacher).square().mean(-1),
            steps=self.steps,
            optimizer=lambda leaves: adam(leaves, self.lr))
        return self.run(weights, images)

    def run(self, weights: Parameters, images: Tensor) -> Tensor:
        """Outputs [B,D] of networks with stacked weights for images [B,1,3,H,W]."""
        return vmap(partial(functional_call, self.net))(weights, images)[:, 0]

    def _bytes_per_episode(self) -> int:
        """Memory of one image's network: weights, gradients, Adam's two moments, and the
        activations with their gradients."""
        image = self.mean.new_zeros(1, 3, self.image_size, self.image_size)
        activations = saved_bytes(lambda: self.net(image))
        return 4 * sum(weight.nbytes for weight in self.initial.values()) + 2 * activations


def build(net: str, image_size: int, hidden: Sequence[int], feature_dim: int) -> nn.Module:
    """A randomly initialised network with `feature_dim` outputs, for images [B,3,S,S]."""
    if net == "mlp":
        widths = (3 * image_size**2, *hidden, feature_dim)
        layers = [layer for a, b in zip(widths, widths[1:])
                  for layer in (nn.ReLU(), nn.Linear(a, b))]
        return nn.Sequential(nn.Flatten(), *layers[1:])
    # Without running statistics, the layers use those of the batch, which is one image.
    norm = partial(nn.BatchNorm2d, track_running_stats=False)
    return torchvision.models.get_model(net, weights=None, num_classes=feature_dim,
                                        norm_layer=norm)
