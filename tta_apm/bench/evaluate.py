"""Evaluate: run a method over a stream. The only place where labels meet logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench import measure
from tta_apm.bench.batches import BatchOnDevice, StreamImages, batches_ahead, to_device
from tta_apm.bench.checks import Columns, check_logits, checked_details
from tta_apm.bench.counts import Counts
from tta_apm.bench.isolation import Guard, MethodError
from tta_apm.bench.predictions import Predictions
from tta_apm.bench.shared_work import SharedWork
from tta_apm.data.dataset import CLEAN, DataSet, Domain, hash_images
from tta_apm.data.streams import Batch, Stream
from tta_apm.method import Method


@dataclass(frozen=True)
class Evaluation:
    """The results of a method on the images of one domain.

    Args:
        image_hashes: a hash of each image's pixels, [N], in the order of the predictions.
        seconds: adapt + predict, including `prepare` of an offline method. In a stream of several
            domains, the share of the domain's images.
        peak_memory_mb: the peak memory during the method's calls, without that of other methods.
        did: the counts of the method's work, see counts.COUNTED; shared out as `seconds`.
    """

    predictions: Predictions
    image_hashes: np.ndarray
    seconds: float
    peak_memory_mb: float
    did: Mapping[str, float]

    @property
    def images_hash(self) -> str:
        """A hash of the set of images, independent of order and repetitions."""
        return hash_images(self.image_hashes.tolist())

    def followed_by(self, other: Evaluation) -> Evaluation:
        """Join the results of two visits of a domain."""
        return Evaluation(Predictions.joined([self.predictions, other.predictions]),
                          np.concatenate([self.image_hashes, other.image_hashes]),
                          self.seconds + other.seconds,
                          max(self.peak_memory_mb, other.peak_memory_mb),
                          {name: count + other.did[name] for name, count in self.did.items()})


class Evaluator:
    """Runs one method over one stream, batch by batch, and collects its predictions.

    Labels are looked up after a call, so that no stack frame holds them while the method runs.

    Args:
        method: on `device`; the caller has reset it if the setting asks for that.
        guard: that of the method's run.
        shared: the backbone's results that the method shares with others on the same batch.
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
        self.counts = Counts()

    def prepare(self, others_mb: float = 0.0) -> None:
        """Let an offline method adapt to all images of the stream; does nothing for other methods.

        Args:
            others_mb: as for `step`.

        Raises:
            IsolationError: if the method changed the process.
            Exception: whatever the method raises.
        """
        if self.method.scope != "domain":
            return
        self.counts.note(self.guard.call(getattr, self.method, "did"))
        images = StreamImages(self.stream, self.device)
        stopwatch = measure.Stopwatch(self.device)
        measure.reset_peak_memory(self.device)
        with torch.no_grad(), self.counts.during_call(len(images)):
            self.guard.call(stopwatch.time, self.method.prepare, images)
        self.seconds += stopwatch.seconds - images.stopwatch.seconds
        self.peak_mb = max(self.peak_mb, measure.peak_memory_mb(self.device) - others_mb)

    def step(self, batch: BatchOnDevice, others_mb: float = 0.0) -> int:
        """Adapt to a batch and predict it; returns the number of right predictions.

        Args:
            others_mb: the device memory of other methods, which is not part of this one's peak.

        Raises:
            MethodError: if the logits are not finite or not [B,K], or the details are invalid.
            IsolationError: if the method changed its images or the process.
            Exception: whatever the method raises.
        """
        if not self.outputs:
            self.counts.note(self.guard.call(getattr, self.method, "did"))
        stopwatch = measure.Stopwatch(self.device)
        others_mb += self.shared.size_mb + batch.copy_mb
        measure.reset_peak_memory(self.device)
        try:
            with (torch.no_grad(), self.shared.call() as charge,
                  self.counts.during_call(len(batch))):
                logits = self.guard.call(stopwatch.time, self.method, batch.view())
        except Exception as error:  # other methods get the same images next
            batch.check(error)
            raise
        batch.check()
        self.seconds += stopwatch.seconds + charge.seconds
        peak_mb = max(charge.peak_mb, measure.peak_memory_mb(self.device))
        self.peak_mb = max(self.peak_mb, peak_mb - others_mb)
        details = self.guard.call(getattr, self.method, "details")
        output = _output(logits, details, len(batch), len(self.stream.dataset.class_names))
        self.outputs.append(output)
        self.image_hashes += batch.loaded.hashes
        labels = self.stream.dataset.labels[batch.loaded.indices]
        return int((output["prediction"] == labels).sum())

    def evaluations(self) -> dict[Domain, Evaluation]:
        """The results for each domain of the stream, after its last batch."""
        self.counts.note(self.guard.call(getattr, self.method, "did"))
        stream = self.stream
        predictions = Predictions(stream.indices, stream.dataset.labels[stream.indices],
                                  **_joined(self.outputs))
        hashes = np.array(self.image_hashes)
        of_domain = [stream.domain_indices == index for index in range(len(stream.domains))]
        shares = [float(mask.mean()) for mask in of_domain]
        return {domain: Evaluation(predictions.chosen(mask), hashes[mask], self.seconds * share,
                                   self.peak_mb, self.counts.share(share))
                for domain, mask, share in zip(stream.domains, of_domain, shares)}


