"""The masked autoencoder: published names and shapes, computation, and loading."""

from __future__ import annotations

import argparse
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tta_apm.backbones.mae import load_mae
from tta_apm.backbones.mae_vit import (
    ARCHITECTURES, MaeVit, initialize, normalized, pretraining_loss, take)
from tta_apm.backbones.weights import files
from tta_apm.data.digits import digits
from tta_apm.errors import UserError
from tta_apm.training.backbones import accuracy

PACKAGED = "digits_mae.safetensors"


def on_meta(model):
    with torch.device("meta"):
        return MaeVit(ARCHITECTURES[model], 1000)


def shapes(net):
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def load(weights, model="digits_mae", num_classes=10, **keywords):
    return load_mae(model, weights, num_classes=num_classes, device="cpu", **keywords)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = MaeVit(ARCHITECTURES["digits_mae"], 10)
    initialize(net)
    return net.eval()


# Names and shapes

@pytest.mark.slow
def test_the_encoder_has_the_names_and_shapes_of_timms_vit():
    expected = shapes(timm.create_model("vit_base_patch16_224", num_classes=0, weight_init="skip"))
    found = {name: shape for name, shape in shapes(on_meta("mae_vit_base_patch16")).items()
             if not name.startswith(("decoder", "classifier", "mask_token"))}
    assert found == expected


@pytest.mark.slow
def test_names_and_shapes_of_the_published_vit_large():
    found = shapes(on_meta("mae_vit_large_patch16"))
    expected = {
        "cls_token": (1, 1, 1024), "pos_embed": (1, 197, 1024),
        "patch_embed.proj.weight": (1024, 3, 16, 16), "patch_embed.proj.bias": (1024,),
        "mask_token": (1, 1, 512), "decoder_embed.weight": (512, 1024),
        "decoder_embed.bias": (512,), "decoder_pos_embed": (1, 197, 512),
        "decoder_pred.weight": (768, 512), "decoder_pred.bias": (768,),
        "classifier_embed.weight": (768, 1024),
        "classifier_embed.bias": (768,), "classifier_pos_embed": (1, 197, 768),
        "classifier_pred.weight": (1000, 768), "classifier_pred.bias": (1000,)}
    for prefix, width, depth in (("", 1024, 24), ("decoder_", 512, 8), ("classifier_", 768, 12)):
        expected |= {f"{prefix}norm.weight": (width,), f"{prefix}norm.bias": (width,)}
        for block in range(depth):
            expected |= {f"{prefix}blocks.{block}.{name}": shape
                         for name, shape in block_shapes(width).items()}
    assert found == expected


