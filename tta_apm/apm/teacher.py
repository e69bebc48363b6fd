"""Teacher: the frozen network whose image features are the students' targets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.errors import UserError, explain, nearest
from tta_apm.toolbox.head import Head

# Side in pixels of the trial images for a network that takes images of any size.
SIDE = 32


class TeacherOutputs(NamedTuple):
    """The teacher's outputs for B images; None for outputs that were not requested."""

    features: Tensor  # [B,D]
    grid: Tensor | None = None  # the features of h·w locations [B,h,w,D]
    trigger: Tensor | None = None  # trigger columns: the mean of a layer's patch tokens [B,d]

    def select(self, part: slice) -> TeacherOutputs:
        """The outputs for some of the images."""
        return TeacherOutputs(self.features[part],
                              None if self.grid is None else self.grid[part],
                              None if self.trigger is None else self.trigger[part])


class Teacher(Protocol):
    """The interface of a frozen network for APM."""

    feature_dim: int  # D
    trigger_dim: int  # d, or 0 if it gives no trigger columns
    reads_length: bool  # whether the logits depend on the length of a feature

    def encode(self, images: Tensor) -> TeacherOutputs:
        """The outputs for images [B,3,H,W] in [0,1], from one pass."""

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B,K] of features [B,D], computed by the network's own head."""


class ClipTeacher:
    """A CLIP: its image features, classified by their cosines with its text features.

    Args:
        clip: the network.
        wants_grid: whether to return the features of locations.
        trigger_layer: index of the layer whose tokens make the trigger column; None for none.

    Raises:
        UserError: for a CLIP without a grid, or without that layer.
    """

    reads_length = False

    def __init__(self, clip: ClipBackbone, *, wants_grid: bool, trigger_layer: int | None) -> None:
        self.clip = clip
        self.feature_dim = clip.text_features.shape[1]
        self.wants_grid = wants_grid
        self.trigger_layer = trigger_layer
        self.trigger_dim = 0
        if self._needs_locations():  # try it now, so that an error comes before the first image
            size = clip.image_size or SIDE
            with torch.no_grad():
                trigger = self.encode(clip.mean.new_zeros(1, 3, size, size)).trigger
            self.trigger_dim = 0 if trigger is None else trigger.shape[1]

    def _needs_locations(self) -> bool:
        return self.wants_grid or self.trigger_layer is not None

    def encode(self, images: Tensor) -> TeacherOutputs:
        if not self._needs_locations():
            return TeacherOutputs(self.clip.encode_image(images))
        features, grid, tokens = self.clip.encode_grid(images, self.trigger_layer)
        return TeacherOutputs(features, grid, None if tokens is None else tokens.mean((1, 2)))

    def classify(self, features: Tensor) -> Tensor:
        return self.clip.classify(features)


