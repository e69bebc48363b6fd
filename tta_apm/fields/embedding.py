"""Embedding: embed the features of columns in 1 or 3 dimensions, to show islands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = ("tsne", "pca")
DIMENSIONS = (1, 3)
PERPLEXITY = 30.0  # of t-SNE; less if there are few columns
TAIL = 1.0  # per cent of the columns that are clipped at each end of the scale


def embed(features: Tensor, method: str, dimensions: int, seed: int) -> np.ndarray:
    """Embed features [L,D] as [L,dimensions], each dimension scaled to [0,1].

    Args:
        method: one of EMBEDDINGS. PCA orders the dimensions by variance. t-SNE starts from PCA and
            preserves neighbourhoods; its dimensions have no order, and it takes seconds.
        dimensions: one of DIMENSIONS.
        seed: that of t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    values = features.double().cpu().numpy()
    if method == "pca":
        embedded = PCA(dimensions, random_state=seed).fit_transform(values)
    else:
        embedded = TSNE(dimensions, perplexity=min(PERPLEXITY, (len(values) - 1) / 3), init="pca",
                        random_state=seed).fit_transform(values)
    low, high = np.percentile(embedded, (TAIL, 100 - TAIL), axis=0)
    return ((embedded - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
