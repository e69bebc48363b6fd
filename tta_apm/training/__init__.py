"""Training: the small backbones and contexts that ship, and those of the runs on CIFAR-10.

`tta-apm train NAME` makes one of them. An annex: nothing of the kit imports it.
"""
