"""Finds the packages: setup.cfg, which holds all else, cannot add to what its `find:` finds."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["tta_apm", "tta_apm.*"]), "tta_apm_baselines",
                "tta_apm_configs"])
