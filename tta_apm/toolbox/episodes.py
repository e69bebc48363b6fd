"""Episodes: B independent copies of a set of parameters, adapted together as one program.

An episode is the adaptation to one image, from the initial weights to the prediction. Parameters
are stacked [B, ...], the loss is summed over episodes and the optimiser works element by element,
so each episode has the same gradients and updates as if it ran alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Parameters = dict[str, Tensor]

CPU_CHUNK_BYTES = 24 * 2**20


def stack(parameters: Mapping[str, Tensor], num_episodes: int) -> Parameters:
    """Stack B = `num_episodes` copies of each tensor to a leaf [B, ...] that requires grad."""
    return {name: value.detach().unsqueeze(0).repeat(num_episodes, *[1] * value.dim())
            .requires_grad_() for name, value in parameters.items()}


def adapt(parameters: Parameters, loss: Callable[[Parameters], Tensor], *, steps: int,
          optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Parameters:
    """Minimise `loss(parameters)` [B] for each episode, in place, and return the parameters.

    Args:
        parameters: stacked leaves, as `stack` returns them. They require no grad afterwards.
        loss: one value per episode; that of episode b may depend on parameters[...][b] only.
        steps: number of gradient updates.
        optimizer: makes a new optimiser of the leaves; it must work element by element.
    """
    leaves = list(parameters.values())
    update = optimizer(leaves)
    with torch.enable_grad():
        for _ in range(steps):
            update.zero_grad(set_to_none=True)
            loss(parameters).sum().backward()
            update.step()
    for leaf in leaves:
        leaf.grad = None
        leaf.requires_grad_(False)
    return parameters


def adam(leaves: list[Tensor], lr: float) -> torch.optim.Adam:
    """A new Adam, fused into one kernel where torch supports that (on CPUs from version 2.4)."""
    on_cpu = leaves[0].device.type == "cpu"
    return torch.optim.Adam(leaves, lr=lr, fused=torch.__version__ >= "2.4" or not on_cpu)


def image_generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """A CPU generator for each image [B,3,H,W] in [0,1], keyed by `seed` and the image's pixels.

    The random numbers for an image do not depend on its neighbours, its index, the batch size or
    the device. Methods need no index of the image, which the loops of other packages do not pass.
    """
    pixels = (images * 255).round().to(torch.uint8).cpu().numpy()
    return [torch.Generator().manual_seed(_key(image.tobytes(), seed)) for image in pixels]


def _key(content: bytes, seed: int) -> int:
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big") >> 1  # torch takes seeds of 63 bits


def chunks(num_images: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(num_images)."""
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


def chunk_size(bytes_per_episode: int, device: torch.device) -> int:
    """The number of episodes to adapt at a time on `device`, at least 1.

    On a GPU, they fill three quarters of the free memory. On a CPU they are few, so that the
    parameters and moments of a chunk stay in the processor's cache from step to step.
    """
    if device.type == "cuda":
        # Memory cached by torch's allocator looks used to the driver, but can be reused.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = (torch.cuda.mem_get_info(device)[0] + unused) * 3 // 4
    else:
        budget = CPU_CHUNK_BYTES
    return max(1, int(budget // bytes_per_episode))


def saved_bytes(run: Callable[[], object]) -> int:
    """The bytes that `run` saves for its backward pass: activations, and weights of layers."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        run()
    return total
