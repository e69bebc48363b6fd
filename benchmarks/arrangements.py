"""TENT, BN-adapt, TPT and TTT-MAE against loops arranged like their authors', on the same work.

    python benchmarks/arrangements.py --methods tent norm tpt ttt_mae --images 8
    python benchmarks/arrangements.py --methods tpt ttt_mae --images 1 --classes 10 --steps 1 \\
        --masks 16                                                (minutes on a CPU)

Each side adapts to the same images from the same random weights and predicts them, in turn, in one
process. The loops were written for this benchmark after the authors' repositories; see each
function.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from tta_apm.backbones.build import untrained
from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.mae import MaskedAutoencoder
from tta_apm.backbones.mae_vit import normalized
from tta_apm.data.imagenet_classes import class_names
from tta_apm.registry import METHODS
from tta_apm.toolbox.entropy import entropy
from tta_apm.toolbox.episodes import image_generators
from tta_apm.toolbox.views import crop_views

Side = Callable[[], object]


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    torch.manual_seed(0)
    images = torch.rand(options.images, 3, 224, 224, device=device)
    names = class_names()[:options.classes]

    def backbone(kind: str, model: str) -> Any:
        return untrained(kind, model, class_names=names, device=device)

    sides = {"tent": lambda: tent(backbone("classifier", options.classifier), images),
             "norm": lambda: norm(backbone("classifier", options.classifier), images),
             "tpt": lambda: tpt(backbone("clip", options.clip), images),
             "ttt_mae": lambda: ttt_mae(backbone("mae", options.mae), images, options.steps,
                                        options.masks)}
    rows = []
    for name in options.methods:
        ours, theirs = sides[name]()
        with torch.no_grad():
            seconds = common.in_turn([ours, theirs], options.rounds, device)
        rows.append([name, *(f"{options.images / median(times):.3g}" for times in seconds),
                     common.ratio(seconds[1], seconds[0])])
    lines = common.table(["method", "ours, images/s", "authors' arrangement, images/s",
                          "their time over ours"], rows)
    lines += ["", f"{options.images} images of 224 pixels, {options.classes} classes; "
              f"{options.classifier}, {options.clip}, {options.mae}; TTT-MAE: {options.steps} "
              f"steps of {options.masks} masks. Median of {options.rounds} rounds in turn."]
    common.publish("Baselines against their authors' arrangement", lines, device, options.append)


def as_published(backbone: Classifier) -> Classifier:
    """A copy in torch's contiguous format; on a CPU, classifiers here are channels-last."""
    return copy.deepcopy(backbone).to(memory_format=torch.contiguous_format)


