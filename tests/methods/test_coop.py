"""CoOp and CoCoOp: files, prompts and training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tta_apm_baselines.cocoop import Cocoop
from tta_apm_baselines.coop import Coop
from tta_apm_baselines.tpt import Tpt

from tta_apm.backbones.clip_prompts import (
    Context, ContextPrompts, cosine_logits, load_context, phrase_context)
from tta_apm.data.digits import train_split
from tta_apm.errors import UserError
from tta_apm.training.contexts import few_shots, image_features, train

PHRASE = "a photo of a"
# Of one, two and five tokens.
NAMES = ("three", "zero one", "two", "the handwritten digit number nine", "four five")


@pytest.fixture(scope="module")
def clip(make_clip):
    """The digits CLIP with other classes and one template."""
    return make_clip(PHRASE + " {}.", class_names=NAMES)


@pytest.fixture
def images(digits_test):
    return digits_test[0][:12]


def cocoop_state(clip, seed=0):
    torch.manual_seed(seed)
    return {name: tensor.detach() for name, tensor in
            Context(phrase_context(clip, PHRASE), clip.text_features.shape[1]).state_dict().items()}


def checkpoint_of(folder, tensors):
    """A file in the format of the authors' training code."""
    file = folder / "model.pth.tar-50"
    of_classes = {"token_prefix": torch.zeros(1000, 1, 7), "token_suffix": torch.zeros(1000, 72, 7)}
    torch.save({"state_dict": {**tensors, **of_classes}, "epoch": 50, "val_result": None,
                "optimizer": {"state": {}, "param_groups": [{"lr": 2e-3}]},
                "scheduler": {"last_epoch": 50}}, file)
    return str(file)


