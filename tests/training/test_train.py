"""Training of the packaged backbones: it repeats itself, and what it shows them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tta_apm import cli
from tta_apm.backbones.weights import files
from tta_apm.data.digits import train_split
from tta_apm.training import fit
from tta_apm.training.recipes import PACKAGED, RECIPES, BackboneRecipe

BACKBONES = {name: recipe for name, recipe in RECIPES.items()
             if isinstance(recipe, BackboneRecipe)}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_training_repeats_itself(name, tmp_path, monkeypatch, capsys):
    recipe = RECIPES[name]
    few = train_split()
    few.pixels, few.labels = few.pixels[:64], few.labels[:64]
    data = replace(recipe.data, train=lambda data_dir: few, test=lambda data_dir: few)
    start = ""
    if recipe.start:
        first = Path(recipe.start).stem
        monkeypatch.setitem(RECIPES, first, replace(RECIPES[first], data=data))
        start = str(tmp_path / "start.safetensors")
        assert cli.main(["train", first, "--out", start, "--epochs", "1"]) == cli.OK
    monkeypatch.setitem(RECIPES, name, replace(recipe, data=data, start=start))
    weights = []
    for run, seed in (("a.safetensors", "0"), ("b.safetensors", "0"), ("c.safetensors", "1")):
        assert cli.main(["train", name, "--out", str(tmp_path / run), "--epochs", "2",
                         "--seed", seed]) == cli.OK
        weights.append((tmp_path / run).read_bytes())
    assert weights[0] == weights[1] != weights[2]
    assert "a.safetensors" in capsys.readouterr().out


def test_shift_moves_by_at_most_one_pixel():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4, 4] = 1
    shifted = fit.shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0),
                        max_shift=1, flip=False)
    shifts = {tuple(shift) for shift in (shifted[:, 0] == 1).nonzero()[:, 1:].tolist()}
    assert shifted.shape == (200, 3, 8, 8)
    assert shifts == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_half_of_the_images_are_mirrored():
    image = torch.arange(4.0).expand(1, 3, 4, 4)
    seen = fit.shift(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0),
                     max_shift=0, flip=True)
    rows = [tuple(row) for row in seen[:, 0, 0].tolist()]
    assert set(rows) == {(0, 1, 2, 3), (3, 2, 1, 0)}
    assert 70 < rows.count((0, 1, 2, 3)) < 130


def test_every_packaged_recipe_has_its_weights_and_they_are_small():
    assert PACKAGED == files.PACKAGED
    packaged = [name for name, recipe in RECIPES.items() if recipe.data.out == PACKAGED]
    assert len(packaged) >= 4
    for name in packaged:
        assert (PACKAGED / f"{name}.safetensors").stat().st_size < 1e6


@pytest.mark.parametrize("words, message", [
    (["digits_clipp"], "unknown NAME 'digits_clipp': did you mean 'digits_clip'?"),
    (["digits_clip", "--epochs", "0"], "epochs 0 must be at least 1"),
    (["digits_clip", "--seed", "-1"], "seed -1 must be at least 0"),
    (["cifar_clip", "--data-dir", "no/such/folder"], "no/such/folder"),
])
def test_bad_words_are_told_in_a_sentence(words, message, capsys):
    assert cli.main(["train", *words]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_network_that_is_trained_on_needs_its_start(capsys, monkeypatch):
    recipe = replace(RECIPES["digits_mae_fine_tuned"], start="nowhere/digits_mae.safetensors")
    monkeypatch.setitem(RECIPES, "digits_mae_fine_tuned", recipe)
    assert cli.main(["train", "digits_mae_fine_tuned"]) == cli.BAD_INPUT
    assert ("the weights to start from are not found: nowhere/digits_mae.safetensors: `tta-apm "
            "train digits_mae` makes them") in capsys.readouterr().err


def test_help_lists_all_names(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and recipe.summary in said for name, recipe in RECIPES.items())
