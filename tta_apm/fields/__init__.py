"""Fields: the paper's Section 5. A student pretrained on many images, and the field it learns.

An annex: nothing of the kit imports it.
"""
