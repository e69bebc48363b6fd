"""MTTT's layers: what the paper proves of them, and a loop over images, heads and tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from tta_apm.backbones.attentions import IdentityAttention
from tta_apm.backbones.mttt_layers import InnerLoop, MtttLinear, MtttMlp
from tta_apm.errors import UserError

WIDTH, HEADS, TOKENS = 12, 3, 8
BOTH = pytest.mark.parametrize("kind", [MtttLinear, MtttMlp])
LOOPS = [InnerLoop(), InnerLoop(steps=3, lr=0.5), InnerLoop(mini_batches=4),
         InnerLoop(steps=2, mini_batches=2, lr=0.3)]


def make(kind):
    """A layer in float64 of which no parameter is 0 or 1."""
    torch.manual_seed(0)
    layer = kind(WIDTH, HEADS).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def tokens(images=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, TOKENS, WIDTH, generator=generator, dtype=torch.float64)


def seeded(inner, seed=3):
    return inner._replace(generator=torch.Generator().manual_seed(seed))


# The loop that the layers are measured by: one image, one head, one token at a time

def network(layer, weights, z):
    """f of one head and token, [d] -> [d]."""
    if isinstance(layer, MtttLinear):
        return z @ weights[0]
    w1, b1, w2, b2 = weights
    return F.gelu(z @ w1 + b1[0], approximate="tanh") @ w2 + b2[0]


def loss_of_token(layer, head, weights, token):
    """Its part of the inner loss: H/2 of the mean over the channels."""
    rows = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
    z = layer.phi.weight[rows] @ token + layer.phi.bias[rows]
    decoded = network(layer, weights, z) @ layer.g[head] + layer.g_bias
    if isinstance(layer, MtttMlp):
        decoded = F.layer_norm(decoded, (WIDTH,), layer.gain[head, 0], layer.shift[head, 0], 1e-6)
    return HEADS / 2 * (decoded - token).square().mean()


def inner_loss(layer, head, weights, sequence):
    return sum(loss_of_token(layer, head, weights, token) for token in sequence) / len(sequence)


def parts_of_head(inner, head):
    """Positions that each update of a head learns from, sampled as the layer samples them."""
    for _ in range(inner.steps):
        if inner.mini_batches == 1:
            yield torch.arange(TOKENS)
        else:
            orders = torch.rand(HEADS, TOKENS, generator=inner.generator).argsort(1)
            yield from orders[head].view(inner.mini_batches, -1)


def loop(layer, sequence, inner):
    """The output for one image [N,D]."""
    output = layer.h.bias.detach().repeat(TOKENS, 1)
    for head in range(HEADS):
        rows = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        weights = [value[head].detach().requires_grad_() for value in layer.start()]
        for positions in parts_of_head(seeded(inner), head):
            gradients = torch.autograd.grad(
                inner_loss(layer, head, weights, sequence[positions]), weights)
            weights = [(value - inner.lr * gradient).detach().requires_grad_()
                       for value, gradient in zip(weights, gradients)]
        for position, token in enumerate(sequence):
            z = layer.psi.weight[rows] @ token + layer.psi.bias[rows]
            output[position] += layer.h.weight[:, rows] @ network(layer, weights, z).detach()
    return output


@BOTH
@pytest.mark.parametrize("inner", LOOPS)
def test_a_loop_over_images_heads_and_tokens_gives_the_same(kind, inner):
    layer, inputs = make(kind), tokens()
    with torch.no_grad():
        found = layer(inputs, seeded(inner))
    expected = torch.stack([loop(layer, sequence, inner) for sequence in inputs]).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


# The paper's facts

@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_mttt_linear_is_linear_attention(dtype, atol):
    layer = make(MtttLinear).to(dtype)
    attention = IdentityAttention(WIDTH, HEADS).to(dtype)
    values = layer.g.flatten(0, 1)
    with torch.no_grad():
        attention.query.load_state_dict(layer.psi.state_dict())
        attention.key.load_state_dict(layer.phi.state_dict())
        attention.out.load_state_dict(layer.h.state_dict())
        attention.value.weight.copy_(values)
        attention.value.bias.copy_(-values @ layer.g_bias)
    inputs = tokens().to(dtype)
    torch.testing.assert_close(layer(inputs, InnerLoop()), attention(inputs, InnerLoop()),
                               rtol=0, atol=atol)


@BOTH
@pytest.mark.parametrize("off", [InnerLoop(lr=0.0), InnerLoop(steps=0)])
def test_without_learning_tokens_go_through_the_starting_network(kind, off):
    layer, inputs = make(kind), tokens()
    z = F.linear(inputs, layer.psi.weight, layer.psi.bias).unflatten(-1, (HEADS, -1))
    heads = [torch.stack([network(layer, [value[head] for value in layer.start()], token)
                          for token in z[:, :, head].flatten(0, 1)]) for head in range(HEADS)]
    expected = layer.h(torch.cat(heads, 1).view_as(inputs))
    torch.testing.assert_close(layer(inputs, off), expected, rtol=0, atol=1e-12)


@BOTH
def test_a_full_batch_layer_follows_a_permutation_of_its_tokens(kind):
    layer, inputs = make(kind), tokens()
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(inputs[:, order], InnerLoop()),
                               layer(inputs, InnerLoop())[:, order], rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("inner", LOOPS)
def test_outer_gradients_through_the_inner_steps_are_those_of_finite_differences(kind, inner):
    layer = make(kind)
    names, values = zip(*layer.named_parameters())

    def output(inputs, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)),
                                          (inputs, seeded(inner)))
    inputs = tokens(images=1).requires_grad_()
    assert torch.autograd.gradcheck(output, (inputs, *values), fast_mode=True)


@BOTH
def test_the_inner_input_gets_an_outer_gradient_only_where_something_is_learnt(kind):
    layer = make(kind)
    for lr in (0.0, 1.0):
        layer.zero_grad()
        layer(tokens(), InnerLoop(lr=lr)).square().sum().backward()
        assert bool(layer.phi.weight.grad.any()) == bool(lr)


@BOTH
def test_a_small_step_lowers_the_inner_loss_of_every_head_and_image(kind):
    layer, inputs = make(kind), tokens()
    learnt = layer.learn(inputs, InnerLoop(lr=0.01))
    for image, head in itertools.product(range(len(inputs)), range(HEADS)):
        before = inner_loss(layer, head, [value[head] for value in layer.start()], inputs[image])
        after = inner_loss(layer, head, [value[image, head] for value in learnt], inputs[image])
        assert after < before


@BOTH
def test_a_forward_is_the_same_with_and_without_gradients(kind):
    layer, inputs = make(kind), tokens()
    with torch.no_grad():
        without = layer(inputs, InnerLoop())
    torch.testing.assert_close(layer(inputs, InnerLoop()), without, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("inner", LOOPS)
def test_an_image_is_alone_and_a_forward_leaves_the_start_as_it_is(kind, inner):
    layer, inputs = make(kind), tokens(images=3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    together = layer(inputs, seeded(inner))
    for image in range(3):
        torch.testing.assert_close(layer(inputs[image:image + 1], seeded(inner))[0],
                                   together[image], rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())


def test_mini_batches_are_disjoint_cover_all_tokens_and_differ_by_head():
    numbers = torch.arange(TOKENS, dtype=torch.float64).view(1, 1, TOKENS, 1)
    inputs = numbers.expand(2, HEADS, -1, -1)
    parts = list(seeded(InnerLoop(steps=2, mini_batches=4)).parts(inputs, numbers))
    assert [part.shape for part, _ in parts] == [(2, HEADS, TOKENS // 4, 1)] * 8
    assert all(torch.equal(one, other.expand(2, -1, -1, -1)) for one, other in parts)
    for start in (0, 4):
        sampled = torch.cat([part for part, _ in parts[start:start + 4]], 2)[..., 0]
        assert (sampled.sort(-1).values == torch.arange(TOKENS)).all()
        assert not torch.equal(sampled[0, 0], sampled[0, 1]) and torch.equal(sampled[0], sampled[1])


@pytest.mark.parametrize("inner, message", [
    (InnerLoop(steps=-1), "mttt: steps -1 must be at least 0"),
    (InnerLoop(lr=float("nan")), "mttt: lr nan must be at least 0"),
    (InnerLoop(mini_batches=0), "mttt: mini_batches 0 must be at least 1"),
    (InnerLoop(mini_batches=5), "mttt: tokens 64 is not a multiple of mini_batches 5"),
])
def test_bad_values_are_told(inner, message):
    with pytest.raises(UserError, match=message):
        inner.check("mttt", 64)
