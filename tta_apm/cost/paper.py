"""The models of the paper's Table 4 and Figure 2, counted and timed with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import open_clip
import timm
import torch
from torch import Tensor

from tta_apm.apm.fast import FastStudent
from tta_apm.apm.method import PRESETS
from tta_apm.apm.student import Student, sample_weights
from tta_apm.backbones.build import untrained
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.bench import measure
from tta_apm.bench.measure import Flops
from tta_apm.cost.figure2 import PatchCost
from tta_apm.cost.table import PaperLine
from tta_apm.toolbox.episodes import stack

ITERATIONS = 20
COLUMNS = 512  # of 1,024; the paper counts these
FEATURE_DIM = 768  # that of the authors' code, whose student Table 4 counts as 25 M parameters
PATCHES = (1, 2, 4, 7, 16, 32, 64, 128, 256, 512)  # at a time; 7 is the example of the paper
UNKNOWN = math.nan


class Printed(NamedTuple):
    """The printed figures of a row of Table 4."""

    gflops: float = UNKNOWN
    parameters: float = UNKNOWN  # millions
    gb: float = UNKNOWN


class Work(NamedTuple):
    """The cost of passes."""

    macs: float  # multiply-adds of the forward passes
    flops: float  # two per multiply-add, forward and backward


def table_4() -> list[PaperLine]:
    """Table 4: the printed figures and our counts.

    Counted on the meta device, which computes shapes only and takes hardly any time or memory.
    """
    clip, student = _meta_clip(), _meta_student()
    # timm cannot build a Swin on the meta device.
    swin = timm.create_model("swin_base_patch4_window7_224").to("meta")
    image, tokens = torch.empty(1, 3, 224, 224, device="meta"), _meta_tokens()
    of_image = _trained(lambda: clip.encode_image(image).sum())
    of_prompt = _trained(lambda: clip.encode_text(tokens).sum())
    of_clip = Work(*(a + b for a, b in zip(of_image, of_prompt)))
    of_swin = _trained(lambda: swin(image).sum())
    plain, whole = (_plain_step(student, count) for count in (COLUMNS, student.grid**2))
    ours, ours_whole = (_own_step(student, count) for count in (COLUMNS, student.grid**2))
    size, small = _parameters(clip), _parameters(student)
    return [
        _line("CLIP ViT-B/16", f"{ITERATIONS} × (image + one prompt)", ITERATIONS, of_clip,
              Printed(462, 149.2, 2.3), size),
        _line("TPT", f"printed: {ITERATIONS} iterations", 1, None, Printed(529, 151.3, 3.1)),
        _line("TPT", "one step as its authors run it: 64 views + 1,000 prompts", 1, Work(
            64 * of_image.macs + 1000 * of_prompt.macs,
            # The image tower takes no gradient; the prompts' gradient is about a forward pass.
            128 * of_image.macs + 4000 * of_prompt.macs), Printed(), size + 4 * 512),
        _line("Swin-B", f"{ITERATIONS} × image", ITERATIONS, of_swin, Printed(353, 87, 1.5),
              _parameters(swin)),
        _line("APM, teacher", "image + one prompt, once, no gradient", 1,
              Work(of_clip.macs, 2 * of_clip.macs), Printed(20.5), size),
        _line("APM, student, plain net", f"one iteration, {COLUMNS} columns", 1, plain,
              Printed(10), small),
        _line("APM, student, plain net", "one iteration, 1024 columns", 1, whole, Printed()),
        _line("APM, student, as run here", f"one iteration, {COLUMNS} columns", 1, ours, Printed()),
        _line("APM, student, as run here", "one iteration, 1024 columns", 1, ours_whole,
              Printed()),
        _line("APM", f"teacher + {ITERATIONS} iterations, plain net, {COLUMNS} columns", 1,
              Work(of_clip.macs + ITERATIONS * plain.macs,
                   2 * of_clip.macs + ITERATIONS * plain.flops), Printed(241.7, 174.2, 2.7),
              size + small),
        _line("APM", f"teacher + {ITERATIONS} iterations as run here, 1024 columns", 1,
              Work(of_clip.macs + ITERATIONS * ours_whole.macs,
                   2 * of_clip.macs + ITERATIONS * ours_whole.flops), Printed(), size + small),
    ]


def figure_2(device: torch.device) -> list[PatchCost]:
    """Figure 2: the cost of an image for each number of patches processed at a time."""
    clip, student = _random_clip(device), sample_weights(_student(), 42).to(device)
    image = torch.rand(1, 3, 224, 224, device=device)
    tokens = clip.tokenizer(["a photo of a cat."]).to(device)
    large = torch.rand(3, 448, 448, device=device)

    def run_apm(count: int) -> Tensor:
        inputs = student.unfold(large)[:COLUMNS]
        return torch.stack([student.columns(part).sum(0) for part in inputs.split(count)]).sum(0)

    def run_vit() -> tuple[Tensor, Tensor]:
        return clip.encode_image(image), clip.model.encode_text(tokens)

    vit_macs, vit_seconds = _forward(run_vit), _seconds(run_vit, device)
    inputs = student.unfold(large)[:COLUMNS].detach()
    whole = _forward(lambda: student.columns(inputs))
    return [PatchCost(
        patches=count,
        apm_gflops_per_pass=_forward(lambda: student.columns(inputs[:count])) / 1e9,
        apm_gflops_per_image=whole / 1e9,
        apm_seconds=_seconds(lambda: run_apm(count), device),
        vit_gflops=vit_macs / 1e9, vit_seconds=vit_seconds) for count in PATCHES]


def _random_clip(device: torch.device) -> ClipBackbone:
    clip = untrained("clip", "ViT-B-16", class_names=["cat"], device=device)
    assert isinstance(clip, ClipBackbone)
    return clip


def _line(model: str, passes: str, times: int, work: Work | None, printed: Printed,
          parameters: float = UNKNOWN) -> PaperLine:
    macs, flops = (times * value for value in work) if work else (UNKNOWN, UNKNOWN)
    return PaperLine(model, passes, printed.gflops, macs, flops, printed.parameters, parameters,
                     printed.gb)


def _meta_clip() -> open_clip.CLIP:
    with torch.device("meta"):
        return open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))


def _meta_tokens() -> Tensor:
    """The 77 tokens of one prompt."""
    return torch.empty(1, 77, dtype=torch.long, device="meta")


def _meta_student() -> Student:
    with torch.device("meta"):
        return _student()


def _student() -> Student:
    hidden, pooling = PRESETS["slim"]
    return Student(grid=32, patch=14, kernels=1, code=1024, hidden=hidden,
                   feature_dim=FEATURE_DIM, pooling=pooling)


def _plain_step(student: Student, columns: int) -> Work:
    """One iteration of the plain net: every column goes through the whole MLP."""
    side = student.grid * student.patch
    inputs = student.unfold(torch.empty(3, side, side, device="meta"))[:columns].detach()
    return _trained(lambda: student.columns(inputs).sum())


def _own_step(student: Student, columns: int) -> Work:
    """One iteration of FastStudent, which the method runs."""
    fast = FastStudent(student, torch.arange(columns, device="meta"))
    patches = torch.empty(1, student.grid**2, 3 * student.patch**2, device="meta")
    return _trained(lambda: fast.pooled(stack(fast.initial, 1), patches).sum())


def _trained(loss: Callable[[], Tensor]) -> Work:
    """The cost of a forward pass and the gradients of all parameters."""
    flops = measure.count_flops(lambda: loss().backward()) or Flops(UNKNOWN, UNKNOWN)
    return Work(flops.forward / 2, flops.total)


@torch.no_grad()
def _forward(run: Callable[[], object]) -> float:
    """The multiply-adds of `run`."""
    return (measure.count_flops(run) or Flops(UNKNOWN, UNKNOWN)).total / 2


@torch.no_grad()
def _seconds(run: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """The seconds of `run`: the fastest of some rounds, after a warm-up."""
    run()
    times = []
    for _ in range(rounds):
        stopwatch = measure.Stopwatch(device)
        with stopwatch:
            run()
        times.append(stopwatch.seconds)
    return min(times)


def _parameters(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
