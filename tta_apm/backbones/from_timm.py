"""Networks of timm, pretrained or untrained.

The library is imported in the functions that use it, since that takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tta_apm.backbones import inputs
from tta_apm.backbones.inputs import InputKeys, InputSpec, resolve
from tta_apm.backbones.libraries import (
    SECTION, LoadedNetwork, Request, check_classes, check_known)
from tta_apm.backbones.weights import downloads, files
from tta_apm.backbones.weights.classes import load_classes
from tta_apm.errors import UserError, explain


def load(request: Request) -> LoadedNetwork:
    """Load a network of timm."""
    import timm
    from timm.data import resolve_model_data_config
    name = request.name
    _check_timm(name)
    if request.weights:
        file = files.require_weights(SECTION, request.weights)
        loaded = load_classes(
            lambda num_classes: timm.create_model(name, num_classes=num_classes), file,
            f"timm's {name}", num_classes=request.num_classes, keep=request.keep)
        spec = timm_inputs(name, file.path, request.keys)
        return LoadedNetwork(loaded.net, loaded.keep, spec, loaded.label)
    config = timm.models.get_pretrained_cfg(name)
    if not config or not config.hf_hub_id:
        raise UserError(f"timm has no weights for {name!r}: set CLASSIFIER.WEIGHTS to a file")
    check_classes(config.num_classes, request.num_classes, f"timm's {name}")
    net, label = timm_pretrained(name)
    data = resolve_model_data_config(net)
    data["image_size"] = data["input_size"][-1]
    spec = resolve(request.keys, [("timm's tag", data)], section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, spec, label)


def untrained(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of timm with random weights, and the side of its images in pixels."""
    import timm
    from timm.data import resolve_model_data_config
    _check_timm(name)
    net = timm.create_model(name, num_classes=num_classes)
    return net, resolve_model_data_config(net)["input_size"][-1]


def _check_timm(name: str) -> None:
    """Raise UserError unless timm has a model of this name; also register this package's models.
    """
    import timm

    from tta_apm.backbones import small_resnets  # noqa: F401  (registers them with timm)
    check_known(name, {*timm.list_models(), *timm.list_models(include_tags=True)}, "timm")


def timm_pretrained(name: str, file: Path | None = None, **options: Any) -> tuple[Any, str]:
    """A network of timm with its pretrained weights, and their name and hash.

    timm fills the network itself, since for some of its tags it renames tensors or drops a
    background class. It is given the tensors and does not open the file.

    Args:
        file: the file of weights; None: the cached one, which is downloaded if there is none.
        options: passed to timm.create_model.
    """
    import timm
    config = timm.models.get_pretrained_cfg(name)
    label = config.hf_hub_id if file is None else file.name
    file = file or downloads.from_hub(config.hf_hub_id,
                                      [config.hf_hub_filename or "model.safetensors"])
    try:
        net = timm.create_model(name, pretrained=True, **options,
                                pretrained_cfg_overlay={"state_dict": files.read(file),
                                                        "custom_load": False})
    except (RuntimeError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is of another network than timm's {name}: {explain(error)}"
                        ) from error
    net.pretrained_cfg.pop("state_dict", None)  # a second copy of all tensors
    return net, files.describe(label, file)


def timm_inputs(name: str, file: Path, keys: InputKeys, section: str = SECTION) -> InputSpec:
    """The images that a network of timm takes, with weights from `file`.

    Raises:
        UserError: if they are stated neither in the config, nor in timm's config.json beside the
            file, nor equally by all weights of that architecture in timm.
    """
    import timm
    config = inputs.read_beside(file, "config.json")
    architecture = name.partition(".")[0]
    if config.get("architecture") != architecture:
        config = {}
    # A name with a tag means that tag only.
    tags = [name] if "." in name else timm.list_models(f"{architecture}.*", include_tags=True) or (
        [architecture] if timm.models.get_pretrained_cfg(architecture) else [])
    known = [inputs.parse(vars(timm.models.get_pretrained_cfg(tag))) for tag in tags]
    source = f"timm's {name}" if len(tags) == 1 else f"all of timm's {architecture}"
    advice = (f"name the tag with the same training, e.g. timm/{sorted(tags)[0]}"
              if len(tags) > 1 else f"put timm's config.json of it beside {file.name}")
    return resolve(keys, [(f"config.json beside {file.name}",
                           inputs.parse(config.get("pretrained_cfg"))),
                          (source, inputs.common(known))],
                   section=section, model=f"timm's {name}", advice=advice)
