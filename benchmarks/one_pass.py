"""One pass over the data for all rows against a pass for each: wall time and counted calls.

    python benchmarks/one_pass.py photos --data-dir DIR --append
    python benchmarks/one_pass.py heavy --data-dir DIR --weights FILE --append
    python benchmarks/one_pass.py digits --images 20 --append
    python benchmarks/one_pass.py clip --images 8 --append

Both sides are the same sweep, with TOGETHER auto and TOGETHER 1, in turn; the time to build data
set, backbones and methods is excluded. `photos`: eight cheap rows with one of timm's smallest
networks (random weights) on photographs in DIR/<class>/ under five corruptions computed on the fly.
`heavy`: source, norm and tent with EfficientNet-Lite0 on the same images. `digits`: all rows of
digits_c, whose images cost almost nothing. `clip`: four rows on a ViT-B/16 (random weights), with
the number of images that its tower encodes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

import common
from tta_apm import cli
from tta_apm.bench.builder import Builder
from tta_apm.bench.records import load_record
from tta_apm.bench.sweep import Sweep

# Source, batch statistics, and the settings among which one selects LAME's on validation data.
CHEAP = ["source", "norm", *(f"lame AFFINITY {affinity} NEIGHBOURS {neighbours}"
                             for affinity in ("knn", "rbf") for neighbours in (1, 3, 5))]
# Those that take longest to make: on a GPU all cost more than such a network.
CORRUPTIONS = ["glass_blur", "motion_blur", "zoom_blur", "snow", "elastic_transform"]
HEAVY = ["source", "norm", "tent"]
CLIP_ROWS = ["clip_zero_shot", "coop", "apm", "one_sample"]
VIT = "ViT-B-16"


def small_network() -> nn.Module:
    """One of timm's smallest, with as many outputs as there are photographs' classes."""
    import timm
    torch.manual_seed(0)
    return timm.create_model("mobilenetv3_small_050", num_classes=1000)


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    root = Path(tempfile.mkdtemp())
    try:
        part = {"photos": photos, "heavy": heavy, "digits": digits, "clip": clip}[options.part]
        words = part(options, root)
        lines = compare(words, options, root, device)
    finally:
        shutil.rmtree(root)
    common.publish(f"One pass over the data: {options.part}", lines, device, options.append)


def photos(options: argparse.Namespace, root: Path) -> list[str]:
    return [*_photographs(options), "METHODS", _list(options.rows or CHEAP),
            "CLASSIFIER.MODEL", f"{Path(__file__).resolve()}:small_network",
            "CLASSIFIER.WEIGHTS", "''", "CLASSIFIER.MEAN", "[0.5,0.5,0.5]",
            "CLASSIFIER.STD", "[0.5,0.5,0.5]"]


def heavy(options: argparse.Namespace, root: Path) -> list[str]:
    return [*_photographs(options), "METHODS", _list(options.rows or HEAVY),
            "CLASSIFIER.MODEL", "timm/tf_efficientnet_lite0", "CLASSIFIER.WEIGHTS",
            options.weights or "''"]


def _photographs(options: argparse.Namespace) -> list[str]:
    return ["DATASET", "folder", "DATA_DIR", options.data_dir, "CORRUPT", "true",
            "CORRUPTIONS", f"[{','.join(CORRUPTIONS)}]", "BATCH_SIZE", "16"]


def digits(options: argparse.Namespace, root: Path) -> list[str]:
    rows = ["METHODS", _list(options.rows)] if options.rows else []
    return ["CORRUPTIONS", "[gaussian_noise,defocus_blur,snow]", *rows]


def clip(options: argparse.Namespace, root: Path) -> list[str]:
    torch.manual_seed(0)
    save_file(open_clip.create_model(VIT).state_dict(), root / "vit.safetensors")
    save_file({"ctx": 0.02 * torch.randn(4, 512)}, root / "context.safetensors")
    return ["METHODS", _list(CLIP_ROWS), "CORRUPTIONS", "[fog,contrast]", "CLIP.MODEL", VIT,
            "CLIP.WEIGHTS", str(root / "vit.safetensors"), "COOP.WEIGHTS",
            str(root / "context.safetensors"), "APM.HIDDEN", "[64]", "APM.STEPS", "2",
            "ONE_SAMPLE.STEPS", "2", "TEMPLATES", "single", "BATCH_SIZE", "4"]


def _list(rows: list[str]) -> str:
    return f"[{','.join(rows)}]"


def compare(words: list[str], options: argparse.Namespace, root: Path, device: torch.device
            ) -> list[str]:
    """The table of both sides."""
    numbers = itertools.count()
    sides: dict[str, list[Measured]] = {"auto": [], "1": []}

    def sweep(together: str) -> None:
        folder = root / str(next(numbers))
        with measured() as found, contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()) as errors:
            code = cli.main(["--cfg", options.cfg, *words, "NUM_IMAGES", str(options.images),
                             "DEVICE", options.device, "TOGETHER", together,
                             "OUTPUT_DIR", str(folder)])
        assert code == cli.OK, errors.getvalue()
        records = [load_record(file) for file in folder.rglob("cells/**/*.json")]
        for record in records:
            found.inside[record.row] += record.seconds
        found.predictions = {str(file.relative_to(folder)): file.read_bytes()
                             for file in folder.rglob("*.npz")}
        sides[together].append(found)

    common.in_turn([lambda: sweep("auto"), lambda: sweep("1")], options.rounds, device, warm=False)
    assert all(found.predictions == sides["1"][0].predictions
               for side in sides.values() for found in side), "the predictions differ"
    one, each = sides["auto"], sides["1"]
    rows = [[name, *(f"{median(values):.1f}" for values in zip(*(
        (found.wall, found.cpu, sum(found.inside.values()), float(found.asked))
        for found in side)))]
            for name, side in (("one pass for all", one), ("a pass for each row", each))]
    gain = common.ratio([found.wall for found in each], [found.wall for found in one])
    spared = common.ratio([found.cpu for found in each], [found.cpu for found in one])
    cells = len(each[0].predictions)
    return [*common.table(["", "wall time, s", "CPU time, s", "in the methods' records, s",
                           "images that a CLIP was asked for"], rows), "",
            f"{gain} times less wall time in one pass, {spared} times less CPU time; {cells} cells "
            f"of {options.images} images, medians of {options.rounds} rounds in turn, building "
            "left out of both. All predictions are the same to the bit.", "",
            _recorded(one, each)]


def _recorded(one: list[Measured], each: list[Measured]) -> str:
    """Whether the seconds in the records of a pass are those of rows that run alone."""
    total = common.ratio([sum(found.inside.values()) for found in one],
                         [sum(found.inside.values()) for found in each])
    by_row = {row: median(together.inside[row] / alone.inside[row]
                          for together, alone in zip(one, each)) for row in each[0].inside}
    least, most = min(by_row, key=by_row.__getitem__), max(by_row, key=by_row.__getitem__)
    return (f"The seconds in the records of one pass are {total} times those of a pass for each "
            f"row, all rows summed; of a single row {by_row[least]:.2f} (`{least}`) to "
            f"{by_row[most]:.2f} (`{most}`) times, medians of the rounds.")


class Measured:
    """Of one sweep."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.inside: dict[str, float] = defaultdict(float)  # seconds in the records, by row
        self.asked = 0
        self.predictions: dict[str, bytes] = {}


