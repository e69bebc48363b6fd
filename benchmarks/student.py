"""Two uses of APM's student: as a detector, and several of them as an ensemble.

    python run.py --cfg cfgs/cifar10_jpeg_c/resnet56.yaml DATA_DIR DIR
    python benchmarks/student.py results/resnet56        (of what that run recorded)

Without a folder it runs a few of scikit-learn's digits first.

Detector: AUROC of the student's disagreement with its teacher, its final cosine and its confidence,
beside the teacher's own confidence and entropy, for the teacher's wrong predictions (within each
domain, then the mean) and for corrupted images against the same clean images (if the run has
SEVERITY 0). Nothing is fitted and no threshold chosen. The teacher is run once more, since records
do not have its confidence.

Ensemble: students with different seeds vote; a tie is decided by the summed confidence of the
voters.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import common
import tta_apm
from tta_apm import cli
from tta_apm.bench.batches import to_device
from tta_apm.bench.builder import Builder
from tta_apm.bench.job import find_dataset
from tta_apm.config import load, rows
from tta_apm.data.dataset import Domain
from tta_apm.errors import UserError
from tta_apm.report import phrases
from tta_apm.report.ranking import Ranking, Scored, bootstrap_weights, mean_auroc
from tta_apm.report.statistics import paired_interval
from tta_apm.toolbox.entropy import entropy

BATCH = 100
OF_TEACHER = ("teacher's confidence", "teacher's entropy")
DIGITS = ("--cfg", "cfgs/digits_c/apm.yaml", "SEVERITY", "[0,5]", "SEEDS", "[0,1]")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", help="OUTPUT_DIR of a run, in whose folder you stand")
    parser.add_argument("--row", help="of METHODS, where several have a teacher")
    parser.add_argument("--images", type=int, default=20, help="per domain, without a folder")
    parser.add_argument("--corruptions", nargs="+", default=["fog", "contrast"],
                        help="without a folder")
    parser.add_argument("--append", action="store_true", help="append to RESULTS.md")
    options = parser.parse_args()
    device = torch.device("cpu")  # the teacher answers once, and the student's work is recorded
    if options.folder:
        lines = analyse(Path(options.folder), options.row, device)
    else:
        with tempfile.TemporaryDirectory() as folder:
            code = cli.main([*DIGITS, "NUM_IMAGES", str(options.images), "CORRUPTIONS",
                             f"[{','.join(options.corruptions)}]", "OUTPUT_DIR", folder])
            if code:
                raise SystemExit(code)
            lines = analyse(Path(folder), options.row, device)
    common.publish("Two uses of APM's student", lines, device, options.append)


def analyse(folder: Path, text: str | None, device: torch.device) -> list[str]:
    """The lines of both tables, for a results folder and one of its rows with a teacher."""
    results = tta_apm.load_results(folder)
    images = results.images
    if "teacher_prediction" not in images:
        raise UserError(f"{folder}: no row has a teacher")
    texts = images.loc[images.teacher_prediction.notna(), "row"].unique().tolist()
    if text is None and len(texts) > 1:
        raise UserError(f"{folder}: several rows have a teacher, {', '.join(texts)}: choose one "
                        "with --row")
    text = text or texts[0]
    if text not in texts:
        raise UserError(f"{folder}: --row {text}: rows with a teacher are {', '.join(texts)}")
    images = with_teacher(images[images.row == text], folder, text, device)
    seconds = results.cells.loc[results.cells.row == text]
    per_image = float(seconds.seconds.sum() / seconds.num_images.sum())
    domains = images.loc[images.severity > 0, ["corruption", "severity"]].drop_duplicates()
    first = images.iloc[0]
    counted = images.groupby(["corruption", "severity", "seed"]).size()
    told = (f"{text}, {first.dataset}: {len(domains)} corrupted domains, seeds "
            f"{' '.join(map(str, sorted(images.seed.unique())))}, {counted.max()} images of each.")
    return [told, "", *detector_lines(images), "", *ensemble_lines(images, per_image)]


def with_teacher(images: pd.DataFrame, folder: Path, text: str, device: torch.device
                 ) -> pd.DataFrame:
    """The images with `teacher_confidence` and `teacher_entropy`, the teacher asked once more."""
    cfg = load(folder / "config.yaml")
    row = next((row for row in rows(cfg) if row.text == text), None)
    dataset, error = find_dataset(cfg)
    if row is None or dataset is None:
        raise error or UserError(f"{folder}: its config.yaml has no row {text!r}")
    teacher = Builder(cfg, dataset, device).backbone(row.needs)
    parts = []
    for (corruption, severity), domain in images.groupby(["corruption", "severity"], sort=False):
        indices = np.unique(domain["index"])
        logits = []
        for start in range(0, len(indices), BATCH):
            pixels = dataset.images(Domain(domain.dataset.iloc[0], str(corruption), int(severity)),
                                    indices[start:start + BATCH])
            with torch.no_grad():
                logits.append(teacher(to_device(pixels, device)).double().cpu())
        answer = torch.cat(logits)
        position = np.searchsorted(indices, domain["index"])
        changed = (answer.argmax(-1).numpy()[position] != domain.teacher_prediction).mean()
        if changed > 0.001:  # single precision depends on the batch
            raise UserError(f"{folder}: {changed:.1%} of the teacher's recorded answers under "
                            f"{corruption} are not its answers now: other weights or images")
        parts.append(domain.assign(
            teacher_confidence=answer.softmax(-1).max(-1).values.numpy()[position],
            teacher_entropy=entropy(answer).numpy()[position]))
    return pd.concat(parts, ignore_index=True)


Score = Callable[[pd.DataFrame], np.ndarray]
# The higher, the more likely wrong or corrupted.
SCORES: dict[str, Score] = {
    OF_TEACHER[0]: lambda images: -images.teacher_confidence.to_numpy(),
    OF_TEACHER[1]: lambda images: images.teacher_entropy.to_numpy(),
    "student disagrees": lambda images: (
        images.prediction != images.teacher_prediction).to_numpy(float),
    "final cosine": lambda images: -images.cosine.to_numpy(float),
    "student's confidence": lambda images: -images.confidence.to_numpy(float),
}
OF_ALL = {"share of students that disagree": "student disagrees",
          "mean final cosine": "final cosine", "mean confidence": "student's confidence"}


def detector_lines(images: pd.DataFrame) -> list[str]:
    """A table: a line for each score, AUROC of both tasks with interval, less the teacher's."""
    numbers = {index: number for number, index in enumerate(np.unique(images["index"]))}
    images = images.assign(image=images["index"].map(numbers),
                           teacher_wrong=images.teacher_prediction != images.label)
    weights = bootstrap_weights(len(numbers))
    scores = {name: images.assign(score=score(images)) for name, score in SCORES.items()}
    if images.seed.nunique() > 1:
        for name, of_one in OF_ALL.items():
            scores[name] = _mean_over_seeds(scores[of_one])
    columns = [_ranked(scores, wrong_cells, weights)]
    heads = ["teacher's wrong answers", "less its confidence's"]
    if (images.severity == 0).any():
        columns.append(_ranked(scores, corrupted_cells, weights))
        heads += ["corrupted images", "less its confidence's"]
    lines = []
    for name in scores:
        line = [name]
        for column in columns:
            ranking = column[name]
            line += [_auroc(ranking, ".3f"),
                     "" if name == OF_TEACHER[0]
                     else _auroc(ranking.less(column[OF_TEACHER[0]]), "+.3f")]
        lines.append(line)
    return common.table(["AUROC [95 % interval]", *heads], lines)


