"""The Python door: what a sweep does, for people who write Python instead of configs.

`tta_apm` exports these names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tta_apm.bench.records import Predictions, load_predictions
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.data.dataset import DataSet, Domain
from tta_apm.registry import METHODS

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from tta_apm.backbones.backbone import Backbone
    from tta_apm.bench.evaluate import Evaluation
    from tta_apm.method import Method


# What tells the cell of an image.
NAMED = ("row", "dataset", "corruption", "severity", "seed")


class Results(NamedTuple):
    """What was measured, as two pandas frames.

    Args:
        cells: a line for each domain and seed: what its record tells, with error and accuracy as
            fractions; of a student also teacher_error, agreement and cosine.
        images: a line for each image of a cell: row, dataset, corruption, severity, seed, index,
            label, prediction, confidence, correct; of a student teacher_prediction and cosine.
    """

    cells: pd.DataFrame
    images: pd.DataFrame


def load_backbone(kind: str, model: str, weights: str = "", *, dataset: DataSet | None = None,
                  class_names: Sequence[str] = (), templates: Sequence[str] | None = None,
                  device: torch.device | str = "cpu") -> Backbone:
    """A frozen network as a config's section of its kind describes it.

    Args:
        kind: "classifier", "clip", "mae" or "rotation".
        model, weights: as MODEL and WEIGHTS of the section.
        dataset: whose classes it tells apart, and whose prompts a CLIP takes.
        class_names: those of another set of classes, where there is no `dataset`.
        templates: prompts of a CLIP, each with one `{}`; by default the data set's own, or
            "a photo of a {}.".

    Raises:
        UserError: for an unknown kind or model, or weights that are not here or do not fit.
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
    """The method registered as `name` round a backbone, on the backbone's device.

    Args:
        backbone: of the kind that the method needs; one that needs a classifier also takes a CLIP,
            whose image tower it then adapts.
        hyper_parameters: keywords of its class; the defaults are its own paper's.

    Raises:
        UserError: for an unknown name or values out of range.
    """
    from tta_apm.backbones.image_tower import suited

    backbone = suited(backbone, METHODS.signature(name).needs)
    method: Method = METHODS.load(name)(backbone, **hyper_parameters)
    return method.to(backbone.mean.device)


def evaluate(method: Method, dataset: DataSet, *, corruptions: Sequence[str] = tuple(CORRUPTIONS),
             severities: Sequence[int] = (5,), num_images: int = -1, batch_size: int = 200,
             setting: str = "reset_each_domain", order: str = "shuffled", dirichlet: float = 0.1,
             seed: int = 42) -> Results:
    """Run a method over domains of a data set, as a sweep runs a row with one seed.

    The numbers are those of the command line to the bit: same streams, same resets.

    Args:
        method: on the device where it is to run.
        severities: 1 to 5, and 0 for the clean images.
        num_images: per domain, the first of the data set; -1 takes all.
        setting, order, dirichlet: as the config's keys of these names.
        seed: of the streams. A method that draws numbers takes its own seed when it is built.

    Raises:
        UserError: for images that are not here.
        MethodError: if the method breaks its contract.
    """
    from tta_apm.bench.isolation import Guard
    from tta_apm.bench.plan import carries_on
    from tta_apm.bench.run import Run
    from tta_apm.data.streams import Stream, domains, schedule

    wanted = domains(dataset.name, corruptions, severities)
    for domain in wanted:
        dataset.check(domain)
    streams = [Stream(dataset, together, num_images=num_images, batch_size=batch_size, seed=seed,
                      order=order, concentration=dirichlet)
               for together in schedule(setting, wanted)]
    run = Run(method, Guard(seed), _device(method), carries_on(setting, method.scope))
    found: dict[Domain, Evaluation] = {}
    for stream in streams:
        for domain, evaluation in run.meet(stream).items():
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
    """The cells of a results folder as frames.

    Raises:
        UserError: if there is none, or a file is truncated or foreign.
    """
    from tta_apm.report.results import load_results as load

    return _frames((vars(result.record), load_predictions(result.path, result.record))
                   for result in load(Path(folder)))


def _frames(cells: Iterable[tuple[Mapping[str, Any], Predictions]]) -> Results:
    """Frames of cells, each as what is known of it and its predictions."""
    import pandas as pd

    lines, images = [], []
    for fields, predictions in cells:
        lines.append({**fields, **_figures(predictions)})
        columns = {name: column for name, column in vars(predictions).items() if column is not None}
        images.append(pd.DataFrame({**{name: fields[name] for name in NAMED}, **columns,
                                    "correct": predictions.prediction == predictions.label}))
    return Results(pd.DataFrame(lines), pd.concat(images, ignore_index=True))


def _figures(predictions: Predictions) -> dict[str, Any]:
    """What a table prints of a cell, as fractions; None where there is no teacher."""
    teacher = predictions.teacher_correct()
    accuracy = float(predictions.correct().mean())
    return {"num_images": len(predictions.index), "accuracy": accuracy, "error": 1 - accuracy,
            "teacher_error": None if teacher is None else 1 - float(teacher.mean()),
            "agreement": None if predictions.teacher_prediction is None else float(
                np.mean(predictions.prediction == predictions.teacher_prediction)),
            "cosine": None if predictions.cosine is None else float(
                np.mean(predictions.cosine, dtype=np.float64))}


def _device(method: Method) -> torch.device:
    """Where a method's first parameter or buffer lies; the CPU for one that has none."""
    import torch

    tensors = [*method.parameters(), *method.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
