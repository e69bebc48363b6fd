"""Checkpoint: save and load students and unfinished trainings, with their configs."""

from __future__ import annotations

import json
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tta_apm.apm.student import Student
from tta_apm.atomic import atomic_path
from tta_apm.backbones.weights import archives, files
from tta_apm.errors import UserError, corrupt
from tta_apm.fields.config import PretrainConfig, from_plain
from tta_apm.fields.photos import Preprocessing

STUDENT, TRAINING = "student", "training"
MOMENTS = ("exp_avg", "exp_avg_sq")

# The authors' parameter names (their model.py) -> ours.
PUBLISHED = {"conv1": "conv", "fc1": "mlp.0", "fc2": "mlp.1", "fc3": "mlp.2", "fc4": "mlp.3",
             "fc5": "mlp.4", "feat_proj_head": "projection", "rgb_head_1": "rgb.layers.0",
             "rgb_head_2": "rgb.layers.1", "rgb_head_3": "rgb.layers.2"}


class Trained(NamedTuple):
    """A trained student and the preprocessing of its images."""

    student: Student
    preprocess: Preprocessing
    cfg: PretrainConfig | None  # None for the authors' checkpoint


class History(NamedTuple):
    """The losses of a training so far."""

    step: int  # the number of updates
    losses: Tensor  # before each update, [step,3]: cls, grid, rgb; 0 for a loss of weight 0


def build_student(cfg: PretrainConfig, feature_dim: int) -> Student:
    """A new student of a config, with torch's default initial weights from the config's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        return Student(grid=cfg.grid, patch=cfg.patch, kernels=cfg.kernels, code=cfg.code,
                       hidden=cfg.hidden, feature_dim=feature_dim, pooling="mean",
                       rgb=cfg.rgb_weight > 0)


def save_student(path: Path, student: Student, cfg: PretrainConfig) -> None:
    """Write a student and its config, atomically."""
    _write(path, STUDENT, dict(student.state_dict()), cfg, student)


def load_student(path: Path, device: torch.device | str = "cpu") -> Trained:
    """Read a student that `tta-apm pretrain` wrote, or the authors' published model_15.pth.

    Raises:
        UserError: if the file is not found or neither of the two.
    """
    if not path.is_file():
        raise UserError(f"student not found: {str(path)!r}: `tta-apm pretrain` trains one")
    if path.suffix == ".safetensors":
        tensors, cfg, feature_dim = _read(path, STUDENT)
        student = build_student(cfg, feature_dim)
        _load(student, tensors, path)
        trained = Trained(student, Preprocessing(cfg.image_size), cfg)
    else:
        trained = _published(files.read(path), path)
    trained.student.to(device).eval().requires_grad_(False)
    trained.preprocess.to(device)
    return trained


def save_training(path: Path, student: Student, optimizer: torch.optim.Adam, history: History,
                  cfg: PretrainConfig) -> None:
    """Write a training: student, optimiser, losses and config, so that it can be resumed."""
    tensors = {f"{STUDENT}.{name}": value for name, value in student.state_dict().items()}
    for name, parameter in student.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["losses"] = history.losses
    _write(path, TRAINING, tensors, cfg, student)


def load_training(path: Path, student: Student, optimizer: torch.optim.Adam, cfg: PretrainConfig
                  ) -> History:
    """Restore `student` and `optimizer` to the state that `save_training` wrote.

    Raises:
        UserError: if the file is incomplete or was trained under another config.
    """
    tensors, before, _ = _read(path, TRAINING)
    changed = [key.upper() for key, value in cfg.identity().items()
               if before.identity()[key] != value]
    if changed:
        raise UserError(f"{path} was trained with another {', '.join(changed)}: choose another "
                        "OUTPUT_DIR, or delete it to start again")
    _load(student, {name.removeprefix(f"{STUDENT}."): value for name, value in tensors.items()
                    if name.startswith(f"{STUDENT}.")}, path)
    losses = tensors["losses"]
    for name, parameter in student.named_parameters():
        state = {moment: tensors[f"{moment}.{name}"].to(parameter) for moment in MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(len(losses))), **state}
    return History(len(losses), losses)


def _write(path: Path, kind: str, tensors: dict[str, Tensor], cfg: PretrainConfig, student: Student
           ) -> None:
    about = {"tta_apm": kind, "recipe": json.dumps(vars(cfg)),
             "feature_dim": str(student.projection.out_features)}
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                  temporary, metadata=about)


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], PretrainConfig, int]:
    """The tensors of a file, its config and the feature size D of its student."""
    about = archives.metadata(path)
    if about.get("tta_apm") != kind:
        raise UserError(f"{path} holds no {kind} of `tta-apm pretrain`")
    try:
        settings, feature_dim = json.loads(about["recipe"]), int(about["feature_dim"])
    except (KeyError, ValueError, RecursionError) as error:
        raise corrupt(path, error) from error
    return files.read(path), from_plain(settings, str(path)), feature_dim


def _load(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{path} does not hold the student that its config describes") from error


def _published(tensors: dict[str, Tensor], path: Path) -> Trained:
    """The authors' student, trained on COCO.

    Their images are BGR and stretched to [0,1]. Here the channels of the first kernel and of the
    last layer are reversed, so that the student takes and returns RGB. Their RGB head ends in a
    ReLU, which clipping to [0,1] replaces. Their extraction of features keeps CLS and the 4
    registers and drops the last 5 patches instead: column i learnt the teacher's patch i − 5.
    """
    wanted = {f"{name}.{kind}" for name in PUBLISHED for kind in ("weight", "bias")}
    if set(tensors) != wanted:
        raise UserError(f"{path} is neither a student of `tta-apm pretrain` nor the authors' "
                        "published checkpoint")
    renamed = {f"{PUBLISHED[name]}.{kind}": tensors[f"{name}.{kind}"].float()
               for name in PUBLISHED for kind in ("weight", "bias")}
    renamed["conv.weight"] = renamed["conv.weight"].flip(1)
    for kind in ("weight", "bias"):
        renamed[f"rgb.layers.2.{kind}"] = renamed[f"rgb.layers.2.{kind}"].flip(0)
    size = renamed["mlp.0.weight"].shape[1] // 2  # d = p
    grid, patch = isqrt(size), renamed["conv.weight"].shape[-1]
    student = Student(grid=grid, patch=patch, kernels=len(renamed["conv.weight"]), code=size,
                      hidden=[len(renamed[f"mlp.{layer}.bias"]) for layer in range(5)],
                      feature_dim=len(renamed["projection.bias"]), pooling="mean", rgb=True)
    _load(student, renamed, path)
    # No normalisation beside the stretch.
    preprocess = Preprocessing(grid * patch, mean=(0.0,) * 3, std=(1.0,) * 3, stretch=True)
    return Trained(student, preprocess, None)
