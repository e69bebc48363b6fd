"""Files of students: ours, the published ones, and files that are neither."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from small_student import FEATURE_DIM, SMALL
from tta_apm.apm.student import MEAN, STD
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import PUBLISHED, build_student, load_student, save_student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.field import Field, field_of


def test_a_saved_student_comes_back_with_its_config(student, images, file):
    trained = load_student(file)
    assert trained.cfg == SMALL
    shown = trained.preprocess(images)
    assert trained.preprocess.image_size == SMALL.image_size
    assert torch.allclose(shown, (images - torch.tensor(MEAN).view(3, 1, 1))
                          / torch.tensor(STD).view(3, 1, 1))
    assert not any(parameter.requires_grad for parameter in trained.student.parameters())
    mine = Field(trained.student, trained.student.trigger(images[0].float()))
    assert torch.allclose(mine.features().double(), field_of(student, images[0]).features(),
                          atol=1e-5)


class PlainPublished(nn.Module):
    """The layers of the authors' model.py under their names, for any size of grid."""

    def __init__(self, side: int, patch: int, widths: tuple[int, ...], feature_dim: int) -> None:
        super().__init__()
        size = side * side
        sizes = [2 * size, *widths]
        for number in range(5):
            self.add_module(f"fc{number + 1}", nn.Linear(sizes[number], sizes[number + 1]))
        self.feat_proj_head = nn.Linear(widths[-1], feature_dim)
        self.rgb_head_1 = nn.Linear(feature_dim + 2 * size, 256)
        self.rgb_head_2 = nn.Linear(256, 256)
        self.rgb_head_3 = nn.Linear(256, 3)
        self.conv1 = nn.Conv2d(3, 1, patch, stride=patch)

    def forward(self, blue_green_red, code):
        """A stretched image [3,H,W] -> features [L,D] and blue, green, red [L,3]."""
        trigger = self.conv1(blue_green_red[None]).flatten()
        inputs = hidden = torch.cat([trigger.expand(len(code), -1), code], 1)
        for number in range(5):
            hidden = getattr(self, f"fc{number + 1}")(hidden).relu()
        features = self.feat_proj_head(hidden)
        colours = torch.cat([features, inputs], 1)
        for head in (self.rgb_head_1, self.rgb_head_2, self.rgb_head_3):
            colours = head(colours).relu()
        return features, colours


def test_the_published_checkpoint_gives_the_numbers_of_its_code(images, tmp_path):
    torch.manual_seed(0)
    net = PlainPublished(4, 6, (16, 14, 12, 10, 8), FEATURE_DIM)
    torch.save(net.state_dict(), tmp_path / "model_15.pth")
    trained = load_student(tmp_path / "model_15.pth")
    image = images[0].float()
    field = field_of(trained.student, trained.preprocess(image[None])[0])
    stretched = (image - image.min()) / (image.max() - image.min())
    features, colours = net(stretched.flip(0), trained.student.code.flatten(0, 1))
    assert torch.allclose(field.features(), features, atol=1e-5)
    assert torch.allclose(field.colours().flatten(0, 1), colours.flip(1).clamp(0, 1), atol=1e-5)


@pytest.mark.slow
def test_the_published_checkpoint_has_the_size_of_table_6(tmp_path):
    with torch.device("meta"):
        shapes = PlainPublished(32, 14, (4096, 4096, 4096, 2048, 1024), 1024).state_dict()
    # Zeros that take no space on disk.
    torch.save({name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()},
               tmp_path / "model_15.pth")
    student = load_student(tmp_path / "model_15.pth").student
    assert {name.rpartition(".")[0] for name in shapes} == set(PUBLISHED)
    without_colours = sum(parameter.numel() for name, parameter in student.named_parameters()
                          if not name.startswith("rgb"))
    assert without_colours == 53_494_349
    assert (student.grid, student.patch) == (32, 14)


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_other_weights(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def write_half(path: Path) -> None:
    save_student(path, build_student(SMALL, FEATURE_DIM), SMALL)
    path.write_bytes(path.read_bytes()[:-100])


def write_other_config(path: Path) -> None:
    save_student(path, build_student(SMALL, FEATURE_DIM), replace(SMALL, hidden=(12,)))


@pytest.mark.parametrize("name, write, message", [
    ("nowhere.pth", None, "student not found"),
    ("empty.pth", write_nothing, "not a checkpoint of weights"),
    ("other.pth", write_other_weights, "neither a student"),
    ("half.safetensors", write_half, "is corrupt or incomplete"),
    ("config.safetensors", write_other_config, "not hold the student that its config describes"),
])
def test_a_wrong_checkpoint_is_one_sentence(tmp_path, name, write, message):
    if write:
        write(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        load_student(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_fault_of_ours_is_never_told_as_a_wrong_checkpoint(file, monkeypatch):
    def slip(cfg: PretrainConfig) -> None:
        raise TypeError("a slip of ours")
    monkeypatch.setattr(PretrainConfig, "check", slip)
    with pytest.raises(TypeError, match="a slip of ours"):
        load_student(file)
