"""CIFAR and its corrupted versions, on synthetic files in the layout of the official archives."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest

from tta_apm import __version__, cli
from tta_apm.bench.records import load_predictions, load_record
from tta_apm.data import cifar
from tta_apm.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES
from tta_apm.data.dataset import CLEAN, Clean, Domain
from tta_apm.data.digits import digits
from tta_apm.data.prepare.python_version import PythonFiles
from tta_apm.errors import UserError

NUM_TEST = 10_000
INDICES = np.array([3, 9_999, 0])


def write_binary(data_dir, file="cifar-10-batches-bin/test_batch.bin", label_bytes=1,
                 num_classes=10, num_images=NUM_TEST):
    """Write a file of the binary version with random images; returns pixels and labels."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (num_images, label_bytes + 3072), np.uint8)
    rows[:, :label_bytes] = rng.integers(0, num_classes, (num_images, label_bytes))
    (data_dir / file).parent.mkdir(exist_ok=True)
    rows.tofile(data_dir / file)
    planes = rows[:, label_bytes:].reshape(-1, 3, 32, 32)
    return planes.transpose(0, 2, 3, 1), rows[:, label_bytes - 1]


def write_official(data_dir, names, folder="CIFAR-10-C", labels=None):
    """Write sparse files of the official size; returns the arrays, to be filled."""
    (data_dir / folder).mkdir()
    if labels is not None:
        np.save(data_dir / folder / "labels.npy", labels)
    return [np.lib.format.open_memmap(data_dir / folder / f"{name}.npy", mode="w+", dtype=np.uint8,
                                      shape=(50_000, 32, 32, 3)) for name in names]


def load(name, data_dir):
    return getattr(cifar, name)(data_dir=str(data_dir), frost_dir=None)


@pytest.mark.slow
@pytest.mark.parametrize("name, file, label_bytes, num_classes", [
    ("cifar10", "cifar-10-batches-bin/test_batch.bin", 1, 10),
    ("cifar100", "cifar-100-binary/test.bin", 2, 100)])
def test_the_binary_version(tmp_path, name, file, label_bytes, num_classes):
    pixels, labels = write_binary(tmp_path, file, label_bytes, num_classes)
    data = load(name, tmp_path)
    assert (data.images(Domain(name, CLEAN, 0), INDICES) == pixels[INDICES]).all()
    assert data.labels.dtype == np.int64 and (data.labels == labels).all()
    assert len(data.class_names) == num_classes == len(set(data.class_names))
    assert data.source() is None


@pytest.mark.slow
def test_the_training_images_are_the_source(tmp_path):
    pixels, labels = write_binary(tmp_path)
    for number in range(1, 6):  # the fifth holds the test images, the others zeros
        file = tmp_path / f"cifar-10-batches-bin/data_batch_{number}.bin"
        if number == 5:
            file.symlink_to("test_batch.bin")
        else:
            with open(file, "wb") as stream:
                stream.truncate(NUM_TEST * 3073)
    source = load("cifar10", tmp_path).source()
    assert source.labels.shape == (50_000,) and not source.labels[:40_000].any()
    assert (source.labels[40_000:] == labels).all()
    assert (source.pixels[40_000 + INDICES] == pixels[INDICES]).all()


OFFICIAL = {"cifar10": ("cifar-10-batches-py/test_batch", "labels"),
            "cifar100": ("cifar-100-python/test", "fine_labels")}


def write_python(data_dir, name="cifar10", key=None, protocol=2, text=str.encode, **change):
    """Write a file of the Python version with random images; returns pixels and labels."""
    file, label_key = OFFICIAL[name]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (NUM_TEST, 3072), np.uint8)
    labels = rng.integers(0, 10, NUM_TEST).tolist()
    content = {"batch_label": b"testing batch 1 of 1", "data": rows, label_key: labels} | change
    file = data_dir / file
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(pickle.dumps({text(key): value for key, value in content.items()}, protocol))
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)


@pytest.mark.slow
@pytest.mark.parametrize("name, protocol, text", [
    ("cifar10", 2, str.encode), ("cifar10", 5, str), ("cifar100", 2, str)])
def test_the_python_version(tmp_path, name, protocol, text):
    pixels, labels = write_python(tmp_path, name, protocol=protocol, text=text)
    data = load(name, tmp_path)
    assert (data.images(Domain(name, CLEAN, 0), INDICES) == pixels[INDICES]).all()
    assert data.labels.dtype == np.int64 and (data.labels == labels).all()
    assert data.source() is None and data.describe(Domain(name, CLEAN, 0)) == name
    corrupted = load(f"{name}_c", tmp_path)
    assert corrupted.describe(Domain(f"{name}_c", "fog", 5)).startswith(f"{name}, corrupted on the")


