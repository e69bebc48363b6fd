"""Backbones: train the small backbones that ship and those of the runs on CIFAR-10.

The same machine with the same number of threads writes the same file again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tta_apm.atomic import atomic_write
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.weights import files
from tta_apm.backbones.weights.zero_rows import drop_zero_rows
from tta_apm.data.dataset import Clean
from tta_apm.device import choose_device
from tta_apm.errors import UserError
from tta_apm.toolbox.views import pad_crop_views
from tta_apm.training.fit import BATCH_SIZE, Pixels, fit
from tta_apm.training.recipes import BackboneRecipe

if TYPE_CHECKING:
    from tta_apm.backbones.rotation import Joint

MAX_LOGIT_SCALE = 100.0  # as CLIP, section 2.5

_Net = TypeVar("_Net", bound=nn.Module)


def make(recipe: BackboneRecipe, data_dir: str, file: Path) -> None:
    """Train a network, write its weights and print its test accuracy."""
    test = recipe.data.test(data_dir)
    save(train(recipe, data_dir=data_dir), file)
    for prompts in recipe.template_sets or ("",):
        backbone = build(recipe.kind, recipe.model, str(file), class_names=test.class_names,
                         templates=templates(prompts) if prompts else (), device="cpu")
        print(f"{file.name} {prompts} {accuracy(backbone, test):.2%} of {len(test.labels)} right")


def train(recipe: BackboneRecipe, *, data_dir: str) -> nn.Module:
    """Train a network of `recipe` on the data set below `data_dir`.

    Raises:
        UserError: if the weights that it starts from are not found.
    """
    if recipe.start and files.find(recipe.start) is None:
        raise UserError(f"train: the weights to start from are not found: {recipe.start}: "
                        f"`tta-apm train {Path(recipe.start).stem}` makes them")
    torch.manual_seed(recipe.seed)
    device = choose_device("auto")
    return TRAINERS[recipe.kind](recipe, recipe.data.train(data_dir), device)


def save(net: nn.Module, file: Path) -> None:
    """Write the weights of `net`, in half precision, without zero rows, to a .safetensors file."""
    half = {name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in net.state_dict().items()}
    atomic_write(file, to_safetensors(drop_zero_rows(half)))


@torch.inference_mode()
def accuracy(backbone: Backbone, data: Clean) -> float:
    """The fraction of images whose largest logit is that of their label."""
    correct = 0
    for start in range(0, len(data.labels), BATCH_SIZE):
        pixels = torch.from_numpy(data.pixels[start:start + BATCH_SIZE]).permute(0, 3, 1, 2)
        predictions = backbone(pixels / 255).argmax(1)
        correct += int((predictions.numpy() == data.labels[start:start + BATCH_SIZE]).sum())
    return correct / len(data.labels)


# The kinds of backbone

def _classifier(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """A classifier, by cross-entropy."""
    import timm
    from timm.data import resolve_model_data_config

    from tta_apm.backbones import small_resnets  # noqa: F401  (makes it known to timm)
    net = _channels_last(timm.create_model(
        recipe.model.removeprefix("timm/"), num_classes=len(images.class_names)).to(device))
    config = resolve_model_data_config(net)

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(net(batch), labels)
    fit(net, loss, recipe, Pixels(images, config["mean"], config["std"]))
    return net


def _clip(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """Both towers of an open_clip model, to match images and prompts.

    The loss is the image-to-text half of CLIP's, over the K classes instead of over the batch: each
    step puts every class name into a template chosen at random, and each image must match the text
    of its class. So two images of one class in a batch are no mismatch.
    """
    import open_clip

    from tta_apm.backbones import clip  # noqa: F401  (makes our model known to open_clip)
    net = _channels_last(open_clip.create_model(recipe.model, device=device))
    config = open_clip.get_model_preprocess_cfg(net)
    tokenizer = open_clip.get_tokenizer(recipe.model)
    prompts = dict.fromkeys(t for name in recipe.template_sets for t in templates(name))
    tokens = torch.stack([tokenizer([template.format(name) for name in images.class_names])
                          for template in prompts]).to(device)  # [T,K,L]
    _zero_unseen(net.token_embedding, tokens)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    classes = torch.arange(len(images.class_names), device=device)

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            net.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        chosen = torch.randint(len(tokens), classes.shape, generator=generator, device=device)
        texts = net.encode_text(tokens[chosen, classes], normalize=True)
        features = net.encode_image(batch, normalize=True)
        return F.cross_entropy(net.logit_scale.exp() * features @ texts.T, labels)
    fit(net, loss, recipe, Pixels(images, config["mean"], config["std"]))
    return net


@torch.no_grad()
def _zero_unseen(embedding: nn.Embedding, tokens: Tensor) -> None:
    """Zero the embeddings of tokens that no prompt has: they get no gradient, and `save` leaves
    them out."""
    seen = torch.zeros(embedding.num_embeddings, 1, device=tokens.device)
    seen[tokens.unique()] = 1
    embedding.weight.mul_(seen)


def _mae(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """A masked autoencoder without labels, then its probing head with the rest frozen."""
    from tta_apm.backbones import mae_vit
    architecture = mae_vit.ARCHITECTURES[recipe.model]
    net = mae_vit.MaeVit(architecture, len(images.class_names)).to(device)
    mae_vit.initialize(net)
    pixels = Pixels(images, architecture.mean, architecture.std)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    fit(net, lambda batch, labels: mae_vit.pretraining_loss(net, batch, generator), recipe, pixels)
    for name, parameter in net.named_parameters():
        if not name.startswith(mae_vit.HEAD):
            parameter.requires_grad_(False)
    fit(net, lambda batch, labels: F.cross_entropy(net.classify(net.encode(batch)), labels),
        replace(recipe, epochs=math.ceil(recipe.epochs / 8)), pixels)
    return net


def _mae_joint(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """All parts of a masked autoencoder, by the sum of both losses, reconstruction and labels."""
    from tta_apm.backbones import mae_vit
    architecture = mae_vit.ARCHITECTURES[recipe.model]
    net = mae_vit.MaeVit(architecture, len(images.class_names)).to(device)
    mae_vit.initialize(net)
    generator = torch.Generator(device).manual_seed(recipe.seed)

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        return (mae_vit.pretraining_loss(net, batch, generator)
                + F.cross_entropy(net.classify(net.encode(batch)), labels))
    fit(net, loss, recipe, Pixels(images, architecture.mean, architecture.std))
    return net


def _mae_fine_tuned(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """The encoder of a pretrained masked autoencoder and a new linear head, by cross-entropy."""
    from tta_apm.backbones.mae import load_mae
    from tta_apm.backbones.mae_fine_tuned import make_vit
    from tta_apm.backbones.mae_vit import ARCHITECTURES
    architecture = ARCHITECTURES[recipe.model]
    pretrained = load_mae(recipe.model, recipe.start, num_classes=len(images.class_names),
                          device=device).net.state_dict()
    net = make_vit(architecture, len(images.class_names)).to(device)
    own = net.state_dict()
    net.load_state_dict({name: pretrained.get(name, value) for name, value in own.items()})
    fit(net, lambda batch, labels: F.cross_entropy(net(batch), labels), recipe,
        Pixels(images, architecture.mean, architecture.std))
    return net


def _rotation(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """TTT's network: both branches on augmented views, for labels and for all four rotations."""
    from tta_apm.backbones import rotation
    model = rotation.MODELS[recipe.model]
    net: Joint = _channels_last(model.make(len(images.class_names)).to(device))
    generator = torch.Generator().manual_seed(recipe.seed)

    def views(batch: Tensor) -> Tensor:
        return pad_crop_views(batch, 1, [generator] * len(batch),
                              flip=recipe.data.flip).squeeze(1)

    def loss(batch: Tensor, labels: Tensor) -> Tensor:
        rotated, turns = rotation.all_rotations(batch)
        return (F.cross_entropy(net(batch), labels)
                + F.cross_entropy(net(rotated, "rotation"), turns))
    fit(net, loss, recipe, Pixels(images, model.mean, model.std), augment=views)
    return net


def _mttt_vit(recipe: BackboneRecipe, images: Clean, device: torch.device) -> nn.Module:
    """A ViT for each layer, one after the other, on equal batches, with the paper's inner loop."""
    from tta_apm.backbones import mttt_vit
    from tta_apm.backbones.mttt_layers import InnerLoop
    architecture = mttt_vit.ARCHITECTURES[recipe.model]
    nets = mttt_vit.make_vits(architecture, len(images.class_names)).to(device)
    pixels = Pixels(images, architecture.mean, architecture.std)
    for net in nets.values():
        fit(net, lambda batch, labels: F.cross_entropy(net(batch, InnerLoop()), labels), recipe,
            pixels)
    return nets


TRAINERS: dict[str, Callable[[BackboneRecipe, Clean, torch.device], nn.Module]] = {
    "classifier": _classifier, "clip": _clip, "mae": _mae, "mae_joint": _mae_joint,
    "mae_fine_tuned": _mae_fine_tuned, "rotation": _rotation, "mttt_vit": _mttt_vit}


def _channels_last(net: _Net) -> _Net:
    """The same network in channels-last memory format, which makes convolutions several times as
    fast on a CPU."""
    return net.to(memory_format=torch.channels_last)
