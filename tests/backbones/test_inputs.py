"""Size, mean and std of the images for weights: their sources, and errors without a source."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import register_model
from torch import nn

from places import SHARED
from trainers import Named
from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.build import build
from tta_apm.backbones.classifiers import load_classifier
from tta_apm.backbones.clip import load_clip
from tta_apm.backbones.inputs import InputKeys
from tta_apm.backbones.weights import downloads, files
from tta_apm.data.dataset import Outputs
from tta_apm.data.digits import CLASS_NAMES
from tta_apm.errors import UserError, explain

HALF = (0.5, 0.5, 0.5)


def load_timm(name, file, **options):
    return load_classifier(f"timm/{name}", str(file), device="cpu",
                           **{"num_classes": 10, **options})


def numbers(backbone: Backbone) -> tuple[list[float], list[float]]:
    return (pytest.approx(backbone.mean.flatten().tolist()),
            pytest.approx(backbone.std.flatten().tolist()))


# timm

class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


@register_model
def a_users_network(pretrained=False, num_classes=10, **options):
    """A network that a user registered with timm, without a config."""
    return Small(num_classes)


@pytest.fixture
def users_file(tmp_path):
    torch.save(Small(10).state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def test_a_network_without_a_config_is_asked_for_all(users_file):
    with pytest.raises(UserError, match="no source states the image_size and mean and std of the "
                       "images that timm's a_users_network was trained with: set "
                       "CLASSIFIER.IMAGE_SIZE, CLASSIFIER.MEAN, "
                       "CLASSIFIER.STD, or put timm's config.json of it beside mine.pth"):
        load_timm("a_users_network", users_file)


def test_the_config_of_a_run_tells(users_file):
    given = InputKeys(32, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    backbone = load_timm("a_users_network", users_file, keys=given)
    assert backbone.image_size == 32
    assert numbers(backbone) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert backbone.preprocessing == (
        "32 px, mean 0.1 0.2 0.3, std 0.4 0.5 0.6, by CLASSIFIER.IMAGE_SIZE and CLASSIFIER.MEAN "
        "and CLASSIFIER.STD")


def test_timms_config_beside_the_file_tells(users_file):
    content = {"architecture": "a_users_network", "num_classes": 10, "pretrained_cfg": {
        "input_size": [3, 48, 48], "mean": list(HALF), "std": [0.25, 0.25, 0.25]}}
    users_file.with_name("config.json").write_text(json.dumps(content), encoding="utf-8")
    backbone = load_timm("a_users_network", users_file)
    assert backbone.image_size == 48 and numbers(backbone) == (list(HALF), [0.25] * 3)
    assert backbone.preprocessing.endswith("by config.json beside mine.pth")
    # The run's config takes precedence; a config.json of another architecture is ignored.
    assert load_timm("a_users_network", users_file, keys=InputKeys(32)).image_size == 32
    content["architecture"] = "another"
    users_file.with_name("config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="no source states"):
        load_timm("a_users_network", users_file)
    users_file.with_name("config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="config.json, beside the weights, cannot be read"):
        load_timm("a_users_network", users_file)


@pytest.mark.slow
def test_tags_that_differ_are_asked_about_and_a_named_one_tells(tmp_path):
    """mobilenetv3_large_100: one tag has mean 0 and std 1, two have ImageNet's."""
    torch.save(timm.create_model("mobilenetv3_large_100", num_classes=10).state_dict(),
               tmp_path / "net.pth")
    with pytest.raises(UserError, match="mean and std of the images .*CLASSIFIER.MEAN, "
                       "CLASSIFIER.STD, "
                       "or name the tag with the same training, e.g. timm/mobilenetv3_large"):
        load_timm("mobilenetv3_large_100", tmp_path / "net.pth")
    backbone = load_timm("mobilenetv3_large_100.miil_in21k_ft_in1k", tmp_path / "net.pth")
    assert numbers(backbone) == ([0.0] * 3, [1.0] * 3)
    assert "by timm's mobilenetv3_large_100.miil_in21k_ft_in1k" in backbone.preprocessing


@pytest.mark.slow
def test_where_all_tags_agree_they_tell(tmp_path):
    torch.save(timm.create_model("densenet121", num_classes=10).state_dict(), tmp_path / "net.pth")
    backbone = load_timm("densenet121", tmp_path / "net.pth")
    assert backbone.image_size == 224 and numbers(backbone)[0] == [0.485, 0.456, 0.406]
    assert "by all of timm's densenet121" in backbone.preprocessing


