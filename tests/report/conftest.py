"""Fixtures of the tests of tables."""

from __future__ import annotations

import pytest

from tta_apm.report.build import build_tables
from tta_apm.report.results import group_rows, load_results
from tta_apm.report.wanted import Wanted


@pytest.fixture
def tables(tmp_path):
    """The tables of what was written."""
    return lambda **options: build_tables(group_rows(load_results(tmp_path), Wanted()), **options)
