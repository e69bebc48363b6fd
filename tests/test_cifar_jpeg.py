"""CIFAR-10 as JPEG files in archives."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tta_apm.data import cifar_jpeg
from tta_apm.data.cifar import CIFAR10_CLASSES
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.errors import UserError

PER_CLASS = 3


def jpeg(value, side=32):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Archives of three images per class, whose grey is ten times the label, plus the number."""
    monkeypatch.setattr(cifar_jpeg, "NUM_TEST", 10 * PER_CLASS)
    monkeypatch.setattr(cifar_jpeg, "NUM_TRAIN", 10 * PER_CLASS)
    for part in ("test", "train"):
        write(tmp_path, part, {f"{part}/{name}/{number:04}.jpg": jpeg(20 * label + number)
                               for label, name in reversed(list(enumerate(CIFAR10_CLASSES)))
                               for number in range(PER_CLASS)})
    return tmp_path


def write(folder, part, members):
    with tarfile.open(folder / f"cifar10_{part}.tar.gz", "w:gz") as archive:
        for name, content in {"README.txt": b"no image", **members}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


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


def test_bad_archives_are_told(folder):
    with pytest.raises(UserError, match="no file .*elsewhere.cifar10_test.tar.gz; DATA_DIR"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder / "elsewhere"), frost_dir=None)
    write(folder, "test", {"test/cat/0000.jpg": jpeg(7)})
    with pytest.raises(UserError, match="holds 1 images instead of 30"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    write(folder, "test", {"test/cat/0000.jpg": jpeg(7)[:200]})
    with pytest.raises(UserError, match="cannot read the image .*test/cat/0000.jpg"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    write(folder, "test", {"test/cat/0000.jpg": jpeg(7, side=40)})
    with pytest.raises(UserError, match="test/cat/0000.jpg is 40×40"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
    whole = (folder / "cifar10_train.tar.gz").read_bytes()
    (folder / "cifar10_test.tar.gz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match="cifar10_test.tar.gz is not a whole archive"):
        cifar_jpeg.cifar10_jpeg(data_dir=str(folder), frost_dir=None)
