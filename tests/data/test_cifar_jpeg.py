"""CIFAR-10 as JPEG files in archives."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tta_apm import cli
from tta_apm.data import cifar, cifar_jpeg
from tta_apm.data.cifar import CIFAR10_CLASSES
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.errors import UserError

PER_CLASS = 3


def jpeg(value, side=32):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path, tar_of):
    """Writes the archive of a part, "test" or "train"."""
    def write(part, members):
        content = tar_of({"README.txt": b"no image", **members}, mode="w:gz")
        (tmp_path / f"cifar10_{part}.tar.gz").write_bytes(content)
    return write


@pytest.fixture
def folder(tmp_path, monkeypatch, write):
    """Archives with three images per class, of grey level 10 · label + number."""
    monkeypatch.setattr(cifar_jpeg, "NUM_TEST", 10 * PER_CLASS)
    monkeypatch.setattr(cifar_jpeg, "NUM_TRAIN", 10 * PER_CLASS)
    for part in ("test", "train"):
        write(part, {f"{part}/{name}/{number:04}.jpg": jpeg(20 * label + number)
                     for label, name in reversed(list(enumerate(CIFAR10_CLASSES)))
                     for number in range(PER_CLASS)})
    return tmp_path


def test_labels_come_from_the_folders(folder):
    data = cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    assert data.pixels.shape == (30, 32, 32, 3) and data.pixels.dtype == np.uint8
    np.testing.assert_allclose(data.pixels[:, 5, 5, 0] // 20, data.labels, atol=0)
    assert len(set(data.labels[:10])) > 4  # mixed, though the archive is sorted by class
    assert data.source().name == "cifar10_jpeg_train"


def test_corrupted_on_the_fly(folder):
    data = cifar_jpeg.cifar10_jpeg_c(data_dir=str(folder), frost_dir=None)
    domain = Domain("cifar10_jpeg_c", "gaussian_noise", 5)
    some = np.arange(4)
    clean = data.images(Domain("cifar10_jpeg_c", CLEAN, 0), some)
    assert data.images(domain, some).shape == clean.shape
    assert (data.images(domain, some) != clean).mean() > 0.5
    assert "cifar-C constants" in data.describe(domain)


def test_bad_archives_are_told(folder, write):
    with pytest.raises(UserError, match="file not found: .*elsewhere.cifar10_test.tar.gz; DATA"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder / "elsewhere"), frost_dir=None)
    write("test", {"test/cat/0000.jpg": jpeg(7)})
    with pytest.raises(UserError, match="holds 1 images instead of 30"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    write("test", {"test/cat/0000.jpg": jpeg(7)[:200]})
    with pytest.raises(UserError, match="cannot read the image .*test/cat/0000.jpg"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    write("test", {"test/cat/0000.jpg": jpeg(7, side=40)})
    with pytest.raises(UserError, match="test/cat/0000.jpg is 40×40"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    whole = (folder / "cifar10_train.tar.gz").read_bytes()
    (folder / "cifar10_test.tar.gz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="cifar10_test.tar.gz is corrupt or incomplete"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A folder with an official CIFAR-10 of five images per file; also returns the images."""
    for module in (cifar, cifar_jpeg):
        monkeypatch.setattr(module, "NUM_TEST", 5)
        monkeypatch.setattr(module, "NUM_TRAIN", 25)
    inside = tmp_path / "official" / cifar.CIFAR10.folder
    inside.mkdir(parents=True)
    smooth = np.linspace(0, 255, 1024).astype(np.uint8)
    images, labels = {"train": [], "test": []}, {"train": [], "test": []}
    for index, name in enumerate([*cifar.CIFAR10.train, cifar.CIFAR10.test]):
        rows = np.stack([np.concatenate([[(3 * index + row) % 4], smooth, smooth[::-1],
                                         smooth // (index + row + 1)])
                         for row in range(5)]).astype(np.uint8)
        rows.tofile(inside / name)
        part = "test" if name == cifar.CIFAR10.test else "train"
        images[part] += list(rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels[part] += rows[:, 0].tolist()
    return inside.parent, images, labels


def test_the_archives_are_made_of_the_official_files(official, capsys):
    folder, images, labels = official
    missing = "file not found: .*cifar10_test.tar.gz; DATA_DIR .*`tta-apm data make cifar10_jpeg`"
    with pytest.raises(UserError, match=missing):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    words = ["data", "make", "cifar10_jpeg", "--data-dir", str(folder)]
    assert cli.main(words) == cli.OK
    assert "30 images to" in capsys.readouterr().out
    assert cli.main(["data", "check", "cifar10_jpeg", "--data-dir", str(folder)]) == cli.OK
    for part, read in (("train", cifar_jpeg.train_part(str(folder))),
                       ("test", cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None))):
        with tarfile.open(folder / f"cifar10_{part}.tar.gz") as archive:
            members = archive.getnames()
            first = archive.extractfile(members[0]).read()
        # By class, and within a class in the official order, which determines the first images.
        order = sorted(range(len(labels[part])), key=labels[part].__getitem__)
        assert members == sorted(members) and len(members) == len(order)
        with Image.open(io.BytesIO(first)) as image, Image.open(io.BytesIO(jpeg(7))) as of_75:
            assert image.quantization == of_75.quantization
        mixed = np.array(order)[np.random.RandomState(0).permutation(len(order))]
        assert read.labels.tolist() == [labels[part][index] for index in mixed]
        expected = np.stack([images[part][index] for index in mixed]).astype(int)
        assert np.abs(read.pixels - expected).mean() < 6


def test_archives_are_the_same_each_time_and_whole_ones_are_left(official, monkeypatch):
    folder, images, _ = official
    words = ["data", "make", "cifar10_jpeg", "--data-dir", str(folder)]
    files = [folder / f"cifar10_{part}.tar.gz" for part in ("train", "test")]
    assert cli.main(words) == cli.OK
    contents, before = [file.read_bytes() for file in files], files[0].stat().st_mtime_ns
    files[1].unlink()
    monkeypatch.setattr("time.time", lambda: 1e9)
    assert cli.main(words) == cli.OK
    assert [file.read_bytes() for file in files] == contents
    assert files[0].stat().st_mtime_ns == before
    files[0].unlink()

    def fail(*args, **options):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", fail)
    assert cli.main(words) == cli.BAD_INPUT
    assert [path.name for path in folder.glob("cifar10_*")] == ["cifar10_test.tar.gz"]


@pytest.mark.parametrize("change, message", [
    (["--severity", "5"], "cifar10_jpeg is made without corruptions: leave --corruptions, "),
    (["--corruptions", "fog"], "cifar10_jpeg is made without corruptions: leave --corruptions, "),
    (["--frost-dir", "frost"], "cifar10_jpeg is made without corruptions: leave --corruptions, "),
    ("data_batch_1.bin", "data_batch_1.bin. Get cifar-10-binary.tar.gz, the binary version, from"),
    ("test_batch.bin", "test_batch.bin. Get cifar-10-binary.tar.gz, the binary version, from"),
])
def test_what_cannot_be_packed_is_told(official, capsys, change, message):
    folder, *_ = official
    options = change if isinstance(change, list) else []
    if not options:
        (folder / cifar.CIFAR10.folder / change).unlink()
    assert cli.main(["data", "make", "cifar10_jpeg", "--data-dir", str(folder),
                     *options]) == cli.BAD_INPUT
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not list(folder.glob("cifar10_*"))


@pytest.mark.parametrize("members, message", [
    ({"test/cat/0000.jpg": bytes(70_000)}, "test/cat/0000.jpg is not a JPEG file of 32×32"),
    ({"notes.bin": bytes(2 ** 21)}, "unpacks to more than 1048576 bytes"),
    ({f"test/cat/{number:04}.jpg": jpeg(7) for number in range(31)}, "more than 30 images")],
    ids=["member", "archive", "number"])
def test_an_archive_unpacks_no_further_than_is_sensible(members, message, folder, write,
                                                        monkeypatch):
    monkeypatch.setattr(cifar_jpeg, "MAX_UNPACKED", 2 ** 20)
    write("test", members)
    with pytest.raises(UserError, match=message):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
