"""Backbones: the packaged ones, their construction, and that checkpoints run no code."""

import ast
import pickle

import pytest
import torch

from tta_apm.backbones.build import KINDS, build
from tta_apm.backbones.classifiers import load_classifier
from tta_apm.backbones.clip import load_clip
from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.weights import files
from tta_apm.data.dataset import Outputs
from tta_apm.data.digits import CLASS_NAMES, digits
from tta_apm.errors import UserError
from tta_apm.training import backbones as train

FILES = {"classifier": "digits_resnet.safetensors", "clip": "digits_clip.safetensors",
         "mae": "digits_mae.safetensors", "rotation": "digits_rotation.safetensors",
         "mae_joint": "digits_mae_joint.safetensors",
         "mae_fine_tuned": "digits_mae_fine_tuned.safetensors",
         "mttt_vit": "digits_mttt.safetensors"}


@pytest.fixture(scope="module")
def all_digits():
    return digits(data_dir="", frost_dir=None)


@pytest.fixture
def images(digits_test):
    return digits_test[0][:8]


@pytest.mark.parametrize("file", ["clip_templates", "build", "classifiers"])
def test_slow_libraries_are_imported_where_they_are_used(file):
    """A config is checked without torch, a classifier is built without open_clip, ..."""
    slow = {"timm", "torchvision", "robustbench", "open_clip", "tta_apm.backbones.clip"}
    slow |= {"torch"} if file == "clip_templates" else set()
    tree = ast.parse((files.PACKAGED.parent / f"{file}.py").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import)
                for alias in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not imported & slow


# The packaged weights

@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_packaged_weights_are_right_on_clean_digits(name, backbones, all_digits):
    backbone = backbones[name]
    assert train.accuracy(backbone, all_digits) >= 0.97
    assert backbone(torch.rand(3, 3, 32, 32)).shape == (3, 10)
    assert backbone.kind == name


@pytest.mark.slow
def test_one_template_suffices(all_digits, make_clip):
    assert train.accuracy(make_clip(*templates("single")), all_digits) >= 0.97


@pytest.mark.parametrize("name", KINDS.names())
def test_backbones_are_frozen_float32_and_named(name, backbones, images):
    backbone = backbones[name]
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    assert not backbone(images).requires_grad
    file, digest = backbone.weights.split()
    assert file == FILES[name]
    assert len(digest) == 16 and int(digest, 16)


@pytest.mark.parametrize("name", KINDS.names())
def test_images_of_another_size_are_resized(name, backbones, images):
    backbone = backbones[name]
    large = torch.nn.functional.interpolate(images, size=(64, 64), mode="bicubic").clamp(0, 1)
    assert backbone.image_size == 32
    assert backbone.prepare(large).shape == (8, 3, 32, 32)
    assert (backbone(large).argmax(1) == backbone(images).argmax(1)).all()


# Built by kind

@pytest.mark.parametrize("kind", KINDS.names())
def test_build_knows_the_kind(kind, backbones):
    assert backbones[kind].kind == kind


def test_an_unknown_kind_is_told():
    with pytest.raises(UserError, match="'clipp'.*did you mean 'clip'"):
        build("clipp", "digits_clip", FILES["clip"], class_names=CLASS_NAMES, templates=(),
              device="cpu")


def test_outputs_to_keep_are_on_the_networks_device():
    """A list would be copied to the device at each forward."""
    backbone = build("classifier", "timm/digits_resnet", FILES["classifier"],
                     class_names=("7", "0"), templates=(), device="cpu",
                     outputs=Outputs(10, (7, 0)))
    logits = torch.arange(20.0).view(2, 10)
    assert torch.equal(backbone.select_classes(logits), logits[:, [7, 0]])
    assert "keep" not in backbone.state_dict()  # weights are those of the network alone
    assert backbone.to("meta").keep.device.type == "meta"


# Files of other programs

@pytest.mark.slow
@pytest.mark.parametrize("load", [
    lambda file: load_clip("digits_clip", file, class_names=CLASS_NAMES, templates=("{}",),
                           device="cpu"),
    lambda file: load_classifier("timm/resnet18", file, num_classes=10, device="cpu"),
    lambda file: load_classifier("torchvision/resnet18", file, num_classes=10, device="cpu"),
    lambda file: load_classifier("robustbench/Hendrycks2020AugMix_WRN", file, num_classes=10,
                                 device="cpu"),
])
@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(
    pickle.dumps(content))])
def test_no_code_of_a_checkpoint_is_run(load, save, harmful, tmp_path):
    save({"state_dict": harmful}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        load(str(tmp_path / "evil.pt"))
    assert not harmful.path.exists()