def test_a_context_of_words_gives_the_zero_shot_logits(clip, images, tmp_path):
    file = checkpoint_of(tmp_path, {"ctx": phrase_context(clip, PHRASE)})
    assert torch.allclose(Coop(clip, weights=file)(images), clip(images), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("phrase", ["the", "a low resolution picture of the number"])
def test_contexts_of_any_length(make_clip, images, tmp_path, phrase):
    clip = make_clip(phrase + " {}.", class_names=NAMES)
    file = checkpoint_of(tmp_path, {"ctx": phrase_context(clip, phrase)})
    assert torch.allclose(Coop(clip, weights=file)(images), clip(images), atol=1e-3)


def test_a_meta_net_of_zeros_makes_cocoop_coop(clip, images, tmp_path):
    state = {name: tensor if name == "ctx" else torch.zeros_like(tensor)
             for name, tensor in cocoop_state(clip).items()}
    cocoop = Cocoop(clip, weights=checkpoint_of(tmp_path, state))(images)
    coop = Coop(clip, weights=checkpoint_of(tmp_path, {"ctx": state["ctx"]}))(images)
    assert torch.allclose(cocoop, coop, atol=1e-4)


def test_cocoop_shifts_the_context_by_the_meta_net_of_each_image(clip, images, tmp_path):
    state = cocoop_state(clip)
    logits = Cocoop(clip, weights=checkpoint_of(tmp_path, state))(images)
    features = F.normalize(clip.encode_image(images), dim=-1)
    hidden = (features @ state["meta_net.linear1.weight"].T + state["meta_net.linear1.bias"]).relu()
    shift = hidden @ state["meta_net.linear2.weight"].T + state["meta_net.linear2.bias"]
    for index in range(3):
        file = checkpoint_of(tmp_path, {"ctx": state["ctx"] + shift[index]})
        alone = Coop(clip, weights=file)(images[index:index + 1])
        assert torch.allclose(logits[index:index + 1], alone, atol=1e-3)


def test_class_vectors_have_length_one_and_logits_scale_with_the_temperature(clip, make_clip):
    prompts = ContextPrompts(clip, 4)
    with torch.no_grad():
        text_features = prompts(phrase_context(clip, PHRASE)[None])
    assert torch.allclose(text_features.norm(dim=-1), torch.ones(1, len(NAMES)))
    features = F.normalize(torch.randn(1, 3, text_features.shape[-1]), dim=-1)
    logits = cosine_logits(clip, features, text_features)
    assert logits.abs().max() <= clip.logit_scale
    warmer = make_clip(*clip.templates, class_names=NAMES)
    warmer.logit_scale = 2 * clip.logit_scale
    assert torch.allclose(cosine_logits(warmer, features, text_features), 2 * logits)


@pytest.mark.parametrize("class_chunk", [1, 2, 100])
def test_chunks_of_classes_change_neither_features_nor_gradients(clip, class_chunk):
    torch.manual_seed(0)
    context = phrase_context(clip, PHRASE) + 0.1 * torch.randn(3, 4, 1)
    direction = torch.randn(3, len(NAMES), clip.text_features.shape[1])

    def run(chunk):
        leaf = context.clone().requires_grad_()
        features = ContextPrompts(clip, 4, chunk)(leaf)
        (features * direction).sum().backward()
        return features, leaf.grad
    for chunked, whole in zip(run(class_chunk), run(0)):
        assert torch.allclose(chunked, whole, atol=1e-5)


def held_bytes(prompts, context):
    """Bytes of the activations that a forward pass saves, without parameters."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = prompts(context.clone().requires_grad_())
    for parameter in prompts.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert features.requires_grad
    return sum(kept.values())


def test_the_estimate_of_memory_covers_what_is_kept(clip):
    context = phrase_context(clip, PHRASE).expand(5, -1, -1)
    prompts, chunked = ContextPrompts(clip, 4), ContextPrompts(clip, 4, class_chunk=1)
    assert 0.4 < held_bytes(prompts, context) / (5 * prompts.bytes_per_image()) < 1
    assert held_bytes(chunked, context) < held_bytes(prompts, context) / 20
    assert chunked.bytes_per_image() < prompts.bytes_per_image() / 2


def test_half_precision_and_any_number_of_hidden_units_load(clip, tmp_path):
    wide = Context(torch.randn(16, 64), 64, hidden=9)
    half = {name: tensor.half() for name, tensor in wide.state_dict().items()}
    loaded = load_context(checkpoint_of(tmp_path, half), clip, meta_net=True)
    assert all(torch.equal(tensor, half[name].float())
               for name, tensor in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_meta_net_has_the_paper_s_number_of_parameters():
    """Of ViT-B/16, with the four context vectors."""
    context = Context(torch.zeros(4, 512), feature_dim=512)
    assert sum(parameter.numel() for parameter in context.parameters()) == 35_360


def without(tensors, name):
    return {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.slow
def test_bad_files_are_told_by_name(clip, tmp_path):
    good = cocoop_state(clip)

    def told(match, tensors, method=Cocoop):
        with pytest.raises(UserError, match=match):
            method(clip, weights=checkpoint_of(tmp_path, tensors))
    told("lacks 'ctx'", without(good, "ctx"))
    told(r"of CoCoOp for digits_clip: 1 of its 5 tensors are missing \(meta_net.linear2.bias\)",
         without(good, "meta_net.linear2.bias"))
    told("CoCoOp for digits_clip: 4 of its 5 tensors are missing .meta_net", {"ctx": good["ctx"]})
    told("of CoOp for digits_clip: 4 are not the network's .meta_net", good, Coop)
    told("ctx is \\[4, 512\\], not \\[4, 64\\]",
         {"ctx": torch.zeros(4, 512)}, Coop)
    told("'ctx' is \\[10, 4, 64\\]", {"ctx": torch.zeros(10, 4, 64)}, Coop)  # one per class
    told("'ctx' is \\[\\]", {"ctx": torch.tensor(1.0)}, Coop)
    told("meta_net.linear1.weight is \\[4, 65\\]",
         {**good, "meta_net.linear1.weight": torch.zeros(4, 65)})
    told("meta_net.linear2.weight is \\[4, 64\\]",
         {**good, "meta_net.linear2.weight": torch.zeros(4, 64)})
    with pytest.raises(UserError, match="file not found: 'elsewhere.pth'"):
        Coop(clip, weights="elsewhere.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match="not a checkpoint of weights"):
        Coop(clip, weights=str(tmp_path / "text.pth"))


def test_a_checkpoint_s_code_does_not_run(clip, harmful, tmp_path):
    torch.save({"state_dict": {"ctx": torch.ones(4, 64)}, "extra": harmful}, tmp_path / "m.pth")
    context = load_context(str(tmp_path / "m.pth"), clip, meta_net=False)
    assert torch.equal(context.ctx, torch.ones(4, 64))
    assert not harmful.path.exists()


def test_safetensors_of_ours_load_too(clip, images, tmp_path):
    tensors = {"ctx": torch.randn(2, 64)}
    save_file(tensors, tmp_path / "context.safetensors")
    ours = Coop(clip, weights=str(tmp_path / "context.safetensors"))(images)
    assert torch.equal(ours, Coop(clip, weights=checkpoint_of(tmp_path, tensors))(images))


def test_what_does_not_fit_the_text_tower_is_told(clip, monkeypatch):
    with pytest.raises(UserError, match="19 vectors and the class name 'the handwritten"):
        ContextPrompts(clip, 19)
    ContextPrompts(clip, 16)
    with pytest.raises(UserError, match="the phrase '' has no words"):
        phrase_context(clip, "")
    monkeypatch.setattr(clip.model, "text_pool_type", "last")
    with pytest.raises(UserError, match="that of CLIP.MODEL digits_clip is different"):
        ContextPrompts(clip, 4)


@pytest.mark.slow
def test_training_teaches_the_context_and_nothing_else(digits_clip):
    data = train_split()
    shots = few_shots(data.labels)
    assert (np.bincount(data.labels[shots]) == 16).all() and len(set(shots)) == 160
    features, labels = image_features(digits_clip, data.pixels[shots]), torch.from_numpy(
        data.labels[shots])
    prompts = ContextPrompts(digits_clip, 4)
    before = {name: tensor.clone() for name, tensor in digits_clip.state_dict().items()}
    torch.manual_seed(0)
    # Not words, so that there is something to learn.
    start = phrase_context(digits_clip, PHRASE) + 0.3 * torch.randn(4, 64)
    for feature_dim in (None, 64):
        context = Context(start.clone(), feature_dim)

        def loss():
            with torch.no_grad():
                text_features = prompts(context(features))
            return F.cross_entropy(
                cosine_logits(digits_clip, features[:, None], text_features)[:, 0], labels)
        untrained, state = loss(), {name: t.clone() for name, t in context.state_dict().items()}
        train(context, digits_clip, features, labels, epochs=3, batch_size=32)
        assert loss() < 0.95 * untrained
        assert not any(torch.equal(context.state_dict()[name], t) for name, t in state.items())
    assert all(p.grad is None and not p.requires_grad for p in digits_clip.parameters())
    after = digits_clip.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", [Coop, Cocoop])
def test_the_packaged_contexts_classify_digits(method, digits_clip, digits_test):
    images, labels = digits_test
    assert (method(digits_clip)(images).argmax(1) == labels).float().mean() >= 0.95


def test_tpt_starts_from_a_file_of_coop(clip, images, tmp_path):
    file = checkpoint_of(tmp_path, {"ctx": phrase_context(clip, "the number") + 0.1})
    coop = Coop(clip, weights=file)(images)
    untuned = Tpt(clip, weights=file, num_views=1, selection=1.0, steps=0)(images)
    assert torch.allclose(untuned, coop, atol=1e-3)
    tuned = Tpt(clip, weights=file, num_views=10)(images)
    assert not torch.allclose(tuned, coop, atol=1e-2)


def test_tpt_starts_from_the_context_that_cocoop_makes_of_each_image(clip, images, tmp_path):
    state = {name: 3 * tensor for name, tensor in cocoop_state(clip).items()}
    file = checkpoint_of(tmp_path, state)
    cocoop = Cocoop(clip, weights=file)(images)
    untuned = Tpt(clip, weights=file, num_views=1, selection=1.0, steps=0)(images)
    assert torch.allclose(untuned, cocoop, atol=1e-3)
    assert not torch.allclose(untuned, Coop(clip, weights=checkpoint_of(
        tmp_path, {"ctx": state["ctx"]}))(images), atol=1e-2)
    among_views = Tpt(clip, weights=checkpoint_of(tmp_path, state), num_views=10, steps=0)(images)
    assert torch.allclose(among_views, cocoop, atol=1e-3)  # the context is that of the image itself
    tuned = Tpt(clip, weights=checkpoint_of(tmp_path, state), num_views=10)
    together = tuned(images)
    assert not torch.allclose(together, cocoop, atol=1e-2)
    assert torch.allclose(torch.cat([tuned(image) for image in images.split(1)]), together,
                          atol=1e-3)


def test_a_meta_net_of_zeros_makes_tpt_from_cocoop_that_from_coop(clip, images, tmp_path):
    state = {name: tensor if name == "ctx" else torch.zeros_like(tensor)
             for name, tensor in cocoop_state(clip).items()}
    from_cocoop = Tpt(clip, weights=checkpoint_of(tmp_path, state), num_views=10)(images)
    from_coop = Tpt(clip, weights=checkpoint_of(tmp_path, {"ctx": state["ctx"]}),
                    num_views=10)(images)
    assert torch.allclose(from_cocoop, from_coop, atol=1e-3)
