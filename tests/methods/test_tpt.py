"""TPT: facts of its paper and code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tta_apm_baselines import tpt
from tta_apm_baselines.tpt import Tpt

from tta_apm.backbones.clip_prompts import phrase_context
from tta_apm.errors import UserError
from tta_apm.toolbox import view_features
from tta_apm.toolbox.entropy import entropy, marginal_entropy
from tta_apm.toolbox.episodes import image_generators
from tta_apm.toolbox.views import crop_views

LR = 5e-3


@pytest.fixture(scope="module")
def clip(make_clip):
    """The digits CLIP with the one template that TPT starts from."""
    return make_clip("a photo of a {}.")


@pytest.fixture
def images(images):
    return images[:6]


@pytest.fixture
def watched(clip):
    """A factory of a method and a list of the contexts in its calls of the text tower."""
    def make(**settings):
        method, contexts = Tpt(clip, **settings), []
        method.prompts.register_forward_hook(
            lambda module, inputs, output: contexts.append(inputs[0].detach().clone()))
        return method, contexts
    return make


def test_entropy_of_one_view_and_of_identical_views():
    logits = torch.randn(3, 1, 10)
    assert torch.allclose(marginal_entropy(logits), entropy(logits[:, 0]), atol=1e-6)
    assert torch.allclose(marginal_entropy(logits.expand(-1, 7, -1)), entropy(logits[:, 0]),
                          atol=1e-6)


def test_entropy_of_two_opposite_certain_views():
    logits = torch.tensor([[[200.0, 0.0], [0.0, 200.0]]])
    assert torch.allclose(marginal_entropy(logits), torch.tensor([math.log(2)]))
    assert torch.allclose(entropy(logits), torch.zeros(1, 2))
    certain = torch.tensor([[[400.0, 0.0], [400.0, 0.0]]], requires_grad=True)
    marginal_entropy(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_a_tenth_of_64_views_are_the_six_with_the_least_entropy(clip, images):
    method = Tpt(clip)
    assert method.num_selected == 6
    features = method._view_features(images)
    assert features.shape[:2] == (6, 64)
    entropies = entropy(clip.logit_scale * features @ clip.text_features.T)
    lowest = entropies.sort(1).indices[:, :6]
    for index, kept in enumerate(method._most_confident(features, method.text_features)):
        assert torch.equal(kept, features[index, lowest[index]])


def test_the_first_view_is_the_image_itself(clip, images):
    features = Tpt(clip, num_views=10)._view_features(images)
    plain = F.normalize(clip.encode_image(images), dim=-1)
    assert torch.allclose(features[:, 0], plain, atol=1e-5)
    assert ((features[:, 1:] - plain[:, None]).norm(dim=-1) > 1e-3).all()


@pytest.mark.parametrize("settings", [dict(steps=0), dict(lr=0.0)])
def test_without_an_update_it_is_zero_shot(clip, images, settings):
    assert torch.allclose(Tpt(clip, num_views=10, **settings)(images), clip(images), atol=1e-3)


@pytest.mark.slow
def test_the_first_step_is_adamw_s(clip, images, watched):
    """The step is -lr · (sign(g) + 0.01 · context), except for tiny gradients (eps is 1e-8)."""
    method, contexts = watched()
    method(images)
    started, updated = contexts
    assert started.shape == (6, 4, 64)
    assert torch.equal(started, phrase_context(clip, "a photo of a").expand(6, -1, -1))
    leaf = started.clone().requires_grad_()
    features = method._most_confident(
        method._view_features(images), method.text_features)
    marginal_entropy(method._classify(features, leaf)).sum().backward()
    clear = leaf.grad.abs() > 1e-5
    assert clear.float().mean() > 0.5
    expected = started - LR * (leaf.grad.sign() + 0.01 * started)
    assert torch.allclose(updated[clear], expected[clear], atol=1e-5)


def one_by_one(clip, images, *, num_views, kept, steps):
    """The authors' loop: one image, one prompt and one optimiser at a time."""
    logits = []
    method = Tpt(clip)
    for image, generator in zip(images, image_generators(images, 42)):
        crops = crop_views(image[None], num_views - 1, [generator])[0]
        features = F.normalize(clip.encode_image(torch.cat([image[None], crops])), dim=-1)
        context = torch.nn.Parameter(phrase_context(clip, "a photo of a")[None])
        optimizer = torch.optim.AdamW([context], lr=LR)
        chosen = None
        for _ in range(steps):
            output = clip.logit_scale * features @ method.prompts(context)[0].T
            if chosen is None:
                chosen = entropy(output).argsort()[:kept]
            probabilities = output[chosen].softmax(-1).mean(0)
            optimizer.zero_grad()
            (-(probabilities * probabilities.log()).sum()).backward()
            optimizer.step()
        with torch.no_grad():
            logits.append(clip.logit_scale * features[0] @ method.prompts(context)[0].T)
    return torch.stack(logits)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_images_adapted_together_get_what_they_get_one_by_one(clip, images, steps):
    together = Tpt(clip, num_views=20, steps=steps)(images)
    assert torch.allclose(together, one_by_one(clip, images, num_views=20, kept=2, steps=steps),
                          atol=2e-3)
    assert not torch.allclose(together, clip(images), atol=0.05)


