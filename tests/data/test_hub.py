"""The repositories of CLIP_benchmark: their URLs, and downloads from a server of our own."""

from __future__ import annotations

import io
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from tta_apm.atomic import TEMPORARY
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.data.hub import bring, url_of
from tta_apm.errors import UserError
from tta_apm.registry import DATASETS

NAME = "wds/vtab/cifar10"


def load(data_dir: str, name: str = NAME):
    return DATASETS.load(name)(data_dir=data_dir, frost_dir=None)


def all_images(data) -> np.ndarray:
    return data.images(Domain(data.name, CLEAN, 0), np.arange(len(data.labels)))


@pytest.mark.parametrize("base, url", [
    ("https://huggingface.co/datasets/clip-benchmark/",
     "https://huggingface.co/datasets/clip-benchmark/wds_vtab-cifar10/resolve/main"),
    ("https://huggingface.co/datasets/someone/wds_{dataset_cleaned}/tree/v2/",
     "https://huggingface.co/datasets/someone/wds_vtab-cifar10/resolve/v2"),
    ("http://localhost:80/tree/x/sets", "http://localhost:80/tree/x/sets/wds_vtab-cifar10"),
])
def test_urls(base, url):
    assert url_of(NAME, base) == url


class Handler(SimpleHTTPRequestHandler):
    """Serves repositories as the hub does, at REPOSITORY/resolve/main/FILE too."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.replace("/resolve/main", ""))

    def log_message(self, *args: object) -> None:
        self.server.asked.append(self.path)

    def copyfile(self, source, outputfile) -> None:
        outputfile.write(source.read(self.server.most_bytes))


@pytest.fixture
def repository(tar_of, tmp_path):
    """The folder of a set of ten images in three archives."""
    folder = tmp_path / "served/wds_vtab-cifar10"
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
def server(repository):
    handler = partial(Handler, directory=str(repository.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.most_bytes = [], -1
        server.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("base, path", [
    ("{}", "/wds_vtab-cifar10"), ("{}/", "/wds_vtab-cifar10"),
    ("{}/wds_{{dataset_cleaned}}/tree/main", "/wds_vtab-cifar10/resolve/main")])
def test_a_set_is_downloaded_once(base, path, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = load(base.format(server.base))
    assert server.asked == [f"{path}/{file}" for file in (
        "classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt",
        "test/0.tar", "test/1.tar", "test/2.tar")]
    again, local = load(base.format(server.base)), load("data")
    assert len(server.asked) == 6
    for data in (again, local):
        assert (data.labels == here.labels).all() and (all_images(data) == all_images(here)).all()


def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(server, repository, tmp_path,
                                                                    monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.most_bytes = 500
    size = (repository / "test/0.tar").stat().st_size
    with pytest.raises(UserError, match=f"cannot download .*test/0.tar to .*: 500 of {size} bytes"):
        load(server.base)
    assert not list(tmp_path.rglob("data/**/*.tar*"))
    with pytest.raises(UserError, match="there is no .*0.tar"):
        load("data")
    server.most_bytes = -1
    assert len(load(server.base).labels) == 10
    assert not list(tmp_path.rglob(f"*{TEMPORARY}"))


def test_a_part_is_told_from_the_whole_where_no_length_is_said(server, repository, tmp_path,
                                                               monkeypatch):
    monkeypatch.setattr(Handler, "send_header", lambda self, name, value: (
        None if name == "Content-Length" else SimpleHTTPRequestHandler.send_header(
            self, name, value)))
    url = f"{server.base}/{repository.name}/test"
    bring(f"{url}/0.tar", tmp_path / "0.tar")
    assert (tmp_path / "0.tar").read_bytes() == (repository / "test/0.tar").read_bytes()
    for file, most_bytes in (("1.tar", 512), ("1.tar", 1000), ("nshards.txt", 1)):
        server.most_bytes = most_bytes
        with pytest.raises(UserError, match="could be taken for the whole"):
            bring(f"{url}/{file}", tmp_path / file)
    assert {path.name for path in tmp_path.iterdir()} == {"0.tar", "served"}


def test_what_cannot_be_downloaded_is_told(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{server.base}/wds_nowhere/classnames.txt to .*404"):
        load(server.base, "wds/nowhere")
    with pytest.raises(UserError, match="only https:// and http:// can be downloaded from"):
        load("file:///etc")
    assert not (tmp_path / "data").exists()
