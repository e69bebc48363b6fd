"""Train: make the weights of the small backbones: the packaged ones, and those of CIFAR-10.

    python -m tta_apm.training.backbones digits_resnet     half a minute on two cores, 99.3 % right
    python -m tta_apm.training.backbones digits_clip       four minutes on two cores, 98.0 % right
    python -m tta_apm.training.backbones digits_mae        four minutes on one core, 98.7 % right
    python -m tta_apm.training.backbones digits_rotation   two minutes on two cores, 98.5 % right

    python -m tta_apm.training.backbones cifar_clip --data-dir DIR \\
        --out weights/cifar_clip.safetensors
    (and cifar_resnet, cifar_mae, cifar_rotation; README says how long and how good)

The same machine with the same number of threads gives the same file again.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.weights import files
from tta_apm.data import cifar_jpeg, digits
from tta_apm.data.dataset import Clean
from tta_apm.progress import bar
from tta_apm.toolbox.views import pad_crop_views

if TYPE_CHECKING:
    import open_clip

    from tta_apm.backbones.mae import MaeVit
    from tta_apm.backbones.rotation import Joint

SEED = 0
BATCH_SIZE = 64
WEIGHT_DECAY = 0.05
WARM_UP = 0.1  # of all steps
MAX_LOGIT_SCALE = 100.0  # as CLIP, section 2.5


_Net = TypeVar("_Net", bound=nn.Module)


class Data(NamedTuple):
    """What backbones are trained on. Shifts and mirroring are the only augmentation: corruptions
    must hurt, or there is nothing to adapt to."""

    train: Callable[[str], Clean]  # of DATA_DIR
    test: Callable[[str], Clean]
    max_shift: int  # in pixels
    flip: bool  # mirror half of the images
    autocast: bool  # products in bfloat16, for data sets that take long
    out: Path  # folder of the weights


DIGITS = Data(lambda data_dir: digits.train_split(),
              lambda data_dir: digits.digits(data_dir=data_dir, frost_dir=None),
              max_shift=1, flip=False, autocast=False, out=files.PACKAGED)
CIFAR = Data(cifar_jpeg.train_part,
             lambda data_dir: cifar_jpeg.cifar10_jpeg(data_dir=data_dir, frost_dir=None),
             max_shift=4, flip=True, autocast=True, out=Path("weights"))


class Recipe(NamedTuple):
    """How one backbone is trained."""

    kind: str
    model: str  # as in a config
    data: Data
    epochs: int
    lr: float
    template_sets: tuple[str, ...] = ()  # whose prompts a CLIP learns


RECIPES = {
    "digits_resnet": Recipe("classifier", "timm/digits_resnet", DIGITS, epochs=40, lr=2e-3),
    "digits_clip": Recipe("clip", "digits_clip", DIGITS, epochs=60, lr=1e-3,
                          template_sets=("digits", "single", "cifar")),
    "digits_mae": Recipe("mae", "digits_mae", DIGITS, epochs=400, lr=1.5e-3),
    "digits_rotation": Recipe("rotation", "digits_rotation", DIGITS, epochs=80, lr=3e-3),
    "cifar_resnet": Recipe("classifier", "timm/cifar_resnet", CIFAR, epochs=12, lr=4e-3),
    "cifar_clip": Recipe("clip", "cifar_clip", CIFAR, epochs=12, lr=3e-3,
                         template_sets=("cifar", "single")),
    "cifar_mae": Recipe("mae", "cifar_mae", CIFAR, epochs=10, lr=1.5e-3),
    "cifar_rotation": Recipe("rotation", "cifar_rotation", CIFAR, epochs=4, lr=3e-3),
}


class Fit(NamedTuple):
    """Images, and how a network is fitted to them."""

    images: Clean
    data: Data
    mean: Sequence[float]
    std: Sequence[float]
    epochs: int
    lr: float


def train_classifier(net: nn.Module, fit: Fit) -> None:
    """Train `net`, normalised images -> logits, by cross-entropy."""
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(net(images), labels)
    _fit(net, loss, fit)


def train_clip(model: open_clip.CLIP, tokenizer: Callable[..., Tensor],
               prompt_templates: Sequence[str], fit: Fit) -> None:
    """Train both towers of an open_clip model to match images and prompts.

    The loss is the image-to-text half of CLIP's over the K classes instead of over the batch:
    each step puts every class name into a template drawn at random, and each image must pick the
    text of its class. So two images of one class are never taken for a mismatch.
    """
    device, class_names = model.logit_scale.device, fit.images.class_names
    tokens = torch.stack([tokenizer([template.format(name) for name in class_names])
                          for template in prompt_templates]).to(device)  # [T,K,L]
    _zero_unseen(model.token_embedding, tokens)
    generator = torch.Generator(device).manual_seed(SEED)
    classes = torch.arange(len(class_names), device=device)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        drawn = torch.randint(len(tokens), classes.shape, generator=generator, device=device)
        texts = model.encode_text(tokens[drawn, classes], normalize=True)
        features = model.encode_image(images, normalize=True)
        return F.cross_entropy(model.logit_scale.exp() * features @ texts.T, labels)
    _fit(model, loss, fit)


@torch.no_grad()
def _zero_unseen(embedding: nn.Embedding, tokens: Tensor) -> None:
    """Zero the rows of words that no prompt has: they get no gradient, and zeros pack well."""
    seen = torch.zeros(embedding.num_embeddings, 1, device=tokens.device)
    seen[tokens.unique()] = 1
    embedding.weight.mul_(seen)


def train_mae(net: MaeVit, fit: Fit) -> None:
    """Train a masked autoencoder without labels, then its probing head with the rest frozen."""
    from tta_apm.backbones.mae import HEAD, pretraining_loss
    generator = torch.Generator(net.mask_token.device).manual_seed(SEED)
    _fit(net, lambda images, labels: pretraining_loss(net, images, generator), fit)
    for name, parameter in net.named_parameters():
        if not name.startswith(HEAD):
            parameter.requires_grad_(False)
    _fit(net, lambda images, labels: F.cross_entropy(net.classify(net.encode(images)), labels),
         fit._replace(epochs=math.ceil(fit.epochs / 8)))


def train_rotation(net: Joint, fit: Fit) -> None:
    """Train both branches on views as TTT makes them: labels, and turns of all four rotations."""
    from tta_apm.backbones.rotation import all_rotations
    generator = torch.Generator().manual_seed(SEED)

    def views(images: Tensor) -> Tensor:
        return pad_crop_views(images, 1, [generator] * len(images),
                              flip=fit.data.flip).squeeze(1)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        rotated, turns = all_rotations(images)
        return (F.cross_entropy(net(images), labels)
                + F.cross_entropy(net(rotated, "rotation"), turns))
    _fit(net, loss, fit, augment=views)


def _fit(net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], fit: Fit,
         augment: Callable[[Tensor], Tensor] | None = None) -> None:
    device = next(net.parameters()).device
    pixels = torch.from_numpy(fit.images.pixels).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(fit.images.labels).to(device)
    centre = torch.tensor(fit.mean, device=device).view(1, 3, 1, 1)
    spread = torch.tensor(fit.std, device=device).view(1, 3, 1, 1)
    optimizer = torch.optim.AdamW(_decay_matrices(net), fit.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, fit.lr, total_steps=fit.epochs * math.ceil(len(labels) / BATCH_SIZE),
        pct_start=WARM_UP, cycle_momentum=False)
    generator = torch.Generator(device).manual_seed(SEED)
    augment = augment or partial(_shift, generator=generator, max_shift=fit.data.max_shift,
                                 flip=fit.data.flip)
    net.train()
    shown = bar(fit.epochs, "epoch")
    for _ in range(fit.epochs):
        order = torch.randperm(len(labels), generator=generator, device=device)
        for chosen in order.split(BATCH_SIZE):
            images = (augment(pixels[chosen] / 255) - centre) / spread
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=fit.data.autocast):
                value = loss(images, labels[chosen])
            value.backward()
            optimizer.step()
            schedule.step()
        shown.update()
    shown.close()
    net.eval()


def _decay_matrices(net: nn.Module) -> list[dict]:
    """Parameter groups: weight decay for matrices and filters, none for biases and gains."""
    parameters = list(net.parameters())
    return [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def _shift(images: Tensor, generator: torch.Generator, *, max_shift: int, flip: bool) -> Tensor:
    """Shift each image of [B,3,H,W] by up to `max_shift` pixels either way, edges repeated; and
    mirror half of them if `flip`."""
    device, count, (height, width) = images.device, len(images), images.shape[-2:]
    padded = F.pad(images, [max_shift] * 4, mode="replicate")
    corner = torch.randint(2 * max_shift + 1, (2, count, 1), generator=generator, device=device)
    rows = corner[0] + torch.arange(height, device=device)  # [B,H]
    columns = corner[1] + torch.arange(width, device=device)  # [B,W]
    if flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count, device=device)
    shifted = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # [B,H,W,3]
    return shifted.permute(0, 3, 1, 2)


def train(recipe: Recipe, *, data_dir: str, epochs: int) -> nn.Module:
    """A new network of `recipe`, trained on the data set below `data_dir`."""
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = recipe.data.train(data_dir)
    num_classes = len(images.class_names)

    def fit(mean: Sequence[float], std: Sequence[float]) -> Fit:
        return Fit(images, recipe.data, mean, std, epochs, recipe.lr)

    net: nn.Module
    if recipe.kind == "clip":
        import open_clip

        from tta_apm.backbones import clip  # noqa: F401  (makes our model known to open_clip)
        net = open_clip.create_model(recipe.model, device=device)
        config = open_clip.get_model_preprocess_cfg(net)
        prompts = dict.fromkeys(t for name in recipe.template_sets for t in templates(name))
        train_clip(_channels_last(net), open_clip.get_tokenizer(recipe.model), tuple(prompts),
                   fit(config["mean"], config["std"]))
    elif recipe.kind == "mae":
        from tta_apm.backbones import mae
        architecture = mae.ARCHITECTURES[recipe.model]
        net = mae.MaeVit(architecture, num_classes).to(device)
        mae.initialize(net)
        train_mae(net, fit(architecture.mean, architecture.std))
    elif recipe.kind == "rotation":
        from tta_apm.backbones import rotation
        model = rotation.MODELS[recipe.model]
        net = model.make(num_classes).to(device)
        train_rotation(_channels_last(net), fit(model.mean, model.std))
    else:
        import timm
        from timm.data import resolve_model_data_config

        from tta_apm.backbones import small_resnets  # noqa: F401  (makes it known to timm)
        net = timm.create_model(recipe.model.removeprefix("timm/"),
                                num_classes=num_classes).to(device)
        config = resolve_model_data_config(net)
        train_classifier(_channels_last(net), fit(config["mean"], config["std"]))
    return net


def _channels_last(net: _Net) -> _Net:
    """The same network, whose convolutions are several times as fast on a CPU."""
    return net.to(memory_format=torch.channels_last)


def save(net: nn.Module, file: Path) -> None:
    """Write the weights of `net`, in half precision, to a .safetensors file."""
    half = {name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
            for name, tensor in net.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
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
    parser = argparse.ArgumentParser(prog="python -m tta_apm.training.backbones",
                                     description="Train the weights of a small backbone.")
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data-dir", default="data", help="of CIFAR-10 (default: data)")
    parser.add_argument("--out", type=Path, help="default: the package's own file for digits, "
                        "weights/NAME.safetensors for CIFAR-10")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.name]
    file = options.out or recipe.data.out / f"{options.name}.safetensors"
    test = recipe.data.test(options.data_dir)
    save(train(recipe, data_dir=options.data_dir, epochs=options.epochs or recipe.epochs), file)
    for prompts in recipe.template_sets or ("",):
        backbone = build(recipe.kind, recipe.model, str(file), class_names=test.class_names,
                         templates=templates(prompts) if prompts else (), device="cpu")
        print(f"{file.name} {prompts} {accuracy(backbone, test):.2%} of {len(test.labels)} right")


if __name__ == "__main__":
    main()
