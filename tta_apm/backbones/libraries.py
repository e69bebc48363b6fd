"""Libraries: networks of timm, torchvision and robustbench, with their weights or without.

Each is imported where it is used: it takes seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tta_apm.backbones import inputs
from tta_apm.backbones.inputs import Inputs, Told, settle
from tta_apm.backbones.weights import downloads, files
from tta_apm.compat import import_robustbench
from tta_apm.errors import UserError, explain, nearest

# robustbench's own default folder of downloads.
ROBUSTBENCH_FOLDER = Path("models")
SECTION = "CLASSIFIER"  # of the config, for errors


class Request(NamedTuple):
    """The network that a config asks for.

    Attributes:
        name: within its library.
        weights: as in the config.
        num_classes: outputs of the network.
        keep: see Backbone.
        given: what the config says of its images.
    """

    name: str
    weights: str
    num_classes: int
    keep: Sequence[int] | None
    given: Inputs


class LoadedNetwork(NamedTuple):
    """A network with its weights, which of its outputs to keep, and what it takes for images."""

    net: nn.Module
    keep: Sequence[int] | None
    told: Told
    weights: str  # and their hash


def load_timm(request: Request) -> LoadedNetwork:
    """A network of timm."""
    import timm
    from timm.data import resolve_model_data_config
    name = request.name
    _check_timm(name)
    if request.weights:
        file = open_file(request.weights)
        loaded = files.load_classes(
            lambda num_classes: timm.create_model(name, num_classes=num_classes), file,
            f"timm's {name}", num_classes=request.num_classes, keep=request.keep)
        told = timm_inputs(name, file.path, request.given)
        return LoadedNetwork(loaded.net, loaded.keep, told, loaded.label)
    config = timm.models.get_pretrained_cfg(name)
    if not config or not config.hf_hub_id:
        raise UserError(f"timm has no weights for {name!r}: set CLASSIFIER.WEIGHTS to a file")
    _check_classes(config.num_classes, request.num_classes, f"timm's {name}")
    net, label = timm_pretrained(name)
    data = resolve_model_data_config(net)
    data["image_size"] = data["input_size"][-1]
    told = settle(request.given, [("timm's tag", data)], section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, told, label)


def untrained_timm(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of timm with random weights, and the side of its images."""
    import timm
    from timm.data import resolve_model_data_config
    _check_timm(name)
    net = timm.create_model(name, num_classes=num_classes)
    return net, resolve_model_data_config(net)["input_size"][-1]


def _check_timm(name: str) -> None:
    """UserError unless timm has a model of this name; ours are among them afterwards."""
    import timm

    from tta_apm.backbones import small_resnets  # noqa: F401  (registers them with timm)
    check_known(name, {*timm.list_models(), *timm.list_models(include_tags=True)}, "timm")


def timm_pretrained(name: str, file: Path | None = None, **options: Any) -> tuple[Any, str]:
    """A network of timm with its pretrained weights, and what these are.

    timm puts them into place, as some of its tags need their names changed or a background class
    left out; it is handed the tensors, and opens no file.

    Args:
        file: that holds them; None downloads them, if need be.
        options: for timm.create_model.
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


def timm_inputs(name: str, file: Path, given: Inputs, section: str = SECTION) -> Told:
    """What images a network of timm takes whose weights come from `file`.

    Raises:
        UserError: where neither the config, nor the config.json of timm beside the file, nor all
            weights of that architecture in timm tell.
    """
    import timm
    config = inputs.beside(file, "config.json")
    architecture = name.partition(".")[0]
    if config.get("architecture") != architecture:
        config = {}
    # A name with a tag means what that tag says.
    tags = [name] if "." in name else timm.list_models(f"{architecture}.*", include_tags=True) or (
        [architecture] if timm.models.get_pretrained_cfg(architecture) else [])
    known = [inputs.pixels(vars(timm.models.get_pretrained_cfg(tag))) for tag in tags]
    who = f"timm's {name}" if len(tags) == 1 else f"all of timm's {architecture}"
    advice = (f"name the tag that it was trained like, such as timm/{sorted(tags)[0]}"
              if len(tags) > 1 else f"put timm's config.json of it beside {file.name}")
    return settle(given, [(f"config.json beside {file.name}",
                           inputs.pixels(config.get("pretrained_cfg"))),
                          (who, inputs.agreed(known))],
                  section=section, model=f"timm's {name}", advice=advice)


def load_torchvision(request: Request) -> LoadedNetwork:
    """A network of torchvision."""
    from torchvision import models
    name, weights = request.name, request.weights
    check_known(name, models.list_models(module=models), "torchvision")
    choices = models.get_model_weights(name)
    if files.find(weights) or files.looks_like_file(weights):
        file = open_file(weights)
        loaded = files.load_classes(
            lambda num_classes: models.get_model(name, num_classes=num_classes),
            file, f"torchvision's {name}", num_classes=request.num_classes, keep=request.keep)
        known = [_preset_inputs(preset) for preset in choices]
        told = settle(request.given, [(f"all of torchvision's {name}", inputs.agreed(known))],
                      section=SECTION, model=f"torchvision's {name}",
                      advice="see torchvision's documentation of the weights that it has")
        return LoadedNetwork(loaded.net, loaded.keep, told, loaded.label)
    if weights and weights not in choices.__members__:
        raise UserError(f"CLASSIFIER.WEIGHTS: torchvision's {name} has no {weights!r}, and "
                        f"there is no such file: {nearest(weights, choices.__members__)}")
    preset = choices[weights or "DEFAULT"]
    _check_classes(len(preset.meta["categories"]), request.num_classes, f"torchvision's {preset}")
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(preset.url).name
    net = _download(lambda: models.get_model(name, weights=preset), preset.url, place)
    told = settle(request.given, [(f"torchvision's {preset}", _preset_inputs(preset))],
                  section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, told, files.describe(str(preset), place))


def untrained_torchvision(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of torchvision with random weights, and the side of its images."""
    from torchvision import models
    check_known(name, models.list_models(module=models), "torchvision")
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    return models.get_model(name, num_classes=num_classes), preset.crop_size[0]


