"""APM: images per second of the method, of a plain loop, and of a loop built like the authors'.

    python benchmarks/apm.py --preset slim --images 2 --steps 20 --authors-steps 1

All sides fit the same student to the same images with the same steps of Adam, in turn, in one
process, with and without the teacher. The lower bound is the time of the arithmetic alone, at the
rate of a matrix product that is measured here, plus the time to read and write the weights. On a
CPU in float32 the method also runs with SPARSE false, which shows what its sparse path saves. See
plain_loop and authors_like for the other sides.
"""

from __future__ import annotations

import argparse
import math
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from tta_apm.apm.method import PRESETS, Apm
from tta_apm.apm.student import Student, sample_weights
from tta_apm.backbones.build import untrained
from tta_apm.backbones.clip import ClipBackbone
from tta_apm.bench.measure import count_gflops
from tta_apm.toolbox.episodes import stack

COPIES, CHUNK = 8, 16  # of the authors' loop: of the image, and columns at a time


class FixedTeacher(nn.Module):
    """A teacher that returns precomputed features, to time the method without its teacher."""

    def __init__(self, features: Tensor, text_features: Tensor) -> None:
        super().__init__()
        self.features = features
        self.text_features = text_features
        self.mean = features.new_zeros(1, 3, 1, 1)  # tells device and type

    def encode_image(self, images: Tensor) -> Tensor:
        return self.features[:len(images)]

    def classify(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) @ self.text_features.T


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    torch.manual_seed(0)
    grid = math.isqrt(options.columns)
    size = 14 * grid
    images = torch.rand(options.images, 3, size, size, device=device)
    names = [f"class {number}" for number in range(options.classes)]
    clip = untrained("clip", options.teacher, class_names=names, device=device)
    assert isinstance(clip, ClipBackbone)
    fixed = FixedTeacher(clip.encode_image(images), clip.text_features)
    keywords: dict[str, Any] = dict(preset=options.preset, image_size=size, steps=options.steps)
    teachers: list[tuple[Any, str]] = [(fixed, options.precision), (fixed, "float32"),
                                       (clip, options.precision)]
    alone, full, asking = (Apm(teacher, precision=precision, **keywords)
                           for teacher, precision in teachers)
    whole = Apm(teachers[0][0], precision=options.precision, sparse=False, **keywords)
    student = new_student(options.preset, grid, fixed.features.shape[1]).to(device)
    start = {name: value.clone() for name, value in student.state_dict().items()}

    def loop(teacher: FixedTeacher | ClipBackbone) -> Tensor:
        return plain_loop(student, start, teacher, alone, images)

    # name, side, image-steps that it makes, whether the teacher is asked
    sides = [("method", lambda: alone(images), options.images * options.steps, False),
             ("method, float32", lambda: full(images), options.images * options.steps, False),
             ("method", lambda: asking(images), options.images * options.steps, True),
             ("one-image loop", lambda: loop(fixed), options.images * options.steps, False),
             ("one-image loop", lambda: loop(clip), options.images * options.steps, True)]
    if alone.precision == "float32":
        del sides[1]
    if alone.student.sparse:
        sides.insert(1, ("method, SPARSE false", lambda: whole(images),
                         options.images * options.steps, False))
    if options.authors_steps:
        authors = new_student(options.preset, grid, fixed.features.shape[1], rgb=True).to(device)
        sides.append(("like the authors'", lambda: authors_like(
            authors, clip, images[0], options.authors_steps), options.authors_steps, True))
    seconds = common.in_turn([side[1] for side in sides], options.rounds, device,
                             warm=options.warm)
    per_step = [[value / side[2] for value in times] for side, times in zip(sides, seconds)]
    base = {asked: next(times for side, times in zip(sides, per_step) if side[3] == asked)
            for asked in (False, True)}
    rows = [[name, "yes" if teacher else "no", f"{1000 * median(times):.1f}",
             f"{1 / median(times) / options.steps:.3f}", common.ratio(times, base[teacher])]
            for (name, _, _, teacher), times in zip(sides, per_step)]
    lines = common.table(["side", "teacher", "ms/step and image",
                          f"images/s at {options.steps} steps", "time over the method's"], rows)
    but = (", but for the authors' arrangement, which makes them at each step; it was timed for "
           f"{options.authors_steps} steps of one image") if options.authors_steps else ""
    lines += ["", f"The method's products in {alone.precision}. Median of {options.rounds} rounds "
              "in turn, range in brackets. Text features are made once per class list and left "
              f"out{but}.", ""]
    lines += floor(alone, images, median(per_step[0]), options.steps)
    if alone.student.sparse:
        gflops = [count_gflops(lambda: method(images[:1])) or math.nan for method in (alone, whole)]
        lines += [f"Of a step's {gflops[1] / options.steps:.1f} GFLOP the sparse path leaves out "
                  f"{1 - gflops[0] / gflops[1]:.0%}.", ""]
    cosine = F.cosine_similarity(features_of(alone, images), loop(fixed)).min().item()
    lines.append(f"Least cosine of the method's and the loop's features: {cosine:.7f}.")
    weights = sum(value.numel() for value in alone.student.initial.values())
    common.publish(f"APM {options.preset}: {weights / 1e6:.1f} M weights, {grid**2} columns, "
                   f"D = {fixed.features.shape[1]}, {options.images} images", lines, device,
                   options.append)


