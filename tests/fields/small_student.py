"""The small student, its short training and the photographs of the tests of fields."""

from __future__ import annotations

from tta_apm.fields.config import PretrainConfig

GRID, FEATURE_DIM = 6, 5
SMALL = PretrainConfig(image_size=24, patch=4, code=8, hidden=(12, 10), teacher="none",
                       grid_weight=0.0)
CHINA, FLOWER = "sklearn/china.jpg", "sklearn/flower.jpg"
SHORT = PretrainConfig(image_size=24, patch=4, code=8, hidden=(12,), teacher="none",
                       grid_weight=0.0, crop=0.5, steps=6, batch_size=4, save_every=2, lr=1e-3,
                       device="cpu")
