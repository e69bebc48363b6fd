"""Backbones: CLIP, classifiers, their weights and every message about wrong ones."""

import ast
import pickle
import urllib.error
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tta_apm.backbones import files, train
from tta_apm.backbones.build import build
from tta_apm.backbones.classifiers import load_classifier
from tta_apm.backbones.clip import ClipBackbone, load_clip
from tta_apm.backbones.prompts import template_sets, templates
from tta_apm.data.digits import CLASS_NAMES, digits, train_split
from tta_apm.errors import UserError

CLASSIFIER = ("timm/digits_resnet", "digits_resnet.safetensors")
CLIP = ("digits_clip", "digits_clip.safetensors")


@pytest.fixture(scope="module")
def all_digits():
    return digits(data_dir="", frost_dir=None)


@pytest.fixture
def images(digits_test):
    return digits_test[0][:8]


def make_clip(*prompt_templates: str) -> ClipBackbone:
    backbone = build("clip", *CLIP, class_names=CLASS_NAMES, templates=prompt_templates,
                     device="cpu")
    assert isinstance(backbone, ClipBackbone)
    return backbone


@pytest.fixture
def offline(monkeypatch):
    """No network, and nothing in the caches."""
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")


# Prompts

def test_template_sets():
    assert templates("single") == ("a photo of a {}.",)
    assert len(set(templates("cifar"))) == 18
    assert 'a photo of the number: "{}".' in templates("digits")
    assert len(set(templates("imagenet"))) == 80
    for name in template_sets():
        assert all(template.count("{}") == 1 for template in templates(name))


def test_unknown_template_set():
    with pytest.raises(UserError, match="'cifra'.*did you mean 'cifar'"):
        templates("cifra")


@pytest.mark.parametrize("file", ["prompts", "build", "classifiers"])
def test_slow_libraries_are_imported_where_they_are_used(file):
    """A config is checked without torch, a classifier is built without open_clip, ..."""
    slow = {"timm", "torchvision", "robustbench", "open_clip", "tta_apm.backbones.clip"}
    slow |= {"torch"} if file == "prompts" else set()
    tree = ast.parse((files.PACKAGED.parent / f"{file}.py").read_text())
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import)
                for alias in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not imported & slow


# The packaged weights

@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_packaged_weights_are_right_on_clean_digits(name, backbones, all_digits):
    backbone = backbones[name]
    assert train.accuracy(backbone, all_digits) >= 0.97
    assert backbone(torch.rand(3, 3, 32, 32)).shape == (3, 10)
    assert backbone.kind == name


def test_one_template_suffices(all_digits):
    assert train.accuracy(make_clip(*templates("single")), all_digits) >= 0.97


@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_backbones_are_frozen_float32_and_named(name, backbones, images):
    backbone = backbones[name]
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())
    assert all(p.dtype == torch.float32 for p in backbone.parameters())
    assert not backbone(images).requires_grad
    file, digest = backbone.weights.split()
    assert file == {"classifier": CLASSIFIER, "clip": CLIP}[name][1]
    assert len(digest) == 16 and int(digest, 16)


@pytest.mark.parametrize("name", ["classifier", "clip"])
def test_images_of_another_size_are_resized(name, backbones, images):
    backbone = backbones[name]
    large = torch.nn.functional.interpolate(images, size=(64, 64), mode="bicubic").clamp(0, 1)
    assert backbone.image_size == 32
    assert backbone.prepare(large).shape == (8, 3, 32, 32)
    assert (backbone(large).argmax(1) == backbone(images).argmax(1)).all()


def test_build_knows_two_kinds():
    with pytest.raises(UserError, match="'clipp'.*did you mean 'clip'"):
        build("clipp", *CLIP, class_names=CLASS_NAMES, templates=(), device="cpu")


# CLIP

def test_clip_features(digits_clip, images):
    features = digits_clip.encode_image(images)
    assert features.shape == (8, 64) and digits_clip.text_features.shape == (10, 64)
    assert not torch.allclose(features.norm(dim=1), torch.ones(8), atol=0.01)
    assert torch.allclose(digits_clip.text_features.norm(dim=1), torch.ones(10), atol=1e-6)
    assert torch.allclose(digits_clip(images), digits_clip.classify(features))
    assert torch.allclose(digits_clip.classify(5 * features), digits_clip(images), atol=1e-4)
    assert 1 < digits_clip.logit_scale <= 100
    assert digits_clip(images).abs().max() <= digits_clip.logit_scale + 1e-3


