"""The nine fine-grained data sets, on synthetic folders in CoOp's layout."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm import cli, config
from tta_apm.backbones.clip_templates import templates
from tta_apm.bench.records import load_record
from tta_apm.data import finegrained
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

# Two classes of each set as CoOp names them, in the order of their labels, and an image of each.
CLASSES = {
    "flowers102": {"pink primrose": "image_06734.jpg", "globe thistle": "image_07086.jpg"},
    "dtd": {"banded": "banded/banded_0002.jpg", "blotchy": "blotchy/blotchy_0003.jpg"},
    "oxford_pets": {"abyssinian": "Abyssinian_201.jpg", "american_bulldog":
                    "american_bulldog_203.jpg"},
    "ucf101": {"Apply_Eye_Makeup": "Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg",
               "Archery": "Archery/v_Archery_g01_c02.jpg"},
    # Their folders are in the opposite order.
    "caltech101": {"face": "Faces/image_0345.jpg", "airplane": "airplanes/image_0080.jpg",
                   "anchor": "anchor/image_0012.jpg"},
    "food101": {"apple_pie": "apple_pie/1011328.jpg", "baby_back_ribs":
                "baby_back_ribs/1005293.jpg"},
    "sun397": {"abbey": "a/abbey/sun_aqswjsnjlrfzzhiz.jpg", "outdoor apartment_building":
               "a/apartment_building/outdoor/sun_awxjlsnmmqqvzyfz.jpg"},
    "fgvc_aircraft": {"707-320": "1514522.jpg", "Cessna 172": "0747566.jpg"},
    "eurosat": {"Annual Crop Land": "AnnualCrop/AnnualCrop_2697.jpg",
                "Forest": "Forest/Forest_1.jpg"},
}
LAYOUTS = {name: getattr(finegrained, name) for name in CLASSES}
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def write_tree(root: Path, name: str) -> Path:
    """Write a data set with one image per class, in any order; returns its folder."""
    layout, classes = LAYOUTS[name], CLASSES[name]
    folder = root / layout.folder
    items = [[file, label, title] for label, (title, file) in enumerate(classes.items())]
    for file, label, _ in random.Random(0).sample(items, len(items)):
        path = folder / layout.images / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), COLORS[label]).save(path)
    if name == "fgvc_aircraft":
        (folder / "variants.txt").write_text("\n".join(classes) + "\n")
        lines = [f"{file.removesuffix('.jpg')} {title}" for file, _, title in items]
        (folder / layout.split).write_text("\n".join(lines) + "\n")
    else:
        elsewhere = [[f"train/{file}", label, title] for file, label, title in items]
        split = {"train": elsewhere, "val": elsewhere[:1], "test": items}
        (folder / layout.split).write_text(json.dumps(split))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Data sets with one image per class count as complete."""
    for name, layout in LAYOUTS.items():
        count = len(CLASSES[name])
        monkeypatch.setattr(finegrained, name, layout._replace(num_classes=count, num_images=count))


def load(name: str, data_dir: Path):
    return DATASETS.load(name)(data_dir=str(data_dir), frost_dir=None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name, small, tmp_path):
    write_tree(tmp_path, name)
    data, domain = load(name, tmp_path), Domain(name, CLEAN, 0)
    data.check(domain)
    assert data.class_names == tuple(title.replace("_", " ") for title in CLASSES[name])
    assert sorted(data.labels) == list(range(len(CLASSES[name])))
    images = data.images(domain, np.arange(len(data.labels)))
    assert images.shape == (len(data.labels), 224, 224, 3) and images.dtype == np.uint8
    for image, label in zip(images, data.labels):
        assert np.abs(image.mean((0, 1)) - COLORS[label]).max() < 5
    assert data.describe(domain) == (f"{LAYOUTS[name].title}, CoOp's test split, shorter side "
                                     "resized to 224 (bicubic), central 224×224")
    with pytest.raises(UserError, match=rf"{name} has no corruptions: set SEVERITY \[0\], or COR"):
        data.check(Domain(name, "fog", 5))


def test_whole_images_are_seen(small, tmp_path):
    """All of a square image is kept, as in CLIP; ImageNet's crop would remove an eighth."""
    folder = write_tree(tmp_path, "eurosat")
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :4] = 255
    for file in CLASSES["eurosat"].values():
        Image.fromarray(pixels).save(folder / "2750" / file, quality=95)
    image = load("eurosat", tmp_path).images(Domain("eurosat", CLEAN, 0), np.array([0]))[0]
    assert image[:, :8].min() > 200 and image[:, 30:].max() < 50


