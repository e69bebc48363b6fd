"""The repositories of CLIP_benchmark: their URLs, and downloads from a local hub."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.data.hub import HUB, Repository, repository
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

NAME = "wds/vtab/cifar10"


def load(data_dir: str, name: str = NAME):
    return DATASETS.load(name)(data_dir=data_dir, frost_dir=None)


def all_images(data) -> np.ndarray:
    return data.images(Domain(data.name, CLEAN, 0), np.arange(len(data.labels)))


@pytest.mark.parametrize("base, expected", [
    ("https://huggingface.co/datasets/clip-benchmark/",
     Repository("clip-benchmark/wds_vtab-cifar10", "main", None)),
    ("https://huggingface.co/datasets/someone/wds_{dataset_cleaned}/tree/v2/",
     Repository("someone/wds_vtab-cifar10", "v2", None)),
    ("https://huggingface.co/datasets/someone/wds_{dataset_cleaned}",
     Repository("someone/wds_vtab-cifar10", "main", None)),
    ("http://localhost:80/mirror/datasets/x",
     Repository("x/wds_vtab-cifar10", "main", "http://localhost:80/mirror"))])
def test_urls(base, expected):
    assert repository(NAME, base) == expected


@pytest.mark.parametrize("base", [
    "file:///etc", "ftp://huggingface.co/datasets/x", "https://huggingface.co/clip-benchmark",
    "https://huggingface.co/datasets", "https://huggingface.co/datasets/x/y",
    "http://localhost:80/wds_{dataset_cleaned}/tree/main"])
def test_urls_that_are_of_no_hub(base):
    with pytest.raises(UserError, match="only data sets of a Hugging Face hub can be downloaded"):
        load(base)


class Handler(BaseHTTPRequestHandler):
    """Serves the files of repositories like a hub."""

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.tokens.append(self.headers.get("Authorization"))
        self._answer(self.server.cuts.pop(0) if self.server.cuts else sys.maxsize)

    def _answer(self, num_bytes: int | None) -> None:
        """Send a file from Range on, or its header; the connection breaks after `num_bytes`."""
        self.server.num_requests += 1
        file = self.server.folder / self.path.lstrip("/")
        if not file.is_file() or num_bytes == 0:
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if num_bytes is not None:
            self.wfile.write(content[start:start + num_bytes])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def repository_folder(tar_of, tmp_path):
    """The folder of a data set of ten images in three archives."""
    folder = tmp_path / "served/datasets/clip-benchmark/wds_vtab-cifar10/resolve/main"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("cat\ndog\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    (folder / "test/nshards.txt").write_text("3\n")
    generator = np.random.default_rng(0)
    for shard, num_images in enumerate((4, 4, 2)):
        members = {}
        for index in range(num_images):
            image = io.BytesIO()
            pixels = generator.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(image, "png")
            members[f"s{shard}{index}.png"] = image.getvalue()
            members[f"s{shard}{index}.cls"] = b"%d" % (index % 2)
        (folder / f"test/{shard}.tar").write_bytes(tar_of(members))
    return folder


@pytest.fixture
def server(repository_folder, tmp_path, monkeypatch):
    """A hub; `cuts` are the bytes after which its next connections break."""
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.folder, server.asked, server.tokens, server.cuts = tmp_path / "served", [], [], []
        server.says_length, server.num_requests = True, 0
        server.endpoint = f"http://127.0.0.1:{server.server_port}"
        server.base = f"{server.endpoint}/datasets/clip-benchmark"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "/", "/wds_{dataset_cleaned}/tree/main"])
def test_a_set_is_downloaded_once(end, server):
    here = load(server.base + end)
    path = "/datasets/clip-benchmark/wds_vtab-cifar10/resolve/main"
    assert server.asked == [f"{path}/{file}" for file in (
        "classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt",
        "test/0.tar", "test/1.tar", "test/2.tar")]
    before = server.num_requests
    again, local = load(server.base + end), load("data")
    assert server.num_requests == before
    for data in (again, local):
        assert (data.labels == here.labels).all() and (all_images(data) == all_images(here)).all()


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_where_it_was(server, repository_folder):
    server.cuts = [sys.maxsize] * 3 + [500]
    with suppress(UserError):  # before huggingface_hub 1 the next run goes on
        load(server.base)
    assert len(load(server.base).labels) == 10
    asked = [path.rpartition("/")[2] for path in server.asked]
    assert asked[3:] == ["0.tar", "0.tar", "1.tar", "2.tar"]
    for archive in (repository_folder / "test").glob("*.tar"):
        assert Path("data", NAME, "test", archive.name).read_bytes() == archive.read_bytes()


@pytest.mark.slow
def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(server, tmp_path):
    server.cuts = [sys.maxsize] * 3 + [500, 0]
    with pytest.raises(UserError, match="cannot download .*/test/0.tar to "
                                        "data/wds/vtab/cifar10: .*(404|500 bytes)"):
        load(server.base)
    assert not list((tmp_path / "data").rglob("*.tar"))
    with pytest.raises(UserError, match="file not found: .*0.tar"):
        load("data")
    server.cuts.clear()
    assert len(load(server.base).labels) == 10


def test_a_part_is_never_taken_for_the_whole_where_no_length_is_said(server, tmp_path):
    server.says_length = False
    server.cuts = [1]
    with pytest.raises(UserError, match="cannot download .*/classnames.txt"):
        load(server.base)
    assert not (tmp_path / "data" / NAME / "classnames.txt").exists()


def test_what_cannot_be_downloaded_is_told(server, tmp_path):
    with pytest.raises(UserError, match=f"{server.base}/wds_nowhere/.*classnames.txt to .*404"):
        load(server.base, "wds/nowhere")
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot download .*refused.*; the same command goes on"
                       ) as caught:
        load("http://127.0.0.1:9/datasets/clip-benchmark")
    assert "\n" not in str(caught.value) and time.monotonic() - start < 10
    assert not list((tmp_path / "data").rglob("*.txt"))


def test_the_users_token_goes_to_no_mirror(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load(server.base)
    assert server.tokens == [None] * 6


@pytest.mark.slow
def test_the_librarys_own_settings_hold(server, tmp_path):
    """HF_ENDPOINT and HF_HUB_OFFLINE, which the library reads when it is imported."""
    def run(**settings: str) -> subprocess.CompletedProcess[str]:
        program = ("from tta_apm.data.shards import shards\n"
                   f"print(len(shards(data_dir={HUB!r}, frost_dir=None, name={NAME!r}).labels))")
        return subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True,
                              capture_output=True, env=os.environ | settings)
    refused = run(HF_ENDPOINT=server.endpoint, HF_HUB_OFFLINE="1")
    assert refused.stderr.splitlines()[-1].startswith(
        f"tta_apm.errors.UserError: cannot download {server.base}/")
    assert "HF_HUB_OFFLINE" in refused.stderr.splitlines()[-1] and not server.asked
    assert run(HF_ENDPOINT=server.endpoint).stdout == "10\n"
    assert run(HF_HUB_OFFLINE="1").stdout == "10\n"
