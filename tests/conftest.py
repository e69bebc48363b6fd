"""Fixtures for several tests: backbones, images, files, and a machine without a network."""

from __future__ import annotations

import copy
import io
import os
import signal
import subprocess
import sys
import tarfile
import urllib.error
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage
from torch import nn

from small_methods import SMALL
from tta_apm.backbones.build import build
from tta_apm.backbones.clip_templates import templates
from tta_apm.bench.evaluate import CleanImages, to_device
from tta_apm.bench.predictions import Predictions
from tta_apm.bench.records import Record, hash_bytes, save_cell
from tta_apm.data.digits import CLASS_NAMES, digits, train_split
from tta_apm.registry import METHODS

CPU = torch.device("cpu")

# Background processes ignore SIGINT; tests interrupt processes with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests' networks are too small for several threads; also in processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """The cache of text features is in a temporary folder, also for processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def forget_plugin_files():
    """Registrations by plugin files are removed after each test."""
    yield
    for name, cls in list(METHODS._registered.items()):
        if cls.__module__.startswith("tta_apm_plugin_"):
            del METHODS._registered[name]
            sys.modules.pop(cls.__module__, None)


# Backbones

@pytest.fixture(scope="session")
def make_clip():
    """A factory of the digits CLIP with given templates and classes."""
    def make(*prompt_templates, class_names=CLASS_NAMES):
        return build("clip", "digits_clip", "digits_clip.safetensors", class_names=class_names,
                     templates=prompt_templates, device=CPU)
    return make


@pytest.fixture(scope="session")
def digits_clip(make_clip):
    return make_clip(*templates("digits"))


