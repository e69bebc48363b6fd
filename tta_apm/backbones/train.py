"""Train: make the packaged weights of the small backbones.

    python -m tta_apm.backbones.train digits_resnet     half a minute on two cores, 99.3 % right
    python -m tta_apm.backbones.train digits_clip       four minutes on two cores, 98.0 % right
    python -m tta_apm.backbones.train digits_mae        four minutes on one core, 98.7 % right
    python -m tta_apm.backbones.train digits_rotation   two minutes on two cores, 98.5 % right

The same machine with the same number of threads gives the same file again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from tqdm import tqdm

from tta_apm.backbones import files
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.prompts import templates
from tta_apm.data import digits
from tta_apm.data.dataset import Clean
from tta_apm.views import pad_crop_views

if TYPE_CHECKING:
    import open_clip

    from tta_apm.backbones.mae import MaeVit
    from tta_apm.backbones.rotation import Joint

SEED = 0
BATCH_SIZE = 64
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # of all steps
MAX_LOGIT_SCALE = 100.0  # as CLIP, section 2.5

# The only augmentation, in pixels: corruptions must hurt, or there is nothing to adapt to.
MAX_SHIFT = 1


class Recipe(NamedTuple):
    """How one backbone is trained."""

    kind: str
    model: str  # as in a config
    train: Callable[[], Clean]
    test: Callable[[], Clean]
    epochs: int
    lr: float
    template_sets: tuple[str, ...] = ()  # whose prompts a CLIP learns
    flip: bool = False  # mirror half of the images that a rotation network learns


def _digits_test() -> Clean:
    return digits.digits(data_dir="", frost_dir=None)


RECIPES = {
    "digits_resnet": Recipe("classifier", "timm/digits_resnet", digits.train_split, _digits_test,
                            epochs=40, lr=2e-3),
    "digits_clip": Recipe("clip", "digits_clip", digits.train_split, _digits_test,
                          epochs=60, lr=1e-3, template_sets=("digits", "single", "cifar")),
    "digits_mae": Recipe("mae", "digits_mae", digits.train_split, _digits_test,
                         epochs=400, lr=1.5e-3),
    "digits_rotation": Recipe("rotation", "digits_rotation", digits.train_split, _digits_test,
                              epochs=80, lr=3e-3),
}


def train_classifier(net: nn.Module, data: Clean, *, mean: Sequence[float], std: Sequence[float],
                     epochs: int, lr: float) -> None:
    """Train `net`, normalised images -> logits, by cross-entropy."""
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(net(images), labels)
    _fit(net, loss, data, mean=mean, std=std, epochs=epochs, lr=lr)


def train_clip(model: open_clip.CLIP, tokenizer: Callable[..., Tensor], data: Clean,
               prompt_templates: Sequence[str], *, mean: Sequence[float], std: Sequence[float],
               epochs: int, lr: float) -> None:
    """Train both towers of an open_clip model to match images and prompts.

    The loss is the image-to-text half of CLIP's over the K classes instead of over the batch:
    each step puts every class name into a template drawn at random, and each image must pick the
    text of its class. So two images of one class are never taken for a mismatch.
    """
    device = model.logit_scale.device
    tokens = torch.stack([tokenizer([template.format(name) for name in data.class_names])
                          for template in prompt_templates]).to(device)  # [T,K,L]
    _zero_unseen(model.token_embedding, tokens)
    generator = torch.Generator(device).manual_seed(SEED)
    classes = torch.arange(len(data.class_names), device=device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        drawn = torch.randint(len(tokens), classes.shape, generator=generator, device=device)
        texts = model.encode_text(tokens[drawn, classes], normalize=True)
        features = model.encode_image(images, normalize=True)
        return F.cross_entropy(model.logit_scale.exp() * features @ texts.T, labels)
    _fit(model, loss, data, mean=mean, std=std, epochs=epochs, lr=lr)


@torch.no_grad()
def _zero_unseen(embedding: nn.Embedding, tokens: Tensor) -> None:
    """Zero the rows of words that no prompt has: they get no gradient, and zeros pack well."""
    seen = torch.zeros(embedding.num_embeddings, 1, device=tokens.device)
    seen[tokens.unique()] = 1
    embedding.weight.mul_(seen)


def train_mae(net: MaeVit, data: Clean, *, mean: Sequence[float], std: Sequence[float],
              epochs: int, lr: float) -> None:
    """Train a masked autoencoder without labels, then its probing head with the rest frozen."""
    from tta_apm.backbones.mae import HEAD, pretraining_loss
    generator = torch.Generator(net.mask_token.device).manual_seed(SEED)
    _fit(net, lambda images, labels: pretraining_loss(net, images, generator), data,
         mean=mean, std=std, epochs=epochs, lr=lr)
    for name, parameter in net.named_parameters():
        if not name.startswith(HEAD):
            parameter.requires_grad_(False)
    _fit(net, lambda images, labels: F.cross_entropy(net.classify(net.encode(images)), labels),
         data, mean=mean, std=std, epochs=math.ceil(epochs / 8), lr=lr)


def train_rotation(net: Joint, data: Clean, *, mean: Sequence[float], std: Sequence[float],
                   epochs: int, lr: float, flip: bool) -> None:
    """Train both branches on views as TTT makes them: labels, and turns of all four rotations."""
    from tta_apm.backbones.rotation import all_rotations
    generator = torch.Generator().manual_seed(SEED)

    def views(images: Tensor) -> Tensor:
        return pad_crop_views(images, 1, [generator] * len(images), flip=flip).squeeze(1)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        rotated, turns = all_rotations(images)
        return (F.cross_entropy(net(images), labels)
                + F.cross_entropy(net(rotated, "rotation"), turns))
    _fit(net, loss, data, mean=mean, std=std, epochs=epochs, lr=lr, augment=views)


def _fit(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], data: Clean, *,
         mean: Sequence[float], std: Sequence[float], epochs: int, lr: float,
         augment: Callable[[Tensor], Tensor] | None = None) -> None:
    device = next(net.parameters()).device
    pixels = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(data.labels).to(device)
    centre = torch.tensor(mean, device=device).view(1, 3, 1, 1)
    spread = torch.tensor(std, device=device).view(1, 3, 1, 1)
    optimizer = torch.optim.AdamW(_decay_matrices(net), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs * math.ceil(len(labels) / BATCH_SIZE),
        pct_start=WARM_UP, cycle_momentum=False)
    generator = torch.Generator(device).manual_seed(SEED)
    augment = augment or partial(_shift, generator=generator)
    net.train()
    for _ in tqdm(range(epochs), unit="epoch"):
        order = torch.randperm(len(labels), generator=generator, device=device)
        for chosen in order.split(BATCH_SIZE):
            images = (augment(pixels[chosen] / 255) - centre) / spread
            optimizer.zero_grad()
            loss(images, labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    net.eval()


def _decay_matrices(net: nn.Module) -> list[dict]:
    """Parameter groups: weight decay for matrices and filters, none for biases and gains."""
    parameters = list(net.parameters())
    return [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of [B,3,H,W] by up to MAX_SHIFT pixels either way, edges repeated."""
    device, count, (height, width) = images.device, len(images), images.shape[-2:]
    padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
    corner = torch.randint(2 * MAX_SHIFT + 1, (2, count, 1), generator=generator, device=device)
    rows = corner[0] + torch.arange(height, device=device)  # [B,H]
    columns = corner[1] + torch.arange(width, device=device)  # [B,W]
    image = torch.arange(count, device=device)
    shifted = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B,H,W,3]
    return shifted.permute(0, 3, 1, 2)


