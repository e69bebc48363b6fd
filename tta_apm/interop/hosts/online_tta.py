"""online-tta: mariodoebler/test-time-adaptation, its folder classification/.

In a script of yours that runs in that folder:

    from tta_apm.interop.hosts import online_tta
    online_tta.install()
    import test_time; test_time.evaluate("tta-apm")
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.backbones.classifiers import Classifier
from tta_apm.compat import alias_pyautoattack
from tta_apm.errors import UserError, choose, name_and_text
from tta_apm.interop.hosts import launch, settings
from tta_apm.interop.hosts.backbones import HostClip, host_classifier, own_backbone
from tta_apm.interop.hosts.hosted import Hosted, make_method
from tta_apm.interop.hosts.network import Network, split
from tta_apm.registry import METHODS

INSIDE = "classification"
MARKER = "test_time.py"
TESTED = "8b2ed63"
# Packages that test_time.py imports and this package does not need.
PACKAGES = {"iopath": "iopath", "einops": "einops", "webdataset": "webdataset"}
MODULES = ("augmentations", "conf", "datasets", "methods", "models", "robustbench", "utils")
# The folders of its data sets in DATA_DIR, and the files of a corruption and severity in them. It
# downloads those that it does not find. The names are the host's, as in all of this folder.
FOLDERS = {"cifar10_c": ("CIFAR-10-C", "{}.npy"), "cifar100_c": ("CIFAR-100-C", "{}.npy"),
           "imagenet_c": ("ImageNet-C", "{}/{}")}

# Side of images in pixels if no preprocessing states it; 224 for others, as in the host's methods.
SIDES = {"cifar10": 32, "cifar100": 32}


def run(repo: Path, words: Sequence[str]) -> None:
    """Run the host's test_time.py with this package's methods; `words` is its command line."""
    folder = launch.find_folder(repo, MARKER, INSIDE)
    launch.require(PACKAGES)
    launch.tell_commit(folder, TESTED)
    with launch.inside(folder, [MARKER, *words]), launch.telling_flags(), \
            launch.own_modules((*MODULES, "test_time"), {}):
        file = settings.value_of("--cfg", words)
        settings.import_plugins(words, file)
        cfg = install()
        # Settings are checked here, since the host would only report a failed assertion.
        if file:
            settings.check_file(cfg, file)
        settings.merge(cfg.clone(), settings.take_pairs(words, cfg)[0])
        importlib.import_module("test_time").evaluate("tta-apm host online-tta")


def install() -> CfgNode:
    """Register this package's methods with the host, and add their settings to its config.

    The host's folder must be the working folder and on sys.path; its config must not be frozen.

    Returns:
        Its config.
    """
    alias_pyautoattack()  # to the host's copy of robustbench
    cfg = importlib.import_module("conf").cfg
    importlib.import_module("methods")
    models: Any = importlib.import_module("models.model")
    registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
    names = settings.our_names({*registry.registered_names(), *cfg})
    settings.extend(cfg, names)
    for name, method in names.items():
        registry.register(_constructor(name, method))
    models.get_model = _get_model(models.get_model, names)
    patch_split()
    return cfg


def patch_split() -> None:
    """Make the host's split_up_model support Network."""
    theirs = importlib.import_module("models.model").split_up_model

    def split_up_model(model: nn.Module, arch_name: str, dataset_name: str) -> Any:
        if isinstance(model, Network):
            size = (model.classifier.image_size or model_size(model.model_preprocess)
                    or SIDES.get(dataset_name.removesuffix("_c"), 224))
            return split(model, size)
        return theirs(model, arch_name, dataset_name)

    for module in list(sys.modules.values()):
        if getattr(module, "split_up_model", None) is theirs:
            module.split_up_model = split_up_model  # type: ignore[attr-defined]


def model_size(preprocess: Any) -> int | None:
    """The side in pixels that a preprocessing of the host's states, read as its methods do."""
    for step in reversed(getattr(preprocess, "transforms", [])):
        if hasattr(step, "size"):
            return step.size if isinstance(step.size, int) else step.size[0]
    return None