def test_logits_scale_with_logit_scale(images):
    backbone = make_clip("a photo of a {}.")
    before = backbone(images)
    backbone.logit_scale *= 2
    assert torch.allclose(backbone(images), 2 * before)


def test_text_features_are_the_normalised_mean_of_unit_features(digits_clip):
    each = torch.stack([make_clip(template).text_features for template in digits_clip.templates])
    expected = torch.nn.functional.normalize(each.mean(0), dim=1)
    assert torch.allclose(digits_clip.text_features, expected, atol=1e-6)


def test_single_template_features_are_those_of_open_clip(digits_clip):
    tokens = digits_clip.tokenizer([f"a photo of a {name}." for name in CLASS_NAMES])
    assert tokens.shape == (10, 24)
    with torch.no_grad():
        expected = digits_clip.model.encode_text(tokens, normalize=True)
    assert torch.allclose(make_clip("a photo of a {}.").text_features, expected, atol=1e-6)


def test_order_of_templates_is_irrelevant(digits_clip):
    reverse = make_clip(*reversed(digits_clip.templates))
    assert torch.allclose(reverse.text_features, digits_clip.text_features, atol=1e-6)


def test_text_features_do_not_depend_on_the_chunk(digits_clip, monkeypatch):
    monkeypatch.setattr("tta_apm.backbones.clip.CHUNK", 7)
    chunked = make_clip(*digits_clip.templates)
    assert torch.allclose(chunked.text_features, digits_clip.text_features, atol=1e-6)


def load_toy_clip(model: str, weights: str) -> ClipBackbone:
    return load_clip(model, weights, class_names=CLASS_NAMES, templates=("{}",), device="cpu")


@pytest.mark.parametrize("model, weights, message", [
    ("digit_clip", "x", "CLIP.MODEL: unknown 'digit_clip': did you mean 'digits_clip'"),
    ("ViT-B-16", "openai", "QuickGELU: use CLIP.MODEL 'ViT-B-16-quickgelu', not 'ViT-B-16'"),
    ("ViT-H-14", "dfn5b", "use CLIP.MODEL 'ViT-H-14-quickgelu', not 'ViT-H-14'"),
    ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "need CLIP.MODEL 'ViT-B-16', not 'ViT-B-16-quick"),
    ("ViT-B-16", "laion2b_s34b", "no weights 'laion2b_s34b': did you mean 'laion2b_s34b_b88k'"),
    ("ViT-B-16", "folder/open_clip.bin", "CLIP.WEIGHTS: there is no file 'folder/open_clip.bin'"),
    ("ViT-B-16", "", "'ViT-B-16' has no weights ''"),
    ("digits_clip", "digits_resnet.safetensors", "open_clip cannot make 'digits_clip' with .*resn"),
])
def test_wrong_clip(model, weights, message):
    with pytest.raises(UserError, match=message):
        load_toy_clip(model, weights)


def test_clip_offline_says_what_to_download(offline):
    with pytest.raises(UserError, match=r"open_clip_model.safetensors or .*bin of timm/vit_base_"
                       r"patch16_clip_224.openai .*no network here.*https://.*WEIGHTS"):
        load_toy_clip("ViT-B-16-quickgelu", "openai")


def test_hub_offline_is_honoured(offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_toy_clip("ViT-B-16-quickgelu", "openai")


def test_cached_tag_is_loaded_with_its_normalisation(monkeypatch, digits_clip):
    """A tag of a model: its file from the cache, its mean and std, its name in the record."""
    import open_clip
    tag = {"hf_hub": "org/toy/", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *args: tag)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache",
                        lambda repo, name: str(files.PACKAGED / CLIP[1]))
    backbone = load_toy_clip("digits_clip", "toy")
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert backbone.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert backbone.weights.split() == ["toy", digits_clip.weights.split()[1]]


