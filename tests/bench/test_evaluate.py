"""evaluate: what a stranger's method may give, and how it is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tta_apm.bench import evaluate as module
from tta_apm.bench.evaluate import MethodError, evaluate, warm_up
from tta_apm.data.dataset import Clean, Domain
from tta_apm.data.streams import Stream
from tta_apm.method import Method

CPU = torch.device("cpu")
CLEAN = Domain("toy", "clean", 0)


@pytest.fixture
def stream():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    toy = Clean("toy", pixels, np.arange(6) % 3, ["a", "b", "c"], "single")
    return Stream(toy, [CLEAN], num_images=-1, batch_size=4, seed=0)


class Stranger(Method):
    """Gives logits as they come out of its layer, and the details that it is told to."""

    def __init__(self, details=lambda count: {}, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(48, 3).to(dtype)
        self.give = details

    def forward(self, images):
        with torch.enable_grad():
            logits = self.layer(images.flatten(1).to(self.layer.weight.dtype))
        self.details = self.give(len(images))
        return logits

    def reset(self):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_and_details_may_still_hang_on_their_gradients(stream, dtype):
    def details(count):
        cosine = torch.linspace(0, 1, count, dtype=dtype, requires_grad=True)
        return {"teacher_prediction": torch.ones(count, dtype=torch.long), "cosine": 1 * cosine}

    predictions = evaluate(Stranger(details, dtype), stream, CPU)[CLEAN].predictions
    assert predictions.confidence.dtype == predictions.cosine.dtype == np.float32
    assert predictions.cosine.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1, 0, 1], abs=0.01)
    assert predictions.teacher_prediction.dtype == np.int64
    assert (predictions.teacher_prediction == 1).all()


@pytest.mark.parametrize("details, why", [
    (lambda count: {"loss": torch.zeros(count)},
     "details 'loss', which are unknown; known: teacher_prediction, cosine"),
    (lambda count: {"label": torch.zeros(count)}, "details 'label', which are unknown"),
    (lambda count: {"cosine": torch.zeros(())}, r"details 'cosine' of \[\] instead of \[4\]"),
    (lambda count: {"cosine": torch.zeros(count, 2)}, r"'cosine' of \[4, 2\] instead of \[4\]"),
    (lambda count: {"cosine": [0.0] * count}, r"'cosine' of list instead of \[4\]")])
def test_other_details_are_told_in_a_sentence(stream, details, why):
    with pytest.raises(MethodError, match=why):
        evaluate(Stranger(details), stream, CPU)


class Sizing(Stranger):
    """Runs once more at its first forward, as MEMO does on a GPU to size its chunks."""

    sized = False

    def forward(self, images):
        if not self.sized:
            self.sized = True
            self.forward(images[:1])
        return super().forward(images)


@pytest.mark.skipif(torch.__version__ < "2.3", reason="counts nothing before torch 2.3")
def test_on_a_gpu_what_a_first_call_does_besides_is_not_counted(stream, monkeypatch):
    expected = warm_up(Stranger(), stream, CPU)
    to_device = module.to_device
    monkeypatch.setattr(module, "to_device", lambda images, device: to_device(images, CPU))
    assert warm_up(Sizing(), stream, torch.device("cuda")) == expected > 0