class ClassifierTeacher:
    """A classifier: the input of its last linear layer is the feature, that layer the head.

    Args:
        classifier: the network. It is run once on two images of noise.
        layer: name of a module whose output [B,D] is the feature instead; the network behind it
            is then the head. "": the input of the last linear layer.
        wants_grid: whether to return the features of locations: the last activations of which the
            feature is the mean, or (ViTs) whose first token it is.
        owner: name of the method, for error messages.

    Raises:
        UserError: for a network without a linear head; for a layer that does not exist, does not
            output [B,D] or does not determine the logits alone; and for a missing grid.
    """

    reads_length = True

    def __init__(self, classifier: Classifier, *, layer: str, wants_grid: bool,
                 owner: str = "apm") -> None:
        self.classifier = classifier
        self.name = f"the classifier {classifier.name}"
        self.trigger_dim = 0
        self._side = classifier.image_size or SIDE
        self._head = Head(classifier, owner)
        self._layer = self._find_layer(layer) if layer else None
        self._layer_name = layer
        self._grid: nn.Module | None = None
        noise = self._noise()
        try:
            logits, self.feature_dim = self._try(noise)
        except UserError:
            raise
        except Exception as error:  # a user's network may raise anything
            raise UserError(
                f"{owner}: {self.name} does not take images of {noise.shape[-1]} pixels; give it "
                f"its image_size ({explain(error)})") from error
        if self._layer and not torch.allclose(self.classify(self.encode(noise).features), logits,
                                              rtol=1e-4, atol=1e-4):
            raise UserError(f"apm: feature_layer {layer!r}: the logits of {self.name} do not come "
                            "from its output alone; name a layer that all paths go through")
        if wants_grid:
            self._grid = self._find_grid(noise)

    @torch.no_grad()
    def encode(self, images: Tensor) -> TeacherOutputs:
        seen: list[Any] = []
        with _recorded_outputs([self._grid] if self._grid else [], seen):
            features, _ = self._features(images)
        if self._grid is None:
            return TeacherOutputs(features)
        grid = _locations(seen[-1][1], features)
        if grid is None:
            raise self._no_grid()
        return TeacherOutputs(features, grid)

    def classify(self, features: Tensor) -> Tensor:
        if self._layer is None:
            return self._head.logits(features)
        handle = self._layer.register_forward_hook(lambda *_: features.clone())
        try:  # the layer's output is replaced, so the images do not matter
            return self._logits(features.new_zeros(len(features), 3, self._side, self._side))
        finally:
            handle.remove()

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B,D] and logits [B,K] of images [B,3,H,W] in [0,1]."""
        if self._layer is None:
            logits, features = self._head.features(images)
            return features, logits
        seen: list[Any] = []
        with _recorded_outputs([self._layer], seen):
            logits = self._logits(images)
        if not seen:
            raise UserError(f"apm: feature_layer {self._layer_name!r} of {self.name} does not run")
        output = seen[-1][1]
        if not isinstance(output, Tensor) or output.dim() != 2:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(f"apm: feature_layer {self._layer_name!r} of {self.name} gives {shape} "
                            f"for {len(images)} images, not one vector for each; name a layer "
                            "after the pooling")
        return output, logits

    def _logits(self, images: Tensor) -> Tensor:
        classifier = self.classifier
        return classifier.select_classes(classifier.net(classifier.prepare(images)))

    @torch.no_grad()
    def _try(self, images: Tensor) -> tuple[Tensor, int]:
        """Logits [B,K] of images and the size D of their features."""
        features, logits = self._features(images)
        return logits, features.shape[1]

    def _find_layer(self, name: str) -> nn.Module:
        layers = dict(self.classifier.net.named_modules())
        layers.pop("")
        if name not in layers:
            raise UserError(f"apm: feature_layer {name!r}: {self.name} has no such layer; "
                            f"{nearest(name, layers)}")
        return layers[name]

    @torch.no_grad()
    def _find_grid(self, images: Tensor) -> nn.Module:
        """The module that outputs the last activations from which the features are pooled."""
        seen: list[Any] = []
        with _recorded_outputs(list(self.classifier.net.modules()), seen):
            features, _ = self._features(images)
        for module, output in reversed(seen):
            if isinstance(output, Tensor) and _locations(output, features) is not None:
                return module
        raise self._no_grid()

    def _no_grid(self) -> UserError:
        return UserError(f"apm: {self.name} has no grid for L_grid: its feature is neither the "
                         "mean over a feature map of several locations nor a class token beside "
                         "patch tokens; use grid_weight 0")

    def _noise(self) -> Tensor:
        """Two images of noise [2,3,H,W], of a size that the network takes."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(2, 3, self._side, self._side, generator=generator)
        return noise.to(self.classifier.mean)


def teacher_of(backbone: ClipBackbone | Classifier, *, feature_layer: str, wants_grid: bool,
               trigger_layer: int | None, owner: str = "apm") -> Teacher:
    """The teacher around a backbone; arguments as for ClipTeacher and ClassifierTeacher.

    Raises:
        UserError: for an option that the backbone's kind does not have.
    """
    if not isinstance(backbone, Classifier):
        if feature_layer:
            raise UserError(f"apm: feature_layer {feature_layer!r} is for a classifier: with a "
                            "CLIP the student fits the image feature")
        return ClipTeacher(backbone, wants_grid=wants_grid, trigger_layer=trigger_layer)
    if trigger_layer is not None:
        raise UserError("apm: trigger vit takes the tokens of a CLIP's image tower: use trigger "
                        "conv with a classifier")
    return ClassifierTeacher(backbone, layer=feature_layer, wants_grid=wants_grid, owner=owner)


def at_length_of(features: Tensor, others: Tensor) -> Tensor:
    """Features [B,D], each scaled to the length of its counterpart in `others` [B,D]."""
    return F.normalize(features, dim=-1) * others.norm(dim=-1, keepdim=True)


@contextmanager
def _recorded_outputs(modules: list[nn.Module], seen: list[Any]) -> Iterator[None]:
    """Append (module, output) to `seen` whenever one of these modules runs."""
    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        # Cloned, since the next layer may work in place.
        seen.append((module, output.clone() if isinstance(output, Tensor) else output))
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _locations(output: Tensor, features: Tensor) -> Tensor | None:
    """The grid [B,h,w,D] in `output` if `features` [B,D] are pooled from it, else None.

    Args:
        output: a feature map [B,D,h,w] or [B,h,w,D] whose mean is `features`; or tokens [B,n,D],
            the last of which form a square grid, and whose mean or first token is `features`.
    """
    count, width = features.shape
    if output.dim() == 4 and len(output) == count:
        for grid in (output.permute(0, 2, 3, 1), output):
            if (grid.shape[3] == width and grid.shape[1:3].numel() > 1
                    and _alike(grid.mean((1, 2)), features)):
                return grid
    if output.dim() == 3 and len(output) == count and output.shape[2] == width:
        side = isqrt(output.shape[1])
        patches = output[:, output.shape[1] - side**2:]
        has_class_token = output.shape[1] > side**2
        if side > 1 and (_alike(patches.mean(1), features)
                         or has_class_token and _alike(output[:, 0], features)):
            return patches.unflatten(1, (side, side))
    return None


def _alike(found: Tensor, features: Tensor) -> bool:
    return torch.allclose(found, features, rtol=1e-3, atol=1e-4 * features.abs().max().item())
