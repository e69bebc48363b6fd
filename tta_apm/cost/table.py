"""Cost tables: what methods cost, and the costs that the paper prints. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tta_apm.report import phrases
from tta_apm.report.formats.markdown import escape, pipe_table
from tta_apm.report.table import TableLine

if TYPE_CHECKING:
    from tta_apm.cost.methods import MethodCost

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


@dataclass(frozen=True)
class PaperLine:
    """A line of the paper's Table 4 beside our counts; NaN where there is none.

    Args:
        model: as the paper names it.
        passes: what is counted.
        printed_gflops: as the paper prints them.
        macs: multiply-adds of the forward passes, the paper's convention.
        flops: of all of it: two per multiply-add, forward and backward.
        printed_parameters: in millions.
        parameters: counted.
        printed_gb: of memory.
    """

    model: str
    passes: str
    printed_gflops: float
    macs: float
    flops: float
    printed_parameters: float
    parameters: float
    printed_gb: float


def method_table(costs: Sequence[MethodCost]) -> str:
    """Markdown of what methods cost."""
    rows = [[escape(cost.method), escape(cost.backbone),
             *_millions(cost.backbone_parameters, cost.adapted_parameters),
             "" if cost.steps is None else str(cost.steps),
             *_giga(cost.step_forward, cost.step_backward, cost.forward, cost.backward,
                    cost.forward + cost.backward),
             f"{cost.peak_memory_mb:.0f}", f"{1000 * cost.seconds:.3g}", str(cost.num_images),
             f"{100 * cost.share_updated:.0f} %", f"{cost.forwards_per_image:.4g}",
             f"{cost.backwards_per_image:.4g}"] for cost in costs]
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


def table_4(lines: Sequence[PaperLine]) -> str:
    """Markdown of the paper's Table 4 beside our counts; empty where there is none."""
    rows = [[line.model, line.passes, _number(line.printed_gflops),
             *_giga(line.macs, line.flops), _number(line.printed_parameters),
             *_millions(line.parameters), _number(line.printed_gb)]
            for line in lines]
    return pipe_table(TABLE_4_HEAD, rows, text=2)


def _giga(*values: float) -> list[str]:
    return ["" if math.isnan(value) else f"{value / 1e9:.4g}" for value in values]


def _millions(*values: float) -> list[str]:
    return ["" if math.isnan(value) else f"{value / 1e6:.4g}" for value in values]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:g}"
