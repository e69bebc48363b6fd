"""No file runs code: every way in which this package reads weights, with malicious files.

To be run with the oldest torch of setup.cfg too.
"""

import ast
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from places import ROOT
from tta_apm.backbones.classifiers import load_classifier
from tta_apm.backbones.clip import load_clip
from tta_apm.backbones.clip_prompts import load_context
from tta_apm.backbones.mae import load_mae
from tta_apm.backbones.mttt_vit import load_mttt_vit
from tta_apm.backbones.rotation import load_rotation
from tta_apm.backbones.weights import files
from tta_apm.data.digits import CLASS_NAMES
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import load_student
from tta_apm.fields.config import PretrainConfig
from tta_apm.fields.teachers import load_teacher
from tta_apm.pickle_objects import Inert


def load_digits_clip(file):
    return load_clip("digits_clip", file, class_names=CLASS_NAMES, templates=("{}",), device="cpu")


LOADERS = {
    "timm": lambda file, _: load_classifier("timm/digits_resnet", file, num_classes=10,
                                            device="cpu"),
    "torchvision": lambda file, _: load_classifier("torchvision/resnet18", file, num_classes=10,
                                                   device="cpu"),
    "robustbench": lambda file, _: load_classifier("robustbench/Hendrycks2020AugMix_WRN", file,
                                                   num_classes=10, device="cpu"),
    "clip": lambda file, _: load_digits_clip(file),
    "mae": lambda file, _: load_mae("digits_mae", file, num_classes=10, device="cpu"),
    "rotation": lambda file, _: load_rotation("digits_rotation", file, num_classes=10,
                                              device="cpu"),
    "mttt": lambda file, _: load_mttt_vit("digits_mttt", file, num_classes=10, device="cpu"),
    "coop": lambda file, clip: load_context(file, clip, meta_net=False),
    "cocoop": lambda file, clip: load_context(file, clip, meta_net=True),
    "student": lambda file, _: load_student(Path(file)),
    "timm teacher": lambda file, _: load_teacher(
        PretrainConfig(teacher="timm/test_vit", weights=file, image_size=64), torch.device("cpu")),
    "clip teacher": lambda file, _: load_teacher(
        PretrainConfig(teacher="clip/digits_clip", weights=file), torch.device("cpu")),
}


# Files that make PWNED when they run

def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def fallback_pickle(target: Path) -> bytes:
    """A first value on which the safe unpickler fails with a TypeError, and a second that calls a
    function: some libraries then load the file again without the safe unpickler."""
    return (b"\x80\x02}(" + text("a") + b"ccollections\nOrderedDict\n)RN}\x86b" + text("b")
            + b"cposix\nsystem\n" + text(f"touch {target}") + b"\x85Ru.")


def call_pickle(target: Path) -> bytes:
    """A call of a function, by each of the instructions of a pickle."""
    touch = text(f"touch {target}")
    return (b"\x80\x02(" + b"cos\nsystem\n" + touch + b"\x85R" + b"(" + touch + b"ios\nsystem\n"
            + b"(cos\nsystem\n" + touch + b"o" + b"t.")


