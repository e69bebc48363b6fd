"""`tta-apm data get`: downloads from a local server, and unsafe archives."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tta_apm import cli
from tta_apm.data import cifar
from tta_apm.data.corruptions.constants import CORRUPTIONS
from tta_apm.data.official import official_of
from tta_apm.data.prepare import zenodo as download
from tta_apm.data.prepare.zenodo import Download, unpack
from tta_apm.data.provenance import MARK
from tta_apm.errors import UserError

IMAGE = "n01440764/x.JPEG"
NUM_TEST = 150


def get(*words: object) -> int:
    return cli.main(["data", "get", *map(str, words)])


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.fixture
def zenodo(monkeypatch):
    """A server with a record of each data set; returns its files, to be filled."""
    files: dict[str, bytes] = {}
    cut: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = urlsplit(self.path).path  # requests to a proxy have the whole URL
            *_, last = [part for part in path.split("/") if part != "content"]
            if last in files:
                # As if the connection broke: fewer bytes than the record states.
                body = files[last][:len(files[last]) // (2 if last in cut else 1)]
            else:
                body = json.dumps({"files": [
                    {"key": name, "size": len(content), "links": {
                        "self": f"{download.ZENODO}{path}/files/{name}/content"},
                     "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}
                    for name, content in files.items()]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setattr(download, "ZENODO", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield files, cut
        server.shutdown()


@pytest.fixture
def cifar_tar(monkeypatch, tar_of):
    monkeypatch.setattr(cifar, "NUM_TEST", NUM_TEST)
    arrays = {name: np.zeros((5 * NUM_TEST, 32, 32, 3), np.uint8) for name in CORRUPTIONS}
    arrays["labels"] = np.zeros(5 * NUM_TEST, np.uint8)
    return tar_of({f"CIFAR-10-C/{name}.npy": npy(array) for name, array in arrays.items()})


@pytest.mark.slow
def test_get_asks_loads_checks_and_unpacks(zenodo, cifar_tar, tmp_path, capsys, monkeypatch):
    files, cut = zenodo
    files["CIFAR-10-C.tar"] = cifar_tar
    words = ("cifar10_c", "--data-dir", tmp_path)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert get(*words) == 1
    assert "CIFAR-10-C.tar of" in capsys.readouterr().out and not list(tmp_path.iterdir())
    cut.add("CIFAR-10-C.tar")
    assert get(*words, "--yes") == cli.BAD_INPUT
    assert "the download of CIFAR-10-C.tar failed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no partial archive is left
    cut.clear()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert get(*words) == 0
    assert "cifar10_c: in order\n  official CIFAR-10-C: 75 domains" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["CIFAR-10-C"]
    assert get(*words, "--yes") == 0
    assert "is here already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_half_archive_of_an_earlier_download_is_named(zenodo, cifar_tar, tmp_path, capsys):
    zenodo[0]["CIFAR-10-C.tar"] = cifar_tar
    file = tmp_path / "CIFAR-10-C.tar"
    file.write_bytes(cifar_tar[:999])
    assert get("cifar10_c", "--yes", "--data-dir", tmp_path) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert f"{file} is incomplete or corrupt: it has 999 of {len(cifar_tar)} bytes" in told
    file.write_bytes(cifar_tar[:-1] + b"x")
    assert get("cifar10_c", "--yes", "--data-dir", tmp_path) == cli.BAD_INPUT
    assert "its checksum is not Zenodo's" in capsys.readouterr().err
    file.write_bytes(cifar_tar)
    assert get("cifar10_c", "--yes", "--data-dir", tmp_path) == 0
    assert file.is_file() and (tmp_path / "CIFAR-10-C/labels.npy").is_file()


@pytest.fixture(params=[True, False], ids=["filter", "no_filter"])
def python_with_and_without_filter(request, monkeypatch):
    """Without tarfile's filter, as in Python 3.10.11."""
    if not request.param:
        monkeypatch.delattr(tarfile, "data_filter")


