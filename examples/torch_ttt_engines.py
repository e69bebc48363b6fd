"""torch-ttt's engines and our methods, each in the other's place.

    pip install torch-ttt
    python examples/torch_ttt_engines.py
    tta-apm --cfg cfgs/digits_c/source.yaml PLUGINS examples/torch_ttt_engines.py \
        METHODS "[source,torch_ttt NAME tent,torch_ttt NAME deyo]"

An engine is a module that is called with images and returns logits and a loss, and that adapts in
eval mode. So a method of ours becomes an engine in a few lines, and an engine a method. Those of
version 0.0.2 that need only a network and images are tent, deyo, eata and memo; the last fails in
its own code over networks with batch normalisation.
"""

import copy

import torch
from torch import Tensor, nn
from torch_ttt.engine.base_engine import BaseEngine
from torch_ttt.engine_registry import EngineRegistry

from tta_apm import Method, load_backbone, load_dataset, load_method, register
from tta_apm.data.dataset import Domain


@EngineRegistry.register("tta_apm")
class OurEngine(BaseEngine):
    """A method of ours as an engine of theirs. Nothing is learnt at training time: the loss is 0.
    """

    def __init__(self, model: nn.Module, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def ttt_forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.model(inputs), torch.zeros(())

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return self.ttt_forward(inputs)
        return self.method(inputs), torch.zeros(())


@register("torch_ttt")
class TorchTtt(Method):
    """An engine of theirs as a method of ours: it adapts a copy of its network to each batch anew.

    Args:
        backbone: a classifier.
        name: as torch-ttt registers the engine: tent, deyo or eata.
        lr: learning rate.
        steps: gradient steps per batch.
    """

    needs = "classifier"
    scope = "batch"

    def __init__(self, backbone: nn.Module, *, name: str = "tent", lr: float = 1e-3, steps: int = 1
                 ) -> None:
        super().__init__()
        net = copy.deepcopy(backbone).requires_grad_(True)
        self.engine = EngineRegistry.get_engine(name)(
            net, optimization_parameters={"lr": lr, "num_steps": steps})

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        self.engine.eval()
        with torch.enable_grad():
            logits, _ = self.engine(images)
        return logits.detach()

    def reset(self) -> None:
        """Nothing is kept from batch to batch."""


def main() -> None:
    digits = load_dataset("digits_c")
    pixels = digits.images(Domain("digits_c", "fog", 5), torch.arange(60).numpy())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    labels = torch.from_numpy(digits.labels[:60])
    net = load_backbone("classifier", "timm/digits_resnet", "digits_resnet.safetensors",
                        dataset=digits)

    engine = EngineRegistry.get_engine("tta_apm")(net, load_method("tent", net, lr=1e-2))
    engine.eval()
    logits, _ = engine(images)
    print(f"our TENT as an engine: {(logits.argmax(1) == labels).float().mean():.0%} right")
    for name in ("tent", "deyo", "eata"):
        logits = TorchTtt(net, name=name, lr=1e-2)(images)
        print(f"their {name} as a method: {(logits.argmax(1) == labels).float().mean():.0%} right")


if __name__ == "__main__":
    main()
