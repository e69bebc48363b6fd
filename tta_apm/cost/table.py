"""Cost tables: what methods cost, and the costs that the paper prints. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from tta_apm.report import phrases
from tta_apm.report.formats.markdown import escape, pipe_table
from tta_apm.report.table import TableLine

CONVENTIONS = """\
GFLOPs count two per multiply-add, forward and backward, of products only (linear, convolution,
attention); backward is what gradients cost. "per step" is one more update, for an image.
Peak memory is the GPU's allocated, or on a CPU the whole process's. Weights and images are random:
they change no figure here, but that APM on a CPU does without the products that its weights and
images make needless in wide layers, and is counted without them; and that methods which choose
images or views by certainty do on random ones what the last three columns say, where GFLOPs are of
the first two images alone: what they did on real ones stands in the records of a run, which are
shown below where OUTPUT_DIR has some, and in its table.csv. Updated: the share of
images of which an update was made. Forwards and backwards: images, views one by one, that went
through the backbone or a copy, and that a gradient went back for, per image. What is done once
before all images (text features, warm-up) is left out."""

TABLE_4_CONVENTIONS = """\
Table 4 of the paper (20 iterations) counts forward passes only, one per multiply-add, and 512 of
the 1,024 columns. "same convention" is our count of the passes named, in that way; "all of it" is
two per multiply-add, forward and backward. Where a printed figure and our count of the same thing
differ, the paper does not say what else it counts."""

METHOD_HEAD = ("method", "backbone", "M parameters of backbone", "M parameters adapted", "steps",
               "GFLOPs/step forward", "GFLOPs/step backward", "GFLOPs/image forward",
               "GFLOPs/image backward", "GFLOPs/image", "peak MB", "ms/image", "images at a time",
               "updated", "forwards/image", "backwards/image")
RECORDED_HEAD = ("method", "updated", "forwards/image", "backwards/image", "resets/domain",
                 "ms/image", "GFLOPs/image", "peak MB")
TABLE_4_HEAD = ("model", "passes", "printed GFLOPs", "same convention", "all of it",
                "printed M parameters", "counted M parameters", "printed GB")


def method_table(costs: pd.DataFrame) -> str:
    """Markdown of what methods cost; columns of the frame as bench.method_cost.MethodCost."""
    rows = []
    for line in costs.to_dict("records"):
        total = line["forward"] + line["backward"]
        rows.append([
            escape(line["method"]), escape(line["backbone"]),
            *_millions(line["backbone_parameters"], line["adapted_parameters"]),
            "" if pd.isna(line["steps"]) else str(int(line["steps"])),
            *_giga(line["step_forward"], line["step_backward"], line["forward"], line["backward"],
                   total),
            f"{line['peak_memory_mb']:.0f}", f"{1000 * line['seconds']:.3g}",
            str(line["num_images"]), f"{100 * line['share_updated']:.0f} %",
            *(f"{line[name]:.4g}" for name in ("forwards_per_image", "backwards_per_image"))])
    return pipe_table(METHOD_HEAD, rows, text=2)


def recorded_table(lines: Sequence[TableLine]) -> str:
    """Markdown of what rows did on real images, from their records; empty for none that tells."""
    rows = []
    for line in lines:
        cost = line.cost
        if not math.isnan(cost.forwards_per_image):
            rows.append([escape(line.heading), f"{100 * cost.share_updated:.0f} %", *(
                f"{value:.4g}" for value in (cost.forwards_per_image, cost.backwards_per_image,
                                             cost.resets)), *phrases.cost(cost)])
    return pipe_table(RECORDED_HEAD, rows, text=1) if rows else ""


def table_4(lines: pd.DataFrame) -> str:
    """Markdown of the paper's Table 4 beside our counts; empty where there is none.

    Columns of the frame: model, passes, printed_gflops, macs, flops, printed_parameters (millions),
    parameters, printed_gb.
    """
    rows = [[line["model"], line["passes"], _number(line["printed_gflops"]),
             *_giga(line["macs"], line["flops"]), _number(line["printed_parameters"]),
             *_millions(line["parameters"]), _number(line["printed_gb"])]
            for line in lines.to_dict("records")]
    return pipe_table(TABLE_4_HEAD, rows, text=2)


def _giga(*values: float) -> list[str]:
    return ["" if math.isnan(value) else f"{value / 1e9:.4g}" for value in values]


def _millions(*values: float) -> list[str]:
    return ["" if math.isnan(value) else f"{value / 1e6:.4g}" for value in values]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"
