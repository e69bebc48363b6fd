"""torch-ttt's engines as methods, and methods of this package as engines.

    pip install torch-ttt
    python examples/torch_ttt_engines.py
    tta-apm --cfg cfgs/digits_c/source.yaml PLUGINS examples/torch_ttt_engines.py \
        METHODS "[source,torch_ttt NAME tent,torch_ttt NAME actmad LAYER net.fc]"

An engine is a module that is called with images, returns logits and a loss, and adapts in eval
mode. A few lines make a method an engine, and an engine a method. The second part of the output
lists for each engine whether it runs as a method.
"""

import contextlib
import copy
import inspect
import io

import torch
from torch import Tensor, nn
from torch_ttt.engine.base_engine import BaseEngine
from torch_ttt.engine_registry import EngineRegistry

from tta_apm import Method, load_backbone, load_dataset, load_method, register
from tta_apm.bench.evaluate import CleanImages
from tta_apm.data.dataset import Domain
from tta_apm.data.digits import train_split
from tta_apm.errors import UserError, choose
from tta_apm.method import SourceImages

# What engines train together with the network; a method gets a trained network only.
LEARN = {"ttt": "a head for rotations", "ttt_pp": "a contrastive head",
         "ittt": "an embedding of its own predictions"}
OF_TEXT = ("masked_ttt",)
NUM_SOURCE_IMAGES = 256  # for statistics


@EngineRegistry.register("tta_apm")
class OurEngine(BaseEngine):
    """A method of this package as an engine. Its training loss is 0."""

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
    """An engine as a method; it adapts a new copy of its network to each batch.

    Args:
        backbone: a classifier.
        name: as torch-ttt registers the engine.
        lr: learning rate.
        steps: gradient steps per batch.
        layer: name of the layer whose features the engine aligns, e.g. net.fc; for actmad.
        source: source images, to whose statistics the engine aligns them; for actmad.

    Raises:
        UserError: for an engine that a network and images do not suffice for.
    """

    needs = "classifier"
    scope = "batch"

    def __init__(self, backbone: nn.Module, *, name: str = "tent", lr: float = 1e-3, steps: int = 1,
                 layer: str = "", source: SourceImages | None = None) -> None:
        super().__init__()
        choose("torch_ttt", "name", name, EngineRegistry._registry)
        if name in LEARN:
            raise UserError(f"torch_ttt: {name} trains {LEARN[name]} together with the network")
        if name in OF_TEXT:
            raise UserError(f"torch_ttt: {name} takes tokens of text")
        engine = EngineRegistry.get_engine(name)
        more = {key: layer for key in inspect.signature(engine).parameters if "layer_name" in key}
        if more and (not layer or source is None):
            raise UserError(f"torch_ttt: {name} wants LAYER, the name of one of the network's, and "
                            "a data set with source images")
        net = copy.deepcopy(backbone).requires_grad_(True)
        self.engine = engine(net, optimization_parameters={"lr": lr, "num_steps": steps}, **more)
        if more and source is not None:
            self.engine.compute_statistics(
                source.batch(indices)
                for indices in torch.arange(min(len(source), NUM_SOURCE_IMAGES)).split(64))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,K] of images [B,3,H,W] in [0,1]."""
        self.engine.eval()
        # Some engines print at each step.
        with torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()):
            logits, _ = self.engine(images)
        return logits.detach()

    def reset(self) -> None:
        """Do nothing: no state is carried from batch to batch."""


def engines(net: nn.Module, images: Tensor) -> dict[str, str]:
    """For each engine of the installed torch-ttt, whether it runs as a method, in words."""
    found = {}
    for name in sorted(EngineRegistry._registry.keys() - {"tta_apm"}):
        try:
            TorchTtt(net, name=name, layer="net.fc",
                     source=CleanImages(train_split(), images.device))(images)
            found[name] = "runs"
        except UserError as error:
            found[name] = f"cannot: {str(error).removeprefix('torch_ttt: ')}"
        except Exception as error:
            found[name] = f"fails in its own code ({type(error).__name__}: {error})"
    return found


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
    for name, said in engines(net, images).items():
        print(f"{name} as a method: {said}")


if __name__ == "__main__":
    main()
