"""Hosts: this package's methods inside other benchmarks, and their methods in sweeps here.

One file per benchmark. None of their code is copied or edited: their modules are imported from the
user's own clone, and this package's methods are registered with them at run time.
"""