@pytest.mark.slow
def test_arrays_as_python_2_wrote_them(tmp_path):
    """The official files are from Python 2, with 8-bit strings, also for the pixels."""
    pixels, labels = write_python(tmp_path)
    file = tmp_path / OFFICIAL["cifar10"][0]
    content = pickle.loads(file.read_bytes(), encoding="bytes")
    rows = content[b"data"].tobytes()
    program = (b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
               b"K\x00\x85U\x01b\x87R(K\x01M\x10\x27M\x00\x0c\x86cnumpy\ndtype\nU\x02u1"
               b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
               + len(rows).to_bytes(4, "little") + rows + b"tbU\x06labels](")
    file.write_bytes(program + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.")
    data = load("cifar10", tmp_path)
    assert (data.pixels == pixels).all() and (data.labels == labels).all()


@pytest.mark.slow
def test_a_python_version_is_read_and_never_run(tmp_path, harmful):
    write_python(tmp_path, harm=harmful)
    assert load("cifar10", tmp_path).labels.shape == (NUM_TEST,)
    write_python(tmp_path, labels=harmful)
    with pytest.raises(UserError, match="test_batch has no list of 10000 labels"):
        load("cifar10", tmp_path)
    assert not harmful.path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("change, message", [
    ({"data": np.zeros((10, 3072), np.uint8)}, r"holds uint8 \[10, 3072\] as its data instead of"),
    ({"data": np.zeros((10_000, 3072), np.int16)}, "holds int16"),
    ({"data": "pixels"}, "holds no array as its data"),
    ({"labels": [10] * 10_000}, "holds the label 10, but there are 10 classes"),
    ({"labels": ["cat"] * 10_000}, "has no list of 10000 labels"),
    (b"", "is corrupt, incomplete or not a batch of CIFAR"),
    (b"\x1f\x8b\x08", "is corrupt, incomplete or not a batch of CIFAR"),
    (bytes(4 * 10_000 * 3072 + 1), "has 122880001 bytes, far more than 10000 images"),
    (None, "file not found: .*test_batch. Get cifar-10-python.tar.gz, the Python version"),
])
def test_a_wrong_python_file_is_told(tmp_path, change, message):
    write_python(tmp_path, **(change if isinstance(change, dict) else {}))
    file = tmp_path / OFFICIAL["cifar10"][0]
    if isinstance(change, bytes):
        file.write_bytes(change)
    elif change is None:
        file.unlink()
    with pytest.raises(UserError, match=message):
        load("cifar10", tmp_path)


@pytest.mark.slow
def test_the_python_version_that_we_make_is_torchvisions(tmp_path, capsys):
    from torchvision.datasets import CIFAR10
    pixels, labels = write_binary(tmp_path)
    (tmp_path / "CIFAR-10-C").mkdir()
    words = ["data", "make", "cifar10_python", "--data-dir", str(tmp_path)]
    assert cli.main(words) == cli.main(words) == cli.OK
    assert "the corrupted ones" in capsys.readouterr().out
    assert (tmp_path / "cifar10_c").resolve() == tmp_path / "CIFAR-10-C"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        theirs = CIFAR10(str(tmp_path / "cifar10"), train=False)
    assert (theirs.data == pixels).all() and theirs.targets == labels.tolist()
    assert theirs.classes == list(CIFAR10_CLASSES)
    shutil.rmtree(tmp_path / "cifar-10-batches-bin")
    shutil.rmtree(tmp_path / "CIFAR-10-C")
    data = load("cifar10", tmp_path)
    assert (data.pixels == pixels).all() and (data.labels == labels).all()
    domain = Domain("cifar10", CLEAN, 0)
    assert data.describe(domain) == f"cifar10, written by tta-apm {__version__}"


@pytest.mark.slow
def test_an_official_python_version_is_linked_to_and_left_alone(tmp_path, capsys):
    write_python(tmp_path)
    (tmp_path / "CIFAR-10-C").mkdir()
    words = ["data", "make", "cifar10_python", "--data-dir", str(tmp_path)]
    place = tmp_path / "cifar10/cifar-10-batches-py"
    assert cli.main(words) == cli.main(words) == cli.OK
    assert place.is_symlink() and place.resolve() == tmp_path / "cifar-10-batches-py"
    assert [file.name for file in place.iterdir()] == ["test_batch"]
    assert "checksums" not in capsys.readouterr().out
    place.unlink()
    (tmp_path / "cifar-10-batches-py").rename(place)  # where a host wants it
    (tmp_path / "cifar10_c").unlink()
    assert cli.main(words) == cli.OK and (tmp_path / "cifar10_c").is_dir()
    assert [file.name for file in place.iterdir()] == ["test_batch"]


def test_files_of_others_are_left_alone_by_what_we_make(tmp_path, capsys):
    file = tmp_path / "cifar10/cifar-10-batches-py/test_batch"
    file.parent.mkdir(parents=True)
    file.write_text("theirs")
    assert cli.main(["data", "make", "cifar10_python", "--data-dir", str(tmp_path)]) == 2
    assert "not a batch of CIFAR" in capsys.readouterr().err
    clean = Clean("cifar10_jpeg", np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, int), ["a"], "")
    with pytest.raises(UserError, match="holds files that tta-apm did not make"):
        list(PythonFiles(cifar.CIFAR10, tmp_path, clean, reuse=False).run())
    assert file.read_text() == "theirs"
    assert cli.main(["data", "make", "imagenet_c", "--clean", "cifar10"]) == 2
    assert "--clean cifar10: imagenet_c cannot be made of it" in capsys.readouterr().err
    assert cli.main(["data", "make", "cifar10_c", "--clean", "cifar10_jpg"]) == 2
    assert "did you mean 'cifar10_jpeg'?" in capsys.readouterr().err


