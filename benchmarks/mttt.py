"""MTTT's layers against linear attention, the authors' arrangement and a loop over tokens.

    python benchmarks/mttt.py                                             (a layer of ViT-S/16)
    python benchmarks/mttt.py --width 192 --heads 3 --tokens 1024         (of ViT-Ti, 32×32 pixels)

One layer in float32 on random tokens, T = 1 on the full batch. "Authors' arrangement" was written
for this benchmark after their JAX code: every head reconstructs its tokens at the full width, the
inner gradient comes from automatic differentiation, and the inner loss is computed once more at the
end, for their log. "Loop" processes one image, head and token after the other. All have the same
output up to rounding, which is checked; MTTT-Linear also equals linear attention with its weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import common
from tta_apm.backbones.attentions import IdentityAttention, LinearAttention, SelfAttention
from tta_apm.backbones.mttt_layers import EPSILON, InnerLoop, InnerLoopLayer, MtttLinear, MtttMlp
from tta_apm.bench.measure import count_gflops

Layer = Callable[[Tensor], Tensor]
INNER = InnerLoop()


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    torch.manual_seed(0)
    tokens = torch.randn(options.images, options.tokens, options.width, device=device)
    size = options.width, options.heads
    linear, mlp = MtttLinear(*size).to(device), MtttMlp(*size).to(device)
    compared: dict[str, Layer] = {
        "linear attention": partial(as_attention(linear), inner=INNER),
        "MTTT-Linear": partial(linear, inner=INNER),
        "MTTT-Linear, authors' arrangement": partial(as_published, linear),
        "MTTT-MLP": partial(mlp, inner=INNER),
        "MTTT-MLP, authors' arrangement": partial(as_published, mlp),
        "linear attention, elu + 1": partial(LinearAttention(*size).to(device), inner=INNER),
        "self-attention": partial(SelfAttention(*size).to(device), inner=INNER)}
    loops: dict[str, Layer] = {"MTTT-Linear": partial(token_loop, linear),
                               "MTTT-MLP": partial(token_loop, mlp)}
    names = list(compared)
    for one, other in ((0, 1), (1, 2), (3, 4)):
        check(compared[names[one]], compared[names[other]], tokens, f"{names[one]}, {names[other]}")
    for name, loop in loops.items():
        check(compared[name], loop, tokens[:1], f"{name} and its loop")

    forward, training = (
        common.in_turn([partial(go, run, tokens) for run in compared.values()], options.rounds,
                       device, clock=time.process_time)
        for go in (without_gradient, with_gradient))
    flops = [count_gflops(partial(without_gradient, run, tokens)) or math.nan
             for run in compared.values()]
    rows = [[name, f"{1e3 * done / options.images:.1f}", f"{done / flops[0]:.2f}",
             *(text for times in (forward, training)
               for text in (f"{1e3 * median(times[index]) / options.images:.3g}",
                            common.ratio(times[index], times[0])))]
            for index, (name, done) in enumerate(zip(names, flops))]
    lines = common.table(["layer", "MFLOPs", "ratio", "forward, ms", "ratio",
                          "forward and backward, ms", "ratio"], rows)
    lines += ["", *loop_lines(loops, compared, tokens, options.rounds, device), "",
              f"{options.images} images of {options.tokens} tokens, width {options.width}, "
              f"{options.heads} heads. For each image; MFLOPs of the forward's products, a "
              "multiply-add is two; ratios are to linear attention, whose output MTTT-Linear "
              f"gives. Median of {options.rounds} rounds in turn, range in brackets; CPU time if "
              "there is no GPU."]
    common.publish("MTTT's layers", lines, device, options.append)


def as_attention(layer: MtttLinear) -> IdentityAttention:
    """The linear attention that MTTT-Linear is equal to."""
    attention = IdentityAttention(layer.h.in_features, layer.heads).to(layer.g.device)
    values = layer.g.detach().flatten(0, 1)
    for part, same in ((attention.query, layer.psi), (attention.key, layer.phi),
                       (attention.out, layer.h)):
        part.load_state_dict(same.state_dict())
    attention.value.load_state_dict({"weight": values, "bias": -values @ layer.g_bias.detach()})
    return attention


def network(layer: InnerLoopLayer, weights: list[Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the inner network f: [n,d] -> [n,d] for one head, [B,H,n,d] for all heads."""
    return layer.run(tuple(weights), inputs)


