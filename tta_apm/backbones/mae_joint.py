"""JointMae: a masked autoencoder trained jointly to reconstruct patches and to classify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tta_apm.backbones.build import Task
from tta_apm.backbones.mae import MaskedAutoencoder, load_mae, untrained_mae


class JointMae(MaskedAutoencoder):
    """A MaskedAutoencoder whose encoder, decoder and head were trained together on both tasks."""

    kind = "mae_joint"
    advice = "No published weights are known; `tta-apm train digits_mae_joint` makes a small one"


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return load_mae(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                    device=device, keep=task.keep, cls=JointMae)


def untrained(model: str, task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return untrained_mae(model, task, device, cls=JointMae)