@contextlib.contextmanager
def measured() -> Iterator[Measured]:
    """Measures the sweep that runs inside: its wall and CPU time but for those of building, and how
    many images CLIPs are asked for."""
    found = Measured()
    run, build, encode = Sweep.run, Builder._build, open_clip.CLIP.encode_image

    def timed_run(self: Sweep) -> dict[str, str]:
        begin, cpu = perf_counter(), process_time()
        try:
            return run(self)
        finally:
            found.wall += perf_counter() - begin
            found.cpu += process_time() - cpu

    def timed_build(self: Builder, *arguments: object) -> object:
        begin, cpu = perf_counter(), process_time()
        try:
            return build(self, *arguments)  # type: ignore[arg-type]
        finally:
            found.wall -= perf_counter() - begin
            found.cpu -= process_time() - cpu

    def counted(self: open_clip.CLIP, images: torch.Tensor, *rest: object) -> torch.Tensor:
        found.asked += len(images)
        return encode(self, images, *rest)

    Sweep.run, Builder._build = timed_run, timed_build  # type: ignore[method-assign,assignment]
    open_clip.CLIP.encode_image = counted
    try:
        yield found
    finally:
        Sweep.run, Builder._build = run, build  # type: ignore[method-assign]
        open_clip.CLIP.encode_image = encode


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("part", choices=("photos", "heavy", "digits", "clip"))
    parser.add_argument("--cfg", default="cfgs/digits_c/all.yaml")
    parser.add_argument("--data-dir", default="data", help="of photographs: a folder a class")
    parser.add_argument("--weights", default="", help="of heavy: a file; timm's own by default")
    parser.add_argument("--rows", nargs="+", default=[], help="others than those of the part")
    parser.add_argument("--images", type=int, default=32, help="of each corruption")
    return parser.parse_args()


if __name__ == "__main__":
    main()