@pytest.mark.parametrize("name, prompt", [
    ("flowers102", "a photo of a {}, a type of flower."), ("dtd", "{} texture."),
    ("oxford_pets", "a photo of a {}, a type of pet."),
    ("ucf101", "a photo of a person doing {}."), ("caltech101", "a photo of a {}."),
    ("food101", "a photo of {}, a type of food."), ("sun397", "a photo of a {}."),
    ("fgvc_aircraft", "a photo of a {}, a type of aircraft."),
    ("eurosat", "a centered satellite photo of {}.")])
def test_prompts_are_those_of_coop(name, prompt, small, tmp_path):
    write_tree(tmp_path, name)
    assert templates(load(name, tmp_path).template_set) == (prompt,)


def test_the_first_images_are_of_many_classes(tmp_path, monkeypatch):
    """Though the split is sorted by class."""
    folder = tmp_path / "dtd"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "images/all.jpg")
    items = [["all.jpg", label, f"class {label}"] for label in range(20) for _ in range(30)]
    split = {"train": [], "val": [], "test": items}
    (folder / LAYOUTS["dtd"].split).write_text(json.dumps(split))
    monkeypatch.setattr(finegrained, "dtd",
                        LAYOUTS["dtd"]._replace(num_classes=20, num_images=600))
    assert len(set(load("dtd", tmp_path).labels[:30])) > 10


# Errors

@pytest.mark.parametrize("name", LAYOUTS)
def test_without_data_a_run_ends_with_what_to_get(name, tmp_path, capsys):
    code = cli.main(["--cfg", "cfgs/finegrained/apm.yaml", "DATASET", name, "DATA_DIR",
                     str(tmp_path), "OUTPUT_DIR", str(tmp_path / "results"), "DEVICE", "cpu"])
    assert code == cli.BAD_INPUT
    told = capsys.readouterr().err
    layout = LAYOUTS[name]
    assert told.startswith(f"tta-apm: DATASET {name}: {layout.title} is not below DATA_DIR "
                           f"{tmp_path} (looked for {layout.folder}). Get its images and "
                           f"{layout.split}")
    assert finegrained.GUIDE in told and told.count("\n") == 1