@pytest.mark.parametrize("section, message", [
    ({"MEAN": [0.5]}, r"CLASSIFIER.MEAN \[0.5\]: give three numbers"),
    ({"STD": [0.5, 0.5, 0]}, r"CLASSIFIER.STD \[0.5, 0.5, 0\]: give three numbers"),
    ({"MEAN": [0.5, 0.5, float("nan")]}, "CLASSIFIER.MEAN"),
    ({"MEAN": ["a", "b", "c"]}, "CLASSIFIER.MEAN"),
    ({"IMAGE_SIZE": -3}, "CLASSIFIER.IMAGE_SIZE -3: give the side"),
])
def test_wrong_inputs_are_told(section, message):
    with pytest.raises(UserError, match=message):
        InputKeys.of(section, "CLASSIFIER")


def test_networks_that_normalise_inside_take_no_mean():
    with pytest.raises(UserError, match="robustbench's networks, which normalise inside"):
        load_classifier("robustbench/Hendrycks2020AugMix_WRN", "x.pt", num_classes=10,
                        device="cpu", keys=InputKeys(mean=HALF))


# timm's own weights

@pytest.mark.slow
def test_a_tags_weights_go_through_timm_and_ours_reads_them(monkeypatch, tmp_path):
    """resnet10t's tag with its file from the cache: timm opens no file."""
    net = timm.create_model("resnet10t").eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(downloads, "from_hub", lambda repo, names: tmp_path / "model.safetensors")
    monkeypatch.setattr("timm.models._builder.load_state_dict", None)
    backbone = load_classifier("timm/resnet10t", "", num_classes=1000, device="cpu")
    assert all(torch.equal(value, backbone.net.state_dict()[name])
               for name, value in net.state_dict().items())
    assert backbone.preprocessing.endswith("by timm's tag")
    assert "state_dict" not in backbone.net.pretrained_cfg
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors is of another network than timm's res"):
        load_classifier("timm/resnet10t", "", num_classes=1000, device="cpu")


# CLIP

def clip(model, file, **options):
    return load_clip(model, str(file), class_names=CLASS_NAMES, templates=("{}",), device="cpu",
                     **options)


@pytest.fixture
def models(monkeypatch):
    """Two CLIPs of digits_clip's shape that open_clip knows and this package does not, one with
    QuickGELU."""
    config = open_clip.get_model_config("digits_clip")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "toy", config)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "toy-quickgelu",
                        {**config, "quick_gelu": True})


@pytest.fixture
def clip_file(tmp_path):
    tensors = files.read(files.PACKAGED / "digits_clip.safetensors")
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    return tmp_path / "open_clip_model.safetensors"


def write_config(file: Path, **model) -> None:
    config = {**open_clip.get_model_config("digits_clip"), **model}
    file.with_name("open_clip_config.json").write_text(json.dumps({
        "model_cfg": config, "preprocess_cfg": {"mean": list(HALF), "std": list(HALF)}}),
        encoding="utf-8")


@pytest.mark.slow
def test_mean_and_std_of_a_clip_are_asked_for(models, clip_file):
    with pytest.raises(UserError, match="mean and std of the images that toy was trained "
                       "with: set CLIP.MEAN, "
                       "CLIP.STD, or put open_clip's open_clip_config.json of it beside open"):
        clip("toy", clip_file)
    backbone = clip("toy", clip_file, keys=InputKeys(mean=HALF, std=(0.25,) * 3))
    assert numbers(backbone) == (list(HALF), [0.25] * 3)
    assert backbone.preprocessing.endswith("by CLIP.MEAN and CLIP.STD, GELU by CLIP.MODEL")


def test_vit_l_14_is_asked_about_since_its_tags_differ():
    """One of its twelve tags has another mean, so the library states none for a file."""
    from tta_apm.backbones.clip import _known_of
    known = dict(_known_of("ViT-L-14", files.Weights(files.PACKAGED / "digits_clip.safetensors")))
    assert not {"mean", "std"} & known["all of open_clip's ViT-L-14"].keys()
    known = dict(_known_of("ViT-B-16", files.Weights(files.PACKAGED / "digits_clip.safetensors")))
    assert {"mean", "std"} <= known["all of open_clip's ViT-B-16"].keys()


@pytest.mark.slow
def test_open_clips_config_beside_the_file_tells_mean_std_and_activation(models, clip_file):
    write_config(clip_file)
    backbone = clip("toy", clip_file)
    assert numbers(backbone) == (list(HALF), list(HALF))
    assert "GELU by open_clip_config.json beside" in backbone.preprocessing
    with pytest.raises(UserError, match="was trained with GELU according to "
                       "open_clip_config.json beside .*, and 'toy-quickgelu' has QuickGELU: "
                       "use CLIP.MODEL 'toy'"):
        clip("toy-quickgelu", clip_file)
    write_config(clip_file, quick_gelu=True)
    assert "QuickGELU by open_clip_config" in clip("toy-quickgelu", clip_file).preprocessing
    with pytest.raises(UserError, match="use CLIP.MODEL 'toy-quickgelu'"):
        clip("toy", clip_file)
    write_config(clip_file, embed_dim=512)  # of another file in the folder
    with pytest.raises(UserError, match="no source states"):
        clip("toy", clip_file)


