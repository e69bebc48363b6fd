"""Embedding: the features of columns in 1 or 3 dimensions, in which islands can be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDINGS = ("tsne", "pca")
DIMENSIONS = (1, 3)
PERPLEXITY = 30.0  # of t-SNE, or less where there are few columns
TAIL = 1.0  # per cent of the columns beyond each end of the scale


def embed(features: Tensor, method: str, dimensions: int, seed: int) -> np.ndarray:
    """Features [L,D] as numbers [L,dimensions] in [0,1], each dimension on a scale of its own.

    Args:
        method: one of EMBEDDINGS. PCA orders its dimensions by variance; t-SNE starts from it,
            keeps neighbours together, takes seconds and has no order.
        dimensions: one of DIMENSIONS.
        seed: of t-SNE.
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
