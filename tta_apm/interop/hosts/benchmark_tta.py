"""benchmark-tta: yuyongcan/Benchmark-TTA.

In a script of yours that runs in its folder:

    from tta_apm.interop.hosts import benchmark_tta
    benchmark_tta.install(["MODEL.ADAPTATION", "apm"])
    import runpy; runpy.run_path("test-time.py", run_name="__main__")
"""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import transforms

from tta_apm.backbones.backbone import Backbone
from tta_apm.compat import alias_pyautoattack
from tta_apm.errors import UserError, choose, name_and_text
from tta_apm.interop.hosts import launch, settings
from tta_apm.interop.hosts.backbones import NO_MEAN, NO_STD, host_classifier, own_backbone
from tta_apm.interop.hosts.hosted import Hosted, make_method
from tta_apm.registry import METHODS

MARKER = "test-time.py"
TESTED = "d1c14ff"
MODULES = ("robustbench", "src")
PACKAGES = {"iopath": "iopath", "requests": "requests"}
# The folders of its data sets in DATA_DIR.
FOLDERS = {"cifar10_c": "CIFAR-10-C", "cifar100_c": "CIFAR-100-C"}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
# The host chooses a method by a chain of ifs; this package's methods use this branch of it.
BRANCH = "source"
THEIRS = (BRANCH, "t3a", "norm_test", "norm_alpha", "memo", "tent", "cotta", "lame", "adacontrast",
          "eata", "sar")


def run(repo: Path, words: Sequence[str]) -> None:
    """Run the host's test-time.py with this package's methods.

    Args:
        repo: folder of the host's clone.
        words: its command line; KEY VALUE pairs, which its own parser does not support, set keys of
            the host's config too.
    """
    folder = launch.find_folder(repo, MARKER)
    launch.require(PACKAGES)
    launch.tell_commit(folder, TESTED)
    with launch.inside(folder, [MARKER]), launch.telling_flags(), launch.own_modules(MODULES, {}):
        file = settings.value_of("--cfg", words)
        settings.import_plugins(words, file)
        plug = Plug()
        if file:
            settings.check_file(plug.cfg, file)
        plug.pairs, rest = settings.take_pairs(words, plug.cfg)
        sys.argv += rest
        plug.install()
        runpy.run_path(MARKER, run_name="__main__")


def install(pairs: Sequence[str] = ()) -> None:
    """Register this package's methods with test-time.py; to be called before it runs.

    The host's folder must be the working folder and on sys.path.

    Args:
        pairs: KEY VALUE pairs to set in the host's config after it has read its file.
    """
    plug = Plug()
    plug.pairs = list(pairs)
    plug.install()


def check_data(cfg: Any) -> None:
    """Raise UserError for data that is not found, which the host would download or fail on."""
    launch.require_paths([Path(cfg.DATA_DIR)], "DATA_DIR is the folder of the data sets, relative "
                         "to that of the host, whose default exists on its author's machine only")
    dataset = cfg.CORRUPTION.DATASET
    if dataset in FOLDERS:
        folder = Path(cfg.DATA_DIR, FOLDERS[dataset])
        launch.require_paths([folder / f"{name}.npy" for name in ("labels", *cfg.CORRUPTION.TYPE)],
                             "CORRUPTION.TYPE names it, and `tta-apm data make "
                             f"{dataset}` makes it from the clean images")


