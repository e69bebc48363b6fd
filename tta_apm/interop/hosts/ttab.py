"""ttab: LINs-lab/ttab.

In a script of yours that runs in its folder:

    from tta_apm.interop.hosts import ttab
    ttab.install()
    import run_exp; run_exp.main(run_exp.parameters.get_args())
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.datasets import cifar as torchvision_cifar
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.data.dataset import CLEAN, Domain
from tta_apm.data.provenance import read_mark
from tta_apm.errors import UserError, nearest
from tta_apm.interop.hosts import launch, settings
from tta_apm.interop.hosts.backbones import host_classifier, own_backbone
from tta_apm.interop.hosts.hosted import Hosted, make_method
from tta_apm.registry import METHODS

MARKER = "run_exp.py"
MODULES = ("parameters", "run_exp", "ttab")
TESTED = "19cb3ce"
METHOD = "--model_adaptation_method"
PACKAGES = {"gdown": "gdown", "lmdb": "lmdb", "cv2": "opencv-python-headless",
            "skimage": "scikit-image"}
CIFAR = re.compile(r"(cifar100?)_c_deterministic-(\w+)-\d")
CLEAN_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
# Modules for motion blur and snow on the fly. They need ImageMagick's C library, which pip does not
# install.
OPTIONAL_MODULES = ("wand", "wand.image", "wand.api", "wand.color")


def run(repo: Path, words: Sequence[str]) -> None:
    """Run the host's run_exp.py with this package's methods; `words` is its command line."""
    folder = launch.find_folder(repo, MARKER)
    launch.require(PACKAGES)
    launch.tell_commit(folder, TESTED)
    with launch.inside(folder, [MARKER, *words]), launch.telling_flags(), \
            launch.own_modules(MODULES, {}), accept_made_files():
        settings.import_plugins(words)
        install()
        host = importlib.import_module("run_exp")
        host.main(init_config=host.parameters.get_args())


def install() -> None:
    """Register this package's methods with the host; to be called before run_exp is imported.

    The host's folder must be the working folder and on sys.path.
    """
    if not hasattr(torch._utils, "_accumulate"):  # removed in torch 2.5
        torch._utils._accumulate = itertools.accumulate  # type: ignore[attr-defined]
    _alias_scipy()
    launch.add_placeholders(*OPTIONAL_MODULES)
    adaptation: Any = importlib.import_module("ttab.model_adaptation")
    defaults = importlib.import_module("ttab.configs.algorithms").algorithm_defaults
    parameters: Any = importlib.import_module("parameters")
    models: Any = importlib.import_module("ttab.loads.define_model")
    names = settings.our_names(defaults)
    known = CfgNode()
    settings.extend(known, names)
    dispatch, get_args = adaptation.get_model_adaptation_method, parameters.get_args

    def ours_or_theirs(adaptation_name: str) -> Any:
        if adaptation_name not in names:
            return dispatch(adaptation_name)
        return _method_class(adaptation.NoAdaptation, adaptation_name, names[adaptation_name])

    adaptation.get_model_adaptation_method = ours_or_theirs
    parameters.get_args = lambda: _arguments(get_args, names, known)
    models.define_model = _define_model(models.define_model, names)
    models.load_pretrained_model = _load_pretrained_model(models.load_pretrained_model)
    defaults |= {name: {"model_selection_method": "last_iterate"} for name in names}


def _alias_scipy() -> None:
    """Add scipy.ndimage.interpolation, which newer versions of scipy removed, as an alias."""
    try:
        importlib.import_module("scipy.ndimage.interpolation")
    except ImportError:
        sys.modules["scipy.ndimage.interpolation"] = importlib.import_module("scipy.ndimage")


def _define_model(theirs: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
    """A define_model that returns a network of this package if one is named, else calls `theirs`.
    """
    def define_model(config: Any) -> nn.Module:
        ours = names.get(config.model_adaptation_method)
        kind = METHODS.signature(ours).needs if ours else "classifier"
        section = config.tta_apm[kind.upper()]
        if kind == "classifier" and not section["MODEL"]:
            return theirs(config=config)
        backbone = own_backbone(kind, section, dataset=config.base_data_name,
                                num_classes=config.statistics["n_classes"], device=config.device)
        if ours:
            return backbone
        # The host's own methods adapt it; its images are normalised.
        mean, std = config.statistics["mean"], config.statistics["std"]
        return Denormalised(backbone.requires_grad_(True), mean, std).to(config.device)
    return define_model


def _load_pretrained_model(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """A load_pretrained_model that calls `theirs` for the host's own networks only."""
    def load_pretrained_model(config: Any, model: nn.Module) -> None:
        if isinstance(model, (Backbone, Denormalised)):
            return
        if not Path(config.ckpt_path).is_file():
            raise UserError(f"there is no checkpoint {config.ckpt_path} in {Path.cwd()}: give "
                            "--ckpt_path, or name your own network by CLASSIFIER.MODEL and "
                            "CLASSIFIER.WEIGHTS")
        theirs(config=config, model=model)
    return load_pretrained_model


