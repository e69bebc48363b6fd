"""What tests with the real hosts share: their archives, a small CIFAR-10-C, a traced run."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from places import ROOT, SHARED
from tta_apm import cli
from tta_apm.data.cifar import CIFAR10
from tta_apm.data.cifar_jpeg import cifar10_jpeg
from tta_apm.interop.hosts import hosted

CORRUPTIONS = ("gaussian_noise", "contrast")
ONLINE_TTA = SHARED / "hosts" / "online-tta-8b2ed63.tar.gz"
TTAB = SHARED / "hosts" / "ttab-19cb3ce.tar.gz"
NETWORK = ["CLASSIFIER.MODEL", f"{ROOT / 'examples/my_network.py'}:resnet20",
           "CLASSIFIER.WEIGHTS", str(SHARED / "data/cifar10_resnets/resnet20-12fca82f.th"),
           "CLASSIFIER.MEAN", "[0.485,0.456,0.406]", "CLASSIFIER.STD", "[0.229,0.224,0.225]"]


def unpack(archive: Path, folder: Path) -> Path:
    """The clone that an archive holds as its one folder; the test skips where it is absent."""
    if not archive.is_file():
        pytest.skip("the archives of the hosts are not here")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        return folder / tar.getnames()[0].split("/")[0]


def make_data(folder: Path) -> Path:
    """DATA_DIR with CIFAR-10 in both versions and CIFAR-10-C, of real images that went through
    JPEG; under each name that a host looks for."""
    clean = cifar10_jpeg(data_dir=str(SHARED / "data"), frost_dir=None)
    binary = folder / CIFAR10.folder
    binary.mkdir()
    pixels = clean.pixels.transpose(0, 3, 1, 2).reshape(len(clean.labels), -1)
    rows = np.column_stack([clean.labels.astype(np.uint8), pixels])
    (binary / CIFAR10.test).write_bytes(rows.tobytes())
    python = folder / "cifar10" / "cifar-10-batches-py"
    python.mkdir(parents=True)
    content = {"data": pixels, "labels": clean.labels.tolist()}
    (python / "test_batch").write_bytes(pickle.dumps(content))
    names = {"label_names": list(CIFAR10.class_names)}
    (python / "batches.meta").write_bytes(pickle.dumps(names))
    assert cli.main(["data", "make", "cifar10_c", "--data-dir", str(folder),
                     "--corruptions", ",".join(CORRUPTIONS)]) == 0
    (folder / "cifar10_c").symlink_to("CIFAR-10-C")
    return folder


CLIP = ["CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", "digits_clip.safetensors",
        "CLIP.TEMPLATES", "digits"]
MAE = ["MAE.MODEL", "digits_mae", "MAE.WEIGHTS", "digits_mae.safetensors"]
ROTATION = ["ROTATION.MODEL", "digits_rotation", "ROTATION.WEIGHTS", "digits_rotation.safetensors"]
# Methods of ours with small settings: what they need is told by the registry.
METHODS_OF_OURS: dict[str, dict] = {
    "source": {}, "norm": {}, "tent": {"lr": 0.01}, "sar": {"lr": 0.01},
    "rmt": {"lambda_contrast": 0.0, "lambda_source": 0.0, "num_warm_up": 0},
    "memo": {"num_views": 4}, "clip_zero_shot": {}, "tpt": {"num_views": 16},
    "apm": {"image_size": 32, "patch": 8, "hidden": [16], "code": 16, "steps": 3, "lr": 0.01},
    "ttt": {"steps": 2, "num_views": 4}, "ttt_mae": {"steps": 2, "masks": 4}}


class Trace:
    """The batches that a host handed to a method, and its predictions."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.predictions: list[int] = []

    def of(self, monkeypatch: pytest.MonkeyPatch) -> Trace:
        """Follow methods of ours, as hosts call them."""
        forward = hosted.Hosted.forward

        def traced(method: hosted.Hosted, images: torch.Tensor) -> torch.Tensor:
            logits = forward(method, images)
            self.batches.append(images.detach().clone())
            self.predictions += logits.argmax(1).tolist()
            return logits
        monkeypatch.setattr(hosted.Hosted, "forward", traced)
        return self


def pairs_of(name: str, keywords: dict) -> list[str]:
    """Settings of a method as KEY VALUE pairs."""
    return [word for key, value in keywords.items()
            for word in (f"{name.upper()}.{key.upper()}", str(value).replace(" ", ""))]
