"""ImageNet and its variants, on synthetic folders in every layout."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from tta_apm import cli
from tta_apm.backbones.build import build
from tta_apm.bench.records import load_record
from tta_apm.data import imagenet, imagenet_classes
from tta_apm.data.dataset import CLEAN, Domain, Outputs
from tta_apm.data.digits import digits
from tta_apm.data.image_files import read_images, resize_and_crop
from tta_apm.errors import UserError

WNIDS = imagenet_classes.wnids()
LISTED = imagenet_classes.robustbench_images()
LAYOUTS = {name: getattr(imagenet, name) for name in (
    "imagenet", "imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch")}
FOLDERS = [(name, folder) for name, layout in LAYOUTS.items() for folder in layout.folders]


def color(index: int) -> tuple[int, int, int]:
    """The colour of the images of a class."""
    return index % 10 * 25, index // 10 % 10 * 25, index // 100 * 25


def write_tree(folder, classes: dict[str, int], file: str = "some.JPEG", size=(12, 9)):
    """Write class folders with one image each, in random order."""
    folders = list(classes)
    random.Random(0).shuffle(folders)
    for name in folders:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", size, color(classes[name])).save(folder / name / file, "JPEG")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Folders with one image per class for each data set."""
    root = tmp_path_factory.mktemp("trees")
    write_tree(root / "wnids", {wnid: index for index, wnid in enumerate(WNIDS)})
    write_tree(root / "numbers", {str(index): index for index in range(1000)})
    for letter in "ar":
        wnids = getattr(imagenet_classes, f"wnids_{letter}")()
        write_tree(root / letter, {wnid: WNIDS.index(wnid) for wnid in wnids})
    return {"imagenet": root / "wnids", "imagenet_a": root / "a", "imagenet_r": root / "r",
            "imagenet_v2": root / "numbers", "imagenet_sketch": root / "wnids"}


@pytest.fixture
def small(monkeypatch):
    """Data sets with one image per class count as complete."""
    for name, layout in LAYOUTS.items():
        count = len(layout.classes())
        monkeypatch.setattr(imagenet, name, layout._replace(num_images=count))


def place_tree(tree, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tree)


def load(name, data_dir):
    return getattr(imagenet, name)(data_dir=str(data_dir), frost_dir=None)


def assert_labels_fit_images(data, domain, kept=range(1000)):
    """The classes of images, by their colours."""
    indices = np.random.default_rng(0).permutation(len(data.labels))[:12]
    images = data.images(domain, indices)
    assert images.shape == (12, 224, 224, 3) and images.dtype == np.uint8
    for image, label in zip(images, data.labels[indices]):
        assert np.abs(image.mean((0, 1)) - color(kept[label])).max() < 5


@pytest.mark.parametrize("name, folder", FOLDERS, ids=str)
def test_every_layout(name, folder, trees, small, tmp_path):
    place_tree(trees[name], tmp_path / folder)
    data, domain = load(name, tmp_path), Domain(name, CLEAN, 0)
    data.check(domain)
    assert sorted(data.labels) == list(range(len(data.class_names)))
    kept = data.outputs.indices if data.outputs else range(1000)
    assert_labels_fit_images(data, domain, kept)
    assert "resized to 256 (bicubic), central 224×224" in data.describe(domain)
    with pytest.raises(UserError, match=rf"{name} has no corruptions: set SEVERITY \[0\]"):
        data.check(Domain(name, "fog", 5))


def test_folders_of_v2_are_class_indices_though_ten_comes_before_two(trees, small, tmp_path):
    place_tree(trees["imagenet_v2"], tmp_path / LAYOUTS["imagenet_v2"].folders[0])
    data = load("imagenet_v2", tmp_path)
    assert all(file == f"{label}/some.JPEG" for file, label in zip(data.files, data.labels))


def test_the_first_images_are_of_many_classes(trees, small, tmp_path):
    place_tree(trees["imagenet"], tmp_path / "val")
    assert np.ptp(load("imagenet", tmp_path).labels[:20]) > 500


@pytest.mark.parametrize("name, first", [("imagenet_a", [6, 11, 13, 15, 17, 22]),
                                         ("imagenet_r", [1, 2, 4, 6, 8])])
