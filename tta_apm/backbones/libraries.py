"""Libraries: networks of timm, torchvision and robustbench, pretrained or untrained.

Each library is imported in the functions that use it, since that takes seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tta_apm.backbones import inputs
from tta_apm.backbones.inputs import InputKeys, InputSpec, resolve
from tta_apm.backbones.weights import downloads, files
from tta_apm.compat import import_robustbench
from tta_apm.errors import UserError, explain, nearest
from tta_apm.lock import locked

# robustbench downloads to this folder by default.
ROBUSTBENCH_FOLDER = Path("models")
SECTION = "CLASSIFIER"  # of the config, for error messages


class Request(NamedTuple):
    """The network that a config names.

    Attributes:
        name: its name within the library.
        weights: WEIGHTS of the config.
        num_classes: number of outputs of the network.
        keep: see Backbone.
        keys: the config's keys for its images.
    """

    name: str
    weights: str
    num_classes: int
    keep: Sequence[int] | None
    keys: InputKeys


class LoadedNetwork(NamedTuple):
    """A network with its weights.

    Attributes:
        net: the network.
        keep: see Backbone.
        inputs: the images that it takes.
        weights: name and hash of its weights, for the record.
    """

    net: nn.Module
    keep: Sequence[int] | None
    inputs: InputSpec
    weights: str


def load_timm(request: Request) -> LoadedNetwork:
    """Load a network of timm."""
    import timm
    from timm.data import resolve_model_data_config
    name = request.name
    _check_timm(name)
    if request.weights:
        file = open_file(request.weights)
        loaded = files.load_classes(
            lambda num_classes: timm.create_model(name, num_classes=num_classes), file,
            f"timm's {name}", num_classes=request.num_classes, keep=request.keep)
        spec = timm_inputs(name, file.path, request.keys)
        return LoadedNetwork(loaded.net, loaded.keep, spec, loaded.label)
    config = timm.models.get_pretrained_cfg(name)
    if not config or not config.hf_hub_id:
        raise UserError(f"timm has no weights for {name!r}: set CLASSIFIER.WEIGHTS to a file")
    _check_classes(config.num_classes, request.num_classes, f"timm's {name}")
    net, label = timm_pretrained(name)
    data = resolve_model_data_config(net)
    data["image_size"] = data["input_size"][-1]
    spec = resolve(request.keys, [("timm's tag", data)], section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, spec, label)


def untrained_timm(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
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


def load_torchvision(request: Request) -> LoadedNetwork:
    """Load a network of torchvision."""
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
        spec = resolve(request.keys, [(f"all of torchvision's {name}", inputs.common(known))],
                       section=SECTION, model=f"torchvision's {name}",
                       advice="see torchvision's documentation of the weights that it has")
        return LoadedNetwork(loaded.net, loaded.keep, spec, loaded.label)
    if weights and weights not in choices.__members__:
        raise UserError(f"CLASSIFIER.WEIGHTS: torchvision's {name} has no {weights!r}, and "
                        f"there is no such file: {nearest(weights, choices.__members__)}")
    preset = choices[weights or "DEFAULT"]
    _check_classes(len(preset.meta["categories"]), request.num_classes, f"torchvision's {preset}")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(preset.url).name
    net = _download(lambda: models.get_model(name, weights=preset), preset.url, cached)
    spec = resolve(request.keys, [(f"torchvision's {preset}", _preset_inputs(preset))],
                   section=SECTION, model=name, advice="")
    return LoadedNetwork(net, request.keep, spec, files.describe(str(preset), cached))


def untrained_torchvision(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of torchvision with random weights, and the side of its images in pixels."""
    from torchvision import models
    check_known(name, models.list_models(module=models), "torchvision")
    preset = models.get_model_weights(name)["DEFAULT"].transforms()
    return models.get_model(name, num_classes=num_classes), preset.crop_size[0]


def _preset_inputs(preset: Any) -> dict[str, Any]:
    """The size, mean and std of images that torchvision states for a set of its weights."""
    transform = preset.transforms()
    return {"image_size": transform.crop_size[0], "mean": tuple(transform.mean),
            "std": tuple(transform.std)}


