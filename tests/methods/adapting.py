"""What tests of several methods share: plain copies of a network, and checks of what adapts."""

from __future__ import annotations

import copy

import torch
from torch import nn


def weights(method) -> list[torch.Tensor]:
    """Copies of the parameters that a method adapts."""
    return [parameter.detach().clone() for parameter in method.adapted.parameters]


def moved(method) -> bool:
    """Whether they differ from the source's."""
    return any(not torch.equal(now, source) for now, source
               in zip(method.adapted.parameters, method.adapted.source))


def plain_copy(net):
    """A copy that normalises by batch statistics; the scales and shifts before its last stage
    (layer4, or the last of three stages), which alone require grad; and zeros of their shapes."""
    net = copy.deepcopy(net).train()
    net.requires_grad_(False)
    last = max(name for name, _ in net.net.named_children() if name.startswith("layer"))
    params = [p for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)
              and last not in name for p in m.parameters()]
    for p in params:
        p.requires_grad_(True)
    return net, params, [torch.zeros_like(p) for p in params]


def check_last_stage(method, images) -> None:
    """The first stage of a method's network changes, the last one stays."""
    before = copy.deepcopy(method.model.state_dict())
    method(images)
    changed = {name for name, value in method.model.state_dict().items()
               if not torch.equal(value, before[name])}
    stages = [name for name, _ in method.model.net.named_children() if name.startswith("layer")]
    assert any(f"net.{stages[0]}." in name for name in changed)
    assert not any(f"net.{stages[-1]}." in name for name in changed)


def adapt_and_reset(method, images):
    """Adapt in batches of 20 and reset, which restores all state; returns the logits."""
    before = copy.deepcopy(method.state_dict())
    logits = torch.cat([method(batch) for batch in images.split(20)])
    assert any(not torch.equal(value, before[name])
               for name, value in method.state_dict().items())
    method.reset()
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    return logits
