"""Contexts: learned vectors in place of a prompt's words, as in CoOp, CoCoOp and TPT.

Shapes: B images, K classes, M context vectors, W width of the text tower, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.weights import files, fit
from tta_apm.backbones.weights.trees import Entry
from tta_apm.errors import UserError

# Activations that a block of the text tower saves per token for the backward pass, as a multiple
# of its width: measured are 11 with GELU and 15 with QuickGELU, of which the MLP has 8 and 12.
WIDTHS_PER_BLOCK = 16
# Copies of the text features: as computed, sorted by class, normalised; and their gradients.
COPIES = 6

# Entries of a file of CoOp or CoCoOp that depend on the classes of its training.
OF_CLASSES = ("token_prefix", "token_suffix")


class Context(nn.Module):
    """A learned context: CoOp's, or CoCoOp's, to which a meta-net adds a vector for each image.

    Its state_dict is that of the authors' code (Zhou et al., IJCV and CVPR 2022).

    Args:
        ctx: the context vectors [M,W].
        feature_dim: D, the input size of CoCoOp's meta-net; None: no meta-net.
        hidden: the meta-net's hidden units; None: D / 16, as in the authors' code.
    """

    def __init__(self, ctx: Tensor, feature_dim: int | None = None, hidden: int | None = None
                 ) -> None:
        super().__init__()
        self.ctx = nn.Parameter(ctx)
        self.meta_net = None
        if feature_dim is not None:
            hidden = feature_dim // 16 if hidden is None else hidden
            self.meta_net = nn.Sequential(OrderedDict(
                linear1=nn.Linear(feature_dim, hidden), relu=nn.ReLU(),
                linear2=nn.Linear(hidden, ctx.shape[1])))

    def forward(self, features: Tensor) -> Tensor:
        """Contexts [B,M,W] for image features [B,D] of length one."""
        if self.meta_net is None:
            return self.ctx.expand(len(features), -1, -1)
        return self.ctx + self.meta_net(features)[:, None]


class _Group(NamedTuple):
    """Classes whose prompts have the same number of tokens."""

    classes: slice  # of the classes sorted by that number
    num_tokens: int  # after the context: class name, full stop and EOS


class ContextPrompts(nn.Module):
    """Text features of the prompts [SOS][context][class name][.][EOS] of a CLIP's classes.

    The text tower is causal and its output is read at EOS, so nothing after EOS is computed:
    classes are grouped by the number of tokens in their prompts.

    Args:
        backbone: gives class names, tokenizer and text tower.
        num_context: M.
        class_chunk: number of classes whose activations are kept for a backward pass at a time;
            the others' are recomputed (checkpointing), with the same result. 0 keeps all.

    Raises:
        UserError: for a text tower of another kind, and for a prompt that is too long for it.
    """

    tower: Any  # a module; as nn.Module, its layers would have no types
    start: Tensor
    ends: Tensor
    unsort: Tensor

    def __init__(self, backbone: ClipBackbone, num_context: int, class_chunk: int = 0) -> None:
        super().__init__()
        self.tower = _text_tower(backbone)
        self.num_context = num_context
        self.feature_dim = backbone.text_features.shape[1]
        self.class_chunk = class_chunk
        rows = _tokenize(backbone, [f"{name}." for name in backbone.class_names])
        longest = max(rows, key=len)
        if len(longest) + num_context > len(self.tower.positional_embedding):
            name = backbone.class_names[rows.index(longest)]
            raise UserError(f"a context of {num_context} vectors and the class name {name!r} are "
                            f"too long for the text tower of {backbone.name}, which takes "
                            f"{len(self.tower.positional_embedding)} tokens")
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        self.groups = list(_groups([len(rows[index]) - 1 for index in order], class_chunk))
        embeddings = [_embed(self.tower, rows[index]) for index in order]
        self.register_buffer("start", embeddings[0][:1], persistent=False)  # [1,W]
        self.register_buffer("ends", nn.utils.rnn.pad_sequence(
            [row[1:] for row in embeddings], batch_first=True), persistent=False)  # [K,tokens,W]
        self.register_buffer("unsort", torch.tensor(order).argsort().to(self.start.device),
                             persistent=False)

    def forward(self, contexts: Tensor) -> Tensor:
        """Text features [B,K,D] of length one, from contexts [B,M,W]."""
        if self.class_chunk and torch.is_grad_enabled():
            parts = [checkpoint(self._encode, contexts, group, use_reentrant=False)
                     for group in self.groups]
        else:
            parts = [self._encode(contexts, group) for group in self.groups]
        return F.normalize(torch.cat(parts, 1)[:, self.unsort], dim=-1)

    def _encode(self, contexts: Tensor, group: _Group) -> Tensor:
        """Text features [B,k,D] of the k classes of a group, not normalised."""
        tower, images = self.tower, len(contexts)
        ends = self.ends[group.classes, :group.num_tokens]
        prompts = torch.cat([self.start.expand(images, len(ends), -1, -1),
                             contexts[:, None].expand(-1, len(ends), -1, -1),
                             ends.expand(images, -1, -1, -1)], 2).flatten(0, 1)
        length = prompts.shape[1]
        hidden = tower.transformer(prompts + tower.positional_embedding[:length],
                                   attn_mask=tower.attn_mask[:length, :length])
        features = tower.ln_final(hidden[:, -1])
        if isinstance(tower.text_projection, nn.Linear):
            features = tower.text_projection(features)
        elif tower.text_projection is not None:
            features = features @ tower.text_projection
        return features.unflatten(0, (images, -1))

    def bytes_per_image(self) -> int:
        """Approximate memory in bytes of a forward and a backward pass for one image's context."""
        tokens = [len(self.ends[group.classes]) * (1 + self.num_context + group.num_tokens)
                  for group in self.groups]
        held = max(tokens) if self.class_chunk else sum(tokens)
        activations = held * len(self.tower.transformer.resblocks) * WIDTHS_PER_BLOCK
        numbers = activations * self.start.shape[1] + COPIES * len(self.ends) * self.feature_dim
        return numbers * self.start.element_size()