def new_student(preset: str, grid: int, feature_dim: int, rgb: bool = False) -> Student:
    hidden, pooling = PRESETS[preset]
    return sample_weights(Student(
        grid=grid, patch=14, kernels=1, code=1024, hidden=hidden, feature_dim=feature_dim,
        pooling=pooling, rgb=rgb), 42)


@torch.no_grad()
def features_of(method: Apm, images: Tensor) -> Tensor:
    """The students' features after the fit."""
    with common.classified_by(method.backbone) as features:
        method(images)
    return features[-1]


def plain_loop(student: Student, start: dict[str, Tensor], teacher: FixedTeacher | ClipBackbone,
               method: Apm, images: Tensor) -> Tensor:
    """A plain implementation: one Student and one Adam per image, one image after the other, eager,
    in float32, every column through the whole MLP; the teacher once per image."""
    features = []
    for index, image in enumerate((images - method.mean) / method.std):
        with torch.no_grad():
            target = (teacher.features[index] if isinstance(teacher, FixedTeacher)
                      else teacher.encode_image(images[index:index + 1])[0])
        student.load_state_dict(start)
        optimizer = torch.optim.Adam(student.parameters(), lr=method.lr)
        for _ in range(method.steps):
            optimizer.zero_grad()
            F.mse_loss(student(image), target).backward()
            optimizer.step()
        with torch.no_grad():
            features.append(student(image))
    return torch.stack(features)


def authors_like(student: Student, clip: ClipBackbone, image: Tensor, steps: int) -> None:
    """The arrangement of the authors' public loop, for one image.

    Eight copies of the image; their columns pass the net sixteen at a time, each with its colour,
    and are joined one after the other; both towers of the teacher run at every step. Under autocast
    with a gradient scaler on a GPU, as there.
    """
    on_gpu = image.device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=on_gpu)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-4)
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.01)
    copies = image.expand(COPIES, -1, -1, -1)
    for _ in range(steps):
        with torch.autocast(image.device.type, torch.float16 if on_gpu else torch.bfloat16,
                            enabled=on_gpu):
            with torch.no_grad():
                target = clip.encode_image(image[None]).expand(COPIES, -1)
                prompts = clip.tokenizer([f"a photo of a {name}" for name in clip.class_names])
                text = clip.model.encode_text(prompts.to(image.device))
            inputs = student.unfold(copies).flatten(0, 1)
            features = colours = inputs[:0, :0]
            for chunk in inputs.split(CHUNK):
                feature = student.columns(chunk)
                colour = student.colours(chunk, feature)
                first = not len(features)
                features = feature if first else torch.cat([features, feature])
                colours = colour if first else torch.cat([colours, colour])
            pooled = student.pool(features.unflatten(0, (COPIES, -1)))
            loss = F.mse_loss(pooled, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        (F.normalize(pooled[:1].detach().float(), dim=-1) @ F.normalize(text.float(), dim=-1).T)


def floor(method: Apm, images: Tensor, per_step: float, steps: int) -> list[str]:
    """Lower bounds of the seconds of a step by arithmetic and by memory, and the copies' share."""
    device = images.device
    kind = torch.bfloat16 if method.precision == "bfloat16" else torch.float32
    gflops = count_gflops(lambda: method(images[:1]))
    weights = sum(value.numel() for value in method.student.initial.values())
    # Read by the forward and the backward pass, the gradient written and read, and Adam reads and
    # writes the weight and two moments in float32.
    bytes_moved = weights * (4 * 6 + 4 * torch.finfo(kind).bits // 8)
    rate, bandwidth = matrix_rate(device, kind), memory_rate(device)
    arithmetic = (gflops or math.nan) * 1e9 / rate / steps
    memory = bytes_moved / bandwidth
    stacking = min(common.in_turn([lambda: stack(method.student.initial, len(images))], 3,
                                  device)[0]) / len(images)
    share = (arithmetic + memory) / per_step
    return [f"Floor per step and image: {1000 * arithmetic:.2f} ms of arithmetic "
            f"({(gflops or math.nan) / steps:.1f} GFLOP at {rate / 1e12:.3g} TFLOP/s) and "
            f"{1000 * memory:.2f} ms of memory ({bytes_moved / 1e9:.2f} GB at "
            f"{bandwidth / 1e9:.0f} GB/s): {1000 * (arithmetic + memory):.2f} ms, "
            f"{share:.0%} of the time taken. Copying the shared draw for each image takes "
            f"{stacking / (per_step * steps):.1%} of an image's time: a first step without copies "
            "could save no more than that.", ""]


def matrix_rate(device: torch.device, kind: torch.dtype) -> float:
    """Operations per second of a product as large as the student's largest."""
    batch = 32 if device.type == "cuda" else 1
    left = torch.randn(batch, 1024, 4096, device=device, dtype=kind)
    right = torch.randn(batch, 4096, 2048, device=device, dtype=kind)
    times = common.in_turn([lambda: left @ right], 10, device)[0]
    return 2 * batch * 1024 * 4096 * 2048 / min(times)


def memory_rate(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy that does not fit into the caches."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    times = common.in_turn([lambda: target.copy_(source)], 10, device)[0]
    return 2 * source.nbytes / min(times)


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="slim")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--teacher", default="ViT-L-14", help="of open_clip; random weights")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--columns", type=int, default=1024,
                        help="a square number: the image is 14 times its root wide")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--authors-steps", type=int, default=1, metavar="N",
                        help="steps of the authors' arrangement to time, 0 leaves it out")
    parser.add_argument("--no-warm-up", dest="warm", action="store_false",
                        help="no run of each side before the first round")
    return parser.parse_args()


if __name__ == "__main__":
    main()
