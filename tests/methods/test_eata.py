"""EATA, ETA and RDumb: against a plain implementation, and known errors of others."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tta_apm_baselines.eata import Eata

from adapting import moved, weights
from tta_apm.errors import UserError

ETA = dict(fisher_alpha=0.0, diversity_margin=0.4, lr=1e-2)
EATA = dict(fisher_alpha=50.0, diversity_margin=0.4, lr=1e-2, num_fisher_images=96,
            fisher_batch_size=32)


def plain(net, batches, source=None, *, fisher_alpha, diversity_margin, lr,
          num_fisher_images=0, fisher_batch_size=1, seed=42):
    """EATA image by image, by the paper's equations."""
    net = copy.deepcopy(net).train()  # so that batch normalisation uses the batch's statistics
    net.requires_grad_(False)
    params = [p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    for p in params:
        p.requires_grad_(True)
    start = [p.detach().clone() for p in params]
    fisher = [torch.zeros_like(p) for p in params]
    if fisher_alpha:
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        parts = order[:num_fisher_images].split(fisher_batch_size)
        for part in parts:
            logits = net(source.batch(part)[0])
            loss = -logits.log_softmax(1)[range(len(part)), logits.argmax(1)].mean()
            for f, g in zip(fisher, torch.autograd.grad(loss, params)):
                f += g ** 2 / len(parts)
    speed = [torch.zeros_like(p) for p in params]
    average, results, steps = None, [], 0
    for images in batches:
        logits = net(images)
        results.append(logits.detach())
        terms, kept = [], []
        for p in logits.softmax(1):
            entropy = -(p * p.log()).sum()
            if entropy >= 0.4 * math.log(10):
                continue
            q = p.detach()
            if average is not None and abs(q @ average) / (q.norm() * average.norm()) \
                    >= diversity_margin:
                continue
            kept.append(q)
            terms.append(math.exp(0.4 * math.log(10) - entropy.item()) * entropy)
        if not kept:
            continue
        mean = sum(kept) / len(kept)
        average = mean if average is None else 0.9 * average + 0.1 * mean
        loss = sum(terms) / len(terms)
        for f, p, p0 in zip(fisher, params, start):
            loss = loss + fisher_alpha * (f * (p - p0) ** 2).sum()
        steps += 1
        for p, v, g in zip(params, speed, torch.autograd.grad(loss, params)):
            v.mul_(0.9).add_(g)
            p.data -= lr * v
    return torch.cat(results), steps


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [ETA, EATA], ids=["eta", "eata"])
def test_it_does_what_a_plain_one_does(exact_resnet, images, digits_source, keywords):
    batches = images.double().split(20)
    method = Eata(exact_resnet, source=digits_source, **keywords)
    expected, steps = plain(exact_resnet, batches, digits_source, **keywords)
    result = torch.cat([method(batch) for batch in batches])
    assert steps > 2 and (result - exact_resnet(images.double())).abs().max() > 0.1
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


def test_the_penalty_keeps_weights_near_the_source(digits_resnet, images, digits_source):
    def distance(alpha):
        method = Eata(digits_resnet, source=digits_source, **{**EATA, "fisher_alpha": alpha})
        for batch in images.split(20):
            method(batch)
        return sum((now - before).abs().sum() for now, before
                   in zip(weights(method), method.adapted.source))
    assert distance(200.0) < distance(1e-6)


def test_the_fisher_information_uses_no_labels_and_depends_on_the_batch_size(
        digits_resnet, digits_source):
    class Mislabelled:
        def __len__(self):
            return len(digits_source)

        def batch(self, indices):
            images, labels = digits_source.batch(indices)
            return images, (labels + 1) % 10
    right = Eata(digits_resnet, source=digits_source, **EATA).fisher
    wrong = Eata(digits_resnet, source=Mislabelled(), **EATA).fisher
    assert all(torch.equal(a, b) for a, b in zip(right, wrong))
    single = Eata(digits_resnet, source=digits_source,
                  **{**EATA, "fisher_batch_size": 8}).fisher
    assert sum(f.sum() for f in single) > 1.5 * sum(f.sum() for f in right)


def test_fisher_images_are_the_source_s(digits_resnet, digits_source, images):
    seen = []

    class Watched:
        def __len__(self):
            return len(digits_source)

        def batch(self, indices):
            seen.extend(indices.tolist())
            return digits_source.batch(indices)
    method = Eata(digits_resnet, source=Watched(), **EATA)
    assert len(set(seen)) == len(seen) == 96
    method(images[:20])
    assert len(seen) == 96


def test_an_empty_selection_makes_no_step(digits_resnet, images, digits_source):
    method = Eata(digits_resnet, source=digits_source, **{**EATA, "entropy_margin": 1e-9})
    for batch in images.split(20):
        method(batch)
    assert not moved(method) and not method.adapted.optimizer.state
    assert method.mean_prediction.value is None


def test_reset_empties_the_mean_prediction(digits_resnet, images):
    method = Eata(digits_resnet, **ETA)
    first = torch.cat([method(batch) for batch in images.split(20)])
    assert method.mean_prediction.value is not None and moved(method)
    method.reset()
    assert method.mean_prediction.value is None and not moved(method)
    assert torch.equal(torch.cat([method(batch) for batch in images.split(20)]), first)


def test_the_diversity_margin_has_to_grow_as_classes_get_fewer(digits_resnet, images):
    """With ImageNet's margin of 0.05, hardly any image of ten classes is selected after a batch."""
    def steps(margin):
        method, count = Eata(digits_resnet, **{**ETA, "diversity_margin": margin}), 0
        for batch in images.split(20):
            before = weights(method)
            method(batch)
            count += any(not torch.equal(a, b) for a, b in zip(before, weights(method)))
        return count
    assert steps(0.05) < steps(0.4) == 5


def test_rdumb_starts_anew_every_n_batches(digits_resnet, images):
    batches = images.split(20)
    method = Eata(digits_resnet, restore_every=2, **ETA)
    twice = [method(batch) for batch in (*batches[:2], *batches[:2])]
    assert torch.equal(twice[0], twice[2]) and torch.equal(twice[1], twice[3])
    never = Eata(digits_resnet, **ETA)
    third = [never(batch) for batch in (*batches[:2], batches[0])][2]
    assert not torch.equal(third, twice[2])


def test_the_papers_defaults(digits_resnet, digits_source):
    method = Eata(digits_resnet, source=digits_source, num_fisher_images=32)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (2.5e-4, 0.9, False)
    assert (method.entropy_margin, method.diversity_margin, method.fisher_alpha) == (
        0.4, 0.05, 2000)


def test_bad_values_are_told(digits_resnet, images, bare):
    with pytest.raises(UserError, match="with fisher_alpha 0 it runs without them .as ETA."):
        Eata(digits_resnet)
    with pytest.raises(UserError, match="diversity_margin 0"):
        Eata(digits_resnet, fisher_alpha=0.0, diversity_margin=0.0)
    with pytest.raises(ValueError, match="batch of one"):
        Eata(digits_resnet, **ETA)(images[:1])
    with pytest.raises(UserError, match="no normalisation layers"):
        Eata(bare, **ETA)


def test_the_logits_are_those_from_before_the_step(digits_resnet, images):
    method = Eata(digits_resnet, **ETA)
    expected = copy.deepcopy(method.model)(images)
    assert torch.equal(method(images), expected.detach())
    assert F.mse_loss(method.model(images), expected) > 0
