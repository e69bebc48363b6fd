"""SHOT: against a plain implementation, and known errors of other implementations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch import nn
from tta_apm_baselines.shot import Shot, information_loss, pseudo_labels

from tta_apm.errors import UserError
from tta_apm.toolbox.domain_images import TensorImages


def plain_labels(probabilities, features, rounds=2):
    """Pseudo-labels class by class, in numpy."""
    p, z = probabilities.numpy(), np.hstack([features.numpy(), np.ones((len(features), 1))])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    labels = p.argmax(1)
    for _ in range(rounds):
        centres = {k: (p[:, k, None] * z).sum(0) / (p[:, k].sum() + 1e-8)
                   for k in sorted(set(labels.tolist()))}
        nearest = cdist(z, np.stack([*centres.values()]), "cosine").argmin(1)
        labels = np.array([*centres])[nearest]
        p = np.eye(p.shape[1])[labels]
    return torch.from_numpy(labels)


def plain(backbone, images, orders, *, lr, cls_par, ent_par, batch_size):
    """SHOT as its authors train: predictions of all images after one epoch for each order."""
    net = copy.deepcopy(backbone.net).requires_grad_(True)
    trained = [p for name, p in net.named_parameters() if not name.startswith("fc.")]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=1e-3, nesterov=True)
    inputs = backbone.prepare(images)
    batches = [[part for part in order.split(batch_size) if len(part) > 1] for order in orders]
    count, total = 0, sum(map(len, batches))
    for epoch in batches:
        net.eval()
        with torch.no_grad():
            features = net.forward_head(net.forward_features(inputs), pre_logits=True)
            labels = plain_labels(net.fc(features).softmax(1), features)
        net.train()
        for part in epoch:
            count += 1
            optimizer.param_groups[0]["lr"] = lr * (1 + 10 * count / total) ** -0.75
            logits = net(inputs[part])
            p = logits.softmax(1)
            mean = p.mean(0)
            loss = (cls_par * F.cross_entropy(logits, labels[part])
                    + ent_par * (-p * torch.log(p + 1e-5)).sum(1).mean()
                    - ent_par * (-mean * torch.log(mean + 1e-5)).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        return net(inputs)


def orders(num_images, epochs, seed=42):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(num_images, generator=generator) for _ in range(epochs)]


@pytest.mark.parametrize("count", [40, 33])  # the last batch of 33 has one image: it is skipped
def test_it_does_what_a_plain_one_does(exact_resnet, images, count):
    images = images.double()[:count]
    values = dict(lr=0.01, cls_par=0.3, ent_par=0.7, batch_size=16)
    method = Shot(exact_resnet, epochs=3, **values)
    method.prepare(TensorImages(images))
    expected = plain(exact_resnet, images, orders(count, 3), **values)
    assert torch.allclose(method(images), expected, rtol=0, atol=1e-12)
    assert (expected - exact_resnet(images)).abs().max() > 0.1


def test_labels_are_those_of_plain_code_with_classes_that_nobody_predicts():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    logits = features @ torch.randn(8, 6, generator=generator, dtype=torch.float64)
    logits[:, 2] = -20
    probabilities = (0.3 * logits).softmax(1)
    labels = pseudo_labels(probabilities, features)
    assert torch.equal(labels, plain_labels(probabilities, features))
    assert not torch.equal(labels, plain_labels(probabilities, features, rounds=1))
    assert 2 not in labels and not torch.equal(labels, probabilities.argmax(1))


def test_the_loss_is_finite_where_a_class_is_certain_and_others_are_empty():
    logits = torch.tensor([[2000.0, 0.0, 0.0], [2000.0, 0.0, 0.0]], requires_grad=True)
    loss = information_loss(logits)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    certain_and_diverse = information_loss(1000 * torch.eye(3))
    assert certain_and_diverse < loss
    assert information_loss(torch.zeros(2, 3)).item() == pytest.approx(0, abs=1e-4)


def test_the_last_layer_stays_and_running_statistics_become_the_domain_s(digits_resnet, images):
    method = Shot(digits_resnet, epochs=2, batch_size=32)
    before = copy.deepcopy(method.model.state_dict())
    method.prepare(TensorImages(images))
    after = method.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in after if not name.startswith("net.fc.")}
    assert not method.model.training and not any(m.training for m in method.model.modules())


def test_a_prediction_depends_on_the_domain_and_not_on_its_batch(digits_resnet, images):
    method = Shot(digits_resnet, epochs=1)
    method.prepare(TensorImages(images))
    together = method(images[:20])
    assert torch.allclose(torch.cat([method(part) for part in images[:20].split(7)]), together,
                          atol=1e-5)
    method.reset()
    assert torch.equal(method(images[:20]), digits_resnet(images[:20]))


def test_shot_im_has_no_pseudo_labels(digits_resnet, images, monkeypatch):
    method = Shot(digits_resnet, epochs=2, cls_par=0.0)
    monkeypatch.setattr(method, "_pseudo_labels", None)
    method.prepare(TensorImages(images))
    assert not torch.equal(method(images), digits_resnet(images))


def test_a_domain_of_one_image_is_predicted_as_by_the_source(digits_resnet, images):
    method = Shot(digits_resnet)
    method.prepare(TensorImages(images[:1]))
    assert torch.equal(method(images[:1]), digits_resnet(images[:1]))


def test_bad_values_are_told(digits_resnet, images):
    with pytest.raises(UserError, match="cls_par -1"):
        Shot(digits_resnet, cls_par=-1)
    with pytest.raises(UserError, match="batch_size 1"):
        Shot(digits_resnet, batch_size=1)
    headless = copy.deepcopy(digits_resnet)
    headless.net = nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten())
    with pytest.raises(UserError, match="are not the output of a linear layer"):
        Shot(headless).prepare(TensorImages(images))