def archive(content: bytes, file: Path, member: str = "data.pkl") -> None:
    """torch's own archive with another pickle in it."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, "w") as target:
        for info in source.infolist():
            is_pickle = info.filename.endswith("data.pkl")
            target.writestr(info, content if is_pickle else source.read(info))


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def poison_script(file: Path, target: Path) -> None:
    """An archive of TorchScript whose pickle calls a function."""
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(file, "w") as out:
        for info in source.infolist():
            is_pickle = info.filename.endswith(("data.pkl", "constants.pkl"))
            out.writestr(info, call_pickle(target) if is_pickle else source.read(info))


POISONED = {
    "fallback": lambda file, target: archive(fallback_pickle(target), file),
    "archive": lambda file, target: archive(call_pickle(target), file),
    "pickle": lambda file, target: file.write_bytes(call_pickle(target)),
    "older format": lambda file, target: torch.save(
        {"state_dict": Touch(target)}, file, _use_new_zipfile_serialization=False),
    "newer pickle": lambda file, target: file.write_bytes(pickle.dumps(Touch(target), 5)),
    "arrays": lambda file, target: np.savez(file.open("wb"), a=np.array(Touch(target), object)),
    "script": poison_script,
}
ENVIRONMENTS = {
    "as it is": {},
    "code allowed": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
    "code forbidden": {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"},
    "both": {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"},
}


@pytest.fixture(params=ENVIRONMENTS)
def environment(request, monkeypatch):
    for name, value in ENVIRONMENTS[request.param].items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("poison", POISONED)
@pytest.mark.parametrize("loader", LOADERS)
def test_no_loader_runs_a_file(loader, poison, environment, digits_clip, tmp_path):
    file, target = tmp_path / "x.pt", tmp_path / "PWNED"
    POISONED[poison](file, target)
    with pytest.raises(UserError, match="x.pt") as caught:
        LOADERS[loader](str(file), digits_clip)
    assert not target.exists()
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("poison", ["fallback", "archive", "pickle", "older format"])
def test_the_files_are_poisonous(poison, tmp_path):
    """The files are harmful; otherwise the tests above could not fail."""
    file, target = tmp_path / "x.pt", tmp_path / "PWNED"
    POISONED[poison](file, target)
    if poison == "pickle":
        pickle.loads(file.read_bytes())
    else:
        with pytest.MonkeyPatch.context() as patch:
            for name in ENVIRONMENTS["both"]:
                patch.delenv(name, raising=False)
            try:
                torch.load(file, weights_only=False)
            except TypeError:  # of the fallback's first value, in torch's own reader
                pass
    assert target.exists()


def test_weights_beside_a_call_load_and_the_call_does_not(environment, tmp_path, digits_resnet):
    target = tmp_path / "PWNED"
    torch.save({"args": Touch(target), "state_dict": digits_resnet.net.state_dict()},
               tmp_path / "x.pt")
    backbone = LOADERS["timm"](str(tmp_path / "x.pt"), None)
    assert all(torch.equal(value, backbone.net.state_dict()[name])
               for name, value in digits_resnet.net.state_dict().items())
    assert not target.exists()


@pytest.mark.parametrize("module, name", [(torch, "load"), (torch.jit, "load"),
                                          (torch.serialization, "load")])
def test_a_library_that_loads_itself_gets_tensors_and_runs_nothing(module, name, environment,
                                                                   tmp_path):
    target = tmp_path / "PWNED"
    torch.save({"args": Touch(target), "net": {"w": torch.arange(3.0)}}, tmp_path / "x.pt")
    before = getattr(module, name)
    with files.reading():
        content = getattr(module, name)(tmp_path / "x.pt", weights_only=False)
    assert torch.equal(content["net"]["w"], torch.arange(3.0))
    assert isinstance(content["args"], Inert) and not target.exists()
    assert getattr(module, name) is before


def test_robustbenchs_ensembles_and_downloads_are_read_so_too(tmp_path, monkeypatch):
    """What robustbench finds in its own folder."""
    monkeypatch.chdir(tmp_path)
    file, target = tmp_path / "models/cifar10/corruptions/Hendrycks2020AugMix_WRN.pt", (
        tmp_path / "PWNED")
    file.parent.mkdir(parents=True)
    POISONED["archive"](file, target)
    with pytest.raises(UserError, match="does not load"):
        load_classifier("robustbench/Hendrycks2020AugMix_WRN", "", num_classes=10, device="cpu")
    assert not target.exists()


# Files that do harm without running code

def rebuild(storage: str, size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """A pickle of {"w": tensor} with the given offset, shape and stride."""
    return (b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
            + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ" + offset + size
            + stride + b"\x89N" + b"tRs.")


def long(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


GEOMETRIES = {
    "larger than its storage": (b"K\x64\x85", b"K\x01\x85"),
    "a large stride": (b"K\x02\x85", long(1 << 40) + b"\x85"),
    "a negative stride": (b"K\x02\x85", long(-1) + b"\x85"),
    "a negative size": (long(-5) + b"\x85", b"K\x01\x85"),
    "sizes beyond 64 bits": (long(1 << 62) + b"\x85", b"K\x01\x85"),
    "strides missing": (b"K\x02\x85", b")"),
    "no numbers": (text("a") + b"\x85", text("b") + b"\x85"),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_tensor_reaches_outside_its_storage(geometry, tmp_path):
    archive(rebuild("0", *GEOMETRIES[geometry]), tmp_path / "x.pt")
    with pytest.raises(UserError, match="x.pt is not a checkpoint of weights: a tensor"):
        files.read(tmp_path / "x.pt")


def test_a_tensor_inside_its_storage_is_read(tmp_path):
    """With valid arguments, the functions above make valid files."""
    archive(rebuild("0", b"K\x01\x85", b"K\x01\x85"), tmp_path / "x.pt")
    assert torch.equal(files.read(tmp_path / "x.pt")["w"], torch.zeros(1))


@pytest.mark.slow
@pytest.mark.parametrize("content, message", [
    (b"\x80\x02" + b"(" * 50 + b"t." * 1, "pickle is corrupt or incomplete|no tensors"),
    (b"\x80\x02" + b"]" + b"0" * 3 + b".", "pickle is corrupt or incomplete"),
    (b"\x80\x02}" + text("w") + b"h\x07s.", "pickle is corrupt or incomplete"),
    (b"\x80\x02\x82\x01.", "instruction EXT1"),
    (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    (b"\x80\x02K\x00K\x01K\x02s.", "takes a int for a dict"),
    (b"\x80\x02]q\x00h\x00a.", "nested too deeply, or contains itself"),
    (b"\x80\x02]" + b"q\x00h\x00h\x00\x86" * 60 + b".", "more than|nested too deeply"),
    (b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".", "nested too deeply"),
])
def test_a_pickle_that_is_none_is_told(content, message, tmp_path):
    archive(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=f"x.pt is not a checkpoint of weights.*({message})"):
        files.read(tmp_path / "x.pt")


def test_an_index_in_the_memo_takes_no_memory(tmp_path):
    """Python's own unpickler would allocate a list of that length: 64 GB."""
    archive(b"\x80\x02}r" + b"\xff\xff\xff\xff" + b".", tmp_path / "x.pt")
    with pytest.raises(UserError, match="no tensors"):
        files.read(tmp_path / "x.pt")


