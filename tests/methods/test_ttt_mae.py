"""TTT-MAE: facts of its paper and code, on a small random masked autoencoder."""

from __future__ import annotations

import copy

import pytest
import torch
from tta_apm_baselines import ttt_mae
from tta_apm_baselines.ttt_mae import TttMae

from tta_apm.backbones.mae import MaskedAutoencoder
from tta_apm.backbones.mae_vit import ARCHITECTURES, MaeVit, Tower, initialize, normalized, take
from tta_apm.errors import UserError
from tta_apm.toolbox.episodes import image_generators, stack

TINY = ARCHITECTURES["digits_mae"]._replace(
    patch=4, encoder=Tower(16, 2, 2), decoder=Tower(8, 1, 2), head=Tower(16, 1, 2))


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    net = MaeVit(TINY, 10)
    initialize(net)
    return MaskedAutoencoder(net, TINY, name="tiny", weights="random")


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def parts(method, images):
    """Stacked weights, patches and the orders of the first step."""
    net = method.backbone.net
    return (stack(method.initial, len(images)), net.patchify(method.backbone.prepare(images)),
            method.sample_masks(image_generators(images, method.seed)))


def test_the_defaults_are_the_papers(tiny):
    method = TttMae(tiny)
    assert (method.steps, method.masks, method.momentum) == (20, 128, 0.9)
    assert method.lr == pytest.approx(1e-2 * method.masks / 256) == pytest.approx(5e-3)
    assert method.num_visible == int(64 * 0.25)


@pytest.mark.parametrize("ratio, num_visible", [(0.75, 16), (0.5, 32), (0.9, 6), (0.98, 1)])
def test_a_mask_leaves_its_share_of_the_patches(tiny, ratio, num_visible):
    assert TttMae(tiny, mask_ratio=ratio).num_visible == int(64 * (1 - ratio)) == num_visible


def test_masks_are_random_orders_fresh_at_each_draw_and_keyed_by_the_image(tiny, images):
    method = TttMae(tiny, masks=5)
    generators = image_generators(images, 0)
    first, second = method.sample_masks(generators), method.sample_masks(generators)
    assert first.shape == (3, 5, 64)
    assert torch.equal(first.sort(-1).values, torch.arange(64).expand(3, 5, 64))
    masks = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])[:, :16].sort(-1).values
    assert len(masks.unique(dim=0)) == 30  # none twice, of images and steps
    assert torch.equal(method.sample_masks(image_generators(images[1:2], 0)), first[1:2])


def test_what_is_trained_is_the_encoder_with_class_and_mask_token(tiny):
    trained = TttMae(tiny).initial.keys()
    fixed = {name for name, _ in tiny.net.named_parameters()} - trained
    assert {"cls_token", "mask_token", "patch_embed.proj.weight", "norm.bias"} <= trained
    assert any(name.startswith("blocks.1.attn") for name in trained)
    assert all(name.startswith(("decoder_", "classifier_")) or name == "pos_embed"
               for name in fixed)
    assert fixed >= {"pos_embed", "decoder_pred.weight", "classifier_pred.weight"}


def test_the_loss_is_over_hidden_patches_only(tiny, images, monkeypatch):
    method = TttMae(tiny, masks=1)
    weights, patches, order = parts(method, images)
    before = method.loss(weights, patches, order)
    for positions, is_hidden in ((order[..., :16], False), (order[..., 16:], True)):
        def disturbed(patches):
            target = normalized(patches)
            return target.scatter_add(1, positions[:, 0, :, None].expand(-1, -1, 48),
                                      torch.ones_like(target))
        monkeypatch.setattr(ttt_mae, "normalized", disturbed)
        after = method.loss(weights, patches, order)
        assert torch.equal(after, before) is not is_hidden


def test_only_hidden_patches_are_predicted_and_a_right_prediction_costs_nothing(
        tiny, images, monkeypatch):
    method = TttMae(tiny, masks=4)
    weights, patches, order = parts(method, images)
    truth = take(normalized(patches), order[..., 16:]).flatten(0, 1)
    seen = []

    def reconstruct(latents, order, mask_token):
        seen.append((latents.shape, order.shape, mask_token.shape))
        return truth
    monkeypatch.setattr(tiny.net, "reconstruct", reconstruct)
    assert not method.loss(weights, patches, order).any()
    assert seen == [((12, 17, 16), (12, 64), (12, 1, 8))]


