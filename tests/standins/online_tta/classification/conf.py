"""A stand-in for the config of mariodoebler/test-time-adaptation: its contract only."""

import argparse

from yacs.config import CfgNode

_C = cfg = CfgNode()
_C.SETTING = "continual"
_C.RNG_SEED = 1
_C.DATA_DIR = "."
_C.CKPT_DIR = "ckpt"
_C.MIXED_PRECISION = False
_C.TRACE = "trace.json"
_C.MODEL = CfgNode({"ADAPTATION": "source", "USE_CLIP": False, "ARCH": "Standard",
                    "WEIGHTS": "", "EPISODIC": False, "RESET_AFTER_NUM_UPDATES": 0})
_C.CORRUPTION = CfgNode({"DATASET": "cifar10", "TYPE": ["fog", "snow"], "SEVERITY": [5, 3]})
_C.OPTIM = CfgNode({"STEPS": 1, "LR": 1e-3})
_C.TEST = CfgNode({"BATCH_SIZE": 8, "WINDOW_LENGTH": 1, "NUM_IMAGES": 17})
_C.TENT = CfgNode({"MARGIN": 0.5})
_CFG_DEFAULT = _C.clone()
_CFG_DEFAULT.freeze()


def load_cfg_from_args(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cfg", dest="cfg_file", required=True)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg.merge_from_file(args.cfg_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
