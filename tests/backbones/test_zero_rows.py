"""Files of weights without the zero rows of an embedding."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tta_apm.backbones.clip_templates import templates
from tta_apm.backbones.weights import files
from tta_apm.backbones.weights.zero_rows import drop_zero_rows
from tta_apm.errors import UserError
from tta_apm.training.backbones import save

CLIP = files.PACKAGED / "digits_clip.safetensors"
WORDS = "token_embedding.weight"


@pytest.fixture
def embedding():
    """An embedding of 1000 tokens, three of which are used."""
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 8))
    with torch.no_grad():
        net[0].weight[[i for i in range(1000) if i not in (2, 500, 999)]] = 0
    return net.half()


def test_what_is_left_out_comes_back(embedding, tmp_path):
    save(embedding, tmp_path / "a.safetensors")
    kept = load_file(tmp_path / "a.safetensors")
    assert kept["0.weight"].shape == (3, 8) and kept["1.weight"].shape == (8, 8)
    assert kept["0.weight.rows"].nonzero().flatten().tolist() == [2, 500, 999]
    found = files.read(tmp_path / "a.safetensors")
    wanted = embedding.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {found[name].dtype for name in wanted} == {torch.float16}


def test_matrices_with_few_zero_rows_and_none_but_zero_rows_stay(tmp_path):
    tensors = {"few": torch.eye(9)[:, :5], "none": torch.zeros(9, 5), "vector": torch.zeros(9),
               "empty": torch.zeros(0, 5)}
    assert drop_zero_rows(tensors) == tensors


def test_the_packaged_clip_has_the_words_of_its_prompts(digits_clip):
    assert CLIP.stat().st_size < 700_000
    kept, whole = load_file(CLIP), files.read(CLIP)
    assert whole[WORDS].shape == (49408, 64) and f"{WORDS}.rows" not in whole
    used = kept[f"{WORDS}.rows"]
    assert torch.equal(whole[WORDS][used], kept[WORDS]) and not whole[WORDS][~used].any()
    sets = [template.format(name) for name in digits_clip.class_names
            for prompts in ("digits", "single", "cifar") for template in templates(prompts)]
    assert used.nonzero().flatten().tolist() == digits_clip.tokenizer(sets).unique().tolist()
    assert torch.equal(digits_clip.model.token_embedding.weight, whole[WORDS].float())


@pytest.mark.parametrize("rows, message", [
    (torch.ones(4, dtype=torch.bool), "its a.rows does not name the rows of a"),
    (torch.ones(3, dtype=torch.bool).repeat(2), "its a.rows does not name the rows of a"),
    (torch.tensor([True] * 3 + [False] * 9_000_000), "its a would unpack to more than 64 MiB")])
def test_rows_that_are_not_those_of_the_matrix_are_told(rows, message, tmp_path):
    save_file({"a": torch.ones(3, 2), "a.rows": rows}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"a.safetensors is not a checkpoint of weights: {message}"):
        files.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize("rows", [torch.ones(3), torch.ones(3, 1, dtype=torch.bool)])
def test_other_tensors_of_such_a_name_are_left_alone(rows, tmp_path):
    save_file({"a": torch.ones(3, 2), "a.rows": rows}, tmp_path / "a.safetensors")
    assert torch.equal(files.read(tmp_path / "a.safetensors")["a.rows"], rows)
