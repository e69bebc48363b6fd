"""LAME: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from tta_apm_baselines.lame import Lame, adjust, affinities, laplacian_energy

from tta_apm.errors import UserError


def plain(net, images, *, affinity, neighbours):
    """LAME image by image, by the paper's equations."""
    features = net.net.forward_head(net.net.forward_features(net.prepare(images)), pre_logits=True)
    f = [v / v.norm() for v in features]
    n, p = len(f), net(images).softmax(1)
    distance = [[(f[i] - f[j]).norm().item() for j in range(n)] for i in range(n)]
    ranked = [sorted((j for j in range(n) if j != i), key=lambda j: distance[i][j])
              for i in range(n)]
    width = sum(distance[i][ranked[i][neighbours - 1]] for i in range(n)) / n
    w = torch.zeros(n, n, dtype=p.dtype)
    for i in range(n):
        for j in range(n):
            if affinity == "rbf":
                w[i, j] = math.exp(-distance[i][j] ** 2 / (2 * width ** 2))
            else:
                w[i, j] = ((j in ranked[i][:neighbours]) + (i in ranked[j][:neighbours])) / 2
    z = p.clone()
    for _ in range(100):
        z = torch.stack([p[i] * sum(w[i, j] * z[j] for j in range(n)).exp() for i in range(n)])
        z = z / z.sum(1, keepdim=True)
    return z


@pytest.mark.slow
@pytest.mark.parametrize("affinity, neighbours", [("knn", 5), ("knn", 1), ("rbf", 5)])
def test_it_does_what_a_plain_one_does(exact_resnet, images, affinity, neighbours):
    images = images[:12].double()
    expected = plain(exact_resnet, images, affinity=affinity, neighbours=neighbours)
    result = Lame(exact_resnet, affinity=affinity, neighbours=neighbours)(images)
    assert (expected - exact_resnet(images).softmax(1)).abs().max() > 0.05
    # The plain implementation does not stop when the energy hardly changes.
    assert torch.allclose(result.exp(), expected, rtol=0, atol=1e-4)


def test_the_energy_falls(exact_resnet, images):
    own = exact_resnet(images.double()).log_softmax(1)
    weights = affinities(torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).double(),
                         "rbf", 5)
    after = laplacian_energy(adjust(own, weights), own, weights)
    assert after < laplacian_energy((own + weights @ own.exp()).log_softmax(1), own, weights)
    assert after < laplacian_energy(own, own, weights)


@pytest.mark.parametrize("affinity", ["knn", "rbf"])
def test_affinities_are_symmetric_and_knn_ones_are_of_others(affinity):
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    weights = affinities(features, affinity, 3)
    assert torch.allclose(weights, weights.T)
    assert weights.diagonal().unique().tolist() == [0.0 if affinity == "knn" else 1.0]
    if affinity == "knn":
        assert weights.sum() == 20 * 3
        assert (weights.sum(1) >= 1.5).all()  # its own three, at least by half


@pytest.mark.slow
@pytest.mark.parametrize("affinity", ["knn", "rbf"])
def test_it_helps_where_neighbours_share_a_class_and_harms_where_they_do_not(
        digits_resnet, digits_test, affinity):
    """On a shuffled stream with few images per class, the error rises."""
    images, labels = digits_test
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    images = (images + 0.15 * noise).clamp(0, 1)
    order = labels.argsort(stable=True)

    def errors(order):
        parts = order.split(10)
        lame = Lame(digits_resnet, affinity=affinity)
        adjusted = torch.cat([lame(images[part]) for part in parts]).argmax(1)
        return (adjusted != labels[order]).sum(), \
            (digits_resnet(images[order]).argmax(1) != labels[order]).sum()
    adjusted, source = errors(order)
    assert adjusted < source
    adjusted, source = errors(torch.arange(100))
    assert adjusted > source


@pytest.mark.parametrize("affinity", ["knn", "rbf"])
def test_equal_images_and_small_batches_give_no_nan(digits_resnet, images, affinity):
    lame = Lame(digits_resnet, affinity=affinity)
    alone = digits_resnet(images[:1]).log_softmax(1)
    assert torch.equal(lame(images[:1]), alone)
    assert torch.isfinite(lame(images[:2])).all()
    equal = lame(images[:1].expand(8, -1, -1, -1))
    assert torch.isfinite(affinities(torch.ones(8, 4), affinity, 5)).all()
    assert torch.isfinite(equal).all() and (equal.argmax(1) == alone.argmax(1)).all()


def test_the_papers_defaults(digits_resnet):
    assert (Lame(digits_resnet).affinity, Lame(digits_resnet).neighbours) == ("knn", 5)


def test_bad_values_are_told(digits_resnet, images):
    with pytest.raises(UserError, match="unknown affinity 'nn': did you mean 'knn'"):
        Lame(digits_resnet, affinity="nn")
    with pytest.raises(UserError, match="neighbours 0"):
        Lame(digits_resnet, neighbours=0)
    headless = copy.deepcopy(digits_resnet)
    headless.net = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    with pytest.raises(UserError, match="are not the output of a linear layer"):
        Lame(headless)(images[:4])


def test_features_are_compared_by_direction(digits_resnet):
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    longer = F.normalize(features) * torch.arange(1.0, 7.0)[:, None]
    assert torch.allclose(affinities(features, "rbf", 2), affinities(longer, "rbf", 2), atol=1e-5)
