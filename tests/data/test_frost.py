"""Frost: the source of its pictures, and equality with the official formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm.data.corruptions import frost
from tta_apm.data.corruptions.constants import CONSTANTS
from tta_apm.data.corruptions.functions import CORRUPTIONS, corrupt, frost_source
from tta_apm.errors import UserError


def save_frost(folder: Path, height: int = 300, width: int = 400) -> None:
    """Five pictures, each of one colour."""
    folder.mkdir(parents=True)
    for number, name in enumerate(frost.PICTURES):
        colour = np.full((height, width, 3), 40 * number + 20, np.uint8)
        Image.fromarray(colour).save(folder / name)


def test_frost_source_prefers_the_given_folder_then_an_installed_package(tmp_path, monkeypatch):
    save_frost(tmp_path / "mine")
    save_frost(tmp_path / "site" / "imagecorruptions" / "frost")
    monkeypatch.setattr(frost, "find_spec", lambda name: None)
    assert frost_source() == "procedural"
    assert frost_source(tmp_path / "mine") == "official"
    monkeypatch.undo()
    (tmp_path / "site" / "imagecorruptions" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert frost_source() == "imagecorruptions"
    (tmp_path / "site" / "imagecorruptions" / "frost" / "frost4.jpg").unlink()
    assert frost_source() == "procedural"


def test_a_frost_folder_without_its_pictures_is_told(tmp_path, pictures):
    save_frost(tmp_path / "frost")
    (tmp_path / "frost" / "frost2.png").unlink()
    with pytest.raises(UserError, match="lacks frost2.png: it must hold frost1.png, "):
        frost_source(tmp_path / "frost")
    with pytest.raises(UserError, match="lacks frost2.png"):
        corrupt(pictures(1, 8, 8), "frost", 1, indices=[0], frost_dir=tmp_path / "frost")


@pytest.mark.slow
def test_drawn_frost_is_as_bright_and_rough_as_ice(monkeypatch):
    monkeypatch.setattr(frost, "find_spec", lambda name: None)
    images = np.zeros((40, 224, 224, 3), np.uint8)
    result = corrupt(images, "frost", 1, indices=np.arange(40), constants="imagenet")
    assert result.mean() / 0.4 == pytest.approx(164, abs=15)  # the mean of the photographs
    assert 15 < (result / 0.4).std(axis=(1, 2)).mean() < 45


@pytest.fixture
def noise(tmp_path):
    """A folder of five pictures, no two pixels of which are alike: transparent ones and JPEGs, as
    the official ones are, and of several sizes."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(frost.PICTURES):
        channels = 4 if name.endswith(".png") else 3
        shape = (240 + 10 * number, 360 - 10 * number, channels)
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(tmp_path / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("constants, height, width", [
    ("cifar", 32, 32), ("cifar", 40, 60), ("imagenet", 224, 224)])
def test_frost_equals_the_formula(constants, height, width, noise, pictures):
    image = pictures(1, height, width)
    weight, frost_weight, _ = CONSTANTS[constants]["frost"][3]
    used = set()
    for index in range(40):
        generator = np.random.default_rng((0, index, CORRUPTIONS.index("frost"), 4))
        number = generator.integers(5)
        used.add(number)
        path = noise / f"frost{number + 1}{'.png' if number < 3 else '.jpg'}"
        ice = np.asarray(Image.open(path).convert("RGB"))
        if constants == "cifar":
            ice = ice[2::5, 2::5]  # OpenCV's result for fx = fy = 0.2
        y, x = [generator.integers(ice.shape[k] - image.shape[k + 1]) for k in (0, 1)]
        mixed = weight * image[0] + frost_weight * ice[y:y + height, x:x + width]
        result = corrupt(image, "frost", 4, indices=[index], constants=constants, frost_dir=noise)
        np.testing.assert_array_equal(result[0], np.uint8(np.clip(mixed, 0, 255)))
    assert used == set(range(5))


def test_frost_covers_images_larger_than_its_pictures(tmp_path):
    save_frost(tmp_path / "frost", 30, 50)
    images = np.zeros((1, 100, 64, 3), np.uint8)
    for constants in CONSTANTS:
        result = corrupt(images, "frost", 1, indices=[0], constants=constants,
                         frost_dir=tmp_path / "frost")
        assert np.ptp(result) <= 1 and result.min() > 0