def train(recipe: Recipe, *, epochs: int) -> nn.Module:
    """A new network of `recipe`, trained."""
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = recipe.train()
    if recipe.kind == "clip":
        import open_clip
        from tta_apm.backbones import clip  # noqa: F401  (makes our model known to open_clip)
        net = open_clip.create_model(recipe.model, device=device)
        config = open_clip.get_model_preprocess_cfg(net)
        prompts = dict.fromkeys(t for name in recipe.template_sets for t in templates(name))
        train_clip(net, open_clip.get_tokenizer(recipe.model), data, tuple(prompts),
                   mean=config["mean"], std=config["std"], epochs=epochs, lr=recipe.lr)
    elif recipe.kind == "mae":
        from tta_apm.backbones import mae
        architecture = mae.ARCHITECTURES[recipe.model]
        net = mae.MaeVit(architecture, len(data.class_names)).to(device)
        mae.initialize(net)
        train_mae(net, data, mean=architecture.mean, std=architecture.std, epochs=epochs,
                  lr=recipe.lr)
    elif recipe.kind == "rotation":
        from tta_apm.backbones import rotation
        model = rotation.MODELS[recipe.model]
        net = model.make(len(data.class_names)).to(device)
        train_rotation(net, data, mean=model.mean, std=model.std, epochs=epochs, lr=recipe.lr,
                       flip=recipe.flip)
    else:
        import timm
        from timm.data import resolve_model_data_config
        from tta_apm.backbones import digits_resnet  # noqa: F401  (makes it known to timm)
        net = timm.create_model(recipe.model.removeprefix("timm/"),
                                num_classes=len(data.class_names)).to(device)
        config = resolve_model_data_config(net)
        train_classifier(net, data, mean=config["mean"], std=config["std"], epochs=epochs,
                         lr=recipe.lr)
    return net


def save(net: nn.Module, file: Path) -> None:
    """Write the weights of `net`, in half precision, to a .safetensors file."""
    half = {name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in net.state_dict().items()}
    file.write_bytes(to_safetensors(half))


@torch.inference_mode()
def accuracy(backbone: Backbone, data: Clean) -> float:
    """The fraction of images whose largest logit is that of their label."""
    correct = 0
    for start in range(0, len(data.labels), BATCH_SIZE):
        pixels = torch.from_numpy(data.pixels[start:start + BATCH_SIZE]).permute(0, 3, 1, 2)
        predictions = backbone(pixels / 255).argmax(1)
        correct += int((predictions.numpy() == data.labels[start:start + BATCH_SIZE]).sum())
    return correct / len(data.labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one backbone, write its weights and print how many test images it gets right."""
    parser = argparse.ArgumentParser(prog="python -m tta_apm.backbones.train",
                                     description="Train the weights of a packaged backbone.")
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, help="default: the package's own file")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.name]
    file = options.out or files.PACKAGED / f"{options.name}.safetensors"
    save(train(recipe, epochs=options.epochs or recipe.epochs), file)
    test = recipe.test()
    for prompts in recipe.template_sets or ("",):
        backbone = build(recipe.kind, recipe.model, str(file), class_names=test.class_names,
                         templates=templates(prompts) if prompts else (), device="cpu")
        print(f"{file.name} {prompts} {accuracy(backbone, test):.2%} of {len(test.labels)} right")


if __name__ == "__main__":
    main()