def decode(layer: InnerLoopLayer, output: Tensor, head: int | slice) -> Tensor:
    """Decode outputs of f to the full width, [...,d] -> [...,D], for one head or all heads."""
    decoded = output @ layer.g[head] + layer.g_bias
    if isinstance(layer, MtttMlp):
        normal = F.layer_norm(decoded, decoded.shape[-1:], eps=EPSILON)
        decoded = normal * layer.gain[head] + layer.shift[head]
    return decoded


def as_published(layer: InnerLoopLayer, tokens: Tensor) -> Tensor:
    """The forward in the authors' arrangement, as a batch over images and heads."""
    training = torch.is_grad_enabled()

    def split(values: Tensor) -> Tensor:
        return values.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    inputs = split(layer.phi(tokens))

    def inner_loss(weights: list[Tensor]) -> Tensor:
        error = decode(layer, network(layer, weights, inputs), slice(None)) - tokens[:, None]
        return layer.heads / 2 * error.square().mean((2, 3))
    with torch.enable_grad():
        start = [value.expand(len(tokens), *value.shape) for value in layer.start()]
        if not (training and start[0].requires_grad):
            start = [value.detach().requires_grad_() for value in start]
        gradients = torch.autograd.grad(inner_loss(start).sum(), start, create_graph=training)
    weights = [value - INNER.lr * gradient for value, gradient in zip(start, gradients)]
    inner_loss(weights)
    output = network(layer, weights, split(layer.psi(tokens)))
    return layer.h(output.transpose(1, 2).flatten(2))


def token_loop(layer: InnerLoopLayer, tokens: Tensor) -> Tensor:
    """The forward by a loop over images, heads and tokens."""
    outputs = []
    for sequence in tokens:
        inputs, asked = (part(sequence).unflatten(-1, (layer.heads, -1))
                         for part in (layer.phi, layer.psi))
        heads = []
        for head in range(layer.heads):
            weights = [value[head].detach().requires_grad_() for value in layer.start()]
            with torch.enable_grad():
                loss = sequence.new_zeros(())
                for token, of_token in zip(sequence, inputs[:, head]):
                    output = network(layer, weights, of_token[None])
                    error = decode(layer, output, head) - token
                    loss = loss + layer.heads / 2 * error.square().mean() / len(sequence)
            gradients = torch.autograd.grad(loss, weights)
            learnt = [(value - INNER.lr * gradient).detach()
                      for value, gradient in zip(weights, gradients)]
            heads.append(torch.cat([network(layer, learnt, of_token[None])
                                    for of_token in asked[:, head]]))
        outputs.append(layer.h(torch.cat(heads, -1)))
    return torch.stack(outputs)


def loop_lines(loops: dict[str, Layer], compared: dict[str, Layer], tokens: Tensor, rounds: int,
               device: torch.device) -> list[str]:
    """The table of the loops, on one image."""
    rows = []
    for name, loop in loops.items():
        sides = [partial(without_gradient, run, tokens[:1]) for run in (compared[name], loop)]
        ours, theirs = common.in_turn(sides, rounds, device, clock=time.process_time)
        rows.append([name, f"{1e3 * median(ours):.3g}", f"{1e3 * median(theirs):.4g}",
                     common.ratio(theirs, ours)])
    return common.table(["one image", "as one program, ms", "loop, ms", "loop / one program"], rows)


@torch.no_grad()
def without_gradient(run: Layer, tokens: Tensor) -> Tensor:
    return run(tokens)


def with_gradient(run: Layer, tokens: Tensor) -> None:
    run(tokens).square().mean().backward()


def check(one: Layer, other: Layer, tokens: Tensor, what: str) -> None:
    """Exit with an error unless both layers have the same output up to rounding."""
    first, second = without_gradient(one, tokens), without_gradient(other, tokens)
    difference = float((first - second).abs().max() / second.abs().max())
    if not difference < 1e-4:
        raise SystemExit(f"{what} differ by {difference:.1e}")


def _options() -> argparse.Namespace:
    parser = common.parser(__doc__)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--images", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
