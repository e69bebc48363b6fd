"""TensorImages: images in memory, as an offline method takes them."""

from __future__ import annotations

from torch import Tensor


class TensorImages:
    """All images of a domain in one tensor, for `Method.prepare` outside a sweep.

    Args:
        images: [N,3,H,W] in [0,1].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Tensor:
        """Images [n,3,H,W] at positions `indices` [n]."""
        return self.images[indices]
