"""online-tta's methods (CoTTA, EATA, SAR, ROID, ...), each as a Method in our sweeps.

In a config:

    PLUGINS: [tta_apm.interop.hosts.online_tta_methods]
    ONLINE_TTA: {REPO: ../test-time-adaptation}
    METHODS: [source, online_tta NAME cotta, online_tta NAME roid CFG cfgs/cifar10_c/roid.yaml]
"""

from __future__ import annotations

import importlib
import math
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from tta_apm.backbones.classifiers import Classifier
from tta_apm.backbones.image_tower import is_tower
from tta_apm.bench.randomness import Randomness
from tta_apm.compat import alias_pyautoattack
from tta_apm.errors import UserError, choose, name_and_text, raised_at
from tta_apm.interop.hosts import launch
from tta_apm.interop.hosts.network import Network
from tta_apm.interop.hosts.online_tta import (
    INSIDE, MARKER, MODULES, PACKAGES, SIDES, TESTED, patch_split)
from tta_apm.method import Method, Source, register

# Methods that take a list of views of each image, and those of them that take one image at a time.
ALONE = ("memo", "ttaug", "vte")
VIEWS = (*ALONE, "adacontrast")
# Methods that take a CLIP, here the image tower of ours.
OF_CLIP = ("vte",)
# Methods that need a class of the host's own, built round its own CLIP.
OF_THE_HOST = ("tpt",)
# The host's data set by its number of classes and the side of its images.
DATASETS = {(10, 32): "cifar10_c", (100, 32): "cifar100_c", (1000, 224): "imagenet_c"}

# The modules of each clone that was used, which are not in sys.modules.
_loaded: dict[Path, dict[str, ModuleType]] = {}


@register("online_tta")
class OnlineTta(Method):
    """A method of mariodoebler/test-time-adaptation, from the user's own clone.

    It sees our backbone as the host's base model and keeps the host's rules, such as its number of
    steps. `reset` puts back everything, also what the host's own reset leaves (moving averages, the
    window of single images), and its random numbers come from a stream of its own.

    What the host would take from its own data set comes from the sweep, when the first batch is
    there: the number of classes, the size of the images, the size of a batch, the device, the seed
    and the source images. Its data set is the one of these that the classes and the size fit:
    cifar10_c, cifar100_c or imagenet_c, else its generic imagenet, whose methods take any size. A
    config that says otherwise is refused. Methods that take lists of views get the host's own
    views; memo, ttaug and vte then see one image at a time, as their configs there have it. vte
    works on a CLIP: its row says BACKBONE clip.

    Args:
        backbone: the source model; a copy of it is adapted.
        repo: folder of the clone.
        name: of the method, as MODEL.ADAPTATION there.
        cfg: one of its config files, relative to its folder classification/, such as
            cfgs/cifar10_c/cotta.yaml; "" for the host's defaults.
        options: KEY, VALUE, KEY, VALUE, ... of its config.
        seed: of its random numbers.
        source: for methods that read source images.

    Raises:
        UserError: without a clone, for an unknown method, or for a config that the host refuses or
            that contradicts the sweep.
    """

    needs = "classifier"
    scope = "stream"
    survives = "whatever the host's method keeps"

    def __init__(self, backbone: Classifier, *, repo: str = "", name: str = "cotta",
                 cfg: str = "", options: Sequence[str] = (), seed: int = 0,
                 source: Source | None = None) -> None:
        super().__init__()
        if not repo:
            raise UserError("online_tta: REPO is the folder of your clone of "
                            "https://github.com/mariodoebler/test-time-adaptation")
        self.folder = launch.find_folder(repo, MARKER, INSIDE)
        launch.require(PACKAGES)
        self.backbone = backbone
        self.name = name = name.lower()
        self.seed = seed
        self.source = source
        if name in OF_THE_HOST:
            raise UserError(f"online_tta: {name} learns the prompts of a class of the host's, round"
                            " the host's own CLIP: run it in the host, or take ours of that name")
        if name in OF_CLIP and not is_tower(backbone):
            raise UserError(f"online_tta: {name} works on a CLIP: name BACKBONE clip in its row")
        with _host(self.folder):
            self.config = _config(cfg, options, seed)
            choose("online_tta", "method", name, names_in(self.folder))
        self.reset()

    def reset(self) -> None:
        """Build the method anew: the host's own reset leaves things, and not all can be copied."""
        self.randomness = Randomness(self.seed)
        self.adapted: nn.Module | None = None  # built when the size of the images is known

    def forward(self, images: Tensor) -> Tensor:
        with _host(self.folder), _on_device(images.device), self.randomness:
            if self.adapted is None:
                self._build(images)
            assert self.adapted is not None
            if self.name in ALONE:
                return torch.cat([self.adapted(self._views(image)).detach()
                                  for image in images.split(1)])
            return self.adapted(self._views(images) if self.name in VIEWS else images).detach()

    def _build(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height != width:
            raise UserError(f"online_tta: the host's methods take square images, not {height}x"
                            f"{width}")
        with torch.no_grad():
            num_classes = self.backbone(images[:1]).shape[1]
        self.dataset = _dataset(self.config.CORRUPTION.DATASET, num_classes, width)
        self.preprocess = transforms.Compose([
            transforms.Resize((width, width)), transforms.CenterCrop((width, width)),
            transforms.ToTensor()])
        network = Network(self.backbone)
        network.model_preprocess = self.preprocess
        registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
        # Prototypes and warmed-up weights would be taken from an earlier run with another network.
        with tempfile.TemporaryDirectory() as folder:
            config = self.config.clone()
            config.defrost()
            config.merge_from_list([
                "CORRUPTION.DATASET", self.dataset, "CKPT_DIR", folder, "MODEL.ARCH",
                self.backbone.name.replace("/", "_").rpartition(":")[2],
                "TEST.BATCH_SIZE", 1 if self.name in ALONE else len(images)])
            config.freeze()
            if config.MIXED_PRECISION and images.device.type != "cuda":
                raise UserError("online_tta: MIXED_PRECISION True is for CUDA only")
            _replace_source_loader(self.source, self.name)
            try:
                self.adapted = registry.get(self.name)(cfg=config, model=network,
                                                       num_classes=num_classes)
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"online_tta: the host's {self.name} cannot be built: "
                                f"{name_and_text(error)}{raised_at(error)}") from error
        self.resolved = {"dataset": self.dataset, "image_size": width}

    def _views(self, images: Tensor) -> list[Tensor]:
        """The host's views of images [B,3,H,W], the images themselves first; each [B,3,H,W]."""
        transform = importlib.import_module("datasets.data_loading").get_transform(
            self.dataset, self.name, self.preprocess, self.name in OF_CLIP,
            self.config.TEST.N_AUGMENTATIONS)
        by_image = [transform(to_pil_image(image.cpu())) for image in images]
        return [torch.stack(views).to(images.device) for views in zip(*by_image)]


