"""A stand-in for the host's defaults."""

algorithm_defaults = {"no_adaptation": {}, "tent": {"optimizer": "SGD"}}
