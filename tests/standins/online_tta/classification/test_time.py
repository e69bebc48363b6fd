"""A stand-in for the host's loop: what it calls, in which order and in which grad mode."""

import json

import torch
from conf import cfg, load_cfg_from_args
from models.model import get_model
from utils.registry import ADAPTATION_REGISTRY


def images_of(domain, severity, count):
    generator = torch.Generator().manual_seed(1000 * severity + sum(map(ord, domain)))
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator).float() / 255


def evaluate(description):
    load_cfg_from_args(description)
    torch.manual_seed(cfg.RNG_SEED)
    base_model, preprocess = get_model(cfg, 10, "cpu")
    base_model.model_preprocess = preprocess
    assert cfg.MODEL.ADAPTATION in ADAPTATION_REGISTRY.registered_names()
    model = ADAPTATION_REGISTRY.get(cfg.MODEL.ADAPTATION)(cfg=cfg, model=base_model, num_classes=10)
    trace = {"calls": [], "predictions": {}}
    for index, domain in enumerate(cfg.CORRUPTION.TYPE):
        if index == 0 or "reset_each_shift" in cfg.SETTING:
            try:
                model.reset()
                trace["calls"].append("reset")
            except AttributeError:
                trace["calls"].append("not resetting")
        for severity in cfg.CORRUPTION.SEVERITY:
            found = []
            with torch.no_grad():
                images = images_of(domain, severity, cfg.TEST.NUM_IMAGES)
                for batch in images.split(cfg.TEST.BATCH_SIZE):
                    found += model(batch).argmax(1).tolist()
                    trace["calls"].append(len(batch))
            trace["predictions"][f"{domain}{severity}"] = found
    with open(cfg.TRACE, "w") as file:
        json.dump(trace, file)
