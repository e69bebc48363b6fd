"""A stand-in for the host's methods and its dispatch."""

import copy

import torch


class NoAdaptation:
    def __init__(self, meta_conf, model):
        self._meta_conf = copy.deepcopy(meta_conf)
        self._model = copy.deepcopy(model).eval()

    def adapt_and_eval(self, episodic, metrics, model_selection_method, current_batch,
                       previous_batches, logger, timer):
        with torch.no_grad():
            y_hat = self._model(current_batch[0])
        metrics.eval(current_batch[1], y_hat)

    def copy_model(self):
        return copy.deepcopy(self._model)

    @property
    def name(self):
        return "no_adaptation"


def get_model_adaptation_method(adaptation_name):
    return {"no_adaptation": NoAdaptation, "tent": NoAdaptation}[adaptation_name]
