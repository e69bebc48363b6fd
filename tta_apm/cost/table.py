"""Cost tables: the costs of methods, and Table 4 of the paper. Imports no torch."""

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
GFLOPs count two per multiply-add of products (linear, convolution, attention), forward and
backward. "per step" is one more update of an image. Updated: the share of images that an update was
made on. Forwards and backwards: passes through the backbone or a copy of it, per image; each view
counts. One-time setup (text features, warm-up) is left out. Peak memory is the allocated memory of
a GPU, or that of the whole process on a CPU.
Weights and images are random. Two figures depend on that: APM on a CPU skips products of wide
layers that do not change its result, and they are not counted; and methods that select images or
views by certainty select other ones here (their GFLOPs are those of the first two images). What
they did on real images is in the records of a run: it is shown below if OUTPUT_DIR has any, and in
its table.csv."""

TABLE_4_CONVENTIONS = """\
Table 4 of the paper (20 iterations) counts forward passes only, one per multiply-add, and 512 of
the 1,024 columns. "same convention" is our count of the named passes in that way; "all of it" is
two per multiply-add, forward and backward. Where a printed figure and our count of the same passes
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
    """A line of the paper's Table 4 and our counts; NaN for a figure that does not exist.

    Args:
        model: as the paper names it.
        passes: the passes that are counted.
        printed_gflops: as printed.
        macs: our count in the paper's convention, the multiply-adds of the forward passes.
        flops: our count of two per multiply-add, forward and backward.
        printed_parameters: as printed, in millions.
        parameters: our count.
        printed_gb: the memory, as printed.
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
    """A Markdown table of the costs of methods."""
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
    """A Markdown table of what rows did on real images; "" if no record has the counts."""
    rows = []
    for line in lines:
        cost = line.cost
        if not math.isnan(cost.forwards_per_image):
            rows.append([escape(line.heading), f"{100 * cost.share_updated:.0f} %", *(
                f"{value:.4g}" for value in (cost.forwards_per_image, cost.backwards_per_image,
                                             cost.resets)), *phrases.cost(cost)])
    return pipe_table(RECORDED_HEAD, rows, text=1) if rows else ""


def table_4(lines: Sequence[PaperLine]) -> str:
    """The paper's Table 4 and our counts as a Markdown table."""
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
