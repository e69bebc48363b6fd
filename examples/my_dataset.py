"""Your own data set in one file: scikit-learn's digits in black on white.

    tta-apm --cfg cfgs/digits_c/quick.yaml PLUGINS examples/my_dataset.py \
        DATASET negative_digits CORRUPT true
"""

from tta_apm.data.dataset import Clean
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET, digits
from tta_apm.registry import DATASETS


# In a package, an entry point of the group tta_apm.datasets replaces the decorator.
@DATASETS.register("negative_digits")
def negative_digits(*, data_dir: str, frost_dir: str | None) -> Clean:
    """597 images, 32x32. Both arguments are unused, since there are no files."""
    source = digits(data_dir=data_dir, frost_dir=frost_dir)
    pixels, labels = 255 - source.pixels, source.labels    # uint8 [N,H,W,3], int64 [N]
    return Clean("negative_digits", pixels, labels, CLASS_NAMES, TEMPLATE_SET)