def tent(backbone: Classifier, images: Tensor) -> tuple[Side, Side]:
    """TENT as in the authors' code: the network in training mode, so BatchNorm uses the batch."""
    method = METHODS.load("tent")(backbone)
    model = as_published(backbone).train().requires_grad_(False)
    affine = []
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.requires_grad_(True)
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            affine += [layer.weight, layer.bias]
    optimizer = torch.optim.Adam(affine, lr=1e-3)

    @torch.enable_grad()
    def theirs() -> Tensor:
        logits = model(images)
        loss = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean(0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return logits

    return lambda: method(images), theirs


def norm(backbone: Classifier, images: Tensor) -> tuple[Side, Side]:
    """The authors' "norm" of TENT's code: BatchNorm in training mode, running statistics too."""
    method = METHODS.load("norm")(backbone)
    model = as_published(backbone).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    return lambda: method(images), lambda: model(images)


def tpt(backbone: ClipBackbone, images: Tensor) -> tuple[Side, Side]:
    """One image after the other; prompts of all 77 tokens; both towers again for the prediction.

    Under autocast with a gradient scaler on a GPU, as there. Views are made alike on both sides.
    """
    method = METHODS.load("tpt")(backbone)
    tower, device = backbone.model, images.device
    tokens = backbone.tokenizer([f"a photo of a {name}." for name in backbone.class_names])
    embedded = tower.token_embedding(tokens.to(device)).detach()
    ends = tokens.argmax(-1).to(device)
    on_gpu = device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", init_scale=1000, enabled=on_gpu)

    def classify(views: Tensor, context: Tensor) -> Tensor:
        with torch.no_grad():
            features = F.normalize(backbone.encode_image(views), dim=-1)
        prompts = torch.cat([embedded[:, :1], context.expand(len(embedded), -1, -1),
                             embedded[:, 5:]], 1)
        hidden = tower.transformer(prompts + tower.positional_embedding,
                                   attn_mask=tower.attn_mask)
        hidden = tower.ln_final(hidden)[torch.arange(len(ends), device=device), ends]
        text = F.normalize(hidden @ tower.text_projection, dim=-1)
        return backbone.logit_scale * features @ text.T

    def theirs() -> Tensor:
        context = nn.Parameter(embedded[0, 1:5].clone())
        optimizer = torch.optim.AdamW([context], lr=5e-3)
        start, fresh = context.detach().clone(), copy.deepcopy(optimizer.state_dict())
        logits = []
        for image, generator in zip(images, image_generators(images, 42)):
            with torch.no_grad():
                context.copy_(start)
            optimizer.load_state_dict(copy.deepcopy(fresh))
            views = torch.cat([image[None], crop_views(image[None], 63, [generator], size=224)[0]])
            low = torch.autocast(device.type, enabled=on_gpu)
            with torch.enable_grad(), low:
                output = classify(views, context)
                chosen = entropy(output).argsort()[:6]
                mean = output[chosen].log_softmax(-1).logsumexp(0) - math.log(6)
                loss = -(mean * mean.exp()).sum()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad(), low:
                logits.append(classify(image[None], context)[0])
        return torch.stack(logits)

    return lambda: method(images), theirs


def ttt_mae(backbone: MaskedAutoencoder, images: Tensor, steps: int, masks: int
            ) -> tuple[Side, Side]:
    """One image after the other from a copy of the weights; all patches embedded and all decoded
    under every mask; a prediction after every step."""
    method = METHODS.load("ttt_mae")(backbone, steps=steps, masks=masks)
    net = copy.deepcopy(backbone.net)
    start = copy.deepcopy(net.state_dict())
    trained = [parameter for name, parameter in net.named_parameters()
               if not name.startswith(("decoder", "classifier", "pos_embed"))]
    for parameter in trained:
        parameter.requires_grad_(True)
    num_visible = net.num_patches // 4

    def loss(image: Tensor) -> Tensor:
        copies = image.expand(masks, -1, -1, -1)
        tokens = net.patch_embed(copies) + net.pos_embed[:, 1:]
        order = torch.rand(masks, net.num_patches, device=image.device).argsort(1)
        visible = tokens.gather(1, order[:, :num_visible, None].expand(-1, -1, tokens.shape[2]))
        first = (net.cls_token + net.pos_embed[:, :1]).expand(masks, -1, -1)
        latents = net.decoder_embed(net.norm(net.blocks(torch.cat([first, visible], 1))))
        hidden = net.mask_token.expand(masks, net.num_patches - num_visible, -1)
        every = torch.cat([latents[:, 1:], hidden], 1)
        every = every.gather(1, order.argsort(1)[..., None].expand(-1, -1, every.shape[2]))
        every = torch.cat([latents[:, :1], every], 1) + net.decoder_pos_embed
        predicted = net.decoder_pred(net.decoder_norm(net.decoder_blocks(every)))[:, 1:]
        errors = (predicted - normalized(net.patchify(copies))).square().mean(-1)
        is_hidden = torch.ones_like(errors).scatter_(1, order[:, :num_visible], 0)
        return (errors * is_hidden).sum() / is_hidden.sum()

    def theirs() -> Tensor:
        logits = []
        for image in backbone.prepare(images)[:, None]:
            net.load_state_dict(copy.deepcopy(start))
            optimizer = torch.optim.SGD(trained, lr=5e-3, momentum=0.9)
            for _ in range(steps):
                with torch.enable_grad():
                    value = loss(image)
                    value.backward()
                optimizer.step()
                optimizer.zero_grad()
                value.item()
                answer = net.classify(net.encode(image))
            logits.append(answer[0])
        return torch.stack(logits)

    return lambda: method(images), theirs


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=("tent", "norm", "tpt", "ttt_mae"),
                        default=("tent", "norm", "tpt", "ttt_mae"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--classifier", default="torchvision/resnet50")
    parser.add_argument("--clip", default="ViT-B-16")
    parser.add_argument("--mae", default="mae_vit_base_patch16")
    parser.add_argument("--steps", type=int, default=20, help="of TTT-MAE")
    parser.add_argument("--masks", type=int, default=128, help="of TTT-MAE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
