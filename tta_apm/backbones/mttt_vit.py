"""MtttVit: frozen ViTs of one size that differ in the layer that mixes tokens, for MTTT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from tta_apm.backbones.attentions import LinearAttention, SelfAttention
from tta_apm.backbones.backbone import HALF, UNTRAINED, Backbone, check_model
from tta_apm.backbones.build import Task
from tta_apm.backbones.mttt_layers import EPSILON, InnerLoop, MtttLinear, MtttMlp
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.backbones.weights.files import require_weights
from tta_apm.errors import choose

#: The layers that mix tokens: MTTT's, by the name of their inner network, and two attentions.
LAYERS = {"mlp": MtttMlp, "linear": MtttLinear, "linear_attention": LinearAttention,
          "self_attention": SelfAttention}


class Architecture(NamedTuple):
    """A ViT and the images that it takes.

    Attributes:
        patch: side of a patch in pixels.
        hidden: width of the MLP that follows each mixing layer.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    image_size: int = 32
    mean: Sequence[float] = HALF
    std: Sequence[float] = HALF

    @property
    def num_tokens(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch) ** 2


ARCHITECTURES = {
    # A patch is one pixel of the 8×8 digits, as in the paper's experiments from pixels.
    "digits_mttt": Architecture(4, width=32, depth=3, heads=4, hidden=64),
    "cifar_mttt": Architecture(8, width=64, depth=2, heads=4, hidden=256),
}


class Block(nn.Module):
    """A layer that mixes tokens, then an MLP, both pre-normalised and with residual connections."""

    def __init__(self, architecture: Architecture, layer: str) -> None:
        super().__init__()
        width = architecture.width
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.mixer = LAYERS[layer](width, architecture.heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, architecture.hidden, act_layer=partial(nn.GELU, approximate="tanh"))

    def forward(self, tokens: Tensor, inner: InnerLoop) -> Tensor:
        tokens = tokens + self.mixer(self.norm1(tokens), inner)
        return tokens + self.mlp(self.norm2(tokens))


class Vit(nn.Module):
    """A ViT as in the authors' code: tokens are averaged, and a tanh layer precedes the head.

    Positional embeddings are learned, as in their experiments from pixels.

    Args:
        layer: a name of LAYERS.
        num_classes: K.
    """

    def __init__(self, architecture: Architecture, layer: str, num_classes: int) -> None:
        super().__init__()
        patch, width = architecture.patch, architecture.width
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(torch.randn(architecture.num_tokens, width) * width ** -0.5)
        self.blocks = nn.ModuleList(Block(architecture, layer) for _ in range(architecture.depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.pre_logits = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, inner: InnerLoop) -> Tensor:
        """Logits [B,K] of normalised images [B,3,H,W]."""
        tokens = self.embed(images).flatten(2).mT + self.positions
        for block in self.blocks:
            tokens = block(tokens, inner)
        return self.head(self.pre_logits(self.norm(tokens).mean(1)).tanh())


def make_vits(architecture: Architecture, num_classes: int) -> nn.ModuleDict:
    """A Vit for each of LAYERS, by its name."""
    return nn.ModuleDict({layer: Vit(architecture, layer, num_classes) for layer in LAYERS})


class MtttVit(Backbone):
    """Frozen ViTs that were trained alike; each has a different layer that mixes tokens.

    Args:
        nets: see make_vits.
        architecture: their architecture and the images that they take.
        name, weights, keep: see Backbone.
    """

    kind = "mttt_vit"

    def __init__(self, nets: nn.ModuleDict, architecture: Architecture, *, name: str, weights: str,
                 keep: Sequence[int] | None = None) -> None:
        super().__init__(image_size=architecture.image_size, mean=architecture.mean,
                         std=architecture.std, name=name, weights=weights, keep=keep)
        self.nets = nets
        self.num_tokens = architecture.num_tokens
        self.freeze()

    def forward(self, images: Tensor, layer: str = "mlp", inner: InnerLoop = InnerLoop()) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.select_classes(self.nets[layer](self.prepare(images), inner))

    def check_layer(self, owner: str, layer: str) -> None:
        """Raise UserError unless there is a network with that layer."""
        choose(owner, "layer", layer, self.nets.keys())


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> MtttVit:
    """See Kind."""
    return load_mttt_vit(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                         device=device, keep=task.keep)


def untrained(model: str, task: Task, device: torch.device | str) -> MtttVit:
    """See Kind."""
    check_model("MTTT_VIT", model, ARCHITECTURES)
    architecture = ARCHITECTURES[model]
    return MtttVit(make_vits(architecture, task.num_outputs), architecture, name=model,
                   weights=UNTRAINED).to(device)


def load_mttt_vit(model: str, weights: str, *, num_classes: int, device: torch.device | str,
                  keep: Sequence[int] | None = None) -> MtttVit:
    """Load the ViTs of one file.

    Args:
        model: a name of ARCHITECTURES.
        weights: a file, or the name of a packaged file, with the weights of make_vits.
        num_classes: number of outputs of the networks.
        keep: see Backbone.

    Raises:
        UserError: for an unknown model, or for weights that are not found or do not fit.
    """
    check_model("MTTT_VIT", model, ARCHITECTURES)
    file = require_weights("MTTT_VIT", weights, "The authors published no weights; `tta-apm train "
                           "cifar_mttt` trains those of CIFAR-10")
    loaded = load_classes(partial(make_vits, ARCHITECTURES[model]), file, model,
                          num_classes=num_classes, keep=keep)
    assert isinstance(loaded.net, nn.ModuleDict)
    return MtttVit(loaded.net, ARCHITECTURES[model], name=model, weights=loaded.label,
                   keep=loaded.keep).to(device)
