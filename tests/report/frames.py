"""Tables as pandas frames, for tests of their figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tta_apm.report.write import make_tables


def column(table, name, field="value"):
    """One number of each line."""
    return np.array([getattr(line.figures[name], field) for line in table.lines])


def frame_of(folder, **options):
    make_tables(folder, **options).write(folder)
    return pd.read_csv(folder / "table.csv")
