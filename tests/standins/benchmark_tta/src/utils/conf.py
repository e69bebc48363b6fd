"""A stand-in for the config of yuyongcan/Benchmark-TTA: never frozen, read from a file only."""

from yacs.config import CfgNode

cfg = CfgNode()
cfg.DATA_DIR = "."
cfg.OUTPUT = "output"
cfg.TRACE = "trace.json"
cfg.RNG_SEED = 1
cfg.MODEL = CfgNode({"ADAPTATION": "source", "ARCH": "WideResNet", "EPISODIC": False})
cfg.CORRUPTION = CfgNode({"DATASET": "imagenet_c", "TYPE": ["fog", "snow"], "SEVERITY": [5, 3]})
cfg.OPTIM = CfgNode({"STEPS": 1})
cfg.TEST = CfgNode({"BATCH_SIZE": 8, "WINDOW_LENGTH": 1})


def load_cfg_fom_args(cfg_file, output_dir):
    cfg.merge_from_file(cfg_file)
    cfg.OUTPUT = f"{cfg.OUTPUT}/{output_dir}"