def test_two_hundred_classes(name, first, trees, small, tmp_path):
    place_tree(trees[name], tmp_path / LAYOUTS[name].folders[0])
    data = load(name, tmp_path)
    assert data.outputs.total == 1000
    assert list(data.outputs.indices[:len(first)]) == first
    assert list(data.outputs.indices) == sorted(set(data.outputs.indices))
    names = imagenet_classes.class_names()
    assert data.class_names == tuple(names[index] for index in data.outputs.indices)
    assert "200 classes" in data.describe(Domain(name, CLEAN, 0))


def test_lists_of_classes():
    assert list(WNIDS) == sorted(set(WNIDS)) and len(WNIDS) == 1000
    assert len(set(imagenet_classes.wnids_a()) & set(imagenet_classes.wnids_r())) == 86
    names = imagenet_classes.class_names()
    assert len(names) == 1000 and names[0] == "tench" and names[999] == "toilet paper"


def test_the_list_of_5000():
    assert len(set(LISTED)) == 5000
    digest = hashlib.sha256(("\n".join(LISTED) + "\n").encode()).hexdigest()
    assert digest == "49cc660768bb59fb01b0b6b0b9858489592dc1a6dbbc86dfc7e62edcc843a656"
    assert set(WNIDS) - {file.split("/")[0] for file in LISTED} == {
        "n02066245", "n03482405", "n07875152"}


def test_a_classifier_of_1000_classes_is_left_those_of_the_data_set(digits_resnet, digits_test):
    images = digits_test[0][:4]
    few = build("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                class_names=("two", "seven"), templates=(), device="cpu",
                outputs=Outputs(10, (2, 7)))
    assert torch.equal(few(images), digits_resnet(images)[:, [2, 7]])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (257, 1031), (224, 224), (9, 12)])
def test_resize_and_crop_are_torchvisions(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*reversed(size), 3), np.uint8))
    usual = transforms.Compose([
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)])
    assert (np.asarray(resize_and_crop(image)) == np.asarray(usual(image))).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_images_of_any_mode_are_read(mode, tmp_path):
    file = tmp_path / "x.tiff"
    Image.new("RGB", (224, 224), (255, 255, 255)).convert(mode).save(file)
    assert (read_images([file], resize_and_crop) == 255).all()


# ImageNet-C

@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """ImageNet-C with fog at severity 3: all class folders, 20 images of the list."""
    root = tmp_path_factory.mktemp("official")
    for wnid in WNIDS:
        (root / "fog/3" / wnid).mkdir(parents=True)
    for file in LISTED[:20]:
        Image.new("RGB", (224, 224), color(WNIDS.index(file.split("/")[0]))).save(
            root / "fog/3" / file)
    return root


@pytest.mark.parametrize("folder", imagenet.C_FOLDERS)
def test_official_files_in_the_order_of_the_list(folder, official, tmp_path):
    place_tree(official, tmp_path / folder)
    data, domain = load("imagenet_c", tmp_path), Domain("imagenet_c", "fog", 3)
    data.check(domain)
    assert data.labels.shape == (5000,) and data.template_set == "imagenet"
    assert [WNIDS[label] for label in data.labels[:3]] == [file[:9] for file in LISTED[:3]]
    for image, label in zip(data.images(domain, np.arange(20)), data.labels):
        assert np.abs(image.mean((0, 1)) - color(label)).max() < 5
    assert data.describe(domain) == "official ImageNet-C, 5000 images"
    with pytest.raises(UserError, match="snow/3 lacks 997 of 997 class folders"):
        data.check(Domain("imagenet_c", "snow", 3))
    with pytest.raises(UserError, match="DATASET imagenet: ImageNet's validation set is not below"):
        data.check(Domain("imagenet_c", CLEAN, 0))


def test_bad_official_images_are_named(official, tmp_path):
    place_tree(official, tmp_path / "ImageNet-C")
    data, domain = load("imagenet_c", tmp_path), Domain("imagenet_c", "fog", 3)
    with pytest.raises(UserError, match=f"cannot read the image .*fog/3/{LISTED[20]}"):
        data.images(domain, np.array([0, 20]))
    file = official / "fog/3" / LISTED[21]
    for content, message in [
            (b"", "cannot read the image .*"), (b"no image", "cannot read the image .*"),
            ((official / "fog/3" / LISTED[0]).read_bytes()[:700], "cannot read the image .*")]:
        file.write_bytes(content)
        with pytest.raises(UserError, match=message + LISTED[21]):
            data.images(domain, np.array([21]))
    Image.new("RGB", (256, 240)).save(file)
    with pytest.raises(UserError, match=f"the image .*{LISTED[21]} is 256×240, not 224×224"):
        data.images(domain, np.array([21]))
    file.unlink()


