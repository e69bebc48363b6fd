"""benchmark-tta: yuyongcan/Benchmark-TTA.

From inside that folder, in a script of the user's own:

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
# Where its data sets lie in DATA_DIR.
FOLDERS = {"cifar10_c": "CIFAR-10-C", "cifar100_c": "CIFAR-100-C"}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
# The host dispatches by a chain of ifs; ours take this branch of it.
BRANCH = "source"
THEIRS = (BRANCH, "t3a", "norm_test", "norm_alpha", "memo", "tent", "cotta", "lame", "adacontrast",
          "eata", "sar")


def run(repo: Path, words: Sequence[str]) -> None:
    """Run the host's test-time.py with `words` as its command line and our methods known to it.

    KEY VALUE pairs among the words set the host's own config too: its command line takes none.
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
    """Let test-time.py know our methods; before it is run.

    The host's folder is the working folder and on sys.path.

    Args:
        pairs: KEY VALUE pairs to set in the host's config once it has read its file.
    """
    plug = Plug()
    plug.pairs = list(pairs)
    plug.install()


def check_data(cfg: Any) -> None:
    """UserError for data that is not there: the host would download it, or fail."""
    launch.require_paths([Path(cfg.DATA_DIR)], "DATA_DIR is the folder of the data sets, relative "
                         "to that of the host, whose own default is one of its author's")
    dataset = cfg.CORRUPTION.DATASET
    if dataset in FOLDERS:
        folder = Path(cfg.DATA_DIR, FOLDERS[dataset])
        launch.require_paths([folder / f"{name}.npy" for name in ("labels", *cfg.CORRUPTION.TYPE)],
                             "CORRUPTION.TYPE asks for it, and `tta-apm data make "
                             f"{dataset}` makes it of the clean images")


class Plug:
    """What test-time.py calls, with our methods known to it."""

    def __init__(self) -> None:
        alias_pyautoattack()  # to the host's copy of robustbench
        # Two of the host's files import a stranger's package of this name and do not use it.
        sys.modules.setdefault("device", ModuleType("device"))
        conf = importlib.import_module("src.utils.conf")
        self.cfg = conf.cfg
        self.names = settings.our_names({*THEIRS, *self.cfg})
        settings.extend(self.cfg, self.names)
        self.pairs: list[str] = []
        self.name = ""  # of our method, as the host knows it

    def install(self) -> None:
        """Put ourselves where test-time.py imports from."""
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
        """Read the config file, then our pairs; a method of ours goes by the host's BRANCH."""
        settings.merge(self.cfg, self.pairs)  # where its log goes and its seed count from here on
        self._load_config(*args, **keywords)
        settings.merge(self.cfg, self.pairs)
        choose("benchmark-tta", "MODEL.ADAPTATION", self.cfg.MODEL.ADAPTATION,
               {*self.names, *THEIRS})
        check_data(self.cfg)
        if self.cfg.MODEL.ADAPTATION in self.names:
            self.name, self.cfg.MODEL.ADAPTATION = self.cfg.MODEL.ADAPTATION, BRANCH

    def load_model(self, *args: Any, **keywords: Any) -> nn.Module:
        """The host's model, or ours; where there is no GPU, its .cuda() leaves it where it is."""
        model = self._own_network() or self._load_hosts(*args, **keywords)
        if not torch.cuda.is_available():
            model.cuda = lambda device=None: model  # type: ignore
        return model

    def _load_hosts(self, *args: Any, **keywords: Any) -> nn.Module:
        try:
            model: nn.Module = self._load_model(*args, **keywords)
        except Exception as error:  # a download, a file: it ends with a traceback there
            raise UserError(f"the host's own network {self.cfg.MODEL.ARCH} cannot be loaded "
                            f"({name_and_text(error)}); a network of yours comes in by "
                            "CLASSIFIER.MODEL and CLASSIFIER.WEIGHTS") from error
        return model

    def _own_network(self) -> nn.Module | None:
        """Ours, where the config names one or the host has none of its kind; else None."""
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
            raise UserError("the host normalises these images before its own methods see them, and "
                            "a network of ours does so itself: CLASSIFIER.MODEL is for our methods")
        return backbone.requires_grad_(True)

    def setup_source(self, model: nn.Module, *args: Any) -> Any:
        """The host's BRANCH, or our method if one was asked for."""
        if not self.name:
            return self._setup_source(model, *args)
        ours, cfg = self.names[self.name], self.cfg
        method = make_method(ours, settings.hyper_parameters(cfg[self.name.upper()]),
                             self._backbone(model.eval()), cfg.RNG_SEED or 0)
        # OPTIM.STEPS is not ours: the method's own steps are in its section.
        return Hosted(method, window=cfg.TEST.WINDOW_LENGTH, episodic=cfg.MODEL.EPISODIC), None

    def load_dataset(self, dataset: str, *args: Any, **keywords: Any) -> Any:
        """The host's data set; for our methods its images are not normalised."""
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
        """How the host's data set normalises its images, if it does."""
        steps = self._get_transform(self.cfg.CORRUPTION.DATASET, BRANCH).transforms
        return next((step for step in steps if isinstance(step, transforms.Normalize)), None)