def test_the_step_lowers_the_entropy_of_the_mean_prediction(clip, images, watched):
    method, contexts = watched(num_views=20)
    method(images)
    features = method._most_confident(
        method._view_features(images), method.text_features)
    with torch.no_grad():
        before, after = [marginal_entropy(method._classify(features, context))
                         for context in tuple(contexts)]
    assert (after < before).all()


def test_an_image_does_not_depend_on_the_one_before_and_contexts_are_restored(clip, images,
                                                                              watched):
    method, contexts = watched(num_views=10)
    context, text_features = method.context.clone(), method.text_features.clone()
    first = method(images[1:2])
    method(images[:1])
    assert torch.equal(method(images[1:2]), first)
    assert torch.equal(contexts[0], contexts[2]) and torch.equal(contexts[0], contexts[4])
    assert torch.equal(method.context, context)
    assert torch.equal(method.text_features, text_features)


def test_only_the_context_takes_a_gradient(clip, images, monkeypatch):
    leaves = []
    adapt = tpt.adapt

    def watch(parameters, *args, **settings):
        leaves.extend(parameters)
        return adapt(parameters, *args, **settings)
    monkeypatch.setattr(tpt, "adapt", watch)
    method = Tpt(clip, num_views=10)
    method(images)
    assert leaves == ["context"]
    assert all(p.grad is None and not p.requires_grad for p in method.parameters())


def test_chunks_of_classes_and_of_images_change_nothing(clip, images):
    whole = Tpt(clip, num_views=10)
    in_chunks = Tpt(clip, num_views=10, class_chunk=3)
    in_chunks.chunk = 2
    assert torch.allclose(in_chunks(images), whole(images), atol=1e-3)


def test_views_follow_the_seed_and_augmix_changes_them(clip, images):
    logits = Tpt(clip, num_views=10)(images)
    assert torch.equal(Tpt(clip, num_views=10, seed=42)(images), logits)
    assert not torch.allclose(Tpt(clip, num_views=10, seed=43)(images), logits, atol=1e-3)
    with_augmix = Tpt(clip, num_views=10, augmix=True)
    assert not torch.allclose(with_augmix(images), logits, atol=1e-3)
    features = with_augmix._view_features(images)
    plain = F.normalize(clip.encode_image(images), dim=-1)
    assert torch.allclose(features[:, 0], plain, atol=1e-5)


def test_views_are_mirrored_if_asked(clip, images, monkeypatch):
    asked = []
    monkeypatch.setattr(view_features, "crop_views", lambda *args, flip, **settings: (
        asked.append(flip), crop_views(*args, flip=flip, **settings))[1])
    for settings in (dict(), dict(flip=False)):
        Tpt(clip, num_views=10, **settings)(images)
    assert asked == [True, False]


def test_the_phrase_sets_the_number_of_vectors(clip, images, watched):
    method, contexts = watched(num_views=10, phrase="a scan of the handwritten digit")
    method(images)
    assert contexts[0].shape == (6, 6, 64)


def test_bad_values_are_told(clip):
    with pytest.raises(UserError, match="num_views 0"):
        Tpt(clip, num_views=0)
    with pytest.raises(UserError, match="selection 0.1 keeps 0 of 9 views"):
        Tpt(clip, num_views=9)
    with pytest.raises(UserError, match="selection 1.5 keeps 96 of 64"):
        Tpt(clip, selection=1.5)
    with pytest.raises(UserError, match="steps -1"):
        Tpt(clip, steps=-1)
    with pytest.raises(UserError, match="class_chunk -1"):
        Tpt(clip, class_chunk=-1)
    with pytest.raises(UserError, match="the phrase ' ' has no words"):
        Tpt(clip, phrase=" ")
    with pytest.raises(UserError, match="file not found: 'elsewhere.pth'"):
        Tpt(clip, weights="elsewhere.pth")