@pytest.mark.usefixtures("python_with_and_without_filter")
def test_only_what_is_missing_of_imagenet_c_is_loaded(zenodo, tar_of, tmp_path):
    for archive in official_of("imagenet_c").zenodo.archives:
        for index, name in enumerate(archive.folders):
            if archive.file != "weather.tar" or index < 2:
                (tmp_path / "ImageNet-C" / name).mkdir(parents=True)
    zenodo[0]["weather.tar"] = tar_of({
        f"weather/{name}/5/{IMAGE}": b"new" for name in ("snow", "frost", "fog", "brightness")})
    wanted = Download("imagenet_c", tmp_path)
    assert [archive.file for archive in wanted.missing] == ["weather.tar"]
    assert wanted.ask() == len(zenodo[0]["weather.tar"])
    wanted.run()
    assert (tmp_path / "ImageNet-C/fog/5" / IMAGE).read_bytes() == b"new"
    assert files_of(tmp_path) == {f"ImageNet-C/{name}/5/{IMAGE}"
                                  for name in ("fog", "brightness")}
    assert not Download("imagenet_c", tmp_path).missing


def test_the_proxy_of_the_environment_is_used(zenodo, cifar_tar, tmp_path, monkeypatch):
    zenodo[0]["CIFAR-10-C.tar"] = cifar_tar
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", download.ZENODO)
    monkeypatch.setattr(download, "ZENODO", "http://zenodo.invalid")
    assert get("cifar10_c", "--yes", "--data-dir", tmp_path) == 0


def test_offline_one_sentence_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, "ZENODO", "http://127.0.0.1:9")
    assert get("imagenet_c", "--yes", "--data-dir", tmp_path) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "cannot be asked" in told and "On a machine that is online get noise.tar, blur" in told
    assert told.count("\n") == 1


def test_images_made_here_are_not_mixed_with_official_ones(tmp_path):
    (tmp_path / "ImageNet-C").mkdir()
    (tmp_path / "ImageNet-C" / MARK).write_text("{}")
    with pytest.raises(UserError, match="ImageNet-C holds images that tta-apm made"):
        Download("imagenet_c", tmp_path)


@pytest.mark.usefixtures("python_with_and_without_filter")
@pytest.mark.parametrize("name, kind", [
    ("/fog/x", tarfile.REGTYPE), ("fog/../../x", tarfile.REGTYPE), ("fog/x", tarfile.SYMTYPE),
    ("fog/x", tarfile.LNKTYPE), ("fog/x", tarfile.CHRTYPE)])
def test_an_archive_that_points_outside_is_refused_as_a_whole(name, kind, tar_of, tmp_path):
    file, target = tmp_path / "weather.tar", tmp_path / "target"
    target.mkdir()
    file.write_bytes(tar_of({"fog/good": b""})[:512] + tar_of({name: b""}, kind))
    with pytest.raises(UserError, match=f"weather.tar is unsafe: its member '{name}'"):
        unpack(file, ["fog"], target)
    assert not list(target.iterdir())


def test_names_that_no_disk_takes_are_told(tar_of, tmp_path):
    file, target = tmp_path / "weather.tar", tmp_path / "target"
    target.mkdir()
    for names in (("fog/x", "fog/x/y"), (f"fog/{'x' * 300}",)):  # a file that is a folder, too
        file.write_bytes(tar_of(dict.fromkeys(names, b"")))
        with pytest.raises(UserError, match="weather.tar cannot be unpacked in .*target: "):
            unpack(file, ["fog"], target)
        assert not list(target.iterdir())
    # NUL: only pax records can hold it.
    header = tarfile.TarInfo("fog/x")
    header.pax_headers = {"path": "fog/a\0b"}
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header)
    with pytest.raises(UserError, match="weather.tar cannot be unpacked in .*target: .*null"):
        unpack(file, ["fog"], target)
    assert not list(target.iterdir())


def test_a_disk_that_runs_full_while_unpacking_is_told(tar_of, tmp_path, small_disk):
    (tmp_path / "weather.tar").write_bytes(tar_of({"fog/x": bytes(1 << 20)}))
    with pytest.raises(UserError, match="cannot be unpacked in .*: No space left on device"):
        unpack(tmp_path / "weather.tar", ["fog"], small_disk)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize("content_of, message", [
    (lambda tar_of: b"no archive", "is incomplete or no archive"),
    (lambda tar_of: tar_of({"fog/x": b"y" * 2000})[:900], "incomplete or no arch"),
    (lambda tar_of: tar_of({"snow/x": b""}), "holds no fog"),
    (lambda tar_of: tar_of({"fog/": b""}, tarfile.DIRTYPE), "holds no fog")])
def test_a_wrong_archive_leaves_nothing(content_of, message, tar_of, tmp_path):
    (tmp_path / "weather.tar").write_bytes(content_of(tar_of))
    with pytest.raises(UserError, match=message):
        unpack(tmp_path / "weather.tar", ["fog"], tmp_path)
    assert files_of(tmp_path) == {"weather.tar"}
