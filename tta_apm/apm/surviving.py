"""ApmSurviving: APM with the optimiser of its authors' loop, for the audit only."""

from __future__ import annotations

from tta_apm.apm.method import Apm
from tta_apm.toolbox.surviving import SurvivingOptimizer


class ApmSurviving(SurvivingOptimizer, Apm):
    """APM whose Adam survives from image to image, as in the authors' public loop.

    Nothing else of that loop is taken over: the learning rate and all the rest are those of Apm.
    """
