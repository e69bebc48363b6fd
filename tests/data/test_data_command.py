"""`tta-apm data`: make and check, on synthetic folders."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm import cli
from tta_apm.atomic import TEMPORARY
from tta_apm.data import cifar, imagenet, imagenet_classes
from tta_apm.data.corruptions.dataset import Corrupted
from tta_apm.data.dataset import CLEAN, Clean, Domain
from tta_apm.data.load import load_dataset
from tta_apm.data.official import Official, official
from tta_apm.data.prepare.make import Making, prepare
from tta_apm.data.provenance import MARK
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

WNIDS = imagenet_classes.wnids()
LISTED = tuple(f"{WNIDS[index]}/x.JPEG" for index in (907, 3, 44, 45))
NUM_TEST = 150


def data(*words: object) -> int:
    return cli.main(["data", *map(str, words)])


def load(name, data_dir):
    return load_dataset(name, data_dir=str(data_dir), frost_dir="")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with a CIFAR-10 of 150 test images."""
    monkeypatch.setattr(cifar, "NUM_TEST", NUM_TEST)
    table = np.random.default_rng(0).integers(0, 256, (NUM_TEST, 3073), np.uint8)
    table[:, 0] %= 10
    (tmp_path / "cifar-10-batches-bin").mkdir()
    table.tofile(tmp_path / "cifar-10-batches-bin/test_batch.bin")
    return tmp_path


@pytest.fixture
def validation(tmp_path, monkeypatch):
    """A folder with a validation set of one image per class, of which four are robustbench's."""
    monkeypatch.setattr(imagenet, "imagenet", imagenet.imagenet._replace(num_images=1000))
    monkeypatch.setattr(imagenet_classes, "robustbench_images", lambda: LISTED)
    for index, wnid in enumerate(WNIDS):
        folder = tmp_path / "imagenet2012/val" / wnid
        folder.mkdir(parents=True)
        color = index % 10 * 25, index // 10 % 10 * 25, index // 100 * 25
        Image.new("RGB", (9, 12), color).save(folder / "x.JPEG")
    return tmp_path


