"""Interop: other people's benchmarks. Their logs imported, our results exported, their hosts.

An annex: nothing of the kit imports it.
"""
