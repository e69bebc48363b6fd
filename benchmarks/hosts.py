"""Predictions of our methods in other people's benchmarks beside those of our own sweep.

    python benchmarks/hosts.py --hosts FOLDER --data-dir FOLDER

FOLDER holds the archives of online-tta and ttab, and cifar10_test.tar.gz (`tta-apm data make
cifar10_jpeg`); with a clone of yours named Benchmark-TTA, which has no licence and so cannot be
passed on, the first table has that host, too. Each method runs in each host by `tta-apm host`, over
images of CIFAR-10-C that `tta-apm data make` makes here. Methods of scope "image" are then run by a
sweep on the images that the host passed to them; the others, whose result depends on the batch, in
a plain loop over the host's batches. The first table counts equal predictions; the second compares
online-tta's own TENT with ours, both in the host; the third lists which of online-tta's own methods
run in our sweeps.

The classifier is a published ResNet-20 for CIFAR-10 (--weights). The CLIP, the MAE and the rotation
network are the packaged ones of digits, so only the equality of their predictions matters.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import common
from tta_apm import cli
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.bench.evaluate import CleanImages
from tta_apm.bench.records import load_predictions
from tta_apm.data.dataset import Clean
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET, train_split
from tta_apm.errors import UserError
from tta_apm.interop.hosts import backbones, hosted, online_tta_methods
from tta_apm.interop.hosts.launch import find_folder
from tta_apm.registry import DATASETS, METHODS
from tta_apm.report.results import load_results

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
ALONE = [name for name in OURS if METHODS.signature(name).scope == "image"]
# Names that a host has too.
TAKEN = {"online-tta": {"source", "tent", "rmt", "memo", "tpt", "sar"},
         "ttab": {"tent", "memo", "ttt", "sar"},
         "benchmark-tta": {"source", "tent", "rmt", "memo", "sar"}}
# What keeps their methods short; all else is by their own configs.
FEW = ["TEST.N_AUGMENTATIONS", 2, "SOURCE.NUM_SAMPLES", 32, "RMT.NUM_SAMPLES_WARM_UP", 16]


@DATASETS.register("images_of_a_host")
def images_of_a_host(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The images that by_sweep keeps; their labels are not known."""
    pixels = np.load(f"{data_dir}/pixels.npy")
    return Clean("images_of_a_host", pixels, np.zeros(len(pixels), np.int64), CLASS_NAMES,
                 TEMPLATE_SET)


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


def by_loop(name: str, batches: Sequence[Tensor], weights: Path = WEIGHTS) -> list[int]:
    """Predictions of a method that is built anew, in a plain loop."""
    keywords = dict(OURS[name])
    if "seed" in METHODS.signature(name).defaults:
        keywords["seed"] = SEED
    method = METHODS.load(name)(backbone_of(METHODS.signature(name).needs, weights), **keywords)
    return [number for batch in batches
            for number in hosted.predict(method, batch).argmax(1).tolist()]