def test_torch_checkpoint_of_a_clip(tmp_path, digits_clip, images):
    torch.save({"state_dict": digits_clip.model.state_dict()}, tmp_path / "clip.pt")
    backbone = load_toy_clip("digits_clip", str(tmp_path / "clip.pt"))
    assert torch.equal(backbone.encode_image(images), digits_clip.encode_image(images))


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("load", [
    lambda file: load_toy_clip("digits_clip", file),
    lambda file: load_classifier("timm/resnet18", file, num_classes=10, device="cpu"),
    lambda file: load_classifier("torchvision/resnet18", file, num_classes=10, device="cpu"),
    lambda file: load_classifier("robustbench/Hendrycks2020AugMix_WRN", file, num_classes=10,
                                 device="cpu"),
])
@pytest.mark.parametrize("save", [torch.save, lambda content, file: file.write_bytes(
    pickle.dumps(content))])
def test_no_code_of_a_checkpoint_is_run(load, save, tmp_path):
    save({"state_dict": Malicious(tmp_path / "harm")}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "harm").exists()


# Classifiers

@pytest.mark.parametrize("save, extension", [
    (lambda state, file: torch.save(state, file), "pth"),
    (lambda state, file: torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}},
                                    file), "pth"),
    (lambda state, file: save_file(state, file), "safetensors")])
def test_timm_with_a_file(save, extension, tmp_path):
    net = timm.create_model("resnet10t", num_classes=7).eval()
    file = tmp_path / f"weights.{extension}"
    save(net.state_dict(), file)
    backbone = load_classifier("timm/resnet10t", str(file), num_classes=7, device="cpu")
    images = torch.rand(2, 3, 176, 176)
    assert backbone.image_size == net.pretrained_cfg["input_size"][-1] == 176
    with torch.no_grad():
        # Another memory layout, another order of the sums.
        assert torch.allclose(backbone(images), net((images - backbone.mean) / backbone.std),
                              atol=1e-5)
    assert backbone.weights.startswith(f"weights.{extension} ")


def test_torchvision_with_a_file(tmp_path):
    from torchvision import models
    net = models.get_model("mobilenet_v3_small", num_classes=10).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    backbone = load_classifier("torchvision/mobilenet_v3_small", str(tmp_path / "net.pth"),
                               num_classes=10, device="cpu")
    assert backbone.image_size == 224
    assert backbone.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_robustbench_with_a_file(tmp_path, images):
    """robustbench's own loader reads the file; the network normalises inside."""
    from tta_apm.compat import import_robustbench
    import_robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    zoo = model_dicts[BenchmarkDataset.cifar_10][ThreatModel.corruptions]
    net = zoo["Hendrycks2020AugMix_WRN"]["model"]().eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}},
               tmp_path / "augmix.pt")
    backbone = load_classifier("robustbench/Hendrycks2020AugMix_WRN", str(tmp_path / "augmix.pt"),
                               num_classes=10, device="cpu")
    with torch.no_grad():
        assert torch.allclose(backbone(images), net(images), atol=1e-5)  # another memory layout
    assert backbone.image_size is None and backbone.weights.startswith("augmix.pt ")


@pytest.mark.parametrize("model, weights, num_classes, message", [
    ("resnet18", "", 10, "'resnet18' must be one of timm/NAME, torchvision/NAME, robustbench/NAME"),
    ("keras/resnet18", "", 10, "must be one of timm/NAME"),
    ("timm/", "", 10, "must be one of timm/NAME"),
    ("timm/resnet81", "", 1000, "timm has no 'resnet81': did you mean 'resnet"),
    ("timm/resnet18.a1", "", 1000, "timm has no 'resnet18.a1': did you mean 'resnet18"),
    ("timm/resnet18", "", 10, "timm's resnet18 has 1000 classes, the data set 10"),
    ("timm/digits_resnet", "", 10, "timm has no weights for 'digits_resnet'"),
    ("timm/resnet18", "no.pth", 10, "CLASSIFIER.WEIGHTS: there is no file 'no.pth'"),
    ("timm/resnet18", "digits_resnet.safetensors", 10, "is of another network: .* do not match"),
    ("timm/digits_resnet", "digits_resnet.safetensors", 7, "has 10 classes, the data set 7"),
    ("torchvision/resnet81", "", 1000, "torchvision has no 'resnet81': did you mean 'resnet"),
    ("torchvision/resnet50", "IMAGENET1K_V3", 1000, "did you mean 'IMAGENET1K_V"),
    ("torchvision/resnet50", "", 10, "V2 has 1000 classes, the data set 10"),
    ("robustbench/Standrad", "", 10, "robustbench's cifar10 has no 'Standrad': did you mean 'Sta"),
    ("robustbench/Standard", "", 7, r"robustbench has models for \[10, 100, 1000\] classes, not 7"),
    ("robustbench/Standard_R50", "digits_resnet.safetensors", 1000, "leave CLASSIFIER.WEIGHTS emp"),
])
def test_wrong_classifier(model, weights, num_classes, message):
    with pytest.raises(UserError, match=message):
        load_classifier(model, weights, num_classes=num_classes, device="cpu")


