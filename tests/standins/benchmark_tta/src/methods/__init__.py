"""A stand-in for the host's methods."""

from .setup import *  # noqa: F401,F403