def evaluate(method: Method, stream: Stream, device: torch.device,
             progress: Callable[[int, int], None] = lambda images, correct: None,
             guard: Guard | None = None) -> dict[Domain, Evaluation]:
    """Adapt to and predict every batch of `stream`.

    Args:
        method: on `device`; the caller has reset it if the setting asks for that.
        progress: called after each batch with its numbers of images and of right predictions.
        guard: that of the method's run; a new one by default.

    Returns:
        The results for each domain of the stream.

    Raises:
        MethodError, IsolationError: as Evaluator.step.
    """
    evaluator = Evaluator(method, stream, device, guard or Guard(seed=0), SharedWork((), device))
    evaluator.prepare()
    for batch in batches_ahead(stream, device):
        progress(len(batch.indices), evaluator.step(BatchOnDevice(batch, device)))
    return evaluator.evaluations()


def _output(logits: Tensor, details: Mapping[str, Tensor], num_images: int,
            num_classes: int) -> Columns:
    """The predictions and details of a batch, checked, as arrays [num_images]."""
    check_logits(logits, num_images, num_classes)
    confidence, prediction = logits.detach().float().softmax(-1).max(-1)
    return {"prediction": prediction.cpu().numpy(), "confidence": confidence.cpu().numpy(),
            **checked_details(details, num_images)}


def _joined(outputs: Sequence[Columns]) -> Columns:
    """Concatenate the columns of all batches."""
    names = {name for output in outputs for name in output}
    for name in sorted(names):
        if not all(name in output for output in outputs):
            raise MethodError(f"has details {name!r} for some batches and not for others")
    return {name: np.concatenate([output[name] for output in outputs]) for name in names}


def warm_up(method: Method, batches: Iterable[Batch], device: torch.device,
            guard: Guard | None = None) -> float | None:
    """Run `method` on the first of `batches` and reset it.

    On a GPU it gets the whole batch, so that everything that depends on the shape is set up.

    Returns:
        GFLOPs per image; None if they cannot be counted, or for an offline method, whose work is
        done in `prepare`.
    """
    guard = guard or Guard(seed=0)
    # The first count makes torch import modules that set environment variables: do it outside of
    # the guard.
    measure.count_gflops(lambda: torch.zeros(1, 1) @ torch.zeros(1, 1))
    images = to_device(next(iter(batches)).images, device)
    # A single image for scope "image": torch counts the gradient of a convolution that is vmapped
    # over the weights of B images B times too often. Other methods may need batch statistics.
    few = images[:1 if method.scope == "image" else 8]
    with torch.no_grad():
        if device.type == "cuda":  # uncounted: the first call may run extra passes to size chunks
            guard.call(method, images)
        gflops = guard.call(measure.count_gflops, lambda: method(few))
    guard.call(method.reset)
    return None if gflops is None or method.scope == "domain" else gflops / len(few)


class CleanImages:
    """A clean data set as a method.SourceImages."""

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