def test_a_long_pickle_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr("tta_apm.pickles.MAX_INSTRUCTIONS", 1000)
    archive(b"\x80\x02" + b"K\x00" * 1001 + b".", tmp_path / "x.pt")
    with pytest.raises(UserError, match="more than 1,000 instructions"):
        files.read(tmp_path / "x.pt")


@pytest.mark.slow
def test_an_archive_that_unpacks_to_far_more_is_told(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x/data.pkl", b"\x80\x02}.")
        out.writestr("x/data/0", bytes(100 << 20))
    with pytest.raises(UserError, match=r"x.pt .* it would unpack to \d+ times its size"):
        files.read(tmp_path / "x.pt")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("save", [
    lambda state, file: torch.save(state, file),
    lambda state, file: torch.save(state, file, _use_new_zipfile_serialization=False)])
def test_a_file_that_is_cut_off_is_told(save, cut, tmp_path):
    save({"w": torch.rand(1000), "v": torch.rand(1000)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[:int(cut * len(content))])
    with pytest.raises(UserError, match="x.pt is not a checkpoint.*incomplete.*get it again"):
        files.read(tmp_path / "x.pt")


def test_bytes_at_random_are_told_or_read(tmp_path):
    """A real file with some of its bytes changed never ends in another error."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.rand(4, 3), "v": torch.arange(5)}, "epoch": 3}, buffer,
               _use_new_zipfile_serialization=False)
    generator = np.random.default_rng(0)
    for trial in range(300):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        content[generator.integers(0, len(content), 3)] = generator.integers(0, 256, 3)
        (tmp_path / "x.pt").write_bytes(content.tobytes())
        try:
            files.read(tmp_path / "x.pt")
        except UserError:
            pass


# No way around the reader

READS = {"load", "load_file", "safe_open", "load_state_dict_from_url", "load_checkpoint",
         "unpickle", "Unpickler", "loads"}
READERS = {"torch", "pickle", "np", "numpy", "safetensors", "joblib", "dill", "hub", "jit",
           "serialization", ""}


def reads(tree: ast.AST):
    """Calls that read weights or pickles, and options that make a library do so."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(
            node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        owner = getattr(owner, "attr", getattr(owner, "id", ""))
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        safe = isinstance(keywords.get("allow_pickle"), ast.Constant) and (
            keywords["allow_pickle"].value is False)
        if name in READS - {"load", "loads", "unpickle"} or (
                name in ("load", "loads") and owner in READERS - {""} and not safe):
            yield f"{owner}.{name}"
        pretrained = keywords.get("pretrained")
        if isinstance(pretrained, ast.Constant) and pretrained.value not in (None, False):
            yield f"{name}(pretrained={pretrained.value})"


@pytest.mark.parametrize("text, expected", [
    ("torch.load(x)", ["torch.load"]), ("np.load(x)", ["np.load"]),
    ("np.load(x, allow_pickle=False)", []), ("pickle.loads(x)", ["pickle.loads"]),
    ("json.loads(x)", []), ("load_file(x)", [".load_file"]), ("torch.jit.load(x)", ["jit.load"]),
    ("open_clip.create_model(m, pretrained=None)", []),
    ("timm.create_model(m, pretrained=True)", ["create_model(pretrained=True)"])])
def test_reads_are_seen(text, expected):
    assert list(reads(ast.parse(text))) == expected


ALLOWED = {
    "tta_apm/backbones/weights/archives.py": [".safe_open", ".safe_open"],
    # timm only assigns the tensors that are passed to it.
    "tta_apm/backbones/from_timm.py": ["create_model(pretrained=True)"],
}


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(
    str(path.relative_to(ROOT)) for folder in ("tta_apm", "baselines")
    for path in (ROOT / folder).rglob("*.py")))
def test_nothing_reads_weights_but_the_one_reader(file):
    assert list(reads(ast.parse((ROOT / file).read_text(encoding="utf-8")))) == ALLOWED.get(
        file, [])
