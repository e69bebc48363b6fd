"""ApmSurviving: APM with the optimiser of its authors' loop, for the audit only."""

from __future__ import annotations

from tta_apm.apm.method import Apm
from tta_apm.toolbox.surviving import SurvivingOptimizer


class ApmSurviving(SurvivingOptimizer, Apm):
    """APM whose Adam survives from image to image, as it does in the authors' public loop.

    Of that loop only this is taken over; the learning rate stays as it is, and all else is Apm's.
    """
