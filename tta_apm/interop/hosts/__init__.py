"""Hosts: our methods inside other people's benchmarks, and theirs inside ours.

One file per benchmark. Nothing of theirs is copied or edited: their modules are imported from the
user's own clone, and what they do not know yet is added at run time.
"""
