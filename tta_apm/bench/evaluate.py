"""evaluate: run a method over a stream. The one place where labels meet logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench import measure
from tta_apm.bench.batches import Handed, StreamImages, batches_ahead, to_device
from tta_apm.bench.deeds import Deeds
from tta_apm.bench.isolation import Guard, MethodError
from tta_apm.bench.records import Predictions
from tta_apm.bench.shared_work import SharedWork
from tta_apm.data.dataset import CLEAN, DataSet, Domain, hash_images
from tta_apm.data.streams import Batch, Stream
from tta_apm.method import Method

# What a method may tell of each image besides its logits: the columns that may be missing.
DETAILS = tuple(field.name for field in fields(Predictions) if field.default is None)
# Columns of Predictions, by name.
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """What came of a method on the images of one domain.

    Args:
        image_hashes: of each image's pixels, [N], in the order of the predictions.
        seconds: adapt + predict, of an offline method with what it prepared; in a stream of
            several domains, the images' share.
        peak_memory_mb: the most that was in use while the method ran, less what others held.
        did: what the method did, counted: see deeds.DEEDS; the images' share, as of seconds.
    """

    predictions: Predictions
    image_hashes: np.ndarray
    seconds: float
    peak_memory_mb: float
    did: Mapping[str, float]

    @property
    def images_hash(self) -> str:
        """Of the images, whatever their order and however often each was seen."""
        return hash_images(self.image_hashes.tolist())

    def followed_by(self, other: Evaluation) -> Evaluation:
        """Both as one: a domain that a stream visits twice."""
        return Evaluation(Predictions.joined([self.predictions, other.predictions]),
                          np.concatenate([self.image_hashes, other.image_hashes]),
                          self.seconds + other.seconds,
                          max(self.peak_memory_mb, other.peak_memory_mb),
                          {name: count + other.did[name] for name, count in self.did.items()})


class Evaluator:
    """One method on one stream: it is given the batches, and its predictions are collected. One
    that is offline is given the whole stream first.

    Labels are looked up after a call, so that no frame holds them while the method runs.

    Args:
        method: on `device`, reset beforehand by the caller where the setting asks for it.
        guard: of the method's run.
        shared: the work that the method shares with others on the same batch.
    """

    def __init__(self, method: Method, stream: Stream, device: torch.device, guard: Guard,
                 shared: SharedWork) -> None:
        self.method = method
        self.stream = stream
        self.device = device
        self.guard = guard
        self.shared = shared
        self.outputs: list[Columns] = []
        self.image_hashes: list[bytes] = []
        self.seconds = self.peak_mb = 0.0
        self.deeds = Deeds()

    def prepare(self, others_mb: float = 0.0) -> None:
        """Show all images of the stream to an offline method; nothing for others.

        Args:
            others_mb: as of `meet`.

        Raises:
            Trespass if the method changed the process; and whatever the method raises.
        """
        if self.method.scope != "domain":
            return
        self.deeds.hear(self.guard.call(getattr, self.method, "did"))
        images = StreamImages(self.stream, self.device)
        stopwatch = measure.Stopwatch(self.device)
        measure.reset_peak_memory(self.device)
        with torch.no_grad(), self.deeds.of_call(len(images)):
            self.guard.call(stopwatch.time, self.method.prepare, images)
        self.seconds += stopwatch.seconds - images.stopwatch.seconds
        self.peak_mb = max(self.peak_mb, measure.peak_memory_mb(self.device) - others_mb)

    def meet(self, handed: Handed, others_mb: float = 0.0) -> int:
        """Adapt to a batch and predict it; returns how many predictions are right.

        Args:
            others_mb: what other methods hold of the device's memory: no part of this one's peak.

        Raises:
            MethodError: if logits are not [B,K] or not finite, or for details that no record
                holds; Trespass if the method changed the images that it was handed, or the
                process; and whatever the method raises.
        """
        if not self.outputs:
            self.deeds.hear(self.guard.call(getattr, self.method, "did"))
        stopwatch = measure.Stopwatch(self.device)
        others_mb += self.shared.size_mb + handed.spare_mb
        measure.reset_peak_memory(self.device)
        try:
            with (torch.no_grad(), self.shared.turn() as turn,
                  self.deeds.of_call(len(handed))):
                logits = self.guard.call(stopwatch.time, self.method, handed.hand_out())
        except Exception as error:  # others are handed the images next
            handed.check(error)
            raise
        handed.check()
        self.seconds += stopwatch.seconds + turn.seconds
        peak_mb = max(turn.peak_mb, measure.peak_memory_mb(self.device))
        self.peak_mb = max(self.peak_mb, peak_mb - others_mb)
        details = self.guard.call(getattr, self.method, "details")
        output = _output(logits, details, len(handed), len(self.stream.dataset.class_names))
        self.outputs.append(output)
        self.image_hashes += handed.batch.hashes
        labels = self.stream.dataset.labels[handed.batch.indices]
        return int((output["prediction"] == labels).sum())

    def evaluations(self) -> dict[Domain, Evaluation]:
        """What came of it, for each of the stream's domains, once all batches are met."""
        self.deeds.hear(self.guard.call(getattr, self.method, "did"))
        stream = self.stream
        predictions = Predictions(stream.indices, stream.dataset.labels[stream.indices],
                                  **_joined(self.outputs))
        hashes = np.array(self.image_hashes)
        of_domain = [stream.domain_indices == index for index in range(len(stream.domains))]
        shares = [float(mask.mean()) for mask in of_domain]
        return {domain: Evaluation(predictions.chosen(mask), hashes[mask], self.seconds * share,
                                   self.peak_mb, self.deeds.share(share))
                for domain, mask, share in zip(stream.domains, of_domain, shares)}


