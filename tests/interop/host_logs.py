"""Logs in the hosts' formats, for the tests that read and import them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tta_apm.interop.robustbench import DOMAINS

HEAD = "[26/11/21 10:00:00] [{}]: "
CONFIG = """BN:
  ALPHA: 0.1
CORRUPTION:
  DATASET: cifar10_c
  NUM_EX: -1
  SEVERITY: [5]
MODEL:
  ADAPTATION: cotta
  ARCH: Standard
OPTIM:
  LR: 0.001
  METHOD: Adam
  STEPS: 1
RNG_SEED: {seed}
SETTING: continual
TEST:
  BATCH_SIZE: 200"""


def online_tta(seed: int = 1, fog: str = "12.34", extra: str = "") -> str:
    """A log of mariodoebler/test-time-adaptation."""
    return "\n".join([
        HEAD.format("conf.py:  419") + "PyTorch Version: torch=2.4",
        HEAD.format("conf.py:  420") + CONFIG.format(seed=seed), *filter(None, [extra]),
        HEAD.format("test_time.py:   76") + "resetting model",
        HEAD.format("test_time.py:  123")
        + f"cifar10_c error % [fog5][#samples=10000]: {fog}%",
        HEAD.format("test_time.py:   81") + "not resetting model",
        HEAD.format("test_time.py:  123")
        + "cifar10_c error % [gaussian_noise5][#samples=10000]: 40.00%",
        HEAD.format("test_time.py:  126") + "mean error: 26.17%, mean error at 5: 26.17%"])


def robustbench() -> str:
    frame = pd.DataFrame([np.linspace(0.2, 0.9, 75), np.full(75, 0.5)], index=["Standard", "Half"],
                         columns=pd.MultiIndex.from_tuples(DOMAINS))
    return frame.to_csv()