class Plug:
    """Replacements of the functions that test-time.py calls, which know this package's methods."""

    def __init__(self) -> None:
        alias_pyautoattack()  # to the host's copy of robustbench
        # Two of the host's files import a package of this name and do not use it.
        sys.modules.setdefault("device", ModuleType("device"))
        conf = importlib.import_module("src.utils.conf")
        self.cfg = conf.cfg
        self.names = settings.our_names({*THEIRS, *self.cfg})
        settings.extend(self.cfg, self.names)
        self.pairs: list[str] = []
        self.name = ""  # the chosen method of this package, by its name in the host

    def install(self) -> None:
        """Replace the functions in the modules from which test-time.py imports them."""
        conf: Any = importlib.import_module("src.utils.conf")
        methods: Any = importlib.import_module("src.methods")
        models: Any = importlib.import_module("src.models.load_model")
        self._load_config = conf.load_cfg_fom_args
        self._load_model = models.load_model
        self._load_dataset = methods.load_dataset
        self._setup_source = methods.setup_source
        self._get_transform = importlib.import_module("src.data.data").get_transform
        conf.load_cfg_fom_args = self.load_config
        models.load_model = self.load_model
        methods.load_dataset = self.load_dataset
        methods.setup_source = self.setup_source

    def load_config(self, *args: Any, **keywords: Any) -> None:
        """Read the config file, then set our pairs; a method of ours is replaced by BRANCH."""
        settings.merge(self.cfg, self.pairs)  # now too, since the folder of the log is used below
        self._load_config(*args, **keywords)
        settings.merge(self.cfg, self.pairs)
        choose("benchmark-tta", "MODEL.ADAPTATION", self.cfg.MODEL.ADAPTATION,
               {*self.names, *THEIRS})
        check_data(self.cfg)
        if self.cfg.MODEL.ADAPTATION in self.names:
            self.name, self.cfg.MODEL.ADAPTATION = self.cfg.MODEL.ADAPTATION, BRANCH

    def load_model(self, *args: Any, **keywords: Any) -> nn.Module:
        """The host's model or this package's; without a GPU, its .cuda() has no effect."""
        model = self._own_network() or self._load_hosts(*args, **keywords)
        if not torch.cuda.is_available():
            model.cuda = lambda device=None: model  # type: ignore
        return model

    def _load_hosts(self, *args: Any, **keywords: Any) -> nn.Module:
        try:
            model: nn.Module = self._load_model(*args, **keywords)
        except Exception as error:  # e.g. of a download or a file
            raise UserError(f"the host's own network {self.cfg.MODEL.ARCH} cannot be loaded "
                            f"({name_and_text(error)}); name your own network by CLASSIFIER.MODEL "
                            "and CLASSIFIER.WEIGHTS") from error
        return model

    def _own_network(self) -> nn.Module | None:
        """A backbone of this package, if the config names one or the host lacks its kind."""
        kind = METHODS.signature(self.names[self.name]).needs if self.name else "classifier"
        section = self.cfg[kind.upper()]
        if kind == "classifier" and not section.MODEL:
            return None
        dataset = self.cfg.CORRUPTION.DATASET.removesuffix("_c")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone = own_backbone(kind, section, dataset=dataset,
                                num_classes=NUM_CLASSES.get(dataset, 1000), device=device)
        if self.name:
            return backbone
        if self._normalise() is not None:
            raise UserError("the host normalises the images of this data set for its own methods, "
                            "and a network of tta-apm normalises them itself: use CLASSIFIER.MODEL "
                            "with a method of tta-apm")
        return backbone.requires_grad_(True)

    def setup_source(self, model: nn.Module, *args: Any) -> Any:
        """The chosen method of this package, or the host's BRANCH."""
        if not self.name:
            return self._setup_source(model, *args)
        ours, cfg = self.names[self.name], self.cfg
        method = make_method(ours, settings.hyper_parameters(cfg[self.name.upper()]),
                             self._backbone(model.eval()), cfg.RNG_SEED or 0)
        # The host's OPTIM.STEPS is not used: the method's number of steps is in its own section.
        return Hosted(method, window=cfg.TEST.WINDOW_LENGTH, episodic=cfg.MODEL.EPISODIC), None

    def load_dataset(self, dataset: str, *args: Any, **keywords: Any) -> Any:
        """The host's data set, without normalisation for this package's methods."""
        if self.name:
            steps = self._get_transform(dataset, BRANCH).transforms
            keywords["transforms"] = transforms.Compose(
                [step for step in steps if not isinstance(step, transforms.Normalize)])
        return self._load_dataset(dataset, *args, **keywords)

    def _backbone(self, model: nn.Module) -> Backbone:
        if isinstance(model, Backbone):
            return model
        normalise = self._normalise()
        if normalise is None:
            return host_classifier(model, self.cfg.MODEL.ARCH, NO_MEAN, NO_STD)
        return host_classifier(model, self.cfg.MODEL.ARCH, normalise.mean, normalise.std)

    def _normalise(self) -> transforms.Normalize | None:
        """The normalisation of the host's data set; None without one."""
        steps = self._get_transform(self.cfg.CORRUPTION.DATASET, BRANCH).transforms
        return next((step for step in steps if isinstance(step, transforms.Normalize)), None)
