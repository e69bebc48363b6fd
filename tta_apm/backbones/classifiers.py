"""Classifier: a frozen network from timm, torchvision or robustbench."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tta_apm.backbones import files
from tta_apm.backbones.backbone import Backbone
from tta_apm.compat import import_robustbench
from tta_apm.errors import UserError, nearest

# robustbench's own default folder of downloads.
ROBUSTBENCH_FOLDER = Path("models")


class Classifier(Backbone):
    """A frozen network that gives logits.

    Args:
        net: normalised images [B,3,H,W] -> logits [B,K].
        image_size, mean, std, name, weights, keep: see Backbone.
    """

    kind = "classifier"

    def __init__(self, net: nn.Module, *, image_size: int | None, mean: Sequence[float],
                 std: Sequence[float], name: str, weights: str,
                 keep: Sequence[int] | None = None) -> None:
        super().__init__(image_size=image_size, mean=mean, std=std, name=name, weights=weights,
                         keep=keep)
        self.net = net
        self.freeze()

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        return self.kept(self.net(self.prepare(images)))


class Loaded(NamedTuple):
    """A network and what it wants of its images."""

    net: nn.Module
    image_size: int | None
    mean: Sequence[float]
    std: Sequence[float]
    weights: str


def load_classifier(model: str, weights: str, *, num_classes: int,
                    device: torch.device | str, keep: Sequence[int] | None = None) -> Classifier:
    """Load a classifier.

    Args:
        model: timm/NAME, torchvision/NAME or robustbench/NAME (of its corruption leaderboards;
            the number of classes tells the data set).
        weights: "" for the library's pretrained ones, a file, or the name of a packaged file;
            for torchvision also one of the names of its weights, such as IMAGENET1K_V1.
        num_classes: of the network.
        keep: see Backbone.

    Raises:
        UserError: for an unknown model, for weights that are not here and cannot be downloaded,
            do not fit or have other classes.
    """
    family, name = split(model)
    loaded = FAMILIES[family](name, weights, num_classes)
    return placed(Classifier(loaded.net, image_size=loaded.image_size, mean=loaded.mean,
                             std=loaded.std, name=model, weights=loaded.weights, keep=keep), device)


def split(model: str) -> tuple[str, str]:
    """The family and the name within it that a model's name stands for; UserError for another."""
    family, _, name = model.partition("/")
    if family not in FAMILIES or not name:
        raise UserError(f"CLASSIFIER.MODEL {model!r} must be one of "
                        f"{', '.join(f'{known}/NAME' for known in FAMILIES)}")
    return family, name


def placed(classifier: Classifier, device: torch.device | str) -> Classifier:
    """On `device`; on a CPU in the layout that makes convolutions up to 1.8 times as fast."""
    if torch.device(device).type == "cpu":
        classifier.to(memory_format=torch.channels_last)
    return classifier.to(device)


def _timm(name: str, weights: str, num_classes: int) -> Loaded:
    import timm
    from timm.data import resolve_model_data_config
    from tta_apm.backbones import small_resnets  # noqa: F401  (makes it known to timm)
    check_known(name, {*timm.list_models(), *timm.list_models(include_tags=True)}, "timm")
    if weights:
        file = _find(weights)
        net = timm.create_model(name, num_classes=num_classes)
        files.load_into(net, file, num_classes=num_classes)
        label = files.describe(file.name, file)
    else:
        config = timm.models.get_pretrained_cfg(name)
        if not config.hf_hub_id:
            raise UserError(f"timm has no weights for {name!r}: set CLASSIFIER.WEIGHTS to a file")
        _check_classes(config.num_classes, num_classes, f"timm's {name}")
        file = files.from_hub(config.hf_hub_id, [config.hf_hub_filename or "model.safetensors"])
        with files.only_weights():
            net = timm.create_model(name, pretrained=True,
                                    pretrained_cfg_overlay={"file": str(file)})
        label = files.describe(config.hf_hub_id, file)
    data = resolve_model_data_config(net)
    return Loaded(net, data["input_size"][-1], data["mean"], data["std"], label)


def _torchvision(name: str, weights: str, num_classes: int) -> Loaded:
    from torchvision import models
    check_known(name, models.list_models(module=models), "torchvision")
    choices = models.get_model_weights(name)
    preset = choices["DEFAULT"]
    if files.find(weights) or files.looks_like_file(weights):
        file = _find(weights)
        net = models.get_model(name, num_classes=num_classes)
        files.load_into(net, file, num_classes=num_classes)
        label = files.describe(file.name, file)
    else:
        if weights and weights not in choices.__members__:
            raise UserError(f"CLASSIFIER.WEIGHTS: torchvision's {name} has no {weights!r}, and "
                            f"there is no such file: {nearest(weights, choices.__members__)}")
        preset = choices[weights or "DEFAULT"]
        _check_classes(len(preset.meta["categories"]), num_classes, f"torchvision's {preset}")
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(preset.url).name
        net = _download(lambda: models.get_model(name, weights=preset), preset.url, file)
        label = files.describe(str(preset), file)
    transform = preset.transforms()
    return Loaded(net, transform.crop_size[0], transform.mean, transform.std, label)


def _robustbench(name: str, weights: str, num_classes: int) -> Loaded:
    entry, dataset, image_size = robustbench_entry(name, num_classes)
    from robustbench.model_zoo.enums import ThreatModel
    from robustbench.utils import load_model
    threat = ThreatModel.corruptions

    def load(folder: str | Path) -> nn.Module:
        return load_model(name, folder, dataset, threat)

    drive = entry["gdrive_id"]
    is_one_file = isinstance(drive, str) and bool(drive)  # others are several, or elsewhere
    inside = Path(dataset.value, threat.value, f"{name}.pt")
    file = _find(weights) if weights else ROBUSTBENCH_FOLDER / inside
    if not is_one_file and weights:
        raise UserError(f"robustbench loads {name!r} in a way of its own: leave "
                        "CLASSIFIER.WEIGHTS empty")
    if not is_one_file:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER), f"robustbench's {name}", None)
    elif weights:
        net = _robustbench_from(file, inside, load)
    else:
        net = _download(lambda: load(ROBUSTBENCH_FOLDER),
                        f"https://drive.google.com/uc?id={drive}", file)
    label = files.describe(file.name, file) if is_one_file else name
    # The models normalise inside, where they do.
    return Loaded(net, image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), label)


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
    with tempfile.TemporaryDirectory() as folder, files.only_weights():
        link = Path(folder) / inside
        link.parent.mkdir(parents=True)
        link.symlink_to(file.resolve())
        try:
            return load(folder)
        except files.BAD_FILE as error:
            raise UserError(f"{file} is no checkpoint of robustbench's {inside.stem}: "
                            f"{files.first_line(error)}") from error


def _download(load: Callable[[], nn.Module], source: str, file: Path | None) -> nn.Module:
    """Call a library's loader, which downloads `source` (to `file`) unless it is there."""
    try:
        with files.only_weights():
            return load()
    except Exception as error:  # each way of downloading raises its own
        advice = "" if file is None else (
            f". If it cannot be downloaded here, get it where there is a network and put it at "
            f"{file}; if an interrupted download left that file, delete it")
        raise UserError(f"{source} does not load: {files.first_line(error)}{advice}") from error


def _find(weights: str) -> Path:
    file = files.find(weights)
    if file is None:
        raise UserError(f"CLASSIFIER.WEIGHTS: there is no file {weights!r}")
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


FAMILIES: dict[str, Callable[[str, str, int], Loaded]] = {
    "timm": _timm, "torchvision": _torchvision, "robustbench": _robustbench}