def block_shapes(width):
    wide = {"attn.qkv": 3 * width, "mlp.fc1": 4 * width, "attn.proj": width, "mlp.fc2": width}
    narrow = {name: 4 * width if name == "mlp.fc2" else width for name in wide}
    return {**{f"{name}.weight": (wide[name], narrow[name]) for name in wide},
            **{f"{name}.bias": (wide[name],) for name in wide},
            **{f"norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}}


def test_parameter_counts_of_vit_large():
    counts = {"classifier": 0, "decoder": 0, "": 0}
    for name, parameter in on_meta("mae_vit_large_patch16").named_parameters():
        prefix = next(prefix for prefix in counts if name.startswith(prefix))
        counts[prefix] += parameter.numel()
    # ViT-L/16 without a head, as timm counts it, and the mask token.
    assert counts == {"": 303_301_632 + 512, "decoder": 26_239_744, "classifier": 86_763_496}


def test_positions_are_coded_by_sines_and_cosines_of_column_then_row():
    codes = MaeVit(ARCHITECTURES["digits_mae"], 10).pos_embed[0]
    width, side = codes.shape[1], 4
    assert not codes[0].any()
    for row, column in ((0, 0), (1, 0), (0, 1), (3, 2)):
        angles = [torch.tensor([axis / 10000 ** (4 * i / width) for i in range(width // 4)])
                  for axis in (column, row)]
        expected = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())])
        assert torch.allclose(codes[1 + row * side + column], expected, atol=1e-6)


# Computation

def test_patches_are_rows_of_pixels_with_channels_last(net):
    images = torch.rand(2, 3, 32, 32)
    patches = net.patchify(images)
    assert patches.shape == (2, 16, 8 * 8 * 3)
    corner = images[1, :, 8:16, 24:32]  # second row of patches, last column
    assert torch.equal(patches[1, 7], corner.permute(1, 2, 0).flatten())


def test_embedding_patches_is_the_published_convolution(net):
    images = torch.rand(2, 3, 32, 32)
    tokens = net.patch_embed(images) + net.pos_embed[:, 1:]
    first = (net.cls_token + net.pos_embed[:, :1]).expand(2, -1, -1)
    expected = net.norm(net.blocks(torch.cat([first, tokens], 1)))
    assert torch.allclose(net.encode(images), expected, atol=1e-5)


def test_hidden_patches_do_not_reach_the_latents(net):
    images = torch.rand(1, 3, 32, 32)
    positions = torch.tensor([[5, 2, 11, 8]])
    patches = net.patchify(images)
    changed = patches.clone()
    changed[:, [index for index in range(16) if index not in (5, 2, 11, 8)]] += 1
    latents = net(take(patches, positions), positions)
    assert latents.shape == (1, 5, 48)
    assert torch.equal(net(take(changed, positions), positions), latents)


def test_the_order_of_visible_patches_is_of_no_account(net):
    patches = net.patchify(torch.rand(1, 3, 32, 32))
    positions, order = torch.tensor([[5, 2, 11, 8]]), torch.tensor([2, 0, 3, 1])
    latents = net(take(patches, positions), positions)
    turned = net(take(patches, positions[:, order]), positions[:, order])
    assert torch.allclose(turned[:, 1:], latents[:, 1:][:, order], atol=1e-5)
    assert torch.allclose(turned[:, 0], latents[:, 0], atol=1e-5)


def test_reconstruction_is_that_of_the_published_order_of_work(net):
    """The published code: insert latents among mask tokens, add positions, predict all patches."""
    patches = net.patchify(torch.rand(3, 3, 32, 32))
    order = torch.rand(3, 16).argsort(1)
    latents = net(take(patches, order[:, :4]), order[:, :4])
    tokens = net.decoder_embed(latents)
    shuffled = torch.cat([tokens[:, 1:], net.mask_token.expand(3, 12, -1)], 1)
    in_place = shuffled.gather(1, order.argsort(1)[..., None].expand(-1, -1, 32))
    tokens = torch.cat([tokens[:, :1], in_place], 1) + net.decoder_pos_embed
    everything = net.decoder_pred(net.decoder_norm(net.decoder_blocks(tokens)))[:, 1:]
    predictions = net.reconstruct(latents, order, net.mask_token)
    assert predictions.shape == (3, 12, 192)
    assert torch.allclose(predictions, take(everything, order[:, 4:]), atol=1e-5)


def test_normalized_patches_have_mean_0_and_variance_1_and_constant_ones_are_0():
    patches = torch.rand(4, 16, 192) * 3 + 1
    found = normalized(patches)
    assert torch.allclose(found.mean(-1), torch.zeros(4, 16), atol=1e-5)
    assert torch.allclose(found.var(-1), torch.ones(4, 16), atol=1e-4)
    assert not normalized(torch.full((1, 2, 192), 0.25)).any()
    slight = torch.tensor([[0.0, 0.002]])  # its unbiased variance is 2e-6
    assert torch.allclose(normalized(slight), slight.sub(0.001) / 3e-6 ** 0.5)


def test_the_pretraining_loss_starts_at_one_and_falls(net):
    """The target has variance 1, and an untrained decoder predicts about 0."""
    torch.nn.init.zeros_(net.decoder_pred.weight)
    images = torch.rand(32, 3, 32, 32)

    def loss():
        return pretraining_loss(net, images, torch.Generator().manual_seed(0))
    before = loss()
    assert before.item() == pytest.approx(191 / 192, abs=1e-3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before.backward()
    optimizer.step()
    assert loss() < before
    assert all(parameter.grad is None for name, parameter in net.named_parameters()
               if name.startswith("classifier") or name.endswith("pos_embed"))


# The packaged weights

def test_the_packaged_weights_know_digits(digits_mae):
    assert accuracy(digits_mae, digits(data_dir="", frost_dir=None)) >= 0.95
    assert (files.PACKAGED / PACKAGED).stat().st_size < 1.5e6


def test_the_packaged_autoencoder_reconstructs(digits_mae, digits_test):
    images = digits_mae.prepare(digits_test[0])
    with torch.no_grad():
        error = pretraining_loss(digits_mae.net, images, torch.Generator().manual_seed(0))
    variance = normalized(digits_mae.net.patchify(images)).square().mean()
    assert error < variance / 2  # of the loss of predicting 0


def test_images_of_another_size_are_resized(digits_mae, digits_test):
    images = digits_test[0][:8]
    large = F.interpolate(images, size=(64, 64), mode="bicubic").clamp(0, 1)
    assert (digits_mae(large).argmax(1) == digits_mae(images).argmax(1)).all()


# Loading

@pytest.fixture
def official(tmp_path, net):
    """The authors' two files: both have the encoder, one has the arguments of training."""
    other = copy.deepcopy(net)
    initialize(other)
    body = {name: tensor for name, tensor in net.state_dict().items()
            if not name.startswith("classifier")}
    head = {name: tensor for name, tensor in other.state_dict().items()
            if not name.startswith(("decoder", "mask_token"))}
    torch.save({"model": body}, tmp_path / "full.pth")
    torch.save({"model": head, "optimizer": {"state": {}}, "epoch": 19, "scaler": {"scale": 2.0},
                "args": argparse.Namespace(blr=1e-3, dist_url="env://")}, tmp_path / "prob.pth")
    torch.save({"model": head}, tmp_path / "bare_prob.pth")
    return tmp_path, net, other


def check_loaded(backbone, net, other):
    for name, tensor in backbone.net.state_dict().items():
        source = other if name.startswith("classifier") else net
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_official_files_load_by_path(official):
    folder, net, other = official
    backbone = load(f"{folder}/full.pth, {folder}/bare_prob.pth")
    check_loaded(backbone, net, other)
    names = [label.split()[0] for label in backbone.weights.split(", ")]
    assert names == ["full.pth", "bare_prob.pth"]
    assert not backbone.training and not any(p.requires_grad for p in backbone.parameters())


def test_arguments_of_the_training_in_a_file_do_no_harm(official):
    folder, net, other = official
    check_loaded(load(f"{folder}/full.pth,{folder}/prob.pth"), net, other)


def test_anything_else_in_a_file_is_left_alone(official, harmful):
    folder, net, other = official
    torch.save({"model": {**other.state_dict(), **net.state_dict()}, "args": harmful},
               folder / "odd.pth")
    backbone = load(str(folder / "odd.pth"))
    assert torch.equal(backbone.net.norm.weight, net.norm.weight)
    assert not harmful.path.exists()


def test_one_file_in_half_precision_loads_as_single(official):
    folder, net, _ = official
    save_file({name: tensor.half() for name, tensor in net.state_dict().items()},
              folder / "all.safetensors")
    backbone = load(str(folder / "all.safetensors"))
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}
    assert torch.equal(backbone.net.norm.weight, net.norm.weight.half().float())


def test_a_subset_of_the_heads_classes_can_be_kept(digits_test):
    images = digits_test[0][:4]
    assert torch.equal(load(PACKAGED, keep=(7, 0))(images), load(PACKAGED)(images)[:, [7, 0]])


@pytest.mark.slow
@pytest.mark.parametrize("change, message", [
    (lambda found: found.pop("blocks.3.mlp.fc1.weight"),
     r"wrong.safetensors is of another network than digits_mae: 1 of its \d+ tensors are missing "
     r"\(blocks.3.mlp.fc1.weight\)$"),
    (lambda found: [found.pop(name) for name in list(found) if name.startswith("decoder")],
     r"19 of its \d+ tensors are missing \(decoder_blocks.0.attn.proj.bias, "
     r"decoder_blocks.0.attn.proj.weight, decoder_blocks.0.attn.qkv.bias, \.\.\.\)$"),
    (lambda found: found.update(norm=torch.zeros(3), mask_token=torch.zeros(1, 1, 16)),
     r"1 are of another shape \(mask_token is \[1, 1, 16\], not \[1, 1, 32\]\)$"),
])
def test_a_file_that_does_not_fit_is_told_by_its_tensors(tmp_path, change, message):
    found = load_file(files.PACKAGED / PACKAGED)
    change(found)
    save_file(found, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "wrong.safetensors"))


@pytest.mark.parametrize("keywords, message", [
    (dict(model="digits_mea"), "MAE.MODEL: unknown 'digits_mea': did you mean 'digits_mae'"),
    (dict(weights="no.pth"), r"file not found: 'no.pth'.*/mae_pretrain_vit_large_full.pth and .*"
     r"/prob_lr1e-3_wd.2_blk12_ep20.pth: download both"),
    (dict(weights=f"{PACKAGED},no.pth"), "file not found: 'no.pth'"),
    (dict(weights=",".join([PACKAGED] * 3)), "names 3 files"),
    (dict(num_classes=7), "digits_mae.safetensors has 10 classes, the data set 7$"),
])
def test_wrong_settings_are_told(keywords, message):
    with pytest.raises(UserError, match=message):
        load(**{"weights": PACKAGED, **keywords})