def load_robustbench(request: Request) -> LoadedNetwork:
    """Load a network of robustbench's corruption leaderboards."""
    name, weights = request.name, request.weights
    entry, dataset, image_size = robustbench_entry(name, request.num_classes)
    if any(request.keys):
        raise UserError("CLASSIFIER.IMAGE_SIZE, MEAN and STD are not for robustbench's networks, "
                        "which normalise inside")
    from robustbench.model_zoo.enums import ThreatModel
    from robustbench.utils import load_model
    threat = ThreatModel.corruptions

    def load(folder: str | Path) -> nn.Module:
        return load_model(name, folder, dataset, threat)

    drive = entry["gdrive_id"]
    is_one_file = isinstance(drive, str) and bool(drive)  # other entries: several files, or URLs
    relative = Path(dataset.value, threat.value, f"{name}.pt")
    file = ROBUSTBENCH_FOLDER / relative
    if not is_one_file and weights:
        raise UserError(f"robustbench does not load {name!r} from one file: leave "
                        "CLASSIFIER.WEIGHTS empty")
    if not is_one_file:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER), f"robustbench's {name}", None)
    elif weights:
        file, key = open_file(weights).path, open_file(weights).key
        if key:
            raise UserError(f"CLASSIFIER.WEIGHTS {weights!r}: robustbench itself chooses among the "
                            f"sets of weights in a file; leave {files.KEY}{key} out")
        net = _robustbench_from(file, relative, load)
    else:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER),
                        f"https://drive.google.com/uc?id={drive}", file)
    label = files.describe(file.name, file) if is_one_file else name
    # robustbench's models normalise their inputs themselves.
    spec = InputSpec(image_size, (0.0,) * 3, (1.0,) * 3, "robustbench, inside")
    return LoadedNetwork(net, request.keep, spec, label)


def untrained_robustbench(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
    """A network of robustbench with its initial weights, and the side of its images in pixels."""
    entry, _, image_size = robustbench_entry(name, num_classes)
    with files.reading():  # some of its constructors load weights
        return entry["model"](), image_size


def robustbench_entry(name: str, num_classes: int) -> tuple[dict[str, Any], Any, int | None]:
    """robustbench's entry of a model of its corruption leaderboards.

    Returns:
        The entry, the data set with that number of classes, and the side of its images in pixels
        (None for any).
    """
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


def _robustbench_from(file: Path, relative: Path, load: Callable[[str], nn.Module]) -> nn.Module:
    """The network that robustbench loads from `file`.

    robustbench reads files in its own folders only, so it is pointed to an empty file in one, and
    `file` is read instead.
    """
    with tempfile.TemporaryDirectory() as folder, files.reading(instead=file):
        placeholder = Path(folder) / relative
        placeholder.parent.mkdir(parents=True)
        placeholder.touch()  # else robustbench would download it
        try:
            return load(folder)
        except UserError:
            raise
        except Exception as error:  # robustbench may raise anything
            raise UserError(f"{file} is not a checkpoint of robustbench's {relative.stem}: "
                            f"{explain(error)}") from error


def _download(load: Callable[[], nn.Module], source: str, file: Path | None) -> nn.Module:
    """Call a library's loader, which downloads `source` (to `file`) unless it is cached.

    One process at a time, since robustbench's file exists while it is still being written.
    """
    alone = nullcontext() if file is None else locked(file.parent, "downloads")
    try:
        with alone, files.reading():
            return load()
    except Exception as error:  # every downloader raises its own kind of error
        advice = "" if file is None else (
            f". If it cannot be downloaded here, get it where there is a network and put it at "
            f"{file}; if an interrupted download left that file, delete it")
        raise UserError(f"{source} does not load: {explain(error)}{advice}") from error


def open_file(weights: str) -> files.Weights:
    """The file that CLASSIFIER.WEIGHTS names; UserError if it is not found."""
    file = files.open_weights(weights)
    if file is None:
        raise UserError(f"CLASSIFIER.WEIGHTS: file not found: {weights!r}")
    return file


def check_known(name: str, known: Iterable[str], library: str) -> None:
    """Raise UserError unless a library has a model of this name."""
    known = set(known)
    if name not in known:
        raise UserError(f"CLASSIFIER.MODEL: {library} has no {name!r}: {nearest(name, known)}")


def _check_classes(found: int, wanted: int, what: str) -> None:
    if found != wanted:
        raise UserError(f"{what} has {found} classes, the data set {wanted}: give weights of that "
                        "data set as CLASSIFIER.WEIGHTS")
