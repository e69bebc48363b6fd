"""evaluate: run a method over a stream. The one place where labels meet logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from tta_apm.bench import measure
from tta_apm.bench.isolation import Guard, MethodError, Trespass
from tta_apm.bench.records import Predictions
from tta_apm.data.dataset import CLEAN, DataSet, Domain, hash_images, hash_pixels
from tta_apm.data.streams import Stream, prefetched
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
        seconds: adapt + predict; in a stream of several domains, the images' share.
        peak_memory_mb: during the whole stream.
    """

    predictions: Predictions
    image_hashes: np.ndarray
    seconds: float
    peak_memory_mb: float

    @property
    def images_hash(self) -> str:
        """Of the images, whatever their order and however often each was seen."""
        return hash_images(self.image_hashes.tolist())

    def followed_by(self, other: Evaluation) -> Evaluation:
        """Both as one: a domain that a stream visits twice."""
        return Evaluation(Predictions.joined([self.predictions, other.predictions]),
                          np.concatenate([self.image_hashes, other.image_hashes]),
                          self.seconds + other.seconds,
                          max(self.peak_memory_mb, other.peak_memory_mb))


def evaluate(method: Method, stream: Stream, device: torch.device,
             progress: Callable[[int, int], None] = lambda images, correct: None,
             guard: Guard | None = None) -> dict[Domain, Evaluation]:
    """Adapt to and predict every batch of `stream`; what came of it, for each of its domains.

    Labels are looked up after a call, so that no frame holds them while the method runs.

    Args:
        method: on `device`, reset beforehand by the caller where the setting asks for it.
        progress: called after each batch with its number of images and of right predictions.
        guard: of the method's run; one of its own by default.

    Raises:
        MethodError: if logits are not [B,K] or not finite, or for details that no record holds;
            Trespass if the method changed the images that it was handed, or the process.
    """
    guard = guard or Guard(seed=0)
    outputs: list[Columns] = []
    image_hashes: list[bytes] = []
    loaded = load_batches(stream, device)
    if device.type != "cpu":  # there, it would take the cores that are being timed
        loaded = prefetched(loaded)
    stopwatch = measure.Stopwatch(device)
    measure.reset_peak_memory(device)
    for indices, pixels, digests in loaded:
        images = to_device(pixels, device)
        with torch.no_grad():
            logits = guard.call(stopwatch.time, method, images)
        if not torch.equal(images, to_device(pixels, device)):
            raise Trespass(["the images that it was handed"])
        details = guard.call(getattr, method, "details")
        outputs.append(_output(logits, details, len(indices), len(stream.dataset.class_names)))
        image_hashes += digests
        progress(len(indices), int((outputs[-1]["prediction"]
                                    == stream.dataset.labels[indices]).sum()))
    predictions = Predictions(stream.indices, stream.dataset.labels[stream.indices],
                              **_joined(outputs))
    hashes = np.array(image_hashes)
    peak = measure.peak_memory_mb(device)
    of_domain = [stream.places == place for place in range(len(stream.domains))]
    return {domain: Evaluation(predictions.chosen(mask), hashes[mask],
                               stopwatch.seconds * float(mask.mean()), peak)
            for domain, mask in zip(stream.domains, of_domain)}


def load_batches(stream: Stream, device: torch.device
                 ) -> Iterator[tuple[np.ndarray, Tensor, list[bytes]]]:
    """The batches of `stream`: positions int64 [B], images uint8 [B,H,W,3], hashes of these."""
    for batch in stream:
        pixels = torch.from_numpy(np.ascontiguousarray(batch.images))
        if device.type == "cuda":  # page-locked memory is copied without the CPU
            pixels = pixels.pin_memory()
        yield batch.indices, pixels, [hash_pixels(image) for image in pixels.numpy()]


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


def warm_up(method: Method, stream: Stream, device: torch.device,
            guard: Guard | None = None) -> float | None:
    """Run `method` on the first images of `stream`, reset it, return its GFLOPs per image.

    On a GPU it takes the whole first batch, so that what is set up per shape is set up.
    """
    guard = guard or Guard(seed=0)
    batch = next(iter(stream))
    images = to_device(batch.images, device)
    # One image where it is adapted to alone: torch counts the gradient of a convolution vmapped
    # over B images' weights B times too often. Others may need the statistics of a batch.
    few = images[:1 if method.scope == "image" else 8]
    with torch.no_grad():
        if device.type == "cuda":  # before counting: a first call may run to size its chunks
            guard.call(method, images)
        gflops = guard.call(measure.count_gflops, lambda: method(few))
    guard.call(method.reset)
    return None if gflops is None else gflops / len(few)


def to_device(images: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in [0,1] on `device`; travels as uint8."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    pixels = images.to(device, non_blocking=device.type == "cuda")
    return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)


class SourceImages:
    """A clean data set as a method takes it: see method.Source."""

    def __init__(self, dataset: DataSet, device: torch.device) -> None:
        self.dataset = dataset
        self.device = device

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        places = indices.cpu().numpy()
        images = self.dataset.images(Domain(self.dataset.name, CLEAN, 0), places)
        labels = torch.from_numpy(self.dataset.labels[places]).to(self.device)
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


def check_logits(logits: Tensor, num_images: int, num_classes: int) -> None:
    """Raise MethodError unless `logits` is finite and [num_images, num_classes]."""
    if not isinstance(logits, Tensor) or logits.shape != (num_images, num_classes):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MethodError(f"returned {shape} instead of logits [{num_images}, {num_classes}]")
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(-1).sum())
        raise MethodError(f"returned logits that are not finite for {bad} of {num_images} images")
