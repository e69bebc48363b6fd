"""Training: the small backbones that ship, and those of the runs on CIFAR-10.

An annex: nothing of the kit imports it.
"""
