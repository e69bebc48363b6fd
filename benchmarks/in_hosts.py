"""Runs of the hosts: their clones and data, our methods in them, and what they handed to these."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tta_apm import cli
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET
from tta_apm.errors import UserError
from tta_apm.interop.hosts import backbones, hosted
from tta_apm.registry import METHODS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "data/cifar10_resnets/resnet20-12fca82f.th"
CORRUPTIONS = ("gaussian_noise", "contrast")
ARCHIVES = {"online-tta": "online-tta-*.tar.gz", "ttab": "ttab-*.tar.gz"}
BENCHMARK_TTA = "Benchmark-TTA"  # a clone
SEED = 1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Methods of ours in small settings.
OURS: dict[str, dict[str, Any]] = {
    "apm": {"image_size": 32, "patch": 8, "hidden": [16], "code": 16, "steps": 3, "lr": 0.01},
    "clip_zero_shot": {}, "source": {}, "tent": {"lr": 0.01}, "norm": {}, "sar": {"lr": 0.01},
    "rmt": {"lambda_contrast": 0.0, "lambda_source": 0.0, "num_warm_up": 0},
    "memo": {"num_views": 4}, "tpt": {"num_views": 16}, "ttt": {"steps": 2, "num_views": 4},
    "ttt_mae": {"steps": 2, "masks": 4}}
# Names that a host has too.
TAKEN = {"online-tta": {"source", "tent", "rmt", "memo", "tpt", "sar"},
         "ttab": {"tent", "memo", "ttt", "sar"},
         "benchmark-tta": {"source", "tent", "rmt", "memo", "sar"}}


@dataclass
class Trace:
    """The batches that a host handed to a method of ours, and its predictions."""

    batches: list[Tensor] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)


def settings(weights: Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """The sections of our backbones."""
    return {"classifier": {"MODEL": f"{ROOT / 'examples/my_network.py'}:resnet20",
                           "WEIGHTS": str(weights), "MEAN": list(MEAN), "STD": list(STD)},
            "clip": {"MODEL": "digits_clip", "WEIGHTS": "digits_clip.safetensors"},
            "mae": {"MODEL": "digits_mae", "WEIGHTS": "digits_mae.safetensors"},
            "rotation": {"MODEL": "digits_rotation", "WEIGHTS": "digits_rotation.safetensors"}}


def words_of(section: str, values: Mapping[str, Any]) -> list[str]:
    """KEY VALUE pairs of a command line."""
    return [word for key, value in values.items()
            for word in (f"{section.upper()}.{key.upper()}", str(value).replace(" ", ""))]


def command_of(host: str, name: str, weights: Path = WEIGHTS) -> list[str]:
    """What names a method of ours and its backbone in a host."""
    theirs = f"tta_apm_{name}" if name in TAKEN[host] else name
    kind = METHODS.signature(name).needs
    option = "--model_adaptation_method" if host == "ttab" else "MODEL.ADAPTATION"
    return [option, theirs, *words_of(kind, settings(weights)[kind]),
            *words_of(theirs, OURS[name])]


def unpack(folder: Path, host: str, into: Path) -> Path:
    """The clone of a host, out of its archive where it is one."""
    for archive in sorted(folder.glob(ARCHIVES[host])):
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
            return into / tar.getnames()[0].split("/")[0]
    raise UserError(f"there is no {ARCHIVES[host]} in {folder}")


def make_data(images: Path, folder: Path) -> Path:
    """DATA_DIR of both hosts, made by our own commands from real images stored as JPEG."""
    (folder / "cifar10_test.tar.gz").symlink_to(images / "cifar10_test.tar.gz")
    for name, *more in (["cifar10_c", "--corruptions", ",".join(CORRUPTIONS)], ["cifar10_python"]):
        assert cli.main(["data", "make", name, "--clean", "cifar10_jpeg", "--data-dir",
                         str(folder), *more]) == 0
    return folder


def in_online_tta(repo: Path, data: Path, *words: str, images: int = 20, cfg: str = "tent") -> None:
    """Run online-tta on two domains."""
    run(["host", "online-tta", "--repo", str(repo), "--", "--cfg", f"cfgs/cifar10_c/{cfg}.yaml",
         "DATA_DIR", str(data), "CORRUPTION.TYPE", str(list(CORRUPTIONS)), "CORRUPTION.SEVERITY",
         "[5]", "CORRUPTION.NUM_EX", str(images), "TEST.NUM_WORKERS", "0", "SAVE_DIR",
         str(data / "output"), *words])


def in_ttab(repo: Path, data: Path, *words: str, images: int = 20, batch_size: int = 10) -> None:
    """Run ttab on one domain."""
    run(["host", "ttab", "--repo", str(repo), "--", "--device", "cpu", "--data_path", str(data),
         "--data_size", str(images), "--batch_size", str(batch_size), "--num_cpus", "0",
         "--job_id", str(data / "jobs"), "--root_path", str(data / "logs"), "--data_names",
         f"cifar10_c_deterministic-{CORRUPTIONS[-1]}-5", "--seed", str(SEED), *words])


def in_benchmark_tta(repo: Path, data: Path, *words: str, images: int, batch_size: int) -> None:
    """Run Benchmark-TTA on two domains; it takes the images that a file of its own lists."""
    listed = data / "ckpt/Datasets/cifar10_c/list.pickle"
    listed.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    listed.write_bytes(pickle.dumps(torch.randperm(10_000, generator=generator)[:images].tolist()))
    run(["host", "benchmark-tta", "--repo", str(repo), "--", "--cfg",
         "cfgs/Online_TTA/cifar10_c/source.yaml", "DATA_DIR", str(data), "CKPT_DIR",
         str(data / "ckpt"), "OUTPUT", str(data / "output"), "CORRUPTION.TYPE",
         str(list(CORRUPTIONS)), "CORRUPTION.SEVERITY", "[5]", "TEST.BATCH_SIZE", str(batch_size),
         "TEST.NUM_WORKERS", "0", "RNG_SEED", str(SEED), *words])


def run(words: Sequence[str]) -> None:
    """Run a command of ours. UserError if it fails."""
    for handler in list(logging.root.handlers):  # of a run before: it writes into that one's log
        if type(handler) in (logging.FileHandler, logging.StreamHandler):
            logging.root.removeHandler(handler)
    if cli.main(list(words)) != 0:
        raise UserError(f"failed: {' '.join(words)}")


@contextlib.contextmanager
def small_world() -> Iterator[None]:
    """The packaged CLIP knows the words for digits only."""
    theirs = backbones.CLASSES["cifar10"]
    backbones.CLASSES["cifar10"] = lambda: (CLASS_NAMES, TEMPLATE_SET)
    try:
        yield
    finally:
        backbones.CLASSES["cifar10"] = theirs


@contextlib.contextmanager
def traced() -> Iterator[Trace]:
    """Follow the methods of ours that hosts call."""
    forward, trace = hosted.Hosted.forward, Trace()

    def follow(method: hosted.Hosted, images: Tensor) -> Tensor:
        logits = forward(method, images)
        trace.batches.append(images.detach().clone())
        trace.predictions += logits.argmax(1).tolist()
        return logits
    setattr(hosted.Hosted, "forward", follow)
    try:
        yield trace
    finally:
        setattr(hosted.Hosted, "forward", forward)


def backbone_of(kind: str, weights: Path = WEIGHTS) -> Backbone:
    """A backbone of ours, loaded apart from any host."""
    section = settings(weights)[kind]
    return build(kind, section["MODEL"], section["WEIGHTS"], class_names=CLASS_NAMES,
                 templates=templates(TEMPLATE_SET), device="cpu", section=section)


class Log(logging.Handler):
    """What a host's log says of errors, in per cent."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.errors: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.errors += map(float, re.findall(r"#samples=\d+\]: ([\d.]+)%", record.getMessage()))


def errors_of(repo: Path, data: Path, *words: str, images: int) -> list[float]:
    """The errors in per cent that online-tta logs."""
    log, level = Log(), logging.root.level
    logging.root.addHandler(log)
    logging.root.setLevel(logging.INFO)
    try:
        in_online_tta(repo, data, *words, images=images)
    finally:
        logging.root.removeHandler(log)
        logging.root.setLevel(level)
    return log.errors
