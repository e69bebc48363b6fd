"""lookalikes: name the network of a state dict, if its names and shapes leave no doubt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt

import torch

# timm's names of convolutional networks to compare with; torchvision's weights have the same names.
_CONVOLUTIONAL = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2",
    "resnext50_32x4d", "densenet121", "mobilenetv3_small_100", "mobilenetv3_large_100",
    "efficientnet_b0", "efficientnet_b1")
_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large"}

Shapes = Mapping[str, torch.Size]


def lookalike(shapes: Shapes) -> str:
    """The network with weights of these shapes, in words; "" if that is uncertain."""
    return _clip(shapes) or _vit(shapes) or _convolutional(shapes)


def _clip(shapes: Shapes) -> str:
    """A CLIP of open_clip whose two towers are Transformers."""
    if not {"visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight",
            "positional_embedding", "text_projection"} <= shapes.keys():
        return ""
    import open_clip

    width, _, patch, _ = shapes["visual.conv1.weight"]
    size = isqrt(shapes["visual.positional_embedding"][0] - 1) * patch
    seen = {"embed_dim": shapes["text_projection"][-1], "width": width, "patch_size": patch,
            "image_size": size, "layers": _depth(shapes, "visual.transformer.resblocks."),
            "text_width": shapes["token_embedding.weight"][1],
            "vocab_size": shapes["token_embedding.weight"][0],
            "context_length": shapes["positional_embedding"][0],
            "text_layers": _depth(shapes, "transformer.resblocks.")}
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        if seen == {"embed_dim": config["embed_dim"], "width": vision.get("width"),
                    "patch_size": vision.get("patch_size"), "image_size": vision.get("image_size"),
                    "layers": vision.get("layers"), "text_width": text.get("width"),
                    "vocab_size": text.get("vocab_size"),
                    "context_length": text.get("context_length"),
                    "text_layers": text.get("layers")}:
            names.append(name)
    return f"open_clip's {' or '.join(names[:4])}" if names else ""


def _vit(shapes: Shapes) -> str:
    """A ViT with timm's names."""
    embedding, positions = (shapes.get(name) for name in ("patch_embed.proj.weight", "pos_embed"))
    if embedding is None or positions is None or len(embedding) != 4 or len(positions) != 3:
        return ""
    import timm

    width, _, patch, _ = embedding
    depth, size = _depth(shapes, "blocks."), isqrt(positions[1]) * patch
    name = f"vit_{_WIDTHS.get(width)}_patch{patch}_{size}"
    is_whole = depth == (24 if width == 1024 else 12) and (size // patch) ** 2 + 1 == positions[1]
    return f"timm's {name}" if is_whole and timm.is_model(name) else ""


def _convolutional(shapes: Shapes) -> str:
    """A convolutional network of the list above, compared without its head."""
    import timm

    for name in _CONVOLUTIONAL:
        with torch.device("meta"):
            net = timm.create_model(name)
        head = f"{net.default_cfg['classifier']}."
        wanted = {key: tensor.shape for key, tensor in net.state_dict().items()
                  if not key.startswith(head) and not key.endswith("num_batches_tracked")}
        found = {key: shape for key, shape in shapes.items()
                 if not key.startswith(head) and not key.endswith("num_batches_tracked")}
        if wanted == found:
            return f"timm's {name}"
    return ""


def _depth(shapes: Shapes, prefix: str) -> int:
    """The number of blocks whose names start with `prefix` and their index."""
    numbers = [int(match[1]) for name in shapes
               if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", name))]
    return max(numbers, default=-1) + 1