@pytest.mark.slow
def test_openais_archives_tell_all(models, tmp_path):
    state = files.read(files.PACKAGED / "digits_clip.safetensors")
    sizes = {name: torch.tensor(size) for name, size in (
        ("input_resolution", 32), ("context_length", 24), ("vocab_size", 49408))}
    torch.jit.trace(Named({**state, **sizes}), torch.zeros(1)).save(tmp_path / "ViT.pt")
    backbone = clip("toy-quickgelu", tmp_path / "ViT.pt")
    assert "by OpenAI's archive, QuickGELU by OpenAI's archive" in backbone.preprocessing
    assert numbers(backbone)[0] == [0.48145466, 0.4578275, 0.40821073]
    with pytest.raises(UserError, match="QuickGELU according to OpenAI's archive"):
        clip("toy", tmp_path / "ViT.pt")
    # Other TorchScript archives state nothing.
    torch.jit.trace(Named(state), torch.zeros(1)).save(tmp_path / "other.pt")
    with pytest.raises(UserError, match="no source states"):
        clip("toy", tmp_path / "other.pt")


# Heads

def test_a_head_of_just_the_kept_classes_is_taken(tmp_path):
    """E.g. ImageNet-A uses 200 of the 1,000 outputs."""
    net = timm.create_model("digits_resnet", num_classes=3).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")

    def load(outputs):
        return build("classifier", "timm/digits_resnet", str(tmp_path / "net.pth"),
                     class_names=CLASS_NAMES[:len(outputs.indices)], templates=(), device="cpu",
                     outputs=outputs)
    backbone, images = load(Outputs(10, (7, 0, 3))), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = net((images - backbone.mean) / backbone.std)
    assert torch.allclose(backbone(images), expected, atol=1e-5)
    with pytest.raises(UserError, match="has 3 classes, the data set 2, which are 2 of the 10 "
                       "outputs of timm's digits_resnet: give weights with either number"):
        load(Outputs(10, (7, 0)))


# Which network it is

@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "mobilenetv3_small_100"])
def test_a_network_of_the_list_is_recognised_with_any_head(name, tmp_path):
    torch.save(timm.create_model(name, num_classes=7).state_dict(), tmp_path / "net.pth")
    with pytest.raises(UserError, match=f"; it looks like timm's {name}$"):
        load_timm("resnet18", tmp_path / "net.pth")


@pytest.mark.slow
def test_a_vit_and_a_clip_are_recognised(tmp_path):
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(UserError, match="looks like timm's vit_tiny_patch16_224$"):
        load_timm("vit_small_patch16_224", tmp_path / "vit.pth")
    with pytest.raises(UserError, match="looks like open_clip's digits_clip$"):
        load_timm("resnet18", files.PACKAGED / "digits_clip.safetensors")


@pytest.mark.slow
def test_a_network_that_is_not_surely_known_is_not_named(tmp_path):
    state = timm.create_model("resnet34").state_dict()
    del state["layer4.2.bn2.weight"]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"of another network.*[^a-z]$") as caught:
        load_timm("resnet18", tmp_path / "net.pth")
    assert "looks like" not in str(caught.value)


# Real files

@pytest.mark.skipif(not SHARED.is_dir(), reason="no data to measure on")
def test_published_weights_load():
    backbone = load_timm("tf_efficientnet_lite0",
                         SHARED / "data/tf_efficientnet_lite0.safetensors", num_classes=1000)
    assert numbers(backbone) == (list(HALF), list(HALF)) and backbone.image_size == 224
    for depth, name in ((20, "resnet20-12fca82f.th"), (56, "resnet56-4bfd9763.th")):
        tensors = files.read(SHARED / "data/cifar10_resnets" / name)
        assert tensors["linear.weight"].shape == (10, 64)
        assert sum(key.endswith("conv1.weight") for key in tensors) == (depth - 2) // 2 + 1


# Errors of libraries

@pytest.mark.parametrize("error, expected", [
    (RuntimeError("Error(s) in loading:\n\tMissing: a\n\tUnexpected: b"),
     "Error(s) in loading: Missing: a Unexpected: b"),
    (ValueError("It failed. Set weights_only=False to go on. Really."), "It failed. Really."),
    (EOFError(), "EOFError, no message"),
])
def test_all_of_an_error_is_told_but_bad_advice(error, expected):
    assert explain(error) == expected


def test_a_long_error_says_how_much_is_left_out():
    assert explain(RuntimeError("x" * 2000)).endswith("x ... (500 more characters)")
