"""ROID: against a plain implementation, and known errors of its authors' code."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from tta_apm_baselines.roid import Roid, smoothed_prior

from tta_apm.backbones.classifiers import Classifier
from tta_apm.errors import UserError
from tta_apm.toolbox.augment import random_view


def plain(net, batches, *, lr, prior="probabilities", seed=42):
    """ROID image by image, by the paper's equations, with SGD."""
    net = copy.deepcopy(net).train()  # so that batch normalisation uses the batch's statistics
    net.requires_grad_(False)
    params = [p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    start = [p.clone() for p in params]
    for p in params:
        p.requires_grad_(True)
    speed = [torch.zeros_like(p) for p in params]
    generator = torch.Generator().manual_seed(seed)
    average = torch.full((10,), 0.1, dtype=torch.float64)
    results = []
    for images in batches:
        logits = net(images)
        ps = logits.detach().softmax(1)
        new = [(1 - p @ average / (p.norm() * average.norm())).item() for p in ps]
        sure = [(p * p.log()).sum().item() for p in ps]
        new, sure = ([(v - min(vs)) / (max(vs) - min(vs)) for v in vs] for vs in (new, sure))
        kept = [i for i, v in enumerate(new) if v >= sum(new) / len(new)]
        average = 0.9 * average + 0.1 * ps.mean(0)
        view = random_view(images[kept], generator, padding="reflect", blur_and_noise=False)
        loss = 0
        for i, other in zip(kept, net(view)):
            p, q = logits[i].softmax(0), other.softmax(0)
            ratio = sum(-c * torch.log(c / (1 - c) + 1e-5) for c in p.clamp(max=0.99))
            consistency = (-(q * p.log()).sum() - (p * q.log()).sum()) / 2
            loss = loss + math.exp(3 * new[i] * sure[i]) * (ratio + consistency) / len(images)
        for p, v, g, p0 in zip(params, speed, torch.autograd.grad(loss, params), start):
            v.mul_(0.9).add_(g)
            p.data = 0.99 * (p.data - lr * v) + 0.01 * p0
        mean = ps.mean(0)
        smooth = max(1 / len(images), 1 / 10) / mean.max()
        weights = (mean + smooth) / (1 + 10 * smooth)
        results.append({"probabilities": (ps * weights).log(), "logits": logits.detach() * weights,
                        "none": logits.detach()}[prior])
    return torch.cat(results)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["probabilities", "logits", "none"])
def test_it_does_what_a_plain_one_does(exact_resnet, images, prior):
    batches = images.double().split(20)
    method = Roid(exact_resnet, lr=1e-2, optimizer="sgd", prior=prior)
    result = torch.cat([method(batch) for batch in batches])
    expected = plain(exact_resnet, batches, lr=1e-2, prior=prior)
    assert torch.allclose(result, expected, rtol=0, atol=1e-9)


def test_it_adapts(digits_resnet, images):
    method, still = Roid(digits_resnet, lr=1e-2), Roid(digits_resnet, lr=0.0)
    first, second = images.split(50)
    assert torch.equal(method(first), still(first))
    assert (method(second) - still(second)).abs().max() > 0.1


def test_equal_images_give_no_nan(digits_resnet, images):
    """In the authors' code weights are divided by the batch's range, which is 0 here."""
    method = Roid(digits_resnet)
    for _ in range(2):
        assert torch.isfinite(method(images[:1].expand(8, -1, -1, -1))).all()
    assert all(torch.isfinite(parameter).all() for parameter in method.adapted.parameters)


def test_a_single_image_gives_no_nan_where_no_batch_statistics_are(images):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(),
                        nn.Linear(8 * 49, 10))
    method = Roid(Classifier(net, mean=(0, 0, 0), std=(1, 1, 1)))
    for image in images[:3].split(1):
        assert torch.isfinite(method(image)).all()
    assert any(not torch.equal(now, source) for now, source
               in zip(method.adapted.parameters, method.adapted.source))
    assert all(torch.isfinite(parameter).all() for parameter in method.adapted.parameters)


def test_an_image_that_is_left_over_alone_gets_no_view(digits_resnet, images):
    """The view would be a batch of one; of two images, one is never selected."""
    method = Roid(digits_resnet)
    assert torch.isfinite(method(images[:2])).all()
    assert any(not torch.equal(now, source) for now, source
               in zip(method.adapted.parameters, method.adapted.source))


def test_the_prior_makes_a_frequent_class_more_probable():
    """If the prior multiplies logits, as in the authors' code, a frequent class may lose."""
    logits = torch.tensor([[-1.0, -1.5, -9.0], [-1.0, -6.0, -6.0], [-1.0, -6.0, -6.0]])
    method = object.__new__(Roid)
    torch.nn.Module.__init__(method)

    def first_of_first_image(prior):
        method.prior = prior
        return method._with_prior(logits).softmax(1)[0, 0]
    assert first_of_first_image("probabilities") > first_of_first_image("none")
    assert first_of_first_image("logits") < first_of_first_image("none")


def test_the_prior_is_smoothed_the_more_the_fewer_images_there_are():
    probabilities = torch.tensor([[0.7, 0.2, 0.1]])
    one, many = (smoothed_prior(probabilities.expand(size, -1)) for size in (1, 50))
    assert one.sum() == pytest.approx(1) and many.sum() == pytest.approx(1)
    assert 1 / 3 < one[0] < many[0] < 0.7


def test_weights_go_back_to_the_source_a_little_after_each_step(digits_resnet, images):
    method = Roid(digits_resnet, lr=1e-2, ensembling=1.0)
    method(images)
    assert all(torch.allclose(now, source, atol=1e-7) for now, source
               in zip(method.adapted.parameters, method.adapted.source))


def test_reset_forgets_the_mean_prediction(digits_resnet, images):
    method = Roid(digits_resnet, lr=1e-2)
    first = torch.cat([method(batch) for batch in images.split(50)])
    method.reset()
    assert method.mean_prediction is None and not method.adapted.optimizer.state
    assert torch.equal(torch.cat([method(batch) for batch in images.split(50)]), first)


def test_the_papers_defaults(digits_resnet):
    method = Roid(digits_resnet)
    group = method.adapted.optimizer.param_groups[0]
    assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.999))
    assert (method.temperature, method.momentum, method.ensembling, method.prior) == (
        1 / 3, 0.9, 0.01, "probabilities")


def test_bad_values_are_told(digits_resnet, images, bare):
    with pytest.raises(UserError, match="unknown prior 'logit': did you mean 'logits'"):
        Roid(digits_resnet, prior="logit")
    with pytest.raises(UserError, match="temperature 0"):
        Roid(digits_resnet, temperature=0.0)
    with pytest.raises(ValueError, match="batch of one"):
        Roid(digits_resnet)(images[:1])
    with pytest.raises(UserError, match="no normalisation layers"):
        Roid(bare)
