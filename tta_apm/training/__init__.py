"""Training: the small backbones and contexts that ship, and those of the runs on CIFAR-10.

`tta-apm train NAME` trains one of them. An annex: the kit does not import it.
"""