def _get_model(theirs: Callable[..., Any], names: Mapping[str, str]) -> Callable[..., Any]:
    """A get_model that returns a network of this package if one is named, else calls `theirs`."""
    def get_model(cfg: Any, num_classes: int, device: torch.device | str) -> tuple[Any, Any]:
        choose("online-tta", "MODEL.ADAPTATION", cfg.MODEL.ADAPTATION,
               importlib.import_module("utils.registry").ADAPTATION_REGISTRY.registered_names())
        check_data(cfg)
        ours = names.get(cfg.MODEL.ADAPTATION)
        kind = METHODS.signature(ours).needs if ours else "classifier"
        hosts_clip = kind == "clip" and cfg.MODEL.USE_CLIP
        hosts_own = kind == "classifier" or hosts_clip
        if cfg[kind.upper()].MODEL or not hosts_own:
            if cfg.MODEL.USE_CLIP:
                raise UserError(f"{kind.upper()}.MODEL names a network of tta-apm and "
                                "MODEL.USE_CLIP True the host's CLIP: leave one of them out")
            if kind == "clip" and not cfg.CLIP.MODEL:
                raise UserError("this method needs a CLIP: add MODEL.USE_CLIP True MODEL.ARCH "
                                "ViT-B-16 MODEL.WEIGHTS openai to the command for the host's, or "
                                "CLIP.MODEL and CLIP.WEIGHTS for one of tta-apm")
            backbone = own_backbone(
                kind, cfg[kind.upper()], dataset=cfg.CORRUPTION.DATASET.removesuffix("_c"),
                num_classes=num_classes, device=device)
            if ours or not isinstance(backbone, Classifier):
                return backbone, None
            return Network(backbone), None
        try:
            return theirs(cfg, num_classes, device)
        except Exception as error:  # e.g. of a download, a name or a file
            raise UserError(f"the host's own network {cfg.MODEL.ARCH} cannot be loaded "
                            f"({name_and_text(error)}); name your own network by CLASSIFIER.MODEL "
                            "and CLASSIFIER.WEIGHTS") from error
    return get_model


def check_data(cfg: Any) -> None:
    """Raise UserError for data that is not found, which the host would download or fail on."""
    advice = "DATA_DIR is the folder of the data sets, relative to that of the host"
    dataset = cfg.CORRUPTION.DATASET
    name, part = FOLDERS.get(dataset, ("", ""))
    folder = Path(cfg.DATA_DIR, name)
    launch.require_paths([folder], advice)
    if not part:
        return
    paths = [folder / part.format(corruption, severity) for corruption in cfg.CORRUPTION.TYPE
             if corruption not in ("", "none") for severity in cfg.CORRUPTION.SEVERITY]
    launch.require_paths(paths, f"CORRUPTION.TYPE names it, and `tta-apm data make {dataset}` "
                         "makes it from the clean images")


def _constructor(name: str, ours: str) -> Callable[..., Hosted]:
    """A constructor for the host's registry, which uses its __name__ and calls it with keywords."""
    def construct(cfg: Any, model: nn.Module, num_classes: int) -> Hosted:
        keywords = settings.hyper_parameters(cfg[name.upper()])
        backbone = _backbone(METHODS.signature(ours).needs, cfg, model)
        method = make_method(ours, keywords, backbone, cfg.RNG_SEED or 0)
        # The host's OPTIM.STEPS is not used: the method's number of steps is in its own section.
        return Hosted(method, window=cfg.TEST.WINDOW_LENGTH, episodic=cfg.MODEL.EPISODIC,
                      reset_every=cfg.MODEL.RESET_AFTER_NUM_UPDATES)

    construct.__name__ = name
    return construct


def _backbone(kind: str, cfg: Any, model: Any) -> Backbone:
    if isinstance(model, Backbone):
        return model
    if kind == "clip":
        return HostClip(model.model, model.tokenize, class_names=model.class_names,
                        text_features=model.text_features,
                        logit_scale=model.logit_scale.exp().item(), mean=model.normalize.mean,
                        std=model.normalize.std, name=cfg.MODEL.ARCH, weights=cfg.MODEL.WEIGHTS)
    return host_classifier(model, cfg.MODEL.ARCH)  # it normalises images itself