@pytest.mark.parametrize("model, weights, message", [
    ("timm/resnet10t", "", r"model.safetensors of timm/resnet10t.c3_in1k .*no network here"),
    ("torchvision/resnet18", "IMAGENET1K_V1", r"https://download.pytorch.org/models/resnet18-"
     r"f37072fd.pth does not load: .*no network here.*/nowhere/checkpoints/resnet18-f37072fd.pth"),
    ("robustbench/Standard_R50", "", r"robustbench's Standard_R50 does not load: .*no network"),
])
def test_classifier_offline_says_what_to_download(model, weights, message, offline):
    with pytest.raises(UserError, match=message):
        load_classifier(model, weights, num_classes=1000, device="cpu")


def test_robustbench_download_failure_names_link_and_place(monkeypatch, tmp_path):
    from tta_apm.compat import import_robustbench
    import_robustbench()
    monkeypatch.chdir(tmp_path)

    def refuse(**keywords):
        raise OSError("no network here")
    monkeypatch.setattr("gdown.download", refuse)
    with pytest.raises(UserError, match=r"https://drive.google.com/uc\?id=\S+ does not load: .*no "
                       "network here.*models/cifar10/corruptions/Hendrycks2020AugMix_WRN.pt"):
        load_classifier("robustbench/Hendrycks2020AugMix_WRN", "", num_classes=10, device="cpu")


# Training

@pytest.mark.parametrize("name", sorted(train.RECIPES))
def test_training_repeats_itself(name, tmp_path, monkeypatch, capsys):
    recipe = train.RECIPES[name]
    few = train_split()
    few.pixels, few.labels = few.pixels[:64], few.labels[:64]
    data = recipe.data._replace(train=lambda data_dir: few, test=lambda data_dir: few)
    monkeypatch.setitem(train.RECIPES, name, recipe._replace(data=data))
    weights = []
    for run in ("a.safetensors", "b.safetensors"):
        train.main([name, "--out", str(tmp_path / run), "--epochs", "2"])
        weights.append((tmp_path / run).read_bytes())
    assert weights[0] == weights[1]
    assert "a.safetensors" in capsys.readouterr().out


def test_shift_moves_by_at_most_one_pixel():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4, 4] = 1
    shifted = train._shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0),
                           max_shift=1, flip=False)
    places = {tuple(place) for place in (shifted[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert shifted.shape == (200, 3, 8, 8)
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_half_of_the_images_are_mirrored():
    image = torch.arange(4.0).expand(1, 3, 4, 4)
    seen = train._shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0),
                        max_shift=0, flip=True)
    rows = [tuple(row) for row in seen[:, 0, 0].tolist()]
    assert set(rows) == {(0, 1, 2, 3), (3, 2, 1, 0)}
    assert 70 < rows.count((0, 1, 2, 3)) < 130


def test_every_packaged_recipe_has_its_weights_and_they_are_small():
    packaged = [name for name, recipe in train.RECIPES.items()
                if recipe.data.out == files.PACKAGED]
    assert len(packaged) >= 4
    for name in packaged:
        assert (files.PACKAGED / f"{name}.safetensors").stat().st_size < 8e6
