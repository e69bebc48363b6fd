"""MTTT's two layers, which mix tokens by an inner loop.

In each head an inner network f with initial weights W0 is trained to reconstruct the layer's
tokens, and then transforms them (Sun et al. 2023, arXiv 2310.13807, Sections 2 and 3):

    loss(W) = H/2 · mean over n tokens and D channels of (decoder(f(φ(x); W)) - x)²
    W <- W - η · gradient of loss(W), `steps` passes over the tokens
    output  = sum over the heads of h(f(ψ(x); W))

The inner gradients are computed by formulas, so a layer works in any grad mode and outer gradients
flow through them. The inner networks of all images and heads are updated as one program.

Shapes: B images, N tokens, n of them in a mini-batch, D channels, H heads, d = D / H.
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
# Constants of GELU in the tanh approximation: x/2 (1 + tanh(RATE (x + CUBIC x³))).
RATE = math.sqrt(2 / math.pi)
CUBIC = 0.044715


class InnerLoop(NamedTuple):
    """The settings of the inner loop, gradient descent on the tokens of one image.

    Attributes:
        steps: passes over the tokens; with 0 the inner networks keep their initial weights.
        mini_batches: number of disjoint random parts of the tokens, with an update on each; 1 is
            the full batch. Each head has its own parts.
        lr: learning rate, the paper's η.
        generator: of the random parts, on the CPU; None: torch's global one.
    """

    steps: int = 1
    mini_batches: int = 1
    lr: float = 1.0
    generator: torch.Generator | None = None

    def check(self, owner: str, num_tokens: int) -> None:
        """Raise UserError for values out of range, or for parts of unequal size."""
        at_least(0, owner, steps=self.steps, lr=self.lr)
        at_least(1, owner, mini_batches=self.mini_batches)
        multiple_of(self.mini_batches, owner, "mini_batches", tokens=num_tokens)

    def parts(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield, for each update, the parts [B,H,n,·] of tensors [B,H,N,·] or [B,1,N,·].

        All images have the same random parts, so that no image's result depends on the others.
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
    """Base of MTTT's two layers: the projections into and out of the heads, and the inner loop.

    Args:
        width: D.
        heads: H, a divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.phi = nn.Linear(width, width)  # inner input
        self.psi = nn.Linear(width, width)  # input of the trained inner network
        self.g = nn.Parameter(torch.empty(heads, width // heads, width))  # decoder
        self.g_bias = nn.Parameter(torch.zeros(width))
        self.h = nn.Linear(width, width)  # output
        for matrix in (self.phi.weight, self.psi.weight, self.g, self.h.weight):
            nn.init.uniform_(matrix, -math.sqrt(3 / width), math.sqrt(3 / width))
        for linear in (self.phi, self.psi, self.h):
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, inner: InnerLoop) -> Tensor:
        """Mix tokens [B,N,D]; same shape."""
        weights = self.learn(tokens, inner)
        return self.h(join_heads(self.run(weights, split_heads(self.psi(tokens), self.heads))))

    def learn(self, tokens: Tensor, inner: InnerLoop) -> Weights:
        """The weights of the inner networks after the inner loop on tokens [B,N,D]."""
        weights = self.start()
        inputs = split_heads(self.phi(tokens), self.heads)
        for some_inputs, some_targets in inner.parts(inputs, self.targets(tokens)):
            gradients = self.gradients(weights, some_inputs, some_targets)
            weights = tuple(value - inner.lr * gradient
                            for value, gradient in zip(weights, gradients))
        return weights

    def start(self) -> Weights:
        """The initial weights W0."""
        raise NotImplementedError

    def run(self, weights: Weights, inputs: Tensor) -> Tensor:
        """Outputs [B,H,n,d] of the inner networks f for inputs [B,H,n,d]."""
        raise NotImplementedError

    def targets(self, tokens: Tensor) -> Tensor:
        """The targets for `gradients`, from tokens [B,N,D]."""
        raise NotImplementedError

    def gradients(self, weights: Weights, inputs: Tensor, targets: Tensor) -> Weights:
        """The gradients of the inner loss on inputs [B,H,n,d]."""
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
        """(x - bias of g) gᵀ [B,H,N,d], all that the gradient with a linear decoder needs."""
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
        """Products [B,H,N,d+1] of the tokens, minus the normalisation's shift, with the decoder's
        rows times the gain."""
        rows = self._centred() * self.gain
        shift = rows @ self.shift.mT  # [H,d+1,1]
        return split_heads(tokens @ rows.flatten(0, 1).mT, self.heads) - shift.mT

    def gradients(self, weights: Weights, inputs: Tensor, targets: Tensor) -> Weights:
        w1, b1, w2, b2 = weights
        active, slope = _GeluAndSlope.apply(inputs @ w1 + b1)
        output = active @ w2 + b2

        # The centred decoded token [D] is e G with e = (output, 1) and the centred rows G; its
        # variance is e M eᵀ. With the scale s = 1/std and the targets t, the inner loss of a token
        # is (s² e P eᵀ - 2 s e·t) / 2d plus a constant, so no vector of length D is needed.
        rows = self._centred()
        variances = rows @ rows.mT / rows.shape[-1]  # M
        weighted = (rows * self.gain) @ (rows * self.gain).mT  # P
        extended = F.pad(output, (0, 1), value=1.0)  # e
        spread = extended @ variances
        variance = (extended * spread).sum(-1, keepdim=True).clamp(min=0)  # rounding errors
        scale = (variance + EPSILON).rsqrt()
        residual = scale * (extended @ weighted) - targets
        along = (extended * residual).sum(-1, keepdim=True)
        d_extended = scale * (residual - scale ** 2 * along * spread) / inputs[0, 0].numel()

        d_output = d_extended[..., :-1]
        d_hidden = d_output @ w2.mT * slope
        return (inputs.mT @ d_hidden, d_hidden.sum(-2, keepdim=True),
                active.mT @ d_output, d_output.sum(-2, keepdim=True))

    def _centred(self) -> Tensor:
        """The decoder's rows and, last, its bias, each minus its mean: [H,d+1,D]."""
        rows = torch.cat([self.g, self.g_bias.expand(self.heads, 1, -1)], 1)
        return rows - rows.mean(-1, keepdim=True)


class _GeluAndSlope(torch.autograd.Function):
    """GELU in the tanh approximation, as in the authors' flax, and its derivative.

    The inner gradient needs the derivative, and the outer gradient the second derivative; torch's
    own second derivative takes more time than the layer's products.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if not ctx.needs_input_grad[0]:  # without a backward pass, two fused kernels are enough
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