def test_all_50000_images(trees, small, tmp_path):
    place_tree(trees["imagenet"], tmp_path / "ImageNet-C/fog/3")
    data = load("imagenet_c_50k", tmp_path)
    assert sorted(data.labels) == list(range(1000))
    assert all(WNIDS[label] == file[:9] for file, label in zip(data.files, data.labels))


def test_made_from_validation_images_where_there_are_no_official_ones(trees, small, tmp_path,
                                                                      monkeypatch):
    listed = [f"{WNIDS[index]}/some.JPEG" for index in (907, 3, 44)]
    monkeypatch.setattr(imagenet_classes, "robustbench_images", lambda: tuple(listed))
    place_tree(trees["imagenet"], tmp_path / "imagenet2012/val")
    data = load("imagenet_c", tmp_path)
    assert data.labels.tolist() == [907, 3, 44]
    clean, domain = Domain("imagenet_c", CLEAN, 0), Domain("imagenet_c", "brightness", 1)
    colors = data.images(clean, np.arange(3)).mean((1, 2))
    assert np.abs(colors - [color(label) for label in data.labels]).max() < 5
    assert data.images(domain, np.arange(3)).mean() > colors.mean() + 10
    text = data.describe(domain)
    assert text.startswith("ImageNet's validation set, 3 images, shorter side resized to 256")
    assert text.endswith("corrupted on the fly with imagenet-C constants")


# Errors

def test_a_missing_class_folder_is_told(small, tmp_path):
    wnids = imagenet_classes.wnids_a()
    write_tree(tmp_path / "imagenet-a", {wnid: 0 for wnid in wnids if wnid != wnids[7]})
    with pytest.raises(UserError, match=f"imagenet-a lacks 1 of 200 class folders.*{wnids[7]}"):
        load("imagenet_a", tmp_path)
    (tmp_path / "imagenet-a" / wnids[7]).mkdir()
    with pytest.raises(UserError, match=f"imagenet-a/{wnids[7]} holds no image"):
        load("imagenet_a", tmp_path)


def test_a_half_unpacked_set_is_told(trees, tmp_path):
    place_tree(trees["imagenet"], tmp_path / "val")
    with pytest.raises(UserError, match="val holds 1000 images, but .* has 50000: unpack it again"):
        load("imagenet", tmp_path)


@pytest.mark.parametrize("name", [*LAYOUTS, "imagenet_c", "imagenet_c_50k"])
def test_without_data_a_run_ends_with_what_to_get(name, tmp_path, capsys):
    benchmark = name.removesuffix("_50k")
    code = cli.main(["--cfg", f"cfgs/{benchmark}/apm.yaml", "DATASET", name, "DATA_DIR",
                     str(tmp_path), "OUTPUT_DIR", str(tmp_path / "results"), "DEVICE", "cpu"])
    assert code == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"tta-apm: DATASET {name}: ImageNet")
    assert str(tmp_path) in told and "https://" in told and told.count("\n") == 1


# Any folder

def test_a_sweep_over_any_folder_of_class_folders(tmp_path, capsys):
    data = digits(data_dir="", frost_dir=None)
    for index in range(40):
        # Sorted names must be in the order of the labels that the small backbones know.
        folder = tmp_path / "my digits" / f"{data.labels[index]}_digit"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels[index]).save(folder / f"{index}.png")
    code = cli.main(["--cfg", "cfgs/digits_c/source.yaml", "DATASET", "folder", "SEVERITY", "[0]",
                     "DATA_DIR", str(tmp_path / "my digits"), "NUM_IMAGES", "40",
                     "OUTPUT_DIR", str(tmp_path / "results"), "DEVICE", "cpu"])
    assert code == cli.OK
    record = load_record(next((tmp_path / "results").rglob("source/clean*.json")))
    assert record.images_from.startswith("class folders of my digits, sorted by name, upright by "
                                         "EXIF, shorter side")
    assert record.num_correct > 30
    with pytest.raises(UserError, match="must hold a folder of images per class"):
        imagenet.folder_of_classes(data_dir=str(tmp_path / "nowhere"), frost_dir=None)