def test_fine_labels_are_sorted_by_name():
    assert list(CIFAR100_CLASSES) == sorted(CIFAR100_CLASSES) and len(CIFAR100_CLASSES) == 100


def test_official_rows_of_a_severity(tmp_path):
    labels = np.arange(50_000) % NUM_TEST % 10
    fog, = write_official(tmp_path, ["fog"], labels=labels)
    for severity in range(1, 6):
        fog[(severity - 1) * NUM_TEST + INDICES, 0, 0, 0] = 10 * severity + np.arange(3)
    fog.flush()
    data = load("cifar10_c", tmp_path)
    assert data.labels.shape == (NUM_TEST,) and (data.labels[INDICES] == INDICES % 10).all()
    for severity in range(1, 6):
        domain = Domain("cifar10_c", "fog", severity)
        data.check(domain)
        images = data.images(domain, INDICES)
        assert type(images) is np.ndarray and images.shape == (3, 32, 32, 3)
        assert images[:, 0, 0, 0].tolist() == [10 * severity + n for n in range(3)]
    assert data.describe(domain) == "official CIFAR-10-C"


def test_clean_images_of_the_corrupted_set(tmp_path):
    write_official(tmp_path, [], "CIFAR-100-C", labels=np.zeros(NUM_TEST, np.uint8))
    domain = Domain("cifar100_c", CLEAN, 0)
    with pytest.raises(UserError, match="cifar-100-binary/test.bin. Get cifar-100-binary.tar.gz"):
        load("cifar100_c", tmp_path).check(domain)
    pixels, _ = write_binary(tmp_path, "cifar-100-binary/test.bin", 2, 100)
    data = load("cifar100_c", tmp_path)
    assert (data.images(domain, INDICES) == pixels[INDICES]).all()
    assert data.describe(domain) == "cifar100"


def test_labels_of_the_test_set_where_the_corrupted_one_has_none(tmp_path):
    write_official(tmp_path, [], "cifar10_c")
    with pytest.raises(UserError, match="cifar10_c/labels.npy"):
        load("cifar10_c", tmp_path)
    _, labels = write_binary(tmp_path)
    assert (load("cifar10_c", tmp_path).labels == labels).all()


def test_without_official_files_they_are_made_and_it_is_said(tmp_path):
    pixels, labels = write_binary(tmp_path)
    data, domain = load("cifar10_c", tmp_path), Domain("cifar10_c", "contrast", 5)
    assert (data.labels == labels).all() and data.class_names == CIFAR10_CLASSES
    assert data.images(domain, INDICES).std() < pixels[INDICES].std() / 2
    assert data.describe(domain) == "cifar10, corrupted on the fly with cifar-C constants"


def test_nothing_there_says_what_to_get(tmp_path):
    with pytest.raises(UserError) as caught:
        load("cifar100_c", tmp_path)
    for text in ("CIFAR-100-C.tar", "zenodo.org/records/3555552", "cifar-100-binary.tar.gz",
                 str(tmp_path / "CIFAR-100-C")):
        assert text in str(caught.value)


def test_cifar10_1(tmp_path):
    with pytest.raises(UserError, match="cifar10.1_v6_data.npy. Get .*modestyachts"):
        load("cifar10_1", tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), np.uint8)
    np.save(tmp_path / "cifar10.1_v6_data.npy", pixels)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.arange(2000, dtype=np.int32) % 10)
    data, domain = load("cifar10_1", tmp_path), Domain("cifar10_1", CLEAN, 0)
    data.check(domain)
    assert (data.images(domain, INDICES[::2]) == pixels[INDICES[::2]]).all()
    assert (data.labels == np.arange(2000) % 10).all()
    with pytest.raises(UserError, match=r"cifar10_1 has no corruptions: set SEVERITY \[0\]"):
        data.check(Domain("cifar10_1", "fog", 5))


