"""TPT: test-time prompt tuning of CLIP on random views of each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tta_apm.backbones.clip import ClipBackbone
from tta_apm.backbones.clip_prompts import (
    ContextPrompts, cosine_logits, load_context, phrase_context)
from tta_apm.errors import UserError, at_least
from tta_apm.method import Method
from tta_apm.toolbox.entropy import entropy, marginal_entropy
from tta_apm.toolbox.episodes import adapt, chunk_size, chunks, stack
from tta_apm.toolbox.precision import computing_in, resolve
from tta_apm.toolbox.surviving import SurvivingOptimizer
from tta_apm.toolbox.view_features import Views, encode, view_features

# Factor of the loss in float16, without which gradients underflow; the authors' GradScaler starts
# with it.
LOSS_SCALE = 1024


class Tpt(Method):
    """Test-time prompt tuning (Shu et al., NeurIPS 2022).

    For each image alone: make random views, with the image itself as the first; select the views
    with the least entropy under the initial prompt; take a step of AdamW on the context vectors to
    lower the entropy of their mean prediction; after the last update, classify the image itself.
    No state is carried from one image to the next.

    Departures from the authors' code: with float16 products the loss is scaled by a constant
    (theirs uses a GradScaler); views are cropped from the image as the data set returns it, not
    from the file; images are adapted together; prompts are cut after their last token, which
    changes no result and leaves 9 tokens of 77 for ImageNet's classes.

    Memory grows with images × classes: the text tower keeps up to 16 · blocks · width numbers per
    token, so ViT-B/16 needs 3.6 MB per image and class, 3.6 GB for 1,000 classes. As many images
    are adapted at a time as fit into memory. If not even one fits, `class_chunk` limits the
    classes too and takes two fifths more time in the text tower.

    Args:
        backbone: a CLIP.
        num_views: number of views, including the image itself.
        selection: fraction of the views that is selected.
        steps: updates per image.
        lr: learning rate of AdamW (betas 0.9, 0.999 and weight decay 0.01, torch's defaults).
        phrase: words whose embeddings the context is initialised with.
        weights: a file of CoOp or CoCoOp to initialise the context with instead (see Coop, Cocoop);
            CoCoOp's is initialised by its meta-net, for each image by itself. "" for none.
        flip: whether to mirror each random view with probability 1/2.
        augmix: whether to apply AugMix to the random views, as the authors do for the fine-grained
            data sets.
        class_chunk: number of classes for which the text tower keeps activations at a time; 0 for
            all.
        precision: dtype of the products of both towers: "float32", or "float16" as in the authors'
            code; "auto" is float16 on CUDA GPUs, float32 elsewhere.
        seed: of the views.

    Raises:
        UserError: for values out of range, or for a file that is not found or does not fit.
    """

    needs = "clip"
    scope = "image"
    context: Tensor
    text_features: Tensor

    def __init__(self, backbone: ClipBackbone, *, num_views: int = 64, selection: float = 0.1,
                 steps: int = 1, lr: float = 5e-3, phrase: str = "a photo of a",
                 weights: str = "", flip: bool = True, augmix: bool = False, class_chunk: int = 0,
                 precision: str = "auto", seed: int = 42) -> None:
        super().__init__()
        at_least(1, "tpt", num_views=num_views)
        at_least(0, "tpt", steps=steps, lr=lr, class_chunk=class_chunk, selection=selection)
        num_selected = int(num_views * selection)
        if not 1 <= num_selected <= num_views:
            raise UserError(f"tpt: selection {selection} keeps {num_selected} of {num_views} "
                            f"views; it must keep 1 to {num_views}")
        self.backbone = backbone
        self.views = Views(num_views - 1, flip, augmix, seed)
        self.num_selected = num_selected
        self.steps = steps
        self.lr = lr
        self.precision = resolve(precision, "float16", backbone.text_features.device, "tpt")
        self.resolved = {"precision": self.precision}
        self.loss_scale = LOSS_SCALE if self.precision == "float16" else 1
        learned = load_context(weights, backbone, meta_net=None) if weights else None
        context = phrase_context(backbone, phrase) if learned is None else learned.ctx.detach()
        self.of_image = learned if learned is not None and learned.meta_net is not None else None
        self.prompts = ContextPrompts(backbone, len(context), class_chunk)
        with torch.no_grad():
            text_features = self._encode_classes(context[None])
        self.register_buffer("context", context, persistent=False)  # [M,W]
        self.register_buffer("text_features", text_features, persistent=False)  # [1,K,D]
        self.chunk = chunk_size(self._bytes_per_image(), context.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._adapt(images[part]) for part in chunks(len(images), self.chunk)])

    def reset(self) -> None:
        """Do nothing: every image starts from the same context and an empty optimiser."""

    def _adapt(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W], each with its own adapted context."""
        features = self._view_features(images)
        initial, text_features = stack({"context": self.context}, len(images)), self.text_features
        if self.of_image is not None:
            initial = {"context": self.of_image(features[:, 0]).requires_grad_()}
            text_features = self._encode_classes(initial["context"])
        confident = self._most_confident(features, text_features)
        contexts = adapt(
            initial,
            lambda stacked: self.loss_scale * marginal_entropy(
                self._classify(confident, stacked["context"])),
            steps=self.steps,
            optimizer=self.make_optimizer)
        return self._classify(features[:, :1], contexts["context"])[:, 0]

    def make_optimizer(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        """A new AdamW for the contexts of a chunk of images."""
        # With eps scaled like the loss, its steps do not depend on the scale of the gradients.
        return torch.optim.AdamW(leaves, lr=self.lr, weight_decay=0.01, eps=1e-8 * self.loss_scale)

    def _view_features(self, images: Tensor) -> Tensor:
        """Image features [B,V,D] of length one; the first view is the image itself."""
        features = encode(self.backbone, images, self.precision)[:, None]
        if self.views.num_views:
            of_views = view_features(self.backbone, images, self.views, self.precision)
            features = torch.cat([features, of_views], 1)
        return F.normalize(features, dim=-1)

    def _encode_classes(self, contexts: Tensor) -> Tensor:
        """Text features [B,K,D] of length one, from contexts [B,M,W]."""
        with computing_in(self.precision, contexts.device):
            return self.prompts(contexts).to(contexts.dtype)

    def _most_confident(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Select from features [B,V,D] those of least entropy under the initial prompt, whose text
        features are [B,K,D], or [1,K,D] for all images."""
        logits = cosine_logits(self.backbone, features, text_features)
        selected = entropy(logits).topk(self.num_selected, largest=False).indices
        return features.gather(1, selected[..., None].expand(-1, -1, features.shape[-1]))

    def _classify(self, features: Tensor, contexts: Tensor) -> Tensor:
        """Logits [B,N,K] of image features [B,N,D] with contexts [B,M,W]."""
        return cosine_logits(self.backbone, features, self._encode_classes(contexts))

    def _bytes_per_image(self) -> int:
        """Memory of one image: the text tower's activations, and the views while they are made."""
        size = self.backbone.image_size or 0
        views = 3 * (1 + self.views.num_views) * 3 * size**2 * self.context.element_size()
        return self.prompts.bytes_per_image() + views


class TptSurviving(SurvivingOptimizer, Tpt):
    """TPT whose AdamW survives from image to image, for the audit only."""