def published_loss(net, images, order, num_visible):
    """The authors' steps for one image: select, encode, unshuffle, predict all patches, mask."""
    patches = net.patchify(images.expand(len(order), -1, -1, -1))
    tokens = net.patch_embed(images).expand(len(order), -1, -1) + net.pos_embed[:, 1:]
    keep = order[:, :num_visible]
    tokens = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
    first = (net.cls_token + net.pos_embed[:, :1]).expand(len(order), -1, -1)
    tokens = net.decoder_embed(net.norm(net.blocks(torch.cat([first, tokens], 1))))
    hidden = net.mask_token.expand(len(order), order.shape[1] - num_visible, -1)
    shuffled = torch.cat([tokens[:, 1:], hidden], 1)
    in_place = shuffled.gather(1, order.argsort(1)[..., None].expand_as(shuffled))
    tokens = torch.cat([tokens[:, :1], in_place], 1) + net.decoder_pos_embed
    predictions = net.decoder_pred(net.decoder_norm(net.decoder_blocks(tokens)))[:, 1:]
    target = (patches - patches.mean(-1, keepdim=True)) / (
        patches.var(-1, keepdim=True) + 1e-6).sqrt()
    mask = torch.ones(order.shape).scatter(1, keep, 0)
    return ((predictions - target).square().mean(-1) * mask).sum() / mask.sum()


def test_an_episode_is_a_plain_loop_over_a_copy_of_the_network(tiny, images):
    """Masks, loss, trained parameters, SGD and the prediction after the last step together."""
    method = TttMae(tiny, steps=4, masks=6, lr=0.05)
    expected = []
    for image in images.split(1):
        net, prepared = copy.deepcopy(tiny.net), tiny.prepare(image)
        trained = [parameter.requires_grad_() for name, parameter in net.named_parameters()
                   if not name.startswith(("decoder", "classifier", "pos_embed"))]
        optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
        generators = image_generators(image, method.seed)
        for _ in range(4):
            optimizer.zero_grad()
            published_loss(net, prepared, method.sample_masks(generators)[0], 16).backward()
            optimizer.step()
        expected.append(net.classify(net.encode(prepared)).detach())
    found = method(images)
    assert torch.allclose(found, torch.cat(expected), atol=1e-4)
    assert not torch.allclose(found, tiny(images), atol=1e-2)


@pytest.mark.slow
def test_the_loss_falls_over_20_steps(tiny, images):
    method = TttMae(tiny, masks=16, lr=0.02)
    losses = []
    record = method.loss

    def loss(*inputs):
        losses.append(record(*inputs))
        return losses[-1]
    method.loss = loss
    method(images)
    assert len(losses) == 20
    assert (torch.stack(losses[-3:]).mean(0) < torch.stack(losses[:3]).mean(0)).all()


def test_every_chunk_has_an_empty_sgd_without_weight_decay(tiny, images, monkeypatch):
    made = []

    class Spy(torch.optim.SGD):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            made.append((dict(self.param_groups[0]), len(self.state)))
    monkeypatch.setattr(torch.optim, "SGD", Spy)
    method = TttMae(tiny, steps=2, masks=4)
    method.chunk = 1
    method(images)
    assert [state for _, state in made] == [0, 0, 0]
    for group, _ in made:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (5e-3, 0.9, 0)
        assert not group["nesterov"] and not group["dampening"]


def test_chunks_change_nothing(tiny, images):
    method = TttMae(tiny, steps=3, masks=4)
    method.chunk = 3
    together = method(images)
    method.chunk = 2
    assert torch.allclose(method(images), together, atol=1e-5)


def test_no_steps_give_the_unadapted_probe(tiny, images):
    assert torch.allclose(TttMae(tiny, steps=0)(images), tiny(images), atol=1e-5)


def test_only_the_classes_of_the_data_set_are_returned(tiny, images):
    few = MaskedAutoencoder(tiny.net, TINY, name="tiny", weights="random", keep=[4, 2])
    logits = TttMae(tiny, steps=1, masks=2)(images)
    assert torch.allclose(TttMae(few, steps=1, masks=2)(images), logits[:, [4, 2]], atol=1e-6)


@pytest.mark.slow
def test_adaptation_repairs_low_contrast(digits_mae, digits_test):
    images, labels = digits_test
    images, labels = 0.5 + 0.1 * (images[:40] - 0.5), labels[:40]

    def error(method):
        return (method(images).argmax(1) != labels).float().mean()
    assert error(TttMae(digits_mae, masks=8)) < error(TttMae(digits_mae, steps=0)) / 2


@pytest.mark.parametrize("keywords, message", [
    (dict(steps=-1), "steps -1 must be at least 0"),
    (dict(masks=0), "masks 0 must be at least 1"),
    (dict(mask_ratio=0.0), "mask_ratio 0.0 leaves 64 of 64 patches visible"),
    (dict(mask_ratio=0.99), "mask_ratio 0.99 leaves 0 of 64"),
])
def test_bad_values_are_told(tiny, keywords, message):
    with pytest.raises(UserError, match=message):
        TttMae(tiny, **keywords)
