"""The Python interface: build a method, evaluate it and read results, without a config.

`tta_apm` exports these functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tta_apm.bench.predictions import Predictions
from tta_apm.bench.records import load_predictions
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.registry import METHODS

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from tta_apm.backbones.backbone import Backbone
    from tta_apm.bench.evaluate import Evaluation
    from tta_apm.method import Method


# The columns of Results.images that say which cell an image belongs to.
IMAGE_KEYS = ("row", "dataset", "corruption", "severity", "seed")


class Results(NamedTuple):
    """Results as two pandas frames.

    Args:
        cells: one line per cell (row, domain and seed): the fields of its record, and error and
            accuracy as fractions. Methods with a teacher also have teacher_error, agreement and
            cosine.
        images: one line per image of a cell: row, dataset, corruption, severity, seed, index,
            label, prediction, confidence, correct. Methods with a teacher also have
            teacher_prediction and cosine.
    """

    cells: pd.DataFrame
    images: pd.DataFrame


def load_backbone(kind: str, model: str, weights: str = "", *, dataset: DataSet | None = None,
                  class_names: Sequence[str] = (), templates: Sequence[str] | None = None,
                  device: torch.device | str = "cpu") -> Backbone:
    """Load a frozen backbone, in eval mode, on `device`.

    Args:
        kind: a name in `backbones/build.py`, e.g. "classifier", "clip", "mae" or "rotation".
        model, weights: as the config keys MODEL and WEIGHTS of that kind.
        dataset: its classes become the backbone's outputs, and its prompt templates those of a
            CLIP.
        class_names: the classes, if no `dataset` is given.
        templates: prompt templates of a CLIP, each with one `{}`; by default those of the data
            set, or "a photo of a {}.".

    Raises:
        UserError: if the kind or the model is unknown, or the weights are not found or do not fit
            the model.
    """
    from tta_apm.backbones.build import build
    from tta_apm.backbones.clip_templates import templates as template_set

    if templates is None:
        templates = (template_set("single") if dataset is None
                     else dataset.templates or template_set(dataset.template_set))
    names = dataset.class_names if dataset is not None else tuple(class_names)
    return build(kind, model, weights, class_names=names, templates=templates, device=device,
                 outputs=None if dataset is None else dataset.outputs)


def load_method(name: str, backbone: Backbone, **hyper_parameters: Any) -> Method:
    """Build the method registered as `name` around a backbone, on the backbone's device.

    Args:
        backbone: of the kind that the method needs. A method that needs a classifier also takes a
            CLIP and then adapts its image tower.
        hyper_parameters: keyword arguments of the method's class; the defaults are those of the
            method's paper.

    Raises:
        UserError: if the name is unknown or a value is out of range.
    """
    from tta_apm.backbones.image_tower import suited

    backbone = suited(backbone, METHODS.signature(name).needs)
    method: Method = METHODS.load(name)(backbone, **hyper_parameters)
    return method.to(backbone.mean.device)


def evaluate(method: Method, dataset: DataSet, *, corruptions: Sequence[str] = tuple(CORRUPTIONS),
             severities: Sequence[int] = (5,), num_images: int = -1, batch_size: int = 200,
             setting: str = "reset_each_domain", order: str = "shuffled", dirichlet: float = 0.1,
             seed: int = 42) -> Results:
    """Evaluate a method on domains of a data set.

    The predictions equal those of the command line bit for bit: streams and resets are the same.

    Args:
        method: on the device where it is to run.
        severities: 1 to 5, and 0 for the clean images.
        num_images: the number of images per domain, from the start of the data set; -1 for all.
        setting, order, dirichlet: as the config keys of these names.
        seed: orders the streams. The method's own seed is set when it is built.

    Returns:
        One cell per domain.

    Raises:
        UserError: if images are not found.
        MethodError: if the method breaks its contract.
    """
    from tta_apm.bench.isolation import Guard
    from tta_apm.bench.plan import carries_state
    from tta_apm.bench.run import Run
    from tta_apm.data.streams import Stream, domains, schedule

    wanted = domains(dataset.name, corruptions, severities)
    for domain in wanted:
        dataset.check(domain)
    streams = [Stream(dataset, together, num_images=num_images, batch_size=batch_size, seed=seed,
                      order=order, concentration=dirichlet)
               for together in schedule(setting, wanted)]
    run = Run(method, Guard(seed), _device(method), carries_state(setting, method.scope))
    found: dict[Domain, Evaluation] = {}
    for stream in streams:
        for domain, evaluation in run.evaluate(stream).items():
            found[domain] = (found[domain].followed_by(evaluation) if domain in found
                             else evaluation)
    cells = []
    for domain, evaluation in found.items():
        fields = {"row": type(method).__name__.lower(), "scope": method.scope, **domain._asdict(),
                  "images_from": dataset.describe(domain), "setting": setting, "order": order,
                  "batch_size": batch_size, "seed": seed, "seconds": evaluation.seconds,
                  "peak_memory_mb": evaluation.peak_memory_mb, "gflops_per_image": run.gflops,
                  "images_hash": evaluation.images_hash, "did": dict(evaluation.did)}
        cells.append((fields, evaluation.predictions))
    return _frames(cells)


def load_results(folder: str | Path) -> Results:
    """Read all cells of a results folder.

    Raises:
        UserError: if the folder holds no cell, or a file in it is incomplete or not a record.
    """
    from tta_apm.report.results import load_results as load

    return _frames((vars(result.record), load_predictions(result.path, result.record))
                   for result in load(Path(folder)))


def _frames(cells: Iterable[tuple[Mapping[str, Any], Predictions]]) -> Results:
    """Frames of cells, each given as the fields of its record and its predictions."""
    import pandas as pd

    lines, images = [], []
    for fields, predictions in cells:
        lines.append({**fields, **_figures(predictions)})
        columns = {name: column for name, column in vars(predictions).items() if column is not None}
        images.append(pd.DataFrame({**{name: fields[name] for name in IMAGE_KEYS}, **columns,
                                    "correct": predictions.prediction == predictions.label}))
    return Results(pd.DataFrame(lines), pd.concat(images, ignore_index=True))


def _figures(predictions: Predictions) -> dict[str, Any]:
    """The figures that a table prints for a cell, as fractions; None for those of a teacher if
    the method has none."""
    teacher = predictions.teacher_correct()
    accuracy = float(predictions.correct().mean())
    return {"num_images": len(predictions.index), "accuracy": accuracy, "error": 1 - accuracy,
            "teacher_error": None if teacher is None else 1 - float(teacher.mean()),
            "agreement": None if predictions.teacher_prediction is None else float(
                np.mean(predictions.prediction == predictions.teacher_prediction)),
            "cosine": None if predictions.cosine is None else float(
                np.mean(predictions.cosine, dtype=np.float64))}


def _device(method: Method) -> torch.device:
    """The device of a method's first parameter or buffer; the CPU if it has neither."""
    import torch

    tensors = [*method.parameters(), *method.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
