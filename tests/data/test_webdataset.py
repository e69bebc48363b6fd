"""Data sets in the webdataset layout, written with the webdataset library as in CLIP_benchmark."""

from __future__ import annotations

import io
import re
import tarfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from tta_apm import cli
from tta_apm.bench.records import load_record
from tta_apm.data import imagenet_classes, tar_members
from tta_apm.data.dataset import CLEAN, Domain, Outputs
from tta_apm.data.digits import digits
from tta_apm.data.shards import split_name
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

NAME = "wds/vtab/cifar10"
FOLDERS = (NAME, "wds_vtab-cifar10", "wds/wds_vtab-cifar10")
CLASSES = ("airplane", "traffic light", "cat")
COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
TEMPLATES = "a photo of a {c}.\na blurry photo of the {c}.\n"


def picture(label: int, size=(32, 32), image_format: str = "webp") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, COLORS[label]).save(buffer, image_format)
    return buffer.getvalue()


def write_set(folder: Path, samples, suffix: str = "webp") -> Path:
    """Write shards of four `samples` (image, label) each; returns their folder."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text(TEMPLATES)
    with webdataset.ShardWriter(str(folder / "test/%d.tar"), maxcount=4, verbose=0) as sink:
        for index, (image, label) in enumerate(samples):
            sink.write({"__key__": f"s{index:07d}", suffix: image, "cls": label})
        (folder / "test/nshards.txt").write_text(f"{sink.shard}\n")
    return folder


def write_small(folder: Path) -> Path:
    """Ten 32x32 images, class by class."""
    return write_set(folder, [(picture(label), label) for label in [0] * 4 + [1] * 3 + [2] * 3])


def load(data_dir, name: str = NAME):
    return DATASETS.load(name)(data_dir=str(data_dir), frost_dir=None)


def all_images(data) -> np.ndarray:
    return data.images(Domain(data.name, CLEAN, 0), np.arange(len(data.labels)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder(folder, tmp_path):
    write_small(tmp_path / folder)
    data = load(tmp_path)
    data.check(Domain(NAME, CLEAN, 0))
    assert data.class_names == CLASSES
    assert data.templates == ("a photo of a {}.", "a blurry photo of the {}.")
    assert sorted(data.labels) == [0] * 4 + [1] * 3 + [2] * 3
    assert (data.labels[:4] > 0).any()  # though class 0 comes first
    images = all_images(data)
    assert images.shape == (10, 32, 32, 3) and images.dtype == np.uint8
    assert np.abs(images.mean((1, 2)) - [COLORS[label] for label in data.labels]).max() < 5
    assert data.describe(Domain(NAME, CLEAN, 0)) == f"test shards of {NAME}, 32×32"
    with pytest.raises(UserError, match=f"{NAME} has no corruptions"):
        data.check(Domain(NAME, "fog", 5))


@pytest.mark.parametrize("suffix, image_format", [
    ("jpg", "jpeg"), ("jpeg", "jpeg"), ("JPG", "jpeg"), ("png", "png"), ("webp", "webp")])
def test_the_library_reads_the_same(suffix, image_format, tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for label in rng.integers(0, 3, 9):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, image_format)
        samples.append((buffer.getvalue(), int(label)))
    folder = write_set(tmp_path / NAME, samples, suffix)
    urls = [str(folder / f"test/{shard}.tar") for shard in range(3)]
    reader = webdataset.WebDataset(urls, shardshuffle=False).decode(
        webdataset.autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"]))
    theirs = {sample["__key__"]: (np.array(sample[suffix.lower()]), sample["cls"])
              for sample in reader}
    data = load(tmp_path)
    assert len(theirs) == len(data.labels) == 9
    for member, label, image in zip(data.sources, data.labels, all_images(data)):
        their_image, their_label = theirs[member.name.split(".")[0]]
        assert label == their_label and (image == their_image).all()


def test_names_are_split_as_the_library_splits_them():
    """All names of up to six letters of an alphabet of five: a dot, a folder, a line break."""
    from webdataset.tariterators import base_plus_ext
    for length in range(7):
        for letters in product("a./B\n", repeat=length):
            name = "".join(letters)
            key, suffix = base_plus_ext(name)
            assert split_name(name) == ((name, "") if key is None else (key, suffix)), repr(name)
    assert split_name("../a.b/s.1/s01.seg.PNG") == ("../a.b/s.1/s01", "seg.PNG")


@pytest.mark.parametrize("sizes", [[(300, 200)], [(256, 256)], [(64, 64), (48, 48)], [(64, 48)]],
                         ids=str)
def test_larger_and_mixed_images_are_cropped(sizes, tmp_path):
    samples = [(picture(0, sizes[index % len(sizes)]), 0) for index in range(6)]
    write_set(tmp_path / NAME, samples)
    data = load(tmp_path)
    assert all_images(data).shape == (6, 224, 224, 3)
    assert data.describe(Domain(NAME, CLEAN, 0)).endswith(
        ", shorter side resized to 224 (bicubic), central 224×224")


def test_archives_are_never_unpacked(tmp_path):
    """Paths out of the folder and links are not followed."""
    folder = write_small(tmp_path / "data" / NAME)
    secret = tmp_path / "secret.png"
    Image.new("RGB", (32, 32)).save(secret)
    before = sorted(tmp_path.rglob("*"))
    with tarfile.open(folder / "test/0.tar", "w") as tar:
        for name in ("../../../../out", "/tmp/out"):
            for suffix, content in (("webp", picture(1)), ("cls", b"1")):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    data = load(tmp_path / "data")
    assert sorted(data.labels) == [1] * 5 + [2] * 3
    all_images(data)
    assert sorted(tmp_path.rglob("*")) == before


def test_classifiers_of_imagenet_keep_the_outputs_of_200_classes(tmp_path):
    folder = write_small(tmp_path / "wds/imagenet-r")
    names = imagenet_classes.class_names()
    kept = [imagenet_classes.wnids().index(wnid) for wnid in imagenet_classes.wnids_r()]
    (folder / "classnames.txt").write_text("\n".join(names[index] for index in kept) + "\n")
    assert load(tmp_path, "wds/imagenet-r").outputs == Outputs(1000, tuple(kept))
    (folder / "classnames.txt").write_text("\n".join(names[:200]) + "\n")
    assert load(tmp_path, "wds/imagenet-r").outputs is None


@pytest.mark.parametrize("start, end", [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n")])
def test_lists_that_an_editor_saved_are_the_same(start, end, tmp_path):
    folder = write_small(tmp_path / NAME)
    for file, entries in (("classnames.txt", CLASSES), ("test/nshards.txt", "3"),
                          ("zeroshot_classification_templates.txt", TEMPLATES.splitlines())):
        text = start + "".join(line + end for line in entries) + end
        (folder / file).write_bytes(text.encode())
    data = load(tmp_path)
    assert data.class_names == CLASSES
    assert data.templates == ("a photo of a {}.", "a blurry photo of the {}.")


def test_a_member_that_is_too_large_is_not_read(tar_of, tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "MAX_SIZE", 1000)
    folder = write_small(tmp_path / NAME)
    for large in ("a.png", "a.cls"):
        sound = {"a.png": picture(0, image_format="png"), "a.cls": b"0"}
        (folder / "test/2.tar").write_bytes(tar_of(sound | {large: bytes(1001)}))
        with pytest.raises(UserError, match=f"{large} in .*2.tar has 1001 bytes"):
            all_images(load(tmp_path))


# Errors

def test_an_absent_set_is_told_with_what_to_get(tmp_path, capsys):
    code = cli.main(["--cfg", "cfgs/finegrained/apm.yaml", "DATASET", "wds/vtab/dtd", "DATA_DIR",
                     str(tmp_path), "OUTPUT_DIR", str(tmp_path / "results"), "DEVICE", "cpu"])
    assert code == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert told.startswith(f"tta-apm: DATASET wds/vtab/dtd is not below DATA_DIR {tmp_path} "
                           "(looked for wds/vtab/dtd, wds_vtab-dtd, wds/wds_vtab-dtd). Clone "
                           "https://huggingface.co/datasets/clip-benchmark/wds_vtab-dtd there")
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", ["wds/", "wds/*", "wds/../secrets", "wds//x", "wds/a b",
                                  "wds/a?b"])
def test_names_that_name_nothing(name, tmp_path):
    with pytest.raises(UserError, match="names no data set: write wds/NAME"):
        load(tmp_path, name)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def boundary(file: Path) -> int:
    """The offset of the last sample; an archive cut there looks complete."""
    with tarfile.open(file) as tar:
        return tar.getmembers()[-2].offset


@pytest.mark.parametrize("spoil, message", [
    (lambda tar: cut(tar, 700), "incomplete or not a tar archive: .*Delete it and get it again"),
    (lambda tar: cut(tar, 2000), "corrupt, incomplete or not a tar archive"),
    (lambda tar: cut(tar, boundary(tar)), "incomplete or not a tar archive: its end is missing"),
    (lambda tar: tar.write_bytes(b""), "corrupt, incomplete or not a tar archive"),
    (lambda tar: tar.write_bytes(b"no archive" * 999), "corrupt, incomplete or not a tar archive"),
    (lambda tar: tar.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
     "git lfs left a pointer"),
    (lambda tar: tar.unlink(), "file not found: .*1.tar, though .*test/nshards.txt includes it"),
])
def test_an_archive_that_is_not_whole_is_named(spoil, message, tmp_path):
    folder = write_small(tmp_path / NAME)
    spoil(folder / "test/1.tar")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert str(folder / "test/1.tar") in str(caught.value)


@pytest.mark.parametrize("members, message", [
    ({"a.webp": picture(0)}, "2.tar: the sample a has no .cls"),
    ({"a.cls": b"0"}, "2.tar: the sample a has no image"),
    ({"a.webp": picture(0), "a.png": b"", "a.cls": b"0"}, "2.tar holds two images under the key a"),
    ({"a.webp": picture(0), "a.cls": b"3"}, "a.cls in .*: a label is a number from 0 to 2, not "
     "'3'"),
    ({"a.webp": picture(0), "a.cls": b"-1"}, "a label is a number from 0 to 2, not '-1'"),
    ({"a.webp": picture(0), "a.cls": b"cat"}, "a label is a number from 0 to 2, not 'cat'"),
])
def test_a_sample_that_is_not_whole_is_named(members, message, tar_of, tmp_path):
    folder = write_small(tmp_path / NAME)
    (folder / "test/2.tar").write_bytes(tar_of(members))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image", picture(1, (200, 200), "jpeg")[:400]])
def test_an_unreadable_image_is_named(content, tar_of, tmp_path):
    folder = write_set(tmp_path / NAME, [(picture(0, (200, 200), "jpeg"), 0)] * 40, "jpg")
    sound = {f"s{index:07d}": picture(0, (200, 200), "jpeg") for index in range(36, 40)}
    (folder / "test/9.tar").write_bytes(tar_of({
        f"{key}.{suffix}": content if (key, suffix) == ("s0000037", "jpg") else value
        for key, image in sound.items() for suffix, value in (("jpg", image), ("cls", b"0"))}))
    with pytest.raises(UserError, match="cannot read the image s0000037.jpg in "
                                        + re.escape(str(folder / "test/9.tar"))):
        all_images(load(tmp_path))


@pytest.mark.parametrize("file, content, message", [
    ("classnames.txt", None, "cannot read .*classnames.txt: .*; get it again"),
    ("classnames.txt", b"\xff", "cannot read .*classnames.txt"),
    ("zeroshot_classification_templates.txt", None, "cannot read .*classification_templates.txt"),
    ("zeroshot_classification_templates.txt", b"", "the template '' must have one {c}"),
    ("zeroshot_classification_templates.txt", b"a photo", "'a photo' must have one {c}"),
    ("zeroshot_classification_templates.txt", b"{c} {c}", "must have one {c}"),
    ("zeroshot_classification_templates.txt", b"{c} {0.__class__}", "no other braces"),
    ("test/nshards.txt", None, "cannot read .*test/nshards.txt"),
    ("test/nshards.txt", b"0", "must hold the number of archives, not '0'"),
    ("test/nshards.txt", b"three", "must hold the number of archives, not 'three'"),
    ("test/nshards.txt", b"7" * 5000, "must hold the number of archives, not '7777"),
    ("classnames.txt", b"cat\n\ndog\n", "classnames.txt: line 2 is empty; get it again"),
    ("test/nshards.txt", b"", "must hold the number of archives, not ''"),
    ("test/nshards.txt", b"4", "file not found: .*test/3.tar, though .*nshards.txt includes it"),
])
def test_wrong_lists_are_told(file, content, message, tmp_path):
    folder = write_small(tmp_path / NAME)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


# Runs

@pytest.mark.slow
def test_a_run_uses_its_classes_and_templates_and_corrupts(tmp_path, capsys):
    data = digits(data_dir="", frost_dir=None)
    samples = []
    for index in range(40):
        buffer = io.BytesIO()
        Image.fromarray(data.pixels[index]).save(buffer, "png")
        samples.append((buffer.getvalue(), int(data.labels[index])))
    folder = write_set(tmp_path / "wds/my-digits", samples, "png")
    (folder / "classnames.txt").write_text("\n".join(data.class_names))
    (folder / "zeroshot_classification_templates.txt").write_text("the number {c}\n")
    words = ["--cfg", "cfgs/digits_c/clip_zero_shot.yaml", "--corrupt", "DATASET", "wds/my-digits",
             "DATA_DIR", str(tmp_path), "SEVERITY", "[0,1]", "CORRUPTIONS", "[brightness]",
             "NUM_IMAGES", "-1", "DEVICE", "cpu"]
    assert cli.main([*words, "OUTPUT_DIR", str(tmp_path / "own")]) == cli.OK
    clean, bright = (load_record(next((tmp_path / "own").rglob(f"{domain}-seed*.json")))
                     for domain in ("clean", "brightness-1"))
    assert clean.templates == bright.templates == clean.dataset == "wds/my-digits"
    assert clean.num_correct > 30
    assert clean.images_from == "test shards of wds/my-digits, 32×32"
    assert bright.images_from == (clean.images_from
                                  + ", corrupted on the fly with cifar-C constants (the nearest to "
                                    "32×32)")
    assert cli.main([*words, "OUTPUT_DIR", str(tmp_path / "other"), "TEMPLATES", "digits"]) == 0
    other = load_record(next((tmp_path / "other").rglob("clean-seed*.json")))
    assert other.templates == "digits"
    own, named = (np.load(next((tmp_path / folder).rglob("clean-seed*.npz")))["confidence"]
                  for folder in ("own", "other"))
    assert np.abs(own - named).max() > 1e-3
