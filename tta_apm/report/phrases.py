"""What tables say: the texts of a block and of its lines that all formats share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.table import COST, Block, in_usual_order

MISSING = "–"

Line = dict[str, Any]  # of a block's frame


def lines(block: Block) -> list[tuple[int, Line]]:
    """The lines of a block's frame, counted from 1."""
    return list(enumerate(({str(name): value for name, value in line.items()}
                           for line in block.frame.to_dict("records")), 1))


def lines_with_teacher(block: Block) -> list[tuple[int, Line]]:
    """The lines that stand beside a teacher in any column."""
    return [(number, line) for number, line in lines(block)
            if not all(math.isnan(line[f"delta_{name}"]) for name in block.shown)]


def title(block: Block) -> str:
    if block.severity == "0":
        return f"{block.dataset}, clean"
    if block.severity.startswith("mean"):
        return f"{block.dataset}, mean over severities {block.severity.removeprefix('mean of ')}"
    return f"{block.dataset}, severity {block.severity}"


def measure(block: Block) -> str:
    direction = "higher" if block.metric == "accuracy" else "lower"
    return f"top-1 {block.metric} in %, {direction} is better"


def good_sign(block: Block) -> str:
    """Which sign of a difference is to be wished for."""
    return ">0 better" if block.metric == "accuracy" else "<0 better"


def introduction(block: Block) -> str:
    """What is shown, and what the rows were made of."""
    all_lines = [line for _, line in lines(block)]
    texts = [f"{measure(block).capitalize()}, the best in bold; {MISSING} is a missing cell, and "
             "no average is taken over one."]
    if "mean" in block.shown:
        texts.append(f"The mean is over the {len(block.columns)} corruptions"
                     + ", without clean" * block.clean + ".")
    if any(" " in line["seeds"] for line in all_lines):
        texts.append("± is the standard deviation over seeds.")
    backbones = sorted({f"{line['backbone']} ({_made_of(line)})" for line in all_lines
                        if line["backbone"]})
    texts.append(f"Backbones: {'; '.join(backbones)}.")
    texts += conditions(block)
    devices = {value for line in all_lines for value in line["device"].split("; ") if value}
    if devices:
        texts.append(f"Devices: {'; '.join(sorted(devices))}.")
    return " ".join(texts)


def conditions(block: Block) -> list[str]:
    """On what images its rows are, one sentence for each kind: no result goes without."""
    groups: dict[str, list[int]] = {}
    for number, line in lines(block):
        count, seeds = str(line["num_images"]), str(line["seeds"])
        text = ", ".join([line["images_from"] or "nothing tells which",
                          f"{count} per domain" if count else "nothing tells how many",
                          corruptions(block.columns),
                          f"seed{'s' * (' ' in seeds)} {seeds}" if seeds else "no seed told"])
        groups.setdefault(text, []).append(number)
    return [f"Images{of_rows(numbers) if len(groups) > 1 else ''}: {text}."
            for text, numbers in groups.items()]


def of_rows(numbers: Sequence[int]) -> str:
    return f" of row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def corruptions(names: Collection[str]) -> str:
    """Which they are, in short where they are the usual ones."""
    if set(names) == set(CORRUPTIONS):
        return f"the {len(CORRUPTIONS)} corruptions"
    return " ".join(in_usual_order(names))


def _made_of(line: Line) -> str:
    parts = [f"weights {line['weights']}"]
    if line["templates"]:
        parts.append(f"prompts {line['templates']}")
    if line["preprocessing"]:
        parts.append(line["preprocessing"])
    elif line["resolution"]:
        parts.append(f"{line['resolution']} px")
    return ", ".join(parts)


def teacher_caption(block: Block) -> str:
    return ("Against its own teacher, on the same images with the same prompts: Δ in points "
            f"({good_sign(block)}) with its 95 % interval, a score interval for paired proportions "
            "(Tango's; images are the sample, docs/intervals.md). Each interval stands for itself: "
            "there is no correction for their number, and seeds are not resampled.")


def verdicts(block: Block) -> list[str]:
    """One sentence for each row that has a teacher and is whole."""
    return [f"Row {number}, {line['method']}: {percent(line['mean'])} % {block.metric}, its "
            f"teacher {percent(line['teacher_mean'])} %, Δ {delta(line, 'mean')}: "
            f"{_verdict(line, block.metric)}. They agree on {percent(line['agreement'])} % of the "
            f"images; final cosine {number_text(line['cosine'], '.3f')}."
            for number, line in lines_with_teacher(block) if not math.isnan(line["delta_mean"])]


def _verdict(line: Line, metric: str) -> str:
    low, high = line["delta_low_mean"], line["delta_high_mean"]
    if low <= 0 <= high:
        return "the interval holds 0, no difference is shown"
    better = (low > 0) == (metric == "accuracy")
    return f"{'better' if better else 'worse'} than its teacher, the interval excludes 0"


def figure(line: Line, name: str) -> str:
    """A column's value, with its std where there are several seeds."""
    std = line[f"std_{name}"]
    return percent(line[name]) + ("" if math.isnan(std) else f" ± {100 * std:.1f}")


def teacher_figures(line: Line) -> list[str]:
    """The teacher's value, the difference, its interval, agreement in per cent and cosine."""
    return [percent(line["teacher_mean"]), points(line["delta_mean"]), interval(line, "mean"),
            percent(line["agreement"]), number_text(line["cosine"], ".3f")]


def cost(line: Line) -> list[str]:
    """Milliseconds and GFLOPs per image, peak memory in MB."""
    seconds, gflops, megabytes = (line[name] for name in COST)
    return [number_text(1000 * seconds, ".3g" if seconds < 1 else ".0f"),
            number_text(gflops, ".3g" if gflops < 1000 else ".0f"), number_text(megabytes, ".0f")]


def percent(fraction: float) -> str:
    return number_text(100 * fraction, ".1f")


def number_text(value: float, form: str) -> str:
    return MISSING if math.isnan(value) else format(value, form)


def points(fraction: float) -> str:
    """A difference with its sign, to a hundredth of a point; zero has none."""
    text = number_text(100 * fraction, "+.2f")
    return "0.00" if text in ("+0.00", "-0.00") else text


def interval(line: Line, name: str) -> str:
    low, high = line[f"delta_low_{name}"], line[f"delta_high_{name}"]
    return MISSING if math.isnan(low) else f"[{points(low)}, {points(high)}]"


def delta(line: Line, name: str) -> str:
    """A difference with its interval."""
    if math.isnan(line[f"delta_{name}"]):
        return MISSING
    return f"{points(line[f'delta_{name}'])} {interval(line, name)}"