def _mean_over_seeds(images: pd.DataFrame) -> pd.DataFrame:
    """One line for each image of a domain, with the mean of its scores."""
    groups = images.groupby(["corruption", "severity", "index"], as_index=False)
    return groups.agg({"score": "mean", "image": "first", "teacher_wrong": "first"}).assign(seed=-1)


def _ranked(scores: dict[str, pd.DataFrame],
            cells: Callable[[pd.DataFrame], Iterable[Scored]], weights: np.ndarray
            ) -> dict[str, Ranking]:
    return {name: mean_auroc(list(cells(images)), weights) for name, images in scores.items()}


def wrong_cells(images: pd.DataFrame) -> Iterable[Scored]:
    """Of each corrupted domain and seed: the teacher's wrong answers are positive."""
    corrupted = images[images.severity > 0]
    for _, cell in corrupted.groupby(["corruption", "severity", "seed"]):
        yield Scored(cell.image.to_numpy(), cell.score.to_numpy(), cell.teacher_wrong.to_numpy())


def corrupted_cells(images: pd.DataFrame) -> Iterable[Scored]:
    """Of each corrupted domain and seed, beside the clean images of that seed."""
    for seed, of_seed in images.groupby("seed"):
        clean = of_seed[of_seed.severity == 0]
        corrupted = of_seed[of_seed.severity > 0]
        for _, cell in corrupted.groupby(["corruption", "severity"]):
            image, score = (np.concatenate([clean[name], cell[name]])
                            for name in ("image", "score"))
            yield Scored(image, score, np.repeat([False, True], [len(clean), len(cell)]))