@pytest.mark.parametrize("name, lost, message", [
    ("dtd", "split_zhou_DescribableTextures.json", "file not found: .*split_zhou_Desc.*DTD"),
    ("fgvc_aircraft", "variants.txt", "file not found: .*variants.txt. Get its images"),
    ("fgvc_aircraft", "images_variant_test.txt", "file not found: .*images_variant_test.txt. Get"),
    ("flowers102", "jpg/image_07086.jpg", "jpg lacks 1 of 2 test images, such as image_07086.jpg"),
    ("ucf101", "UCF-101-midframes/Archery", "lacks 1 of 2 test images, such as Archery/v_Archer"),
    ("sun397", "SUN397", "SUN397 lacks 2 of 2 test images, such as a/abbey/sun_aqswjs"),
])
def test_what_is_missing_is_told(name, lost, message, small, tmp_path):
    folder = write_tree(tmp_path, name)
    (folder / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize("content, message", [
    ("", "is not a split of DTD"),
    ("no json", "is not a split of DTD"),
    ("[]", "is not a split of DTD"),
    ('{"train": [], "val": []}', "is not a split of DTD .*test"),
    ('{"train": [], "val": [], "test": [["a.jpg", 0]]}', "is not a split of DTD"),
    ('{"train": [], "val": [], "test": [["a.jpg", "x", "banded"]]}', "is not a split of DTD"),
    ('{"train": [], "val": [], "test": [["a.jpg", 1, "banded"]]}', "is not a split of DTD"),
    ('{"train": [["b.jpg", 0, "dotted"]], "val": [], "test": [["a.jpg", 0, "banded"]]}',
     "class 0 is 'dotted' and, at a.jpg, 'banded'"),
    ('{"train": [], "val": [], "test": [["a.jpg", 0, "banded"]]}',
     "lists 1 test images of 1 classes, but DTD has 1692 of 47. Get its images"),
    (b"\xff\xfe", "is not a split of DTD"),
], ids=str)
def test_a_wrong_split_is_told(content, message, tmp_path):
    file = tmp_path / "dtd" / LAYOUTS["dtd"].split
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        load("dtd", tmp_path)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["1514522", "1514522 Concorde"])
def test_a_wrong_list_of_aircraft_is_told(line, tmp_path):
    folder = write_tree(tmp_path, "fgvc_aircraft")
    (folder / "images_variant_test.txt").write_text(line)
    with pytest.raises(UserError, match="images_variant_test.txt is not a split of FGVCAircraft"):
        load("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "half"])
def test_an_unreadable_image_is_named(content, small, tmp_path):
    folder = write_tree(tmp_path, "food101")
    file = folder / "images/baby_back_ribs/1005293.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[:len(whole) // 2] if content is None else content)
    data = load("food101", tmp_path)
    with pytest.raises(UserError, match=f"cannot read the image {re.escape(str(file))}"):
        data.images(Domain("food101", CLEAN, 0), np.arange(2))


# Runs

@pytest.mark.parametrize("file", ["all", "apm", "clip_zero_shot", "coop", "tpt"])
def test_every_config(file):
    cfg = config.load(f"cfgs/finegrained/{file}.yaml", ["DATASET", "dtd"])
    assert (cfg.DATASET, cfg.METRIC, cfg.TEMPLATES) == ("dtd", "accuracy", "imagenet")
    assert all(row.needs == "clip" for row in config.rows(cfg))


def run(tmp_path, *words: str) -> int:
    """A run over two textures with a small CLIP."""
    return cli.main(["--cfg", "cfgs/finegrained/clip_zero_shot.yaml", *words, "DATASET", "dtd",
                     "DATA_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "results"),
                     "CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", "digits_clip.safetensors",
                     "TEMPLATES", "auto", "DEVICE", "cpu"])


@pytest.mark.slow
def test_a_run_states_images_and_prompts(small, tmp_path, capsys):
    write_tree(tmp_path, "dtd")
    assert run(tmp_path) == cli.OK
    record = load_record(next((tmp_path / "results").rglob("clean*.json")))
    assert (record.dataset, record.templates, record.num_images) == ("dtd", "dtd", 2)
    assert record.images_from.startswith("DTD, CoOp's test split")


@pytest.mark.slow
def test_corrupt_makes_the_corruptions_of_a_clean_set(small, tmp_path, capsys):
    write_tree(tmp_path, "dtd")
    words = ("CORRUPTIONS", "[brightness]", "SEVERITY", "[0,3]")
    assert run(tmp_path, *words) == cli.BAD_INPUT
    assert "dtd has no corruptions: set SEVERITY [0], or CORRUPT true" in capsys.readouterr().err
    assert run(tmp_path, "--corrupt", *words) == cli.OK
    clean, bright = (load_record(next((tmp_path / "results").rglob(f"{domain}-seed42.json")))
                     for domain in ("clean", "brightness-3"))
    assert bright.images_from == (clean.images_from
                                  + ", corrupted on the fly with imagenet-C constants (the nearest "
                                    "to 224×224)")
    assert bright.images_hash != clean.images_hash


@pytest.mark.slow
def test_corrupt_leaves_clean_cells_as_they_are(small, tmp_path, capsys):
    write_tree(tmp_path, "dtd")
    assert run(tmp_path) == cli.OK
    assert run(tmp_path, "CORRUPTIONS", "[fog]", "--corrupt", "SEVERITY", "[0,3]") == cli.OK
    assert "1 of 2 cells to run" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("key, name", [("auto", "imagenet"), ("imagenet", "imagenet"),
                                       ("cifar", "cifar")])
def test_whose_severities_are_meant_can_be_said(key, name, small, tmp_path):
    write_tree(tmp_path, "dtd")
    assert run(tmp_path, "--corrupt", "CORRUPTIONS", "[contrast]", "SEVERITY", "[5]",
               "CORRUPTION_CONSTANTS", key) == cli.OK
    record = load_record(next((tmp_path / "results").rglob("contrast-5-seed42.json")))
    assert f"on the fly with {name}-C constants (" in record.images_from
    assert ("by CORRUPTION_CONSTANTS" in record.images_from) == (key != "auto")


def test_constants_for_corruptions_that_have_their_own_are_refused():
    with pytest.raises(UserError, match="CORRUPTION_CONSTANTS cifar is for CORRUPT true: .* of "
                                        "DATASET imagenet_r have constants of their own"):
        config.load("cfgs/imagenet_r/apm.yaml", ["CORRUPTION_CONSTANTS", "cifar"])
    with pytest.raises(UserError, match="CORRUPTION_CONSTANTS: unknown 'cifer'"):
        config.load("cfgs/imagenet_r/apm.yaml", ["CORRUPTION_CONSTANTS", "cifer"])


def test_corrupt_without_a_severity_is_refused():
    with pytest.raises(UserError, match=r"CORRUPT true with SEVERITY \[0\] .* add SEVERITY 5"):
        config.load("cfgs/imagenet_r/apm.yaml", ["CORRUPT", "true"])
    assert config.load("cfgs/imagenet_r/apm.yaml", ["CORRUPT", "true", "SEVERITY", "5"]).CORRUPT
