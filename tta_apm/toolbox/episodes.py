"""Episodes: B independent copies of a set of parameters, adapted together as one program.

An episode is one image's life from fresh weights to prediction. Parameters are stacked [B, ...],
the loss is summed over episodes and the optimiser works element by element, so the gradient and
the update of an episode are those it would have alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

Parameters = dict[str, Tensor]


def stack(parameters: Mapping[str, Tensor], num_episodes: int) -> Parameters:
    """`num_episodes` copies of each tensor, stacked in front: [B, ...], leaves that take grad."""
    return {name: value.detach().unsqueeze(0).repeat(num_episodes, *[1] * value.dim())
            .requires_grad_() for name, value in parameters.items()}


def adapt(parameters: Parameters, loss: Callable[[Parameters], Tensor], *, steps: int,
          optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Parameters:
    """Minimise `loss(parameters)` [B] for each episode, in place.

    Args:
        parameters: stacked leaves, as `stack` makes them.
        loss: one value per episode; episode b's may depend on parameters[...][b] only.
        steps: gradient updates.
        optimizer: makes an element-wise optimiser of the leaves; it starts empty.
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
    """Adam as one kernel over all leaves, where torch has one."""
    on_cpu = leaves[0].device.type == "cpu"
    return torch.optim.Adam(leaves, lr=lr, fused=torch.__version__ >= "2.4" or not on_cpu)


def image_generators(images: Tensor, seed: int) -> list[torch.Generator]:
    """A CPU generator for each image [B,3,H,W], keyed by `seed` and by the image's pixels.

    What is drawn for an image does not depend on its neighbours, its index, the size of the batch
    or the device, and no index has to be handed to a method: a foreign loop has none to give.
    """
    pixels = (images * 255).round().to(torch.uint8).cpu().numpy()
    return [torch.Generator().manual_seed(_key(image.tobytes(), seed)) for image in pixels]


def _key(content: bytes, seed: int) -> int:
    digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "big") >> 1  # within the seeds that torch takes


def chunks(num_images: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(num_images)."""
    for start in range(0, num_images, size):
        yield slice(start, min(start + size, num_images))


def chunk_size(bytes_per_episode: int, device: torch.device) -> int:
    """How many episodes to adapt at a time on `device`.

    On a GPU as many as three quarters of the free memory hold. On a CPU few, so that the
    parameters and moments of a chunk stay in the cache from one step to the next.
    """
    if device.type == "cuda":
        # What torch keeps of a method before, to hand out again, is taken for the driver only.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = (torch.cuda.mem_get_info(device)[0] + unused) * 3 // 4
    else:
        budget = CPU_CHUNK_BYTES
    return max(1, int(budget // bytes_per_episode))


def kept_bytes(run: Callable[[], object]) -> int:
    """What `run` keeps for its gradient: activations, and the weights they went through."""
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        run()
    return total


CPU_CHUNK_BYTES = 24 * 2**20
