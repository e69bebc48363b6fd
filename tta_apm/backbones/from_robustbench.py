"""Networks of robustbench's corruption leaderboards, pretrained or untrained.

The library is imported in the functions that use it, since that takes seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tta_apm.backbones.inputs import InputSpec
from tta_apm.backbones.libraries import SECTION, LoadedNetwork, Request, check_known, download
from tta_apm.backbones.weights import files
from tta_apm.compat import import_robustbench
from tta_apm.errors import UserError, explain

# robustbench downloads to this folder by default.
ROBUSTBENCH_FOLDER = Path("models")


def load(request: Request) -> LoadedNetwork:
    """Load a network of robustbench's corruption leaderboards."""
    name, weights = request.name, request.weights
    entry, dataset, image_size = robustbench_entry(name, request.num_classes)
    if any(request.keys):
        raise UserError("CLASSIFIER.IMAGE_SIZE, MEAN and STD are not for robustbench's networks, "
                        "which normalise inside")
    from robustbench.model_zoo.enums import ThreatModel
    from robustbench.utils import load_model
    threat = ThreatModel.corruptions

    def load_from(folder: str | Path) -> nn.Module:
        return load_model(name, folder, dataset, threat)

    drive = entry["gdrive_id"]
    is_one_file = isinstance(drive, str) and bool(drive)  # other entries: several files, or URLs
    relative = Path(dataset.value, threat.value, f"{name}.pt")
    file = ROBUSTBENCH_FOLDER / relative
    if not is_one_file and weights:
        raise UserError(f"robustbench does not load {name!r} from one file: leave "
                        "CLASSIFIER.WEIGHTS empty")
    if not is_one_file:
        net = download(lambda: load_from(ROBUSTBENCH_FOLDER), f"robustbench's {name}", None)
    elif weights:
        found = files.require_weights(SECTION, weights)
        file, key = found.path, found.key
        if key:
            raise UserError(f"CLASSIFIER.WEIGHTS {weights!r}: robustbench itself chooses among the "
                            f"sets of weights in a file; leave {files.KEY}{key} out")
        net = _robustbench_from(file, relative, load_from)
    else:
        net = download(lambda: load_from(ROBUSTBENCH_FOLDER),
                       f"https://drive.google.com/uc?id={drive}", file)
    label = files.describe(file.name, file) if is_one_file else name
    # robustbench's models normalise their inputs themselves.
    spec = InputSpec(image_size, (0.0,) * 3, (1.0,) * 3, "robustbench, inside")
    return LoadedNetwork(net, request.keep, spec, label)


def untrained(name: str, num_classes: int) -> tuple[nn.Module, int | None]:
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