def check_data(config: Any) -> None:
    """Raise UserError for data that is not found, which the host would download or fail on."""
    folder = Path(config.data_path)
    launch.require_paths([folder], "--data_path is the folder of the data sets, relative to that "
                         "of the host")
    for name in config.data_names.split(";"):
        found = CIFAR.fullmatch(name)
        if found:
            dataset, corruption = found.groups()
            clean = folder / dataset / CLEAN_FOLDERS[dataset]
            launch.require_paths(
                [folder / f"{dataset}_c" / f"{corruption}.npy", clean],
                f"the host reads both; `tta-apm data make {dataset}_python` writes the clean images"
                f" of CIFAR and the link {dataset}_c, `tta-apm data make {dataset}_c` the others")


@contextmanager
def accept_made_files() -> Iterator[None]:
    """A context in which torchvision accepts CIFAR files that `tta-apm data make` wrote.

    Their checksums differ from the official ones, which torchvision would download. A line on
    stderr says which files they are.
    """
    theirs = torchvision_cifar.check_integrity
    told: set[Path] = set()

    def check_integrity(file: str, md5: str | None = None) -> bool:
        folder = Path(file).parent
        mark = read_mark(folder)
        if mark is None:
            return theirs(file, md5)
        if folder not in told:
            told.add(folder)
            print(f"tta-apm: {folder} is not the official one but "
                  f"{mark.describe(Domain(folder.name, CLEAN, 0))}", file=sys.stderr)
        return True

    setattr(torchvision_cifar, "check_integrity", check_integrity)
    try:
        yield
    finally:
        setattr(torchvision_cifar, "check_integrity", theirs)


def _arguments(get_args: Any, names: Mapping[str, str], known: CfgNode) -> Any:
    """The host's parsed command line, which may name a method of ours and have KEY VALUE pairs.

    The host's parser refuses both, so they are removed before it runs.
    """
    pairs, words = settings.take_pairs(sys.argv[1:], known)
    cfg = known.clone()
    settings.merge(cfg, pairs)
    check_method(words, get_args, names)
    name = None
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        if option == METHOD:
            at = index if value else index + 1
            if at < len(words) and (value or words[at]) in names:
                name = value or words[at]
                words[at] = f"{METHOD}=no_adaptation" if value else "no_adaptation"
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        conf = get_args()
    finally:
        sys.argv = before
    check_data(conf)
    # The host saves both in its arguments.json.
    conf.tta_apm = json.loads(json.dumps(cfg))
    kind = METHODS.signature(names[name]).needs if name else "classifier"
    conf.tta_apm_backbone = cfg[kind.upper()].MODEL
    if name:
        conf.model_adaptation_method = name
    return conf


def check_method(words: Sequence[str], get_args: Any, names: Mapping[str, str]) -> None:
    """Raise UserError, with the nearest known name, for an unknown method."""
    asked = settings.value_of(METHOD, words)
    if asked is None or asked in names:
        return
    before, sys.argv = sys.argv, [MARKER, METHOD, asked]
    try:
        get_args()
    except UserError as error:
        theirs = importlib.import_module("ttab.configs.algorithms").algorithm_defaults
        raise UserError(f"ttab: unknown {METHOD} {asked!r}: {nearest(asked, {*theirs, *names})}") \
            from error
    finally:
        sys.argv = before


def _method_class(parent: Any, name: str, ours: str) -> Any:
    class OurMethod(parent):
        """A method of this package with the interface of the host's methods.

        The parent's evaluation calls `_model` and passes labels and logits to the host's metrics.
        """

        def __init__(self, meta_conf: Any, model: nn.Module) -> None:
            # The parent's __init__ is not called: it copies the config and, twice, the model.
            if meta_conf.model_selection_method != "last_iterate":
                raise UserError(f"{name} works with --model_selection_method last_iterate only: "
                                f"{meta_conf.model_selection_method} adapts copies of the host's "
                                "own model")
            self._meta_conf = meta_conf
            section = meta_conf.tta_apm[name.upper()]
            statistics = meta_conf.statistics
            model.to(meta_conf.device).eval()
            backbone = _backbone(meta_conf, model)
            method = make_method(ours, settings.hyper_parameters(section), backbone,
                                 meta_conf.seed)
            self._hosted = Hosted(method)
            self._model = Denormalised(self._hosted, statistics["mean"], statistics["std"])
            self._model.to(meta_conf.device)

        def adapt_and_eval(self, episodic: bool, *args: Any, **keywords: Any) -> None:
            self._hosted.episodic = episodic
            super().adapt_and_eval(episodic, *args, **keywords)

        def copy_model(self) -> nn.Module:
            """An empty module: the host keeps copies to select from, and selects none here."""
            return nn.Identity()

        def reset(self) -> None:
            self._hosted.reset()

        @property
        def name(self) -> str:
            return name

    return OurMethod


class Denormalised(nn.Module):
    """Undoes the normalisation of the host's data sets before a module that takes images in [0,1].

    Args:
        inner: a hosted method, or a network.
        mean, std: of the host's normalisation, per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * self.std + self.mean).clamp(0, 1))


def _backbone(meta_conf: Any, model: nn.Module) -> Backbone:
    if isinstance(model, Backbone):
        return model
    statistics = meta_conf.statistics
    return host_classifier(model, meta_conf.model_name, statistics["mean"], statistics["std"])
