"""Phrases: texts that all formats of a table share. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.report.protocol import Protocol
from tta_apm.report.table import Cost, Figure, Table, TableLine, in_usual_order

MISSING = "–"
CROWDED = "~"  # before a time that was measured while other processes used the device
OFFLINE = "(offline)"  # after the name of an offline row


# The table

def title(table: Table) -> str:
    if table.severities == (0,):
        return f"{table.dataset}, clean"
    if len(table.severities) > 1:
        return f"{table.dataset}, mean over severities {' '.join(map(str, table.severities))}"
    return f"{table.dataset}, severity {severity(table)}"


def severity(table: Table) -> str:
    """E.g. "5" or "mean of 1 5"; "0" if all images are clean."""
    text = " ".join(map(str, table.severities))
    return f"mean of {text}" if len(table.severities) > 1 else text


def measure(table: Table) -> str:
    direction = "higher" if table.metric == "accuracy" else "lower"
    return f"top-1 {table.metric} in %, {direction} is better"


def good_sign(table: Table) -> str:
    """The sign of a difference that means better."""
    return ">0 better" if table.metric == "accuracy" else "<0 better"


def introduction(table: Table) -> str:
    """The text above a table: its metric, backbones, images and devices."""
    texts = [f"{measure(table).capitalize()}, the best in bold; {MISSING} is a missing cell, and "
             "no average is taken over one."]
    if "mean" in table.shown:
        texts.append(f"The mean is over the {len(table.columns)} corruptions"
                     + (", without clean." if table.clean else "."))
    if any(len(line.seeds) > 1 for line in table.lines):
        texts.append("± is the standard deviation over seeds.")
    backbones = sorted({f"{line.protocol.backbone} ({_made_of(line.protocol)})"
                        for line in table.lines if line.protocol.backbone})
    texts += [f"Backbones: {'; '.join(backbones)}.", *conditions(table)]
    devices = sorted({device for line in table.lines for device in line.origin.device})
    if devices:
        texts.append(f"Devices: {'; '.join(devices)}.")
    return " ".join(texts)


def _made_of(protocol: Protocol) -> str:
    parts = [f"weights {protocol.weights}"]
    if protocol.templates:
        parts.append(f"prompts {protocol.templates}")
    if protocol.preprocessing:
        parts.append(protocol.preprocessing)
    elif protocol.resolution:
        parts.append(f"{protocol.resolution} px")
    return ", ".join(parts)


def conditions(table: Table) -> list[str]:
    """The images of the rows, one sentence for each kind; and the meaning of CROWDED if it occurs.

    Every format prints these, so that no result stands without its images.
    """
    groups: dict[str, list[int]] = {}
    for line in table.lines:
        count = line.protocol.num_images
        text = ", ".join([origins(line.origin.images_from) or "which is not stated",
                          f"{count} per domain" if count else "how many is not stated",
                          corruptions(table.columns), seeds(line.seeds)])
        groups.setdefault(text, []).append(line.number)
    texts = [f"Images{_of_rows(numbers) if len(groups) > 1 else ''}: {text}."
             for text, numbers in groups.items()]
    if any(line.cost.crowded for line in table.lines):
        texts.append(f"{CROWDED} before a time: measured while other processes used the same "
                     "device or cores.")
    return texts


def origins(named: Collection[str]) -> str:
    """The origins of images in one text, without those whose words another one has too.

    On the fly, frost has the origin of the other corruptions with the name of its pictures added,
    and they have that of the clean images with the corruption added.
    """
    parts = {origin: set(origin.split(", ")) for origin in named}
    return "; ".join(origin for origin in parts if not any(
        parts[origin] < words for words in parts.values()))


def _of_rows(numbers: Sequence[int]) -> str:
    return f" of row{plural(numbers)} {', '.join(map(str, numbers))}"


def corruptions(names: Collection[str]) -> str:
    """The names, or "the 15 corruptions" for all of them."""
    if set(names) == set(CORRUPTIONS):
        return f"the {len(CORRUPTIONS)} corruptions"
    return " ".join(in_usual_order(names))


# A row

def seeds(numbers: Sequence[object]) -> str:
    """E.g. "seed 0" or "seeds 0 1"; ? is a seed that is not stated."""
    return f"seed{plural(numbers)} {seed_list(numbers)}"


def seed_list(numbers: Sequence[object]) -> str:
    return " ".join("?" if number is None else str(number) for number in numbers)


def settings(hyper_parameters: Mapping[str, object]) -> list[str]:
    """E.g. "lr 0.1", for each hyper-parameter that is not None."""
    return [f"{name} {value}" for name, value in hyper_parameters.items() if value is not None]


def missing(line: TableLine, table: Table) -> str:
    return (f"Row {line.number}: {line.num_missing} of {len(table.domains) * len(line.seeds)} "
            "cells missing; no average is taken over them.")


def offline(line: TableLine) -> str:
    return (f"Row {line.number}, {line.heading}: it sees all images of a domain, without labels, "
            "before it predicts any. Online rows do not, so it is never marked best.")


def plural(things: Collection[object]) -> str:
    return "s" if len(things) > 1 else ""


# A row and its teacher

def teacher_caption(table: Table) -> str:
    return ("Against its own teacher, on the same images with the same prompts: Δ in points "
            f"({good_sign(table)}) with its 95 % interval, a score interval for paired proportions "
            "(Tango's; images are the sample, docs/intervals.md). Each interval is valid by "
            "itself: there is no correction for their number, and seeds are not resampled.")


def verdicts(table: Table) -> list[str]:
    """One text for each row that has a teacher and all its cells."""
    return [f"Row {line.number}, {line.heading}: {percent(line.mean.value)} % {table.metric}, its "
            f"teacher {percent(line.mean.teacher)} %, Δ {delta(line.mean)}: "
            f"{_verdict(line.mean, table.metric)}. They agree on {percent(line.mean.agreement)} % "
            f"of the images; final cosine {number(line.mean.cosine, '.3f')}."
            f"{_clear_columns(table, line)}"
            for line in table.lines_with_teacher if not math.isnan(line.mean.delta)]


def _verdict(figure: Figure, metric: str) -> str:
    if not figure.is_clear:
        return "the interval includes 0, no difference is shown"
    return (f"{'better' if figure.is_better(metric) else 'worse'} than its teacher, the interval "
            "excludes 0")


def _clear_columns(table: Table, line: TableLine) -> str:
    """The number of columns whose interval excludes 0, as the paper counts its corruptions."""
    if len(table.columns) < 2:
        return ""
    clear = table.clear_columns(line)
    return (f" Its own interval excludes 0 in {clear.better + clear.worse} of the "
            f"{clear.compared} columns: better in {clear.better}, worse in {clear.worse}.")


# Numbers

def value(figure: Figure) -> str:
    """The value in per cent, with its std if there are several seeds."""
    return percent(figure.value) + (
        "" if math.isnan(figure.std) else f" ± {100 * figure.std:.1f}")


def against_teacher(figure: Figure) -> list[str]:
    """The teacher's value, the difference, its interval, agreement in per cent and cosine."""
    return [percent(figure.teacher), points(figure.delta), interval(figure),
            percent(figure.agreement), number(figure.cosine, ".3f")]


def cost(cost: Cost) -> list[str]:
    """Milliseconds and GFLOPs per image, peak memory in MB."""
    seconds, gflops = cost.seconds_per_image, cost.gflops_per_image
    time = number(1000 * seconds, ".3g" if seconds < 1 else ".0f")
    return [f"{CROWDED}{time}" if cost.crowded else time,
            number(gflops, ".3g" if gflops < 1000 else ".0f"), number(cost.peak_memory_mb, ".0f")]


def percent(fraction: float) -> str:
    return number(100 * fraction, ".1f")


def number(value: float, form: str) -> str:
    return MISSING if math.isnan(value) else format(value, form)


def points(fraction: float) -> str:
    """A difference in points with two decimals and its sign; zero has no sign."""
    text = number(100 * fraction, "+.2f")
    return "0.00" if text in ("+0.00", "-0.00") else text


def interval(figure: Figure) -> str:
    return (MISSING if math.isnan(figure.low)
            else f"[{points(figure.low)}, {points(figure.high)}]")


def delta(figure: Figure) -> str:
    """A difference with its interval."""
    return (MISSING if math.isnan(figure.delta)
            else f"{points(figure.delta)} {interval(figure)}")