def _preset_inputs(preset: Any) -> dict[str, Any]:
    """What torchvision says of the images of one of its weights."""
    transform = preset.transforms()
    return {"image_size": transform.crop_size[0], "mean": tuple(transform.mean),
            "std": tuple(transform.std)}


def load_robustbench(request: Request) -> LoadedNetwork:
    """A network of robustbench's corruption leaderboards."""
    name, weights = request.name, request.weights
    entry, dataset, image_size = robustbench_entry(name, request.num_classes)
    if any(request.given):
        raise UserError("CLASSIFIER.IMAGE_SIZE, MEAN and STD are not for robustbench's networks, "
                        "which normalise inside")
    from robustbench.model_zoo.enums import ThreatModel
    from robustbench.utils import load_model
    threat = ThreatModel.corruptions

    def load(folder: str | Path) -> nn.Module:
        return load_model(name, folder, dataset, threat)

    drive = entry["gdrive_id"]
    is_one_file = isinstance(drive, str) and bool(drive)  # others are several, or elsewhere
    inside = Path(dataset.value, threat.value, f"{name}.pt")
    place = ROBUSTBENCH_FOLDER / inside
    if not is_one_file and weights:
        raise UserError(f"robustbench loads {name!r} in a way of its own: leave "
                        "CLASSIFIER.WEIGHTS empty")
    if not is_one_file:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER), f"robustbench's {name}", None)
    elif weights:
        place, key = open_file(weights).path, open_file(weights).key
        if key:
            raise UserError(f"CLASSIFIER.WEIGHTS {weights!r}: robustbench chooses among the sets "
                            "of weights in a file itself")
        net = _robustbench_from(place, inside, load)
    else:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER),
                        f"https://drive.google.com/uc?id={drive}", place)
    label = files.describe(place.name, place) if is_one_file else name
    # The models normalise inside, where they do.
    told = Told(image_size, (0.0,) * 3, (1.0,) * 3, "robustbench, inside")
    return LoadedNetwork(net, request.keep, told, label)


def untrained_robustbench(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of robustbench as it is built, and the side of its images."""
    entry, _, image_size = robustbench_entry(name, num_classes)
    with files.reading():  # some of its networks come with weights
        return entry["model"](), image_size


def robustbench_entry(name: str, num_classes: int) -> tuple[dict[str, Any], Any, int | None]:
    """What robustbench knows of a model of its corruption leaderboards, the data set that the
    number of classes tells, and the side of its images."""
    import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.utils import DATASET_CLASSES
    datasets = {count: dataset for dataset, count in DATASET_CLASSES.items()}
    if num_classes not in datasets:
        raise UserError(f"robustbench has models for {sorted(datasets)} classes, not {num_classes}")
    dataset = datasets[num_classes]
    models = model_dicts[dataset][ThreatModel.corruptions]
    check_known(name, models, f"robustbench's {dataset.value}")
    return models[name], dataset, 224 if dataset is BenchmarkDataset.imagenet else None


def _robustbench_from(file: Path, inside: Path, load: Callable[[str], nn.Module]) -> nn.Module:
    """What robustbench makes of `file`, which it only takes in a folder of its own layout."""
    with tempfile.TemporaryDirectory() as folder, files.reading(instead=file):
        place = Path(folder) / inside
        place.parent.mkdir(parents=True)
        place.touch()  # or it would be downloaded
        try:
            return load(folder)
        except UserError:
            raise
        except Exception as error:  # robustbench makes of a file what it likes
            raise UserError(f"{file} is no checkpoint of robustbench's {inside.stem}: "
                            f"{explain(error)}") from error


def _download(load: Callable[[], nn.Module], source: str, file: Path | None) -> nn.Module:
    """Call a library's loader, which downloads `source` (to `file`) unless it is there."""
    try:
        with files.reading():
            return load()
    except Exception as error:  # each way of downloading raises its own
        advice = "" if file is None else (
            f". If it cannot be downloaded here, get it where there is a network and put it at "
            f"{file}; if an interrupted download left that file, delete it")
        raise UserError(f"{source} does not load: {explain(error)}{advice}") from error


def open_file(weights: str) -> files.Weights:
    """A file of weights; UserError if there is none."""
    file = files.open_weights(weights)
    if file is None:
        raise UserError(f"CLASSIFIER.WEIGHTS: file not found: {weights!r}")
    return file


def check_known(name: str, known: Iterable[str], library: str) -> None:
    """UserError unless a library has a model of this name."""
    known = set(known)
    if name not in known:
        raise UserError(f"CLASSIFIER.MODEL: {library} has no {name!r}: {nearest(name, known)}")


def _check_classes(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise UserError(f"{what} has {found} classes, the data set {wanted}: give weights of that "
                        "data set as CLASSIFIER.WEIGHTS")