def files_of(folder: Path) -> dict[str, int]:
    """The files in a folder, and when each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns
            for path in folder.rglob("*") if path.is_file()}


# make

def test_cifar_is_made_as_on_the_fly_and_the_record_says_so(cifar10):
    fly = load("cifar10_c", cifar10)
    assert data("make", "cifar10_c", "--corruptions", "fog,contrast", "--data-dir", cifar10) == 0
    made = load("cifar10_c", cifar10)
    assert isinstance(made, cifar.CifarC) and (made.labels == fly.labels).all()
    assert len(np.load(cifar10 / "CIFAR-10-C/labels.npy")) == 5 * NUM_TEST
    for domain in [Domain("cifar10_c", name, severity) for name in ("fog", "contrast")
                   for severity in (1, 2, 5)]:
        indices = np.array([149, 0, 64])
        assert (made.images(domain, indices) == fly.images(domain, indices)).all()
    assert made.describe(domain).startswith("cifar10, corrupted beforehand by tta-apm ")
    frost = Domain("cifar10_c", "frost", 1)
    assert made.describe(frost).endswith(fly.describe(frost).split(", ")[-1])  # whose pictures
    assert made.describe(Domain("cifar10_c", CLEAN, 0)) == "cifar10"
    with pytest.raises(UserError, match="not found: .*snow.npy. `tta-apm data make cifar10_c` co"):
        made.check(Domain("cifar10_c", "snow", 1))
    assert set(files_of(cifar10 / "CIFAR-10-C")) == {"contrast.npy", "fog.npy", "labels.npy", MARK}


def test_a_data_set_of_a_stranger_is_made_as_it_declares(tmp_path, monkeypatch):
    """One file: what reads it, with what `data make` needs to know."""
    monkeypatch.setattr(DATASETS, "_registered", {})

    def dots(data_dir):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
        return Clean("dots", pixels, np.arange(6) % 2, ["a", "b"], "single")

    @DATASETS.register("dots_c")
    @official(Official("Dots-C", "cifar", {"dots": dots}, in_arrays=True))
    def dots_c(*, data_dir, frost_dir):
        return Corrupted("dots_c", dots(data_dir), constants="cifar", frost_dir=frost_dir)

    assert data("make", "dots_c", "--corruptions", "fog", "--data-dir", tmp_path) == 0
    made = np.load(tmp_path / "Dots-C/fog.npy")
    fly = load("dots_c", tmp_path)
    for severity in (1, 5):
        images = fly.images(Domain("dots_c", "fog", severity), np.arange(6))
        assert (made[(severity - 1) * 6:severity * 6] == images).all()


def test_a_run_that_was_killed_goes_on(cifar10):
    making = prepare("cifar10_c", data_dir=str(cifar10), frost_dir=None,
                     corruptions=["brightness", "contrast"], severities=range(1, 6))
    run = making.run()
    list(islice(run, 17))  # of 15 chunks for each
    whole = files_of(cifar10 / "CIFAR-10-C")["brightness.npy"]
    folder = cifar10 / "CIFAR-10-C"
    half, = (folder / name for name in files_of(folder) if name.endswith(TEMPORARY))
    left = half.read_bytes()
    run.close()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    half.with_name(half.name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")).write_bytes(left)
    assert sum(making.run()) == len(making) == 2 * 5 * NUM_TEST
    files = files_of(cifar10 / "CIFAR-10-C")
    assert files["brightness.npy"] == whole
    assert set(files) == {"brightness.npy", "contrast.npy", "labels.npy", MARK}
    load("cifar10_c", cifar10).check(Domain("cifar10_c", "contrast", 5))


def test_a_full_disk_is_told_before_it_is_written_to_and_meanwhile(
        cifar10, small_disk, capfd, monkeypatch):
    """In a separate process, which a bus error would end."""
    (small_disk / "cifar-10-batches-bin").symlink_to(cifar10 / "cifar-10-batches-bin")
    words = ("make", "cifar10_c", "--corruptions", "brightness", "--data-dir", small_disk)
    assert data(*words) == cli.BAD_INPUT
    assert "has room for 0.0 GB, but each corruption takes" in capfd.readouterr().err
    monkeypatch.setattr(Making, "_require_room", lambda self, size: None)  # as if taken meanwhile
    pid = os.fork()
    if not pid:
        os._exit(data(*words))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == cli.BAD_INPUT
    assert "No space left on device; the same command goes on" in capfd.readouterr().err
    assert set(files_of(small_disk / "CIFAR-10-C")) == {"labels.npy", MARK}


@pytest.mark.slow
def test_imagenet_is_made_goes_on_and_is_read(validation):
    words = ("make", "imagenet_c", "--severity", "3,5", "--corruptions", "brightness,contrast",
             "--data-dir", validation)
    fly, domain = load("imagenet_c", validation), Domain("imagenet_c", "brightness", 3)
    expected = fly.images(domain, np.arange(4)).astype(int)
    making = prepare("imagenet_c", data_dir=str(validation), frost_dir=None,
                     corruptions=["brightness", "contrast"], severities=[3, 5])
    run = making.run()
    list(islice(run, 4))  # brightness-3 with its four images, and the first ones of brightness-5
    run.close()
    folder = validation / "ImageNet-C"
    before = files_of(folder)
    assert f"brightness/5{TEMPORARY}/{LISTED[0]}" in before
    assert data(*words) == 0
    after = files_of(folder)
    assert set(after) == {MARK, *(f"{name}/{severity}/{file}" for name in ("brightness", "contrast")
                                  for severity in (3, 5) for file in LISTED)}
    assert all(after[name.replace(TEMPORARY, "")] == time for name, time in before.items()
               if name != MARK)
    made = load("imagenet_c", validation)
    assert isinstance(made, imagenet.ImagenetC) and made.labels.tolist() == [907, 3, 44, 45]
    assert np.abs(made.images(domain, np.arange(4)) - expected).mean() < 2
    text = made.describe(domain)
    assert text.startswith("ImageNet's validation set, 4 images, shorter side resized to 256")
    assert text.endswith("imagenet-C constants, saved as JPEG of quality 85")
    with Image.open(folder / "contrast/5" / LISTED[0]) as image:
        image.save(folder / "again.jpg", quality=85)
        with Image.open(folder / "again.jpg") as again:
            assert image.size == (224, 224) and image.quantization == again.quantization
    with pytest.raises(UserError, match="started with other settings .images .*, 4 imag.*, now"):
        data_50k = prepare("imagenet_c_50k", data_dir=str(validation), frost_dir=None,
                           corruptions=["fog"], severities=[1])
        list(data_50k.run())


def test_files_of_others_are_left_alone(cifar10, capsys):
    official = cifar10 / "CIFAR-10-C"
    official.mkdir()
    (official / "fog.npy").write_bytes(b"theirs")
    assert data("make", "cifar10_c", "--data-dir", cifar10) == cli.BAD_INPUT
    assert "holds files that tta-apm did not make" in capsys.readouterr().err
    assert set(files_of(official)) == {"fog.npy"}


@pytest.mark.parametrize("words, message", [
    (["make", "cifar10_b"], "'cifar10_b' has no official layout to make: did you mean 'cifar10_c'"),
    (["make", "imagenet_c"], "ImageNet's validation set is not below DATA_DIR"),
    (["make", "cifar10_c"], "file not found: .*test_batch.bin. Get cifar-10-binary.tar.gz"),
    (["make", "cifar10_c", "--severity", "5"], "a file of CIFAR-10-C holds all severities"),
    (["make", "imagenet_c", "--severity", "6"], "--severity 6: severities are 1 to 5"),
    (["check", "--corruptions", "frog"], "unknown corruption 'frog': did you mean 'fog'"),
    (["check", "imagenet_q"], "unknown data set 'imagenet_q': did you mean"),
    (["get", "imagenet_a"], "'imagenet_a' cannot be downloaded here .*data check imagenet_a"),
])
def test_bad_input_is_one_sentence(words, message, tmp_path, capsys):
    assert data(*words, "--data-dir", tmp_path) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and re.search(message, told)


# check

def test_all_data_sets_are_named_with_what_to_get(tmp_path, capsys):
    assert data("check", "--data-dir", tmp_path) == 0  # nothing was named
    told = capsys.readouterr().out
    assert f"Below DATA_DIR {tmp_path}" in told and "digits_c: in order" in told
    for name in {point.name for point in entry_points(group=DATASETS.group)}:
        assert name.endswith("*") or f"\n{name}: " in told
    assert "\nimagenet_c: NOT IN ORDER\n" in told
    assert "ILSVRC/imagenet-c" in told and "https://zenodo.org/records/2235448" in told


def test_what_is_in_order_says_how_it_is_made(cifar10, capsys):
    assert data("check", "cifar10_c", "cifar10", "--data-dir", cifar10) == 0
    told = capsys.readouterr().out
    assert "cifar10_c: in order\n  cifar10, corrupted on the fly with cifar-C constants" in told
    assert "cifar10: in order" in told


def test_a_named_set_that_is_not_whole_ends_with_1(cifar10, capsys):
    data("make", "cifar10_c", "--corruptions", "fog,contrast", "--data-dir", cifar10)
    assert data("check", "cifar10_c", "--corruptions", "fog", "--data-dir", cifar10) == 0
    assert "by tta-apm" in capsys.readouterr().out
    with open(cifar10 / "CIFAR-10-C/contrast.npy", "r+b") as file:
        file.truncate(100_000)
    assert data("check", "cifar10_c", "--corruptions", "fog,contrast", "--severity", "1,2",
                "--data-dir", cifar10) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 domains are not (contrast-1, contrast-2): " in told
    assert "contrast.npy is corrupt, incomplete or not a .npy file" in told


def test_a_missing_image_of_imagenet_c_is_found(validation, capsys):
    words = ("imagenet_c", "--severity", "1", "--corruptions", "contrast", "--data-dir", validation)
    data("make", *words)
    assert data("check", *words) == 0
    (validation / "ImageNet-C/contrast/1" / LISTED[1]).unlink()  # neither the first nor the last
    assert data("check", *words) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert f"contrast/1 lacks 1 of 4 images, e.g. {LISTED[1]}" in told
