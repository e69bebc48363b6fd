"""JointMae: a masked autoencoder that was trained with its head, to rebuild and to classify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tta_apm.backbones.build import Task
from tta_apm.backbones.mae import MaskedAutoencoder, load_mae, untrained_mae


class JointMae(MaskedAutoencoder):
    """As MaskedAutoencoder, all of whose parts were trained together on both tasks."""

    kind = "mae_joint"
    source = "Nobody has published one; `tta-apm train digits_mae_joint` makes a small one"


def load(section: Mapping[str, Any], task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return load_mae(section["MODEL"], section["WEIGHTS"], num_classes=task.num_outputs,
                    device=device, keep=task.keep, cls=JointMae)


def untrained(model: str, task: Task, device: torch.device | str) -> MaskedAutoencoder:
    """See Kind."""
    return untrained_mae(model, task, device, cls=JointMae)
