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
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

import common
from in_hosts import (
    ARCHIVES, BENCHMARK_TTA, OURS, SEED, SHARED, TAKEN, WEIGHTS, Trace, backbone_of, command_of,
    errors_of, in_benchmark_tta, in_online_tta, in_ttab, make_data, settings, small_world,
    traced, unpack, words_of)
from tta_apm import cli
from tta_apm.bench.evaluate import CleanImages
from tta_apm.bench.records import load_predictions
from tta_apm.data.dataset import Clean
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET, train_split
from tta_apm.errors import UserError
from tta_apm.interop.hosts import hosted, online_tta_methods
from tta_apm.interop.hosts.launch import find_folder
from tta_apm.registry import DATASETS, METHODS
from tta_apm.report.results import load_results

ALONE = [name for name in OURS if METHODS.signature(name).scope == "image"]
# What keeps their methods short; all else is by their own configs.
FEW = ["TEST.N_AUGMENTATIONS", 2, "SOURCE.NUM_SAMPLES", 32, "RMT.NUM_SAMPLES_WARM_UP", 16]


@DATASETS.register("images_of_a_host")
def images_of_a_host(*, data_dir: str, frost_dir: str | None) -> Clean:
    """The images that by_sweep keeps; their labels are not known."""
    pixels = np.load(f"{data_dir}/pixels.npy")
    return Clean("images_of_a_host", pixels, np.zeros(len(pixels), np.int64), CLASS_NAMES,
                 TEMPLATE_SET)


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