def _content(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def by_sweep(names: Sequence[str], images: Tensor, folder: Path, weights: Path = WEIGHTS
             ) -> dict[str, list[int]]:
    """Predictions of our own sweep, by its command, of images [N,3,H,W] in [0,1]."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    np.save(folder / "pixels.npy", pixels)
    (folder / "sweep.yaml").write_text(yaml.safe_dump({
        "DATASET": "images_of_a_host", "DATA_DIR": str(folder), "METHODS": list(names),
        "SEVERITY": [0], "SEEDS": [SEED], "BATCH_SIZE": 16, "PUBLISHED": False, "DEVICE": "cpu",
        **{kind.upper(): section for kind, section in settings(weights).items()},
        **{name.upper(): {key.upper(): value for key, value in OURS[name].items()}
           for name in names if OURS[name]}}), encoding="utf-8")
    assert cli.main(["--cfg", str(folder / "sweep.yaml"), "OUTPUT_DIR",
                     str(folder / "results")]) == 0
    found = {}
    for result in load_results(folder / "results"):
        predictions = load_predictions(result.path, result.record)
        by_index = dict(zip(predictions.index.tolist(), predictions.prediction.tolist()))
        found[result.record.method] = [by_index[index] for index in range(len(pixels))]
    return found


def compare(host: str, repo: Path, data: Path, folder: Path, *, images: int, batch_size: int,
            names: Sequence[str] = tuple(OURS), weights: Path = WEIGHTS
            ) -> list[tuple[str, str, int, int]]:
    """Of each method: its name, what it is compared with, equal predictions, predictions."""
    traces: dict[str, Trace] = {}
    for name in names:
        with traced() as traces[name], small_world():
            words = command_of(host, name, weights)
            if host == "online-tta":
                in_online_tta(repo, data, *words, "TEST.BATCH_SIZE", str(batch_size), images=images)
            elif host == "benchmark-tta":
                in_benchmark_tta(repo, data, *words, images=images, batch_size=batch_size)
            else:
                in_ttab(repo, data, *words, images=images, batch_size=batch_size)
    alone = [name for name in names if name in ALONE]
    # Hosts hand the same images to all of them.
    swept = by_sweep(alone, torch.cat(traces[alone[0]].batches), folder, weights) if alone else {}
    lines = []
    for name, trace in traces.items():
        again = swept[name] if name in swept else by_loop(name, trace.batches, weights)
        assert len(again) == len(trace.predictions)
        equal = sum(a == b for a, b in zip(again, trace.predictions))
        lines.append((name, "our sweep" if name in swept else "a plain loop", equal, len(again)))
    return lines


SETTINGS = {
    "continual": [], "mixed domains": ["SETTING", "mixed_domains"],
    "correlated": ["SETTING", "correlated"], "reset at each shift": ["SETTING", "reset_each_shift"],
    "episodic": ["MODEL.EPISODIC", "True"],
    "reset after 2 updates": ["MODEL.RESET_AFTER_NUM_UPDATES", "2"],
    "batches of 16": ["TEST.BATCH_SIZE", "16"],
    "single images, windows of 4": ["TEST.BATCH_SIZE", "1", "TEST.WINDOW_LENGTH", "4"]}


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


def two_tents(repo: Path, data: Path, words: Sequence[str], *, images: int,
              weights: Path = WEIGHTS) -> tuple[list[float], list[float]]:
    """Errors in per cent of online-tta's own TENT and of ours there."""
    network = [*words_of("classifier", settings(weights)["classifier"]), "TEST.BATCH_SIZE",
               str(max(2, images // 4))]
    return (errors_of(repo, data, "MODEL.ADAPTATION", "tent", "OPTIM.LR", "0.01", *network, *words,
                      images=images),
            errors_of(repo, data, "MODEL.ADAPTATION", "tta_apm_tent", "TTA_APM_TENT.LR", "0.01",
                      *network, *words, images=images))


def table_of_theirs(repo: Path, weights: Path = WEIGHTS) -> list[list[str]]:
    """Of each method of online-tta's: its name, its own config for CIFAR-10-C, and what comes of
    three batches of 24 images in our sweeps."""
    folder = find_folder(repo, online_tta_methods.MARKER, online_tta_methods.INSIDE)
    source = CleanImages(train_split(), torch.device("cpu"))
    images, _ = source.batch(torch.arange(72))
    lines = []
    for name in online_tta_methods.names_in(folder):
        configs = sorted(file.name for file in (folder / "cfgs/cifar10_c").glob("*.yaml")
                         if _content(file)["MODEL"]["ADAPTATION"] == name)
        config = next((file for file in configs if file == f"{name}.yaml"), (*configs, "")[0])
        kind = "clip" if name in online_tta_methods.OF_CLIP else "classifier"
        lines.append([name, config or "the host's defaults",
                      _outcome(repo, name, config, kind, source, images, weights)])
    return lines


def _outcome(repo: Path, name: str, config: str, kind: str, source: CleanImages, images: Tensor,
             weights: Path) -> str:
    from tta_apm.backbones.image_tower import suited

    backbone = suited(backbone_of(kind, weights), "classifier")
    seen = 0
    try:
        method = online_tta_methods.OnlineTta(
            backbone, repo=str(repo), name=name, options=FEW, source=source,  # type: ignore
            cfg=f"cfgs/cifar10_c/{config}" if config else "")
        for batch in images.split(24):
            assert method(batch).shape == (len(batch), 10)
            seen += len(batch)
    except UserError as error:
        return f"cannot: {str(error).removeprefix('online_tta: ')}"
    except Exception as error:
        return (f"runs for {seen} images, then fails in the host's own code "
                f"({type(error).__name__}: {error})")
    return "runs, in a row with BACKBONE clip" if kind == "clip" else "runs"


def pipe(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--hosts", type=Path, default=SHARED / "hosts")
    options.add_argument("--data-dir", type=Path, default=SHARED / "data")
    options.add_argument("--weights", type=Path, default=WEIGHTS)
    options.add_argument("--only", nargs="+", choices=TAKEN, default=list(TAKEN),
                         help="hosts of the first table")
    options.add_argument("--images", type=int, default=200, help="per domain")
    options.add_argument("--batch-sizes", type=int, nargs="+", default=[200, 16, 1])
    options.add_argument("--tables", nargs="+", default=["equal", "tent", "theirs"],
                         choices=["equal", "tent", "theirs"])
    chosen = options.parse_args()
    if not chosen.hosts.is_dir():
        print(f"no hosts in {chosen.hosts}")
        return
    printed: list[str] = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        repos = {host: unpack(chosen.hosts, host, folder) for host in ARCHIVES}
        if (chosen.hosts / BENCHMARK_TTA).is_dir():
            repos["benchmark-tta"] = chosen.hosts / BENCHMARK_TTA
        (folder / "data").mkdir()
        data = make_data(chosen.data_dir, folder / "data")
        if "equal" in chosen.tables:
            wanted = {host: repo for host, repo in repos.items() if host in chosen.only}
            printed.append(table_of_ours(wanted, data, folder, chosen))
        if "tent" in chosen.tables:
            printed.append(pipe(["online-tta", "errors in % of its own TENT", "of ours there"], [
                [setting, *(" ".join(f"{error:.1f}" for error in side) for side in two_tents(
                    repos["online-tta"], data, words, images=chosen.images,
                    weights=chosen.weights))] for setting, words in SETTINGS.items()]))
        if "theirs" in chosen.tables:
            printed.append(pipe(["method", "its config", "in our sweeps"],
                                table_of_theirs(repos["online-tta"], chosen.weights)))
    print("\n\n".join(printed))


def table_of_ours(repos: Mapping[str, Path], data: Path, folder: Path, chosen: Any) -> str:
    """Equal predictions of each host and method, for each size of batches."""
    counts: dict[tuple[str, str, str], list[str]] = {}
    for batch_size in chosen.batch_sizes:
        for host, repo in repos.items():
            work = folder / f"{host}-{batch_size}"
            work.mkdir()
            for method, against, equal, total in compare(
                    host, repo, data, work, images=chosen.images, batch_size=batch_size,
                    weights=chosen.weights):
                counts.setdefault((host, method, against), []).append(f"{equal} of {total}")
    head = ["host", "method", "compared with",
            *(f"equal in batches of {size}" for size in chosen.batch_sizes)]
    return pipe(head, [[*key, *equal] for key, equal in counts.items()])


if __name__ == "__main__":
    main()