def phrase_context(backbone: ClipBackbone, phrase: str) -> Tensor:
    """The embeddings [M,W] of a phrase's M tokens.

    Raises:
        UserError: if there are none.
    """
    context = _embed(_text_tower(backbone), _tokenize(backbone, [phrase])[0][1:-1])
    if not len(context):
        raise UserError(f"the phrase {phrase!r} has no words to start a context from")
    return context


def cosine_logits(backbone: ClipBackbone, features: Tensor, text_features: Tensor) -> Tensor:
    """Logits [...,N,K] of features [...,N,D] and text features [...,K,D], all of length one."""
    return backbone.logit_scale * features @ text_features.mT


def load_context(weights: str, backbone: ClipBackbone, *, meta_net: bool | None) -> Context:
    """Load a frozen context from a checkpoint of CoOp's code or a packaged .safetensors file.

    Args:
        weights: a path or the name of a packaged file.
        meta_net: whether the context is CoCoOp's, else it is CoOp's; None takes either.

    Raises:
        UserError: if there is no such file, or if its tensors are not those of such a context or
            do not fit the backbone.
    """
    file = files.open_weights(weights)
    if file is None:
        raise UserError(f"learned context: file not found: {weights!r}")
    shapes = {name: fit.shapes(entries)[full] for name in ("ctx", "meta_net.linear1.weight")
              for entries in file.state_dicts.values() for full in fit.shapes(entries)
              if full == name or full.endswith(f".{name}")}
    if meta_net is None:
        meta_net = "meta_net.linear1.weight" in shapes
    kind = "CoCoOp" if meta_net else "CoOp"
    if len(shapes.get("ctx", ())) != 2:
        found = f"its 'ctx' is {list(shapes['ctx'])}" if "ctx" in shapes else "it lacks 'ctx'"
        raise UserError(f"{file.path} is not a context of {kind}: {found}, and only vectors [M,W] "
                        "that all classes share are supported")
    tower = _text_tower(backbone)
    context = Context(torch.empty(shapes["ctx"][0], tower.token_embedding.embedding_dim),
                      len(backbone.text_features[0]) if meta_net else None,
                      shapes.get("meta_net.linear1.weight", (1,))[0])
    selected = file.select(f"a context of {kind} for {backbone.name}", context.state_dict(),
                           _without_classes)
    context.load_state_dict(selected.tensors)
    return context.requires_grad_(False).to(backbone.text_features.device)


def _without_classes(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    return {name: entry for name, entry in entries.items() if name not in OF_CLASSES}


def _text_tower(backbone: ClipBackbone) -> Any:
    """The part of open_clip's model that holds the text tower's layers."""
    if backbone.text_tower_gone:
        raise UserError(f"prompts are learned through a text tower: {backbone.text_tower_gone}")
    tower = getattr(backbone.model, "text", backbone.model)
    pooling = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    if (pooling != "argmax" or getattr(tower, "attn_mask", None) is None
            or getattr(tower, "cls_emb", None) is not None):
        raise UserError(f"prompts are learned for text towers like OpenAI's, which are causal and "
                        f"read at the last token; that of CLIP.MODEL {backbone.name} is different")
    return tower


def _tokenize(backbone: ClipBackbone, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text from SOS to EOS, the token with the highest number."""
    return [row[:row.argmax() + 1].tolist() for row in backbone.tokenizer(list(texts))]


@torch.no_grad()
def _embed(tower: Any, tokens: Sequence[int]) -> Tensor:
    """Embeddings [n,W] of n tokens."""
    weight = tower.token_embedding.weight
    return weight[torch.tensor(tokens, dtype=torch.long, device=weight.device)]


def _groups(num_tokens: Sequence[int], class_chunk: int) -> Iterator[_Group]:
    """Groups of classes with equal `num_tokens` (sorted), of at most `class_chunk` classes each."""
    start = 0
    for stop in range(1, len(num_tokens) + 1):
        if stop == len(num_tokens) or num_tokens[stop] != num_tokens[start] or (
                stop - start == class_chunk):
            yield _Group(slice(start, stop), num_tokens[start])
            start = stop