def _auroc(ranking: Ranking, form: str) -> str:
    low, high = ranking.interval()
    return f"{ranking.value:{form}} [{low:{form}}, {high:{form}}]"


def ensemble_lines(images: pd.DataFrame, seconds: float) -> list[str]:
    """A table over the corrupted domains: the teacher, one student, the vote of all.

    Args:
        seconds: that one student takes per image.
    """
    corrupted = images[images.severity > 0].sort_values(["corruption", "severity", "index", "seed"])
    count = corrupted.seed.nunique()
    if count < 2:
        return ["One seed: no ensemble."]
    domains = len(corrupted[["corruption", "severity"]].drop_duplicates())
    shape = (domains, -1, count)
    prediction, confidence, label, told = (
        corrupted[name].to_numpy().reshape(shape)
        for name in ("prediction", "confidence", "label", "teacher_prediction"))
    label, told = label[..., 0], told[..., 0]
    voted = vote(prediction, confidence)
    right = {"teacher": (told == label).astype(float),
             "one student (mean of all)": (prediction == label[..., None]).mean(-1),
             f"vote of {count} students": (voted == label).astype(float)}
    agreement = [1.0, float((prediction == told[..., None]).mean()), float((voted == told).mean())]
    lines = []
    for number, (name, values) in enumerate(right.items()):
        lines.append([name, phrases.percent(1 - float(values.mean())),
                      phrases.percent(agreement[number]),
                      _less(values, right["teacher"]) if number else "",
                      _less(values, right["one student (mean of all)"]) if number == 2 else "",
                      f"{1000 * seconds * (0, 1, count)[number]:.1f}" if number else ""])
    return common.table(["", "error %", "agrees with the teacher %", "less the teacher's",
                         "less one student's", "ms/image"], lines)


def vote(prediction: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """The class that most of S voters choose, int [...,S] -> [...]; ties by summed confidence."""
    classes = int(prediction.max()) + 1
    chosen = prediction[..., None] == np.arange(classes)
    # A sum of confidences over S + 1 stays below one vote.
    sure = np.where(chosen, confidence[..., None], 0).sum(-2) / (prediction.shape[-1] + 1)
    winner: np.ndarray = (chosen.sum(-2) + sure).argmax(-1)
    return winner


def _less(right: np.ndarray, other: np.ndarray) -> str:
    """The difference in error in points with its interval over images; arguments [domains,N]."""
    better = (right - other).mean(0)
    low, high = paired_interval(better)
    return f"{-100 * better.mean():+.2f} [{-100 * high:+.2f}, {-100 * low:+.2f}]"


if __name__ == "__main__":
    main()
