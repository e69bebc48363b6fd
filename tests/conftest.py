"""The backbones and images of digits, built once."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from tta_apm.backbones.build import build
from tta_apm.backbones.prompts import templates
from tta_apm.bench.evaluate import SourceImages, to_device
from tta_apm.data.digits import digits, train_split

CPU = torch.device("cpu")

# The networks of the tests are too small to share among threads; also for processes they start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Text features are kept there, not among the user's; processes that tests start do so too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits_clip():
    return build("clip", "digits_clip", "digits_clip.safetensors",
                 class_names=digits(data_dir="", frost_dir=None).class_names,
                 templates=templates("digits"), device=CPU)


@pytest.fixture(scope="session")
def digits_resnet():
    return build("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                 class_names=digits(data_dir="", frost_dir=None).class_names,
                 templates=templates("digits"), device=CPU)


@pytest.fixture(scope="session")
def digits_mae():
    return build("mae", "digits_mae", "digits_mae.safetensors",
                 class_names=digits(data_dir="", frost_dir=None).class_names, templates=(),
                 device=CPU)


@pytest.fixture(scope="session")
def digits_rotation():
    return build("rotation", "digits_rotation", "digits_rotation.safetensors",
                 class_names=digits(data_dir="", frost_dir=None).class_names, templates=(),
                 device=CPU)


@pytest.fixture(scope="session")
def backbones(digits_clip, digits_resnet, digits_mae, digits_rotation):
    """A backbone of each kind."""
    return {"clip": digits_clip, "classifier": digits_resnet, "mae": digits_mae,
            "rotation": digits_rotation}


@pytest.fixture(scope="session")
def digits_test():
    """The first 100 clean test images [100,3,32,32] in [0,1] and their labels [100]."""
    data = digits(data_dir="", frost_dir=None)
    indices = np.arange(100)
    return to_device(data.pixels[indices], CPU), torch.from_numpy(data.labels[indices])


@pytest.fixture(scope="session")
def digits_source():
    """The 1,200 labelled images that the backbones of digits learnt from."""
    return SourceImages(train_split(), CPU)
