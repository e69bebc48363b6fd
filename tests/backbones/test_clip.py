"""CLIP: prompts, features, and all error messages about weights."""

import pytest
import torch

from tta_apm.backbones.clip import ClipBackbone, load_clip
from tta_apm.backbones.clip_templates import template_sets, templates
from tta_apm.backbones.weights import files
from tta_apm.data.digits import CLASS_NAMES
from tta_apm.errors import UserError


@pytest.fixture
def images(digits_test):
    return digits_test[0][:8]


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


def test_logits_scale_with_logit_scale(make_clip, images):
    backbone = make_clip("a photo of a {}.")
    before = backbone(images)
    backbone.logit_scale *= 2
    assert torch.allclose(backbone(images), 2 * before)


@pytest.mark.slow
def test_text_features_are_the_normalised_mean_of_unit_features(digits_clip, make_clip):
    each = torch.stack([make_clip(template).text_features for template in digits_clip.templates])
    expected = torch.nn.functional.normalize(each.mean(0), dim=1)
    assert torch.allclose(digits_clip.text_features, expected, atol=1e-6)


def test_single_template_features_are_those_of_open_clip(digits_clip, make_clip):
    tokens = digits_clip.tokenizer([f"a photo of a {name}." for name in CLASS_NAMES])
    assert tokens.shape == (10, 24)
    with torch.no_grad():
        expected = digits_clip.model.encode_text(tokens, normalize=True)
    assert torch.allclose(make_clip("a photo of a {}.").text_features, expected, atol=1e-6)


def test_order_of_templates_is_irrelevant(digits_clip, make_clip):
    reverse = make_clip(*reversed(digits_clip.templates))
    assert torch.allclose(reverse.text_features, digits_clip.text_features, atol=1e-6)


def test_text_features_do_not_depend_on_the_chunk(digits_clip, make_clip, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where there are none yet
    monkeypatch.setattr("tta_apm.backbones.clip.CHUNK", 7)
    chunked = make_clip(*digits_clip.templates)
    assert torch.allclose(chunked.text_features, digits_clip.text_features, atol=1e-6)


def load_toy_clip(model: str, weights: str) -> ClipBackbone:
    return load_clip(model, weights, class_names=CLASS_NAMES, templates=("{}",), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("model, weights, message", [
    ("digit_clip", "x", "CLIP.MODEL: unknown 'digit_clip': did you mean 'digits_clip'"),
    ("ViT-B-16", "openai", "QuickGELU: use CLIP.MODEL 'ViT-B-16-quickgelu', not 'ViT-B-16'"),
    ("ViT-H-14", "dfn5b", "use CLIP.MODEL 'ViT-H-14-quickgelu', not 'ViT-H-14'"),
    ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", "need CLIP.MODEL 'ViT-B-16', not 'ViT-B-16-quick"),
    ("ViT-B-16", "laion2b_s34b", "no weights 'laion2b_s34b': did you mean 'laion2b_s34b_b88k'"),
    ("ViT-B-16", "folder/open_clip.bin", "CLIP.WEIGHTS: file not found: 'folder/open_clip.bin'"),
    ("ViT-B-16", "", "'ViT-B-16' has no weights ''"),
    ("digits_clip", "digits_resnet.safetensors", "resnet.safetensors is of another network"),
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
                        lambda repo, name: str(files.PACKAGED / "digits_clip.safetensors"))
    backbone = load_toy_clip("digits_clip", "toy")
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert backbone.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    assert backbone.weights.split() == ["toy", digits_clip.weights.split()[1]]


def test_torch_checkpoint_of_a_clip(tmp_path, digits_clip, images):
    torch.save({"state_dict": digits_clip.model.state_dict()}, tmp_path / "clip.pt")
    backbone = load_toy_clip("digits_clip", str(tmp_path / "clip.pt"))
    assert torch.equal(backbone.encode_image(images), digits_clip.encode_image(images))


def test_classes_of_the_same_prompts_are_told(make_clip, capsys):
    make_clip("a photo of a {}.", class_names=("zero", "one", "zero"))
    assert ("1 pairs of classes cannot be told apart by their prompts, such as 0 'zero' and 2 "
            "'zero'") in capsys.readouterr().err


def test_classes_that_differ_after_the_last_token_only_are_told(make_clip, capsys):
    long = "very " * 40  # the context has 24 tokens
    make_clip("a photo of a {}.", class_names=(f"{long}old map", "one", f"{long}new map"))
    assert "1 pairs of classes cannot be told apart by their prompts" in capsys.readouterr().err


def test_nothing_is_said_of_classes_that_can_be_told_apart(make_clip, capsys):
    make_clip("a photo of a {}.", class_names=("zero", "one", "two"))
    assert not capsys.readouterr().err
