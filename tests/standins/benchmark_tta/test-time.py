"""A stand-in for the host's program: its imports, its chain of ifs and its bare except."""

import argparse
import json

import torch
from src.methods import *  # noqa: F403
from src.models.load_model import load_model
from src.utils.conf import cfg, load_cfg_fom_args


def evaluate(cfg):
    base_model = load_model(model_name=cfg.MODEL.ARCH)
    base_model = base_model.cuda()
    if cfg.MODEL.ADAPTATION == "source":
        model, param_names = setup_source(base_model)  # noqa: F405
    else:
        raise ValueError(f"Adaptation method '{cfg.MODEL.ADAPTATION}' is not supported!")
    trace = {"calls": [], "predictions": {}, "output": cfg.OUTPUT}
    for domain in cfg.CORRUPTION.TYPE:
        try:
            model.reset()
            trace["calls"].append("reset")
        except:  # noqa: E722
            trace["calls"].append("not resetting")
        for severity in cfg.CORRUPTION.SEVERITY:
            loader = load_dataset(cfg.CORRUPTION.DATASET, cfg.DATA_DIR,  # noqa: F405
                                  cfg.TEST.BATCH_SIZE, split="all", domain=domain, level=severity,
                                  adaptation=cfg.MODEL.ADAPTATION, workers=0, ckpt="", num_aug=1)
            found = []
            with torch.no_grad():
                for batch in loader:
                    found += model(batch).argmax(1).tolist()
                    trace["calls"].append(len(batch))
            trace["predictions"][f"{domain}{severity}"] = found
    with open(cfg.TRACE, "w") as file:
        json.dump(trace, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg")
    parser.add_argument("--output_dir", default="online_evaluation")
    args = parser.parse_args()
    load_cfg_fom_args(args.cfg, args.output_dir)
    evaluate(cfg)
