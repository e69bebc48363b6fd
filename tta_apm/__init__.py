"""Test-time adaptation benchmarks with APM, the Asynchronous Perception Machine."""

__version__ = "0.1.0"
