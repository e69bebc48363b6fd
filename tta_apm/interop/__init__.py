"""Interop with other benchmarks: importing their logs, exporting results, and running inside them.

An annex: nothing of the kit imports it.
"""
