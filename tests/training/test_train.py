"""Training of the packaged backbones: it repeats itself, and what it shows them."""

import pytest
import torch

from tta_apm.backbones.weights import files
from tta_apm.data.digits import train_split
from tta_apm.training import backbones as train


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