@pytest.mark.parametrize("content, message", [
    (None, "file not found: .*fog.npy. Get CIFAR-10-C.tar from .*2535967"),
    (b"", "fog.npy is corrupt, incomplete or not a .npy file"),
    (b"PK\x03\x04", "fog.npy is corrupt, incomplete or not a .npy file"),
    ("truncated", "fog.npy is corrupt, incomplete or not a .npy file: mmap length.* Delete it. "
     "Get CIFAR-10-C.tar"),
    (np.array([{}]), "fog.npy is corrupt, incomplete or not a .npy file: .*object"),
    (np.zeros((50_000, 1, 1, 3), np.uint8), r"uint8 \[50000, 1, 1, 3\] instead of uint8 \[50000, "),
    (np.zeros((10, 32, 32, 3), np.uint8), r"holds uint8 \[10, 32, 32, 3\] instead of"),
    (np.zeros((10, 32, 32, 3), np.float32), r"holds float32 \[10, 32, 32, 3\] instead of uint8"),
])
def test_a_wrong_file_is_named(tmp_path, content, message):
    write_official(tmp_path, ["fog"], labels=np.zeros(50_000, np.uint8))
    file = tmp_path / "CIFAR-10-C/fog.npy"
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif content == "truncated":
        with open(file, "r+b") as stream:
            stream.truncate(1_000_000)
    else:
        file.unlink()
        if content is not None:
            file.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load("cifar10_c", tmp_path).check(Domain("cifar10_c", "fog", 1))


@pytest.mark.parametrize("labels, message", [
    (np.zeros(9_999, int), r"labels.npy holds int64 \[9999\] instead of 50000 or 10000"),
    (np.zeros(10_000), "labels.npy holds float64"),
    (np.full(10_000, 10), "labels.npy holds the label 10, but there are 10 classes"),
    (np.full(10_000, -1), "labels.npy holds the label -1"),
])
def test_wrong_labels_are_told(tmp_path, labels, message):
    write_official(tmp_path, [], labels=labels)
    with pytest.raises(UserError, match=message):
        load("cifar10_c", tmp_path)


def test_a_wrong_binary_file_is_told(tmp_path):
    write_binary(tmp_path, num_images=NUM_TEST - 1)
    with pytest.raises(UserError, match="test_batch.bin is incomplete: it has 30726927 bytes inst"):
        load("cifar10", tmp_path)
    write_binary(tmp_path, num_classes=200)
    with pytest.raises(UserError, match="test_batch.bin holds the label .* there are 10 classes"):
        load("cifar10", tmp_path)


@pytest.fixture
def digits_as_cifar10_c(tmp_path):
    """Official files whose first images are digits, which the small backbones can classify."""
    clean = digits(data_dir="", frost_dir=None)
    arrays = write_official(tmp_path, ["fog", "contrast"],
                            labels=np.resize(clean.labels, NUM_TEST).astype(np.uint8))
    for array in arrays:
        array[40_000:40_030] = clean.pixels[:30]
        array.flush()
    return tmp_path


def run(data_dir, *overrides):
    return cli.main(["--cfg", "cfgs/cifar10_c/all.yaml", "METHODS", "[source, clip_zero_shot]",
                     "DATA_DIR", str(data_dir), "OUTPUT_DIR", str(data_dir / "results"),
                     "CLASSIFIER.MODEL", "timm/digits_resnet", "CLASSIFIER.WEIGHTS",
                     "digits_resnet.safetensors", "CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS",
                     "digits_clip.safetensors", "NUM_IMAGES", "30", "BATCH_SIZE", "20",
                     "DEVICE", "cpu", "PUBLISHED", "false", *overrides])


@pytest.mark.slow
def test_a_sweep_to_its_table(digits_as_cifar10_c, capsys):
    data_dir = digits_as_cifar10_c
    assert run(data_dir, "CORRUPTIONS", "[fog, contrast]") == cli.OK
    file = data_dir / "results/cells/reset_each_domain-shuffled/source/fog-5-seed42.json"
    record = load_record(file)
    assert record.images_from == "official CIFAR-10-C" and record.num_images == 30
    assert load_predictions(file, record).correct().mean() > 0.9
    header, *lines = (data_dir / "results/table.csv").read_text().splitlines()
    assert header.startswith("method,fog,contrast,mean")
    assert [line.split(",")[0] for line in lines] == ["source", "clip_zero_shot"]
    assert "official CIFAR-10-C" in (data_dir / "results/table.md").read_text()


def test_a_missing_corruption_is_told_before_anything_runs(digits_as_cifar10_c, capsys):
    assert run(digits_as_cifar10_c, "CORRUPTIONS", "[fog, snow]") == cli.BAD_INPUT
    printed = capsys.readouterr()
    assert "file not found" in printed.err and "snow.npy" in printed.err
    assert "error" not in printed.out