@pytest.fixture
def animals(tmp_path):
    """A function that makes class folders with one image each and returns the data set."""
    def make(*names, listed=None):
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (9, 9)).save(tmp_path / name / "0.png")
        if listed is not None:
            (tmp_path / "classnames.txt").write_bytes(listed)
        return load("folder_of_classes", tmp_path)
    return make


def test_classes_are_in_the_order_of_their_names_and_it_is_said(animals):
    data = animals("cat", "dog_house", "Ant")
    assert data.class_names == ("Ant", "cat", "dog house")
    assert ", sorted by name, " in data.origin
    assert ", sorted by name ('Zebra' before 'ant')" in animals("Zebra", "ant").origin


def test_numbers_that_sort_otherwise_elsewhere_are_pointed_out(animals):
    data = animals("2", "10", "1")
    assert data.class_names == ("1", "10", "2")
    assert ", sorted by name ('10' before '2')" in data.origin


@pytest.mark.parametrize("listed", [b"2\n10\n1\n", b"\xef\xbb\xbf2\r\n10\r\n1\r\n\r\n"])
def test_a_list_gives_the_order_of_classes(listed, animals):
    data = animals("2", "10", "1", listed=listed)
    assert data.class_names == ("2", "10", "1")
    assert [data.class_names[label] for label in data.labels] == [
        file.split("/")[0] for file in data.files]
    assert ", ordered by classnames.txt" in data.origin


@pytest.mark.parametrize("listed, message", [
    (b"2\n10\n", "classnames.txt lacks the class folder 1: it must name each of the 3"),
    (b"2\n10\n1\n3\n", "names a folder that is not there: 3"),
    (b"2\n10\n1\n2\n", "names twice 2"), (b"2\n\n10\n1\n", "line 2 is empty"),
    (b"\xff\xfe2", "cannot read .*classnames.txt")])
def test_a_list_that_does_not_fit_is_told(listed, message, animals):
    with pytest.raises(UserError, match=message):
        animals("2", "10", "1", listed=listed)


def test_two_folders_of_one_name_in_prompts_are_told(animals):
    with pytest.raises(UserError, match="a b and a_b of .* are all called 'a b' in prompts"):
        animals("a_b", "a b", "c")


@pytest.mark.parametrize("name", ["x.heic", "x.svg", "notes.txt", "more/x.png", "x.png.part"])
def test_no_file_of_a_class_is_left_out_without_a_word(name, animals, tmp_path):
    animals("cat", "dog")
    (tmp_path / "cat" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "cat" / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"cat holds 1 files or folders that are not read, e.g. "
                                        f"{name.split('/')[0]}: "):
        animals("cat", "dog")


def test_hidden_files_and_those_beside_the_classes_are_passed_over(animals, tmp_path):
    animals("cat", "dog")
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "cat/._0.png", "dog/desktop.ini", "README.md"):
        (tmp_path / name).write_bytes(b"")
    assert len(animals("cat", "dog").labels) == 2


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "gif", "ppm", "pgm", "bmp", "webp"])
def test_folders_of_pictures_of_other_formats(suffix, animals, tmp_path):
    animals("cat")
    Image.new("L", (9, 9), 255).save(tmp_path / f"cat/1.{suffix}")
    data = animals("cat")
    images = data.images(Domain("folder", CLEAN, 0), np.arange(2))
    assert sorted(image.max() for image in images) == [0, 255]


def test_a_users_photographs_are_turned_upright(animals, tmp_path):
    """Benchmarks' images are not rotated, since the loaders of published figures do not either."""
    animals("cat")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    stored = Image.new("RGB", (256, 256))
    stored.paste((255, 255, 255), (0, 0, 256, 128))
    stored.save(tmp_path / "cat/0.png", exif=exif)
    data = load("folder_of_classes", tmp_path)
    upright, = data.images(Domain("folder", CLEAN, 0), np.arange(1))
    assert upright[:100].max() == 0 and upright[-100:].min() == 255
    stored, = read_images([tmp_path / "cat/0.png"], resize_and_crop)
    assert stored[:100].min() == 255 and stored[-100:].max() == 0
