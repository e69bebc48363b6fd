"""online-tta's methods (CoTTA, EATA, SAR, ROID, ...), each as a Method in our sweeps.

In a config:

    PLUGINS: [tta_apm.interop.hosts.online_tta_methods]
    ONLINE_TTA: {REPO: ../test-time-adaptation}
    METHODS: [source, online_tta NAME cotta, online_tta NAME roid CFG cfgs/cifar10_c/roid.yaml]
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tta_apm.backbones.classifiers import Classifier
from tta_apm.bench.randomness import Randomness
from tta_apm.compat import alias_pyautoattack
from tta_apm.errors import UserError, choose
from tta_apm.interop.hosts import launch
from tta_apm.interop.hosts.online_tta import INSIDE, MARKER, MODULES, PACKAGES
from tta_apm.method import Method, register

# The modules of each clone that was used, which are not in sys.modules.
_loaded: dict[Path, dict[str, ModuleType]] = {}


@register("online_tta")
class OnlineTta(Method):
    """A method of mariodoebler/test-time-adaptation, from the user's own clone.

    It sees our backbone as the host's base model and keeps the host's rules, such as its number of
    steps. `reset` puts back everything, also what the host's own reset leaves (moving averages, the
    window of single images), and its random numbers come from a stream of its own.

    Methods that take lists of views (memo, ttaug, adacontrast) or need a network of the host's own
    make (rmt, gtta, lame) do not work on our backbones: their cells fail with the host's error.

    Args:
        backbone: the source model; a copy of it is adapted.
        repo: folder of the clone.
        name: of the method, as MODEL.ADAPTATION there.
        cfg: one of its config files, relative to its folder classification/, such as
            cfgs/cifar10_c/cotta.yaml; "" for the host's defaults.
        options: KEY, VALUE, KEY, VALUE, ... of its config.
        seed: of its random numbers.

    Raises:
        UserError: without a clone, for an unknown method, or for a config that the host refuses.
    """

    needs = "classifier"
    scope = "stream"
    survives = "whatever the host's method keeps"

    def __init__(self, backbone: Classifier, *, repo: str = "", name: str = "cotta",
                 cfg: str = "", options: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__()
        if not repo:
            raise UserError("online_tta: REPO is the folder of your clone of "
                            "https://github.com/mariodoebler/test-time-adaptation")
        self.folder = launch.find_folder(repo, MARKER, INSIDE)
        launch.require(PACKAGES)
        self.backbone = backbone
        self.name = name
        self.seed = seed
        self.num_classes = _num_classes(backbone)
        with _host(self.folder):
            self.config = _config(cfg, options, seed)
        self.reset()

    def reset(self) -> None:
        """Build the method anew: the host's own reset leaves things, and not all can be copied."""
        self.randomness = Randomness(self.seed)
        with _host(self.folder), self.randomness:
            registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
            choose("online_tta", "method", self.name, registry.registered_names())
            model = copy.deepcopy(self.backbone).requires_grad_(True)
            self.adapted = registry.get(self.name)(cfg=self.config, model=model,
                                                   num_classes=self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        with _host(self.folder), self.randomness:
            logits: Tensor = self.adapted(images)
        return logits.detach()


@contextmanager
def _host(folder: Path) -> Iterator[None]:
    """Be in the clone, with its modules known by their names."""
    with launch.inside(folder), launch.own_modules(MODULES, _loaded.setdefault(folder, {})):
        if not _loaded[folder]:
            alias_pyautoattack()  # to the host's copy of robustbench
            importlib.import_module("methods")
        yield


def _config(cfg: str, options: Sequence[str], seed: int) -> Any:
    """A config of the host's, apart from its global one."""
    conf = importlib.import_module("conf")
    config = conf._CFG_DEFAULT.clone()
    config.defrost()
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


def _num_classes(backbone: Classifier) -> int:
    side = backbone.image_size or 32
    with torch.no_grad():
        return backbone(backbone.mean.new_zeros(1, 3, side, side)).shape[1]