@pytest.fixture(scope="session")
def digits_resnet():
    return build("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture
def bare(digits_resnet):
    """A classifier without normalisation layers."""
    backbone = copy.deepcopy(digits_resnet)
    backbone.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    return backbone


@pytest.fixture
def exact_resnet(digits_resnet):
    """A copy of digits_resnet in float64, to compare methods with plain implementations."""
    return copy.deepcopy(digits_resnet).double()


@pytest.fixture(scope="session")
def digits_mae():
    return build("mae", "digits_mae", "digits_mae.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture(scope="session")
def digits_rotation():
    return build("rotation", "digits_rotation", "digits_rotation.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture(scope="session")
def digits_mttt():
    return build("mttt_vit", "digits_mttt", "digits_mttt.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture(scope="session")
def digits_mae_joint():
    return build("mae_joint", "digits_mae", "digits_mae_joint.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture(scope="session")
def digits_mae_fine_tuned():
    return build("mae_fine_tuned", "digits_mae", "digits_mae_fine_tuned.safetensors",
                 class_names=CLASS_NAMES, templates=(), device=CPU)


@pytest.fixture(scope="session")
def backbones(digits_clip, digits_resnet, digits_mae, digits_mae_joint, digits_mae_fine_tuned,
              digits_rotation, digits_mttt):
    """A backbone of each kind."""
    return {"clip": digits_clip, "classifier": digits_resnet, "mae": digits_mae,
            "mae_joint": digits_mae_joint, "mae_fine_tuned": digits_mae_fine_tuned,
            "rotation": digits_rotation, "mttt_vit": digits_mttt}


# Methods


@pytest.fixture
def make_method(backbones, digits_source):
    """A factory of small methods by name; "NAME BACKBONE KIND" uses another backbone."""
    def make(row, **changes):
        name, _, kind = row.partition(" BACKBONE ")
        cls = METHODS.load(name)
        keywords = {**SMALL.get(name, {}), **changes}
        if "source" in METHODS.signature(name).defaults:
            keywords["source"] = digits_source
        return cls(backbones[kind or cls.needs], **keywords)
    return make


# Images

@pytest.fixture(scope="session")
def digits_test():
    """The first 100 clean test images [100,3,32,32] in [0,1] and their labels [100]."""
    data = digits(data_dir="", frost_dir=None)
    indices = np.arange(100)
    return to_device(data.pixels[indices], CPU), torch.from_numpy(data.labels[indices])


@pytest.fixture(scope="session")
def digits_source():
    """The 1,200 labelled training images of the digits' backbones."""
    return CleanImages(train_split(), CPU)


@pytest.fixture
def images(digits_test):
    """The images of digits_test under noise, for methods to adapt to; some tests use fewer."""
    noise = torch.randn(digits_test[0].shape, generator=torch.Generator().manual_seed(0))
    return (digits_test[0] + 0.2 * noise).clamp(0, 1)


@lru_cache(maxsize=None)
def blobs(num: int, height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((3, num, height, width, 3))
    layers = sum(size * ndimage.gaussian_filter(layer, (0, size, size, 0.5))
                 for size, layer in zip((1, 3, 8), noise))
    return np.clip(120 + 55 * layers / layers.std(), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def pictures():
    """A factory of images with coarse and fine coloured blobs, uint8 [num,height,width,3]."""
    def make(num, height, width):
        return blobs(num, height, width).copy()
    return make


@pytest.fixture(scope="session")
def zoom_reference():
    """A function that zooms into the centre of an image [H,W,C] with scipy and crops it."""
    def zoom(image, factor):
        height, width = image.shape[:2]
        high, wide = int(np.ceil(height / factor)), int(np.ceil(width / factor))
        top, left = (height - high) // 2, (width - wide) // 2
        middle = image[top:top + high, left:left + wide]
        large = ndimage.zoom(middle, (factor, factor, 1), order=1)
        down, right = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        return large[down:down + height, right:right + width]
    return zoom


# Files

@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder],
                          capture_output=True)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def write_cell(tmp_path):
    """Write a cell, the first `right` of its images classified rightly; returns its path.

    `teacher` of them, the first ones too, the teacher has right. `fields` are of the record.
    """
    def write(row, corruption, right, *, severity=5, seed=0, teacher=None, num_images=10, **fields):
        index = np.random.default_rng(seed).permutation(num_images)  # the stream's order
        label = index % 10
        predictions = Predictions(
            index, label, label + (index >= right), np.full(num_images, 0.5, np.float32),
            None if teacher is None else label + (index >= teacher),
            None if teacher is None else np.full(num_images, 0.9, np.float32))
        content = predictions.to_bytes()
        record = dict(
            row=row, method=row.split()[0], hyper_parameters={"lr": 0.1}, scope="image",
            survives="nothing", backbone="net", weights="net.pt", templates="", resolution=32,
            dataset="digits_c", corruption=corruption, severity=severity, images_from="files",
            num_images=num_images, images_hash=f"{corruption}{severity}{num_images}",
            setting="reset_each_domain", order="shuffled", batch_size=64, seed=seed,
            num_correct=right, seconds=0.2 * num_images, peak_memory_mb=100.0,
            gflops_per_image=3.0, device="cpu", fingerprint=f"{corruption}{severity}{seed}",
            code="c0de", commit="abc", predictions_hash=hash_bytes(content),
            identity={"code": "c0de"}) | fields
        path = tmp_path / "cells" / f"{corruption}-{hash_bytes(repr(record).encode())}"
        save_cell(path, Record(**record), content)
        return path
    return write


@pytest.fixture
def write_config(tmp_path):
    """Write the config.yaml that a run leaves beside its cells, with the given keys in it."""
    def write(**keys):
        content = dict(METHODS=["tent"], DATASET="digits_c", CORRUPTIONS=["fog"], SEVERITY=[5],
                       SETTING="reset_each_domain", ORDER="shuffled", SEEDS=[0]) | keys
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return write


@pytest.fixture(scope="session")
def tar_of():
    """A factory of the bytes of a tar archive of `members`, all of one type."""
    def make(members, kind=tarfile.REGTYPE, mode="w"):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as archive:
            for name, body in members.items():
                member = tarfile.TarInfo(name)
                member.size, member.type = len(body), kind
                archive.addfile(member, io.BytesIO(body))
        return content.getvalue()
    return make


class Harmful:
    """An object that creates the file `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def harmful(tmp_path):
    """An object for a checkpoint; running its code creates the file `harmful.path`."""
    return Harmful(tmp_path / "harm")


@pytest.fixture
def offline(monkeypatch):
    """A machine without a network and with empty caches."""
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")