def names_in(folder: Path) -> list[str]:
    """The methods that a clone's folder classification/ has; it also knows them by their classes.
    """
    with _host(folder):
        registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
        return sorted({name.lower() for name in registry.registered_names()})


@contextmanager
def _host(folder: Path) -> Iterator[None]:
    """Be in the clone, with its modules known by their names."""
    with launch.inside(folder), launch.own_modules(MODULES, _loaded.setdefault(folder, {})):
        if not _loaded[folder]:
            launch.tell_commit(folder, TESTED)
            alias_pyautoattack()  # to the host's copy of robustbench
            importlib.import_module("methods")
            patch_split()
        yield


def _config(cfg: str, options: Sequence[str], seed: int) -> Any:
    """A config of the host's, apart from its global one."""
    conf = importlib.import_module("conf")
    config = conf._CFG_DEFAULT.clone()
    config.defrost()
    config.CORRUPTION.DATASET = ""  # its default is no choice of the user's
    if cfg and not os.path.isfile(cfg):
        raise UserError(f"online_tta: there is no {cfg} in {Path.cwd()}")
    try:
        if cfg:
            config.merge_from_file(cfg)
        config.merge_from_list([str(word) for word in options])
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(f"online_tta: the host refuses this config: {error}") from error
    config.RNG_SEED = seed
    config.freeze()
    return config


def _dataset(asked: str, num_classes: int, side: int) -> str:
    """The host's data set that a sweep is like; UserError for one that it is not like."""
    conf = importlib.import_module("conf")
    if not asked:
        return DATASETS.get((num_classes, side), "imagenet")
    known = conf.get_num_classes(asked)
    own = SIDES.get(asked.removesuffix("_c"))
    if known != num_classes or own not in (None, side):
        size = f" of {own}x{own} pixels" if own else ""
        raise UserError(f"online_tta: CORRUPTION.DATASET {asked} has {known} classes{size}, and "
                        f"this sweep has {num_classes} of {side}x{side}: name a config of the host "
                        "that fits, or none")
    return asked


class _SourceImages(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Source images [3,H,W] in [0,1] with their labels, as the host's loaders take them."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.source.batch(torch.tensor([self.indices[index]]))
        return images[0].cpu(), labels[0].cpu()


def _replace_source_loader(source: Source | None, name: str) -> None:
    """Let the host's methods load source images of the sweep."""
    def get_source_loader(*, batch_size: int, num_samples: int = -1, percentage: float = 1.0,
                          **of_the_host: Any) -> Any:
        if source is None:
            raise UserError(f"online_tta: {name} reads source images, which this data set has not "
                            "here")
        indices = list(range(len(source)))
        count = num_samples if num_samples > 0 else math.ceil(len(indices) * percentage)
        if count < len(indices):
            indices = random.sample(indices, count)
        images = _SourceImages(source, indices)
        return images, torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True)

    for module in list(sys.modules.values()):
        if hasattr(module, "get_source_loader"):
            module.get_source_loader = get_source_loader  # type: ignore[attr-defined]


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Let the host, which takes "cuda" where there is one, take the device of the images."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
        return
    before = torch.cuda.is_available, torch.Tensor.cuda
    torch.cuda.is_available = lambda: False
    # Some of its methods call it whatever the device.
    torch.Tensor.cuda = lambda tensor, *_: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.cuda.is_available, torch.Tensor.cuda = before  # type: ignore[method-assign]
