"""The ViTs of MTTT: their sizes, what they compute, how they load."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tta_apm.backbones.mttt_layers import InnerLoop
from tta_apm.backbones.mttt_vit import (
    ARCHITECTURES, LAYERS, Architecture, Vit, load_mttt_vit, make_vits)
from tta_apm.data.digits import digits
from tta_apm.errors import UserError

PACKAGED = "digits_mttt.safetensors"


def load(weights=PACKAGED, model="digits_mttt", num_classes=10, **keywords):
    return load_mttt_vit(model, weights, num_classes=num_classes, device="cpu", **keywords)


@pytest.mark.parametrize("architecture, layer, millions", [
    # ViT-S from patches of 16×16.
    (Architecture(16, 384, 12, 6, 1536, image_size=224), "self_attention", 22.1),
    (Architecture(16, 384, 12, 6, 1536, image_size=224), "linear", 22.1),
    (Architecture(16, 384, 12, 6, 1536, image_size=224), "mlp", 24.6),
    # ViT-Ti from pixels.
    (Architecture(1, 192, 12, 3, 768), "mlp", 6.8)])
def test_the_sizes_but_for_positions_are_the_papers(architecture, layer, millions):
    with torch.device("meta"):
        net = Vit(architecture, layer, 1000)
    count = sum(parameter.numel() for parameter in net.parameters()) - net.positions.numel()
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("layer", LAYERS)
def test_an_untrained_head_tells_nothing_and_every_layer_mixes_tokens(layer):
    torch.manual_seed(0)
    net = Vit(ARCHITECTURES["digits_mttt"], layer, 10)
    images = torch.rand(2, 3, 32, 32)
    assert not net(images, InnerLoop()).any()
    tokens = torch.rand(1, 64, 32)
    changed = torch.cat([tokens[:, :-1], torch.zeros(1, 1, 32)], 1)
    mixer = net.blocks[0].mixer
    difference = (mixer(tokens, InnerLoop()) - mixer(changed, InnerLoop())).abs().amax(-1)
    assert (difference > 1e-8).all()


def test_the_forward_is_that_of_a_vit(digits_mttt, digits_test):
    """Self-attention with torch's own modules, on the packaged weights."""
    net, images = digits_mttt.nets["self_attention"], digits_test[0][:8]
    tokens = net.embed(digits_mttt.prepare(images)).flatten(2).transpose(1, 2) + net.positions
    for block in net.blocks:
        mixer = block.mixer
        attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        attention.load_state_dict({
            "in_proj_weight": torch.cat([part.weight for part in (mixer.query, mixer.key,
                                                                  mixer.value)]),
            "in_proj_bias": torch.cat([part.bias for part in (mixer.query, mixer.key,
                                                              mixer.value)]),
            "out_proj.weight": mixer.out.weight, "out_proj.bias": mixer.out.bias})
        normal = F.layer_norm(tokens, (32,), block.norm1.weight, block.norm1.bias, 1e-6)
        tokens = tokens + attention(normal, normal, normal)[0]
        normal = F.layer_norm(tokens, (32,), block.norm2.weight, block.norm2.bias, 1e-6)
        tokens = tokens + block.mlp.fc2(F.gelu(block.mlp.fc1(normal), approximate="tanh"))
    expected = net.head(torch.tanh(net.pre_logits(net.norm(tokens).mean(1))))
    found = digits_mttt(images, "self_attention")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_the_packaged_weights_know_digits(layer, digits_mttt):
    data = digits(data_dir="", frost_dir=None)
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2) / 255
    predictions = torch.cat([digits_mttt(part, layer).argmax(1) for part in images.split(100)])
    assert (predictions.numpy() == data.labels).mean() >= 0.95


@pytest.mark.slow
def test_a_file_of_other_classes_or_of_another_network_is_told(tmp_path):
    with pytest.raises(UserError, match="has 10 classes, the data set 7$"):
        load(num_classes=7)
    with pytest.raises(UserError, match="is of another network than cifar_mttt"):
        load(model="cifar_mttt")
    with pytest.raises(UserError, match="MTTT_VIT.MODEL: unknown 'digits_mtt': did you mean"):
        load(model="digits_mtt")
    with pytest.raises(UserError, match="MTTT_VIT.WEIGHTS: file not found: 'no.pt'.*tta-apm train"):
        load("no.pt")


def test_only_the_classes_of_the_data_set_are_returned(digits_mttt, digits_test):
    images = digits_test[0][:4]
    logits = digits_mttt(images)
    assert torch.equal(load(keep=[4, 2])(images), logits[:, [4, 2]])


def test_the_networks_are_of_one_size_but_for_the_inner_networks():
    nets = make_vits(ARCHITECTURES["cifar_mttt"], 10)
    counts = {layer: sum(parameter.numel() for parameter in net.parameters())
              for layer, net in nets.items()}
    assert counts["linear"] == counts["linear_attention"] == counts["self_attention"]
    # Two layers of 16 -> 64 -> 16 with biases, a gain and a shift, in 4 heads of 2 layers.
    assert counts["mlp"] - counts["linear"] == 8 * (2 * 16 * 64 + 64 + 16 + 2 * 64)