def evaluate(method: Method, stream: Stream, device: torch.device,
             progress: Callable[[int, int], None] = lambda images, correct: None,
             guard: Guard | None = None) -> dict[Domain, Evaluation]:
    """Adapt to and predict every batch of `stream`; what came of it, for each of its domains.

    Args:
        method: on `device`, reset beforehand by the caller where the setting asks for it.
        progress: called after each batch with its number of images and of right predictions.
        guard: of the method's run; one of its own by default.

    Raises:
        MethodError, Trespass: as Evaluator.meet.
    """
    evaluator = Evaluator(method, stream, device, guard or Guard(seed=0), SharedWork((), device))
    evaluator.prepare()
    for batch in batches_ahead(stream, device):
        progress(len(batch.indices), evaluator.meet(Handed(batch, device)))
    return evaluator.evaluations()


def _output(logits: Tensor, details: Mapping[str, Tensor], num_images: int,
            num_classes: int) -> Columns:
    """What a record keeps of a batch, checked."""
    check_logits(logits, num_images, num_classes)
    confidence, prediction = logits.detach().float().softmax(-1).max(-1)
    return {"prediction": prediction.cpu().numpy(), "confidence": confidence.cpu().numpy(),
            **checked_details(details, num_images)}


def _joined(outputs: Sequence[Columns]) -> Columns:
    """Those of all batches in one."""
    names = {name for output in outputs for name in output}
    for name in sorted(names):
        if not all(name in output for output in outputs):
            raise MethodError(f"has details {name!r} for some batches and not for others")
    return {name: np.concatenate([output[name] for output in outputs]) for name in names}


def warm_up(method: Method, batches: Iterable[Batch], device: torch.device,
            guard: Guard | None = None) -> float | None:
    """Run `method` on the first of `batches`, reset it, return its GFLOPs per image: None where
    they are not counted, as of an offline method, whose work is done before.

    On a GPU it takes the whole batch, so that what is set up per shape is set up.
    """
    guard = guard or Guard(seed=0)
    # torch imports what it counts with at the first count, and sets the environment meanwhile.
    measure.count_gflops(lambda: torch.zeros(1, 1) @ torch.zeros(1, 1))
    images = to_device(next(iter(batches)).images, device)
    # One image where it is adapted to alone: torch counts the gradient of a convolution vmapped
    # over B images' weights B times too often. Others may need the statistics of a batch.
    few = images[:1 if method.scope == "image" else 8]
    with torch.no_grad():
        if device.type == "cuda":  # before counting: a first call may run to size its chunks
            guard.call(method, images)
        gflops = guard.call(measure.count_gflops, lambda: method(few))
    guard.call(method.reset)
    return None if gflops is None or method.scope == "domain" else gflops / len(few)


class SourceImages:
    """A clean data set as a method takes it: see method.Source."""

    def __init__(self, dataset: DataSet, device: torch.device) -> None:
        self.dataset = dataset
        self.device = device

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        chosen = indices.cpu().numpy()
        images = self.dataset.images(Domain(self.dataset.name, CLEAN, 0), chosen)
        labels = torch.from_numpy(self.dataset.labels[chosen]).to(self.device)
        return to_device(images, self.device), labels


def checked_details(details: Mapping[str, Tensor], num_images: int) -> Columns:
    """Details of `num_images` images as arrays [num_images]. MethodError for any others."""
    if not isinstance(details, Mapping):
        raise MethodError(f"has details of type {type(details).__name__} instead of a dict")
    arrays = {}
    for name, value in details.items():
        if name not in DETAILS:
            raise MethodError(f"has details {name!r}, which no record holds; known: "
                              f"{', '.join(DETAILS)}")
        if not isinstance(value, Tensor) or value.shape != (num_images,):
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise MethodError(f"has details {name!r} of {shape} instead of [{num_images}]")
        if not torch.isfinite(value).all():
            raise MethodError(f"has details {name!r} that are not finite")
        value = value.detach().cpu()
        # numpy has no bfloat16.
        arrays[name] = (value.float() if value.is_floating_point() else value).numpy()
    return arrays


def checked_resolved(resolved: Any) -> dict[str, Any]:
    """What a method resolved, if a record can hold it. MethodError for anything else."""
    if not isinstance(resolved, dict):
        raise MethodError(f"has `resolved` of type {type(resolved).__name__} instead of a dict")
    for key, value in resolved.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise MethodError(f"has `resolved` {key!r} that no record holds: numbers must be "
                              "finite, and other values text, true, false, none or lists of these")
    return resolved


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return (value is None or isinstance(value, (bool, int, str))
            or isinstance(value, float) and math.isfinite(value))


def check_logits(logits: Tensor, num_images: int, num_classes: int) -> None:
    """Raise MethodError unless `logits` is finite and [num_images, num_classes]."""
    if not isinstance(logits, Tensor) or logits.shape != (num_images, num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MethodError(f"returned {shape} instead of logits [{num_images}, {num_classes}]")
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(-1).sum())
        raise MethodError(f"returned logits that are not finite for {bad} of {num_images} images")
