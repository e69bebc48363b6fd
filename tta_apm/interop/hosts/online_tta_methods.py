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
from tta_apm.method import Method, SourceImages, register

# Methods that take one image at a time, and all methods that take a list of views.
ALONE = ("memo", "ttaug", "vte")
VIEWS = (*ALONE, "adacontrast")
# Methods that need a CLIP; they get the image tower of the row's CLIP.
OF_CLIP = ("vte",)
# Methods that work with the host's own CLIP only.
OF_THE_HOST = ("tpt",)
# The host's data sets by number of classes and side of the images in pixels.
DATASETS = {(10, 32): "cifar10_c", (100, 32): "cifar100_c", (1000, 224): "imagenet_c"}

# The imported modules of each clone; they are in sys.modules only while they run.
_loaded: dict[Path, dict[str, ModuleType]] = {}


@register("online_tta")
class OnlineTta(Method):
    """A method of mariodoebler/test-time-adaptation, from the user's own clone.

    It adapts the row's backbone as the host's base model and follows the host's rules, e.g. its
    number of steps. `reset` resets everything, also what the host's own reset leaves (moving
    averages, the window of single images). Its random numbers are its own.

    The number of classes, the size of images and batches, the device, the seed and the source
    images come from the sweep, at the first batch. The host's data set is the one with these
    classes and image size: cifar10_c, cifar100_c or imagenet_c, else its generic imagenet, whose
    methods take any size. A config that contradicts the sweep is refused. Methods that take lists
    of views get the host's own views; memo, ttaug and vte then get one image at a time, as in
    their configs. vte needs a CLIP: its row says BACKBONE clip.

    Args:
        backbone: the source model; a copy of it is adapted.
        repo: folder of the clone.
        name: the method's name, a value of the host's MODEL.ADAPTATION.
        cfg: a config file of the host, relative to its folder classification/, e.g.
            cfgs/cifar10_c/cotta.yaml; "" for the host's defaults.
        options: KEY, VALUE, KEY, VALUE, ... to set in the host's config.
        seed: of its random numbers.
        source: source images, for methods that use them.

    Raises:
        UserError: without a clone, for an unknown method, or for a config that the host refuses or
            that contradicts the sweep.
    """

    needs = "classifier"
    scope = "stream"
    survives = "whatever the host's method keeps"

    def __init__(self, backbone: Classifier, *, repo: str = "", name: str = "cotta",
                 cfg: str = "", options: Sequence[str] = (), seed: int = 0,
                 source: SourceImages | None = None) -> None:
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
            raise UserError(f"online_tta: {name} learns prompts of the host's own CLIP: run it in "
                            "the host, or use the method of tta-apm with that name")
        if name in OF_CLIP and not is_tower(backbone):
            raise UserError(f"online_tta: {name} works on a CLIP: name BACKBONE clip in its row")
        with _host(self.folder):
            self.config = _config(cfg, options, seed)
            choose("online_tta", "method", name, names_in(self.folder))
        self.reset()

    def reset(self) -> None:
        """Discard the method, which the next batch builds again: the host's own reset is partial,
        and not all methods can be copied."""
        self.randomness = Randomness(self.seed)
        self.adapted: nn.Module | None = None  # built at the first batch, for its image size

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
        # An empty folder: else the host reuses prototypes and warmed-up weights of other networks.
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
        """The host's views of images [B,3,H,W]: [B,3,H,W] each, the images themselves first."""
        transform = importlib.import_module("datasets.data_loading").get_transform(
            self.dataset, self.name, self.preprocess, self.name in OF_CLIP,
            self.config.TEST.N_AUGMENTATIONS)
        by_image = [transform(to_pil_image(image.cpu())) for image in images]
        return [torch.stack(views).to(images.device) for views in zip(*by_image)]


def names_in(folder: Path) -> list[str]:
    """The names of the methods in a clone, given its folder classification/."""
    with _host(folder):
        registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
        return sorted({name.lower() for name in registry.registered_names()})


@contextmanager
def _host(folder: Path) -> Iterator[None]:
    """A context in which the clone's folder is the working folder and its modules are imported."""
    with launch.inside(folder), launch.own_modules(MODULES, _loaded.setdefault(folder, {})):
        if not _loaded[folder]:
            launch.tell_commit(folder, TESTED)
            alias_pyautoattack()  # to the host's copy of robustbench
            importlib.import_module("methods")
            patch_split()
        yield


def _config(cfg: str, options: Sequence[str], seed: int) -> Any:
    """A copy of the host's default config, with a file and options merged into it."""
    conf = importlib.import_module("conf")
    config = conf._CFG_DEFAULT.clone()
    config.defrost()
    config.CORRUPTION.DATASET = ""  # so that a default is not taken for the user's choice
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
    """The host's name of the sweep's data set.

    Args:
        asked: CORRUPTION.DATASET of the config, "" if it is not set.

    Raises:
        UserError: if `asked` has other classes or another image size.
    """
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


class _SourceDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Source images [3,H,W] in [0,1] with their labels, for the host's data loaders."""

    def __init__(self, source: SourceImages, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.source.batch(torch.tensor([self.indices[index]]))
        return images[0].cpu(), labels[0].cpu()


def _replace_source_loader(source: SourceImages | None, name: str) -> None:
    """Replace the host's get_source_loader by one that loads the sweep's source images."""
    def get_source_loader(*, batch_size: int, num_samples: int = -1, percentage: float = 1.0,
                          **of_the_host: Any) -> Any:
        if source is None:
            raise UserError(f"online_tta: {name} needs source images, and this data set has none")
        indices = list(range(len(source)))
        count = num_samples if num_samples > 0 else math.ceil(len(indices) * percentage)
        if count < len(indices):
            indices = random.sample(indices, count)
        images = _SourceDataset(source, indices)
        return images, torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True)

    for module in list(sys.modules.values()):
        if hasattr(module, "get_source_loader"):
            module.get_source_loader = get_source_loader  # type: ignore[attr-defined]


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """A context in which the host, which uses "cuda" if there is a GPU, uses the given device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
        return
    before = torch.cuda.is_available, torch.Tensor.cuda
    torch.cuda.is_available = lambda: False
    # Some of its methods call it on any device.
    torch.Tensor.cuda = lambda tensor, *_: tensor  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.cuda.is_available, torch.Tensor.cuda = before  # type: ignore[method-assign]
