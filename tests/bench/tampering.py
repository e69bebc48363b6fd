"""What a method could do to what it shares; the methods of strangers.py do it."""

from __future__ import annotations

import io
import os
import signal
import sys

import numpy as np
import torch
from torch import nn

# What a method could do to the process; each is undone after the call.
TO_THE_PROCESS = {
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(
        True, warn_only=True),
    "torch's handling of denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic",
                                                          True),
    "torch.backends.mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
    "torch's math kernels of attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "torch's hooks on all modules": lambda: nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output * 0),
    "numpy's handling of errors": lambda: np.seterr(all="raise"),
    "the working folder": lambda: os.chdir("/"),
    "the environment (TTA_APM_TEST)": lambda: os.environ.update(TTA_APM_TEST="1"),
    "the environment (HOME)": lambda: os.environ.pop("HOME"),
    "sys.stdout": lambda: setattr(sys, "stdout", io.StringIO()),
    "sys.stderr": lambda: setattr(sys, "stderr", None),
    "a handler of signals (SIGINT)": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
}
if hasattr(torch, "get_autocast_dtype"):
    TO_THE_PROCESS["torch's autocast on cpu"] = lambda: torch.set_autocast_enabled("cpu", True)


# What a method could do to the backbone.

def replace_norm(backbone):
    owner, name = next((module, name) for module in backbone.modules()
                       for name, child in module.named_children()
                       if isinstance(child, nn.BatchNorm2d))
    setattr(owner, name, nn.Identity())


def some_norm(backbone):
    return next(module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d))


def first(backbone):
    return next(backbone.parameters())


def swap(weights):
    weights.copy_(weights.roll(1, 0))


TO_THE_CLASSIFIER = {
    "one weight by a hair": lambda net: first(net)[1, 1, 1, 1].mul_(1 + 1e-6),
    "weights that are swapped": lambda net: swap(first(net)),
    "its last weight": lambda net: list(net.parameters())[-1][-1].add_(1),
    "a running mean": lambda net: some_norm(net).running_mean.add_(1e-3),
    "no running statistics": lambda net: setattr(some_norm(net), "running_mean", None),
    "training mode": lambda net: net.train(),
    "training mode of one layer": lambda net: some_norm(net).train(),
    "a forward hook": lambda net: net.register_forward_hook(lambda *args: args[-1] * 0),
    "a hook on a weight": lambda net: (first(net).requires_grad_().register_hook(print),
                                       first(net).requires_grad_(False)),
    "gradients": lambda net: net.requires_grad_(True),
    "a gradient": lambda net: setattr(first(net), "grad", torch.ones_like(first(net))),
    "half precision": lambda net: net.half(),
    "another layout": lambda net: net.to(memory_format=torch.contiguous_format),
    "another layer": replace_norm,
    "a forward of its own": lambda net: setattr(net, "forward", lambda images: images),
    "a plain number": lambda net: setattr(some_norm(net), "momentum", 0.5),
    "its name": lambda net: setattr(net, "name", "a better one"),
    "what its weights are": lambda net: setattr(net, "weights", "better ones"),
    "its mean": lambda net: net.mean.add_(0.1),
    "its size": lambda net: setattr(net, "image_size", 16),
}
TO_THE_CLIP = {
    "text features": lambda clip: clip.text_features.copy_(clip.text_features.roll(1, 0)),
    "other text features": lambda clip: setattr(clip, "text_features", 2 * clip.text_features),
    "logit scale": lambda clip: setattr(clip, "logit_scale", 1.0),
    "class names": lambda clip: setattr(clip, "class_names", clip.class_names[1:]),
    "the model's logit scale": lambda clip: clip.model.logit_scale.fill_(0),
}
TO_THE_BACKBONE = {**TO_THE_CLASSIFIER, **TO_THE_CLIP}
# Of all kinds, by the number that a config gives.
CHANGES = [*TO_THE_BACKBONE, "images", *TO_THE_PROCESS]


def do(change: int, backbone, images) -> None:
    """For the methods of strangers."""
    name = CHANGES[change]
    if name in TO_THE_PROCESS:
        TO_THE_PROCESS[name]()
        return
    with torch.no_grad():
        if name == "images":
            images.add_(1e-6)
        else:
            TO_THE_BACKBONE[name](backbone)
