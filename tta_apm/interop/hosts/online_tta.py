"""online-tta: mariodoebler/test-time-adaptation, its folder classification/.

From inside that folder, in a script of the user's own:

    from tta_apm.interop.hosts import online_tta
    online_tta.install()
    import test_time; test_time.evaluate("tta-apm")
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from tta_apm.backbones.backbone import Backbone
from tta_apm.compat import alias_pyautoattack
from tta_apm.errors import UserError
from tta_apm.interop.hosts import launch, settings
from tta_apm.interop.hosts.backbones import HostClip, host_classifier, own_backbone
from tta_apm.interop.hosts.hosted import Hosted, make_method
from tta_apm.registry import METHODS

INSIDE = "classification"
MARKER = "test_time.py"
# What test_time.py imports, beyond what we need ourselves.
PACKAGES = {"iopath": "iopath", "einops": "einops", "webdataset": "webdataset"}
MODULES = ("augmentations", "conf", "datasets", "methods", "models", "robustbench", "utils")


def run(repo: Path, words: Sequence[str]) -> None:
    """Run the host's test_time.py with `words` as its command line and our methods known to it."""
    folder = launch.find_folder(repo, MARKER, INSIDE)
    launch.require(PACKAGES)
    with launch.inside(folder, [MARKER, *words]), launch.own_modules((*MODULES, "test_time"), {}):
        ours = install()
        # Of a wrong setting the host would only say that an assertion failed.
        settings.merge(CfgNode(ours), settings.take_pairs(words, ours)[0])
        importlib.import_module("test_time").evaluate("tta-apm host online-tta")


def install() -> dict[str, CfgNode]:
    """Register our methods with the host and legalise their sections in its config.

    The host's folder is the working folder and on sys.path, and its config is not frozen yet.

    Returns:
        The sections that are now in its config.
    """
    alias_pyautoattack()  # to the host's copy of robustbench
    cfg = importlib.import_module("conf").cfg
    importlib.import_module("methods")
    registry = importlib.import_module("utils.registry").ADAPTATION_REGISTRY
    names = settings.our_names({*registry.registered_names(), *cfg})
    ours = settings.sections(names, taken=cfg)
    cfg.update(ours)
    for name, method in names.items():
        registry.register(_constructor(name, method))
    return ours


def _constructor(name: str, ours: str) -> Callable[..., Hosted]:
    """What the registry holds: it is called with keywords, and known by its __name__."""
    def construct(cfg: Any, model: nn.Module, num_classes: int) -> Hosted:
        keywords = settings.hyper_parameters(cfg[name.upper()])
        backbone = _backbone(METHODS.signature(ours).needs, cfg, model)
        method = make_method(ours, keywords, backbone, cfg.RNG_SEED or 0)
        # OPTIM.STEPS is not ours: the method's own steps are in its section.
        return Hosted(method, window=cfg.TEST.WINDOW_LENGTH, episodic=cfg.MODEL.EPISODIC,
                      reset_every=cfg.MODEL.RESET_AFTER_NUM_UPDATES)

    construct.__name__ = name
    return construct


def _backbone(kind: str, cfg: Any, model: nn.Module) -> Backbone:
    if kind == "clip":
        return _clip(cfg, model)
    if kind == "classifier":
        return host_classifier(model, cfg.MODEL.ARCH)  # it normalises inside
    device = next(model.parameters()).device
    return own_backbone(kind, cfg[kind.upper()], cfg.CORRUPTION.DATASET.removesuffix("_c"), device)


def _clip(cfg: Any, model: Any) -> HostClip:
    if not cfg.MODEL.USE_CLIP:
        raise UserError("this method needs a CLIP: add MODEL.USE_CLIP True MODEL.ARCH ViT-B-16 "
                        "MODEL.WEIGHTS openai, or another of open_clip's names, to the command")
    return HostClip(model.model, model.tokenize, class_names=model.class_names,
                    text_features=model.text_features,
                    logit_scale=model.logit_scale.exp().item(), mean=model.normalize.mean,
                    std=model.normalize.std, name=cfg.MODEL.ARCH, weights=cfg.MODEL.WEIGHTS)
