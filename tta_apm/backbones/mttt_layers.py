"""MTTT's two layers, which mix tokens by an inner loop.

In each head an inner network f learns, from W0 on, to reconstruct the layer's own
tokens; what it has learnt then transforms them (Sun et al. 2023, arXiv 2310.13807, sections 2, 3):

    loss(W) = H/2 · mean over n tokens and D channels of (decoder(f(φ(x); W)) - x)²
    W <- W - η · gradient of loss(W), `steps` passes over the tokens
    output  = sum over the heads of h(f(ψ(x); W))

The gradients are written out below, so that a layer works in any grad mode and the outer gradient
goes through them; the inner networks of all images and heads take their steps as one program.

Shape letters: B images, N tokens, n of them in a mini-batch, D channels, H heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tta_apm.backbones.attentions import join_heads, split_heads
from tta_apm.errors import at_least, multiple_of

EPSILON = 1e-6  # of layer normalisation, as in the authors' flax
# Of GELU in the tanh approximation: x/2 (1 + tanh(RATE (x + CUBIC x³))).
RATE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


class InnerLoop(NamedTuple):
    """How inner networks learn: gradient descent on the tokens of one image.

    Attributes:
        steps: passes over the tokens; 0 leaves the inner networks as they start.
        mini_batches: disjoint random parts of the tokens, with an update after each; 1 is the full
            batch. Each head has parts of its own.
        lr: the paper's η.
        generator: of the parts, on the CPU; None is torch's global one.
    """

    steps: int = 1
    mini_batches: int = 1
    lr: float = 1.0
    generator: torch.Generator | None = None

    def check(self, owner: str, num_tokens: int) -> None:
        """UserError, of `owner`, for values out of range or parts that would be of unequal size."""
        at_least(0, owner, steps=self.steps, lr=self.lr)
        at_least(1, owner, mini_batches=self.mini_batches)
        multiple_of(self.mini_batches, owner, "mini_batches", tokens=num_tokens)

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """What each update learns from: tensors [B,H,N,·] or [B,1,N,·] -> the same of its tokens.

        The same tokens for all images, so that an image's result does not depend on the others.
        """
        heads, num_tokens = tensors[0].shape[1:3]
        each = torch.arange(heads)[:, None]
        for _ in range(self.steps):
            if self.mini_batches == 1:
                yield tensors
                continue
            order = torch.rand(heads, num_tokens, generator=self.generator).argsort(1)
            for chosen in order.chunk(self.mini_batches, 1):
                yield tuple(tensor.expand(-1, heads, -1, -1)[:, each, chosen]
                            for tensor in tensors)


Weights = tuple[Tensor, ...]  # of inner networks, [H,·,·] at the start, then [B,H,·,·]


class InnerLoopLayer(nn.Module):
    """What MTTT's two layers share: projections into the heads and out, and the inner loop.

    Args:
        width: D.
        heads: H, a divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.phi = nn.Linear(width, width)  # inner input
        self.psi = nn.Linear(width, width)  # inner input once W is learnt
        self.g = nn.Parameter(torch.empty(heads, width // heads, width))  # of the decoder
        self.g_bias = nn.Parameter(torch.zeros(width))
        self.h = nn.Linear(width, width)  # output
        for matrix in (self.phi.weight, self.psi.weight, self.g, self.h.weight):
            nn.init.uniform_(matrix, -math.sqrt(3 / width), math.sqrt(3 / width))
        for linear in (self.phi, self.psi, self.h):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, inner: InnerLoop) -> Tensor:
        """Tokens [B,N,D] -> [B,N,D]."""
        weights = self.learn(tokens, inner)
        return self.h(join_heads(self.run(weights, split_heads(self.psi(tokens), self.heads))))

    def learn(self, tokens: Tensor, inner: InnerLoop) -> Weights:
        """The inner networks after the inner loop on tokens [B,N,D]."""
        weights = self.start()
        inputs = split_heads(self.phi(tokens), self.heads)
        for some_inputs, some_targets in inner.parts(inputs, self.targets(tokens)):
            gradients = self.gradients(weights, some_inputs, some_targets)
            weights = tuple(value - inner.lr * gradient
                            for value, gradient in zip(weights, gradients))
        return weights

    def start(self) -> Weights:
        """W0."""
        raise NotImplementedError

    def run(self, weights: Weights, inputs: Tensor) -> Tensor:
        """f: inputs [B,H,n,d] -> [B,H,n,d]."""
        raise NotImplementedError

    def targets(self, tokens: Tensor) -> Tensor:
        """What `gradients` needs of tokens [B,N,D] that are to be reconstructed."""
        raise NotImplementedError

    def gradients(self, weights: Weights, inputs: Tensor, targets: Tensor) -> Weights:
        """Those of the inner loss on inputs [B,H,n,d]."""
        raise NotImplementedError


class MtttLinear(InnerLoopLayer):
    """MTTT-Linear: f(z) = z W without bias, W0 = 0, a linear decoder.

    With one step on the full batch and η = 1 it is linear attention with the queries ψ(x), the
    keys φ(x), the values (x - bias of g) gᵀ and the denominator N·d (the paper's theorem 1).
    """

    def start(self) -> Weights:
        size = self.g.shape[1]
        return (self.g.new_zeros(self.heads, size, size),)

    def run(self, weights: Weights, inputs: Tensor) -> Tensor:
        return inputs @ weights[0]

    def targets(self, tokens: Tensor) -> Tensor:
        """(x - bias of g) gᵀ [B,H,N,d]: what is left of the tokens once the decoder is linear."""
        return split_heads((tokens - self.g_bias) @ self.g.flatten(0, 1).mT, self.heads)

    def gradients(self, weights: Weights, inputs: Tensor, targets: Tensor) -> Weights:
        error = inputs @ (weights[0] @ (self.g @ self.g.mT)) - targets
        return (inputs.mT @ error / inputs[0, 0].numel(),)


class MtttMlp(InnerLoopLayer):
    """MTTT-MLP: f is an MLP d -> 4d -> d with GELU, W0 is learnt in the outer loop, and a layer
    normalisation follows the decoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        size = width // heads
        self.w1 = nn.Parameter(torch.empty(heads, size, 4 * size))
        self.b1 = nn.Parameter(torch.zeros(heads, 1, 4 * size))
        self.w2 = nn.Parameter(torch.empty(heads, 4 * size, size))
        self.b2 = nn.Parameter(torch.zeros(heads, 1, size))
        self.gain = nn.Parameter(torch.ones(heads, 1, width))
        self.shift = nn.Parameter(torch.zeros(heads, 1, width))
        for matrix in (*self.w1, *self.w2):
            nn.init.xavier_uniform_(matrix)

    def start(self) -> Weights:
        return self.w1, self.b1, self.w2, self.b2

    def run(self, weights: Weights, inputs: Tensor) -> Tensor:
        w1, b1, w2, b2 = weights
        return F.gelu(inputs @ w1 + b1, approximate="tanh") @ w2 + b2

    def targets(self, tokens: Tensor) -> Tensor:
        """The tokens less the normalisation's shift, each times every row of the decoder and the
        gain: [B,H,N,d+1]."""
        rows = self._centred() * self.gain
        shift = rows @ self.shift.mT  # [H,d+1,1]
        return split_heads(tokens @ rows.flatten(0, 1).mT, self.heads) - shift.mT

    def gradients(self, weights: Weights, inputs: Tensor, targets: Tensor) -> Weights:
        w1, b1, w2, b2 = weights
        active, slope = _GeluAndSlope.apply(inputs @ w1 + b1)
        output = active @ w2 + b2

        # The decoded token [D] is e G, of e = (output, 1) and the centred rows G: of mean 0 and
        # variance e M eᵀ. With its scale s, the gain and the targets t the inner loss of a token is
        # (s² e P eᵀ - 2 s e·t) / 2d, but for a constant; nothing of length D is needed.
        rows = self._centred()
        variances = rows @ rows.mT / rows.shape[-1]  # M
        weighted = (rows * self.gain) @ (rows * self.gain).mT  # P
        extended = F.pad(output, (0, 1), value=1.0)  # e
        spread = extended @ variances
        variance = (extended * spread).sum(-1, keepdim=True).clamp(min=0)  # rounded, it may be less
        scale = (variance + EPSILON).rsqrt()
        residual = scale * (extended @ weighted) - targets
        along = (extended * residual).sum(-1, keepdim=True)
        d_extended = scale * (residual - scale ** 2 * along * spread) / inputs[0, 0].numel()

        d_output = d_extended[..., :-1]
        d_hidden = d_output @ w2.mT * slope
        return (inputs.mT @ d_hidden, d_hidden.sum(-2, keepdim=True),
                active.mT @ d_output, d_output.sum(-2, keepdim=True))

    def _centred(self) -> Tensor:
        """The decoder's rows and, last, its bias, each less its mean: [H,d+1,D]."""
        rows = torch.cat([self.g, self.g_bias.expand(self.heads, 1, -1)], 1)
        return rows - rows.mean(-1, keepdim=True)


class _GeluAndSlope(torch.autograd.Function):
    """GELU in the tanh approximation, as in the authors' flax, and its derivative.

    The inner gradient needs the derivative, the outer one that of the derivative; torch's own takes
    more time than the layer's products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if not ctx.needs_input_grad[0]:  # two fused kernels
            return (F.gelu(x, approximate="tanh"),
                    torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh"))
        square = x * x
        tanh = (x * (RATE + RATE * CUBIC * square)).tanh()
        d_inside = RATE + 3 * RATE * CUBIC * square
        half = (1 - tanh * tanh) * d_inside / 2  # half the derivative of tanh
        slope = 0.5 + tanh / 2 + x * half
        curvature = (half * (2 - 2 * x * tanh * d_inside)
                     + 3 * RATE * CUBIC * square * (1 - tanh * tanh))
        ctx.save_for_backward(slope, curvature)
        return x * (1 + tanh) / 2, slope

    @staticmethod
    def backward(ctx: Any, d_value: Tensor, d_slope: Tensor) -> Tensor:
        slope, curvature = ctx.saved_tensors
        return d_value * slope + d_slope * curvature
