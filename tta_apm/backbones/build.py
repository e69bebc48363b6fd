"""build: the table of backbone kinds, and the construction of a backbone of any kind.

The table names the module of each kind, which is imported when a backbone is built. So reading the
table does not import torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tta_apm.errors import UserError
from tta_apm.registry import Registry

if TYPE_CHECKING:  # a config is checked without torch
    import torch

    from tta_apm.backbones.backbone import Backbone
    from tta_apm.data.dataset import Outputs


class Task(NamedTuple):
    """The classes that a backbone has to distinguish.

    Attributes:
        class_names: K names; only CLIP uses more than their number.
        templates: prompt templates, for CLIP.
        outputs: which of a network's outputs are the classes, if it has more; None if it has K.
    """

    class_names: Sequence[str]
    templates: Sequence[str] = ()
    outputs: Outputs | None = None

    @property
    def num_outputs(self) -> int:
        """The number of outputs of the network."""
        return self.outputs.total if self.outputs else len(self.class_names)

    @property
    def keep(self) -> Sequence[int] | None:
        """Indices of the outputs that are classes of the data set; None for all."""
        return self.outputs.indices if self.outputs else None


@dataclass(frozen=True)
class Kind:
    """A kind of frozen backbone, to which a method's `needs` refers by name.

    Attributes:
        module: name of a module with two functions that return a Backbone:
            `load(section: Mapping, task: Task, device)`, with the weights that the section names;
            `untrained(model: str, task: Task, device)`, with random weights, without reading or
            downloading anything, to measure the cost of methods.
        section: the keys of the kind's section in a config with their defaults, including MODEL
            and WEIGHTS. The section's name is that of the kind in capitals.
        has_prompts: whether its logits depend on prompts, i.e. on class names and templates.
    """

    module: str
    section: Mapping[str, Any]
    has_prompts: bool = False


# IMAGE_SIZE (in pixels), MEAN and STD (three numbers each, for images in [0,1]) are needed for a
# file whose library states none. 0 and [] take them from the library or the config beside the file.
PACKAGED: dict[str, Kind] = {
    # timm/NAME, torchvision/NAME or robustbench/NAME, with the library's pretrained weights or a
    # file; or a function of the user's own that makes a network.
    "classifier": Kind("tta_apm.backbones.classifiers", {
        "MODEL": "timm/digits_resnet", "WEIGHTS": "digits_resnet.safetensors",
        "IMAGE_SIZE": 0, "MEAN": [], "STD": []}),
    # A name of open_clip, with a pretrained tag or a file.
    "clip": Kind("tta_apm.backbones.clip", {
        "MODEL": "digits_clip", "WEIGHTS": "digits_clip.safetensors", "MEAN": [], "STD": []},
        has_prompts=True),
    # For TTT-MAE: a masked autoencoder with its probing head, in one file or in two joined by a
    # comma: encoder_and_decoder.pth,head.pth.
    "mae": Kind("tta_apm.backbones.mae", {
        "MODEL": "digits_mae", "WEIGHTS": "digits_mae.safetensors"}),
    # The same, all of whose parts were trained together.
    "mae_joint": Kind("tta_apm.backbones.mae_joint", {
        "MODEL": "digits_mae", "WEIGHTS": "digits_mae_joint.safetensors"}),
    # The encoder of such a one, fine-tuned with a linear head.
    "mae_fine_tuned": Kind("tta_apm.backbones.mae_fine_tuned", {
        "MODEL": "digits_mae", "WEIGHTS": "digits_mae_fine_tuned.safetensors"}),
    # For TTT: a classifier with a rotation head, trained jointly.
    "rotation": Kind("tta_apm.backbones.rotation", {
        "MODEL": "digits_rotation", "WEIGHTS": "digits_rotation.safetensors"}),
    # For MTTT: ViTs of one size, each with another layer that mixes its tokens, in one file.
    "mttt_vit": Kind("tta_apm.backbones.mttt_vit", {
        "MODEL": "digits_mttt", "WEIGHTS": "digits_mttt.safetensors"}),
}

# All kinds: the packaged ones, and those that other packages bring as entry points.
KINDS = Registry("tta_apm.backbone_kinds", "kind of backbone")
for _name, _kind in PACKAGED.items():
    KINDS.register(_name)(_kind)


def find_kind(name: str) -> Kind:
    """The kind called `name`.

    Raises:
        UserError: if there is none, or if the entry point of that name is not a Kind.
    """
    kind = KINDS.load(name)
    if not isinstance(kind, Kind) or not {"MODEL", "WEIGHTS"} <= kind.section.keys():
        raise UserError(f"kind of backbone {name!r}: its entry point must be a Kind whose section "
                        "has MODEL and WEIGHTS")
    return kind


def build(kind: str, model: str, weights: str, *, class_names: Sequence[str],
          templates: Sequence[str], device: torch.device | str, outputs: Outputs | None = None,
          section: Mapping[str, Any] | None = None) -> Backbone:
    """Load the backbone that a config's section of its kind describes.

    Args:
        kind: a name of KINDS.
        model, weights: MODEL and WEIGHTS of the section.
        class_names, templates, outputs: see Task.
        section: the whole section, for its other keys; by default they have their defaults.

    Raises:
        UserError: for an unknown kind, model or weights, or another value that is out of range.
    """
    found = find_kind(kind)
    keys = {**found.section, **(section or {}), "MODEL": model, "WEIGHTS": weights}
    backbone: Backbone = importlib.import_module(found.module).load(
        keys, Task(class_names, templates, outputs), device)
    return backbone


def untrained(kind: str, model: str, *, class_names: Sequence[str],
              device: torch.device | str) -> Backbone:
    """A backbone with random weights of the architecture that a config names.

    Nothing is read or downloaded.

    Args:
        kind, model: see build.
        class_names: K names; a classifier has K outputs.

    Raises:
        UserError: for an unknown kind or model.
    """
    module = importlib.import_module(find_kind(kind).module)
    backbone: Backbone = module.untrained(model, Task(class_names), device)
    return backbone
