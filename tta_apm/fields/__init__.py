"""Fields: Section 5 of the paper, a student pretrained on many images and the field it learns.

An annex: the kit does not import it.
"""
