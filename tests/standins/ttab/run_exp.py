"""A stand-in for the host's program: its order of calls, and data that are normalised."""

import json

import parameters  # noqa: F401  (callers go through run_exp.parameters)
import torch
from ttab.configs.algorithms import algorithm_defaults
from ttab.loads.define_model import define_model, load_pretrained_model
from ttab.model_adaptation import get_model_adaptation_method

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), "n_classes": 10}


class Metrics:
    def __init__(self):
        self.found = []

    def eval(self, y, y_hat):
        assert y.shape == (len(y_hat),)
        self.found += y_hat.argmax(1).tolist()


class Selection:
    def __init__(self, method, device):
        self.model = method.copy_model()
        self.model.to(device)
        self.model.eval()


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 3, 32, 32), generator=generator).float() / 255


def main(init_config):
    algorithm_defaults[init_config.model_adaptation_method]  # KeyError, as in the host
    init_config.statistics = STATISTICS
    model = define_model(config=init_config)
    load_pretrained_model(config=init_config, model=model)
    method = get_model_adaptation_method(init_config.model_adaptation_method)(
        meta_conf=init_config, model=model)
    metrics, selection = Metrics(), Selection(method, init_config.device)
    mean, std = (torch.tensor(STATISTICS[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    for batch in images().split(8):
        method.adapt_and_eval(
            episodic=init_config.episodic, metrics=metrics, model_selection_method=selection,
            current_batch=((batch - mean) / std, torch.zeros(len(batch))), previous_batches=[],
            logger=None, timer=None)
    with open(init_config.trace, "w") as file:
        json.dump({"name": method.name, "predictions": metrics.found,
                   "arguments": vars(init_config)}, file)
