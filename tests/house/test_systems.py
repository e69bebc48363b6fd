"""docs/systems.md: a line for every system of the published tables, each with a row of ours."""

from __future__ import annotations

import csv
import re

import pytest

from places import ROOT
from tta_apm import config
from tta_apm.report.published import FOLDER

TEXT = (ROOT / "docs/systems.md").read_text()
LINES = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines()
         if line.startswith("|") and "---" not in line and not line.startswith("| system")]
PUBLISHED = sorted({line["method"] for file in FOLDER.glob("*.csv")
                    for line in csv.DictReader(file.open(newline="", encoding="utf-8"))})
ROWS = sorted({row for line in LINES for cell in line[1:3]
               for row in re.findall(r"`([^`]+)`", cell)})
CONFIGS = sorted(set(re.findall(r"`(cfgs/[^` ]+\.yaml)", TEXT)))


def test_published_systems_are_found():
    assert {"APM", "UDA-SS", "Joint Train", "TPT + CoCoOp", "Baseline"} <= set(PUBLISHED)
    assert len(PUBLISHED) > 15


@pytest.mark.parametrize("system", PUBLISHED)
def test_every_published_system_has_a_line_with_a_row(system):
    line, = [line for line in LINES if line[0] == system]
    assert re.fullmatch(r"`[^`]+`", line[2])


@pytest.mark.parametrize("row", ROWS)
def test_every_row_that_is_named_is_registered(row):
    cfg = config.load("cfgs/digits_c/base.yaml", ["METHODS", f"[{row}]"])
    assert config.rows(cfg)[0].text == row


@pytest.mark.parametrize("file", CONFIGS)
def test_every_config_that_is_named_loads(file):
    assert config.load(file).METHODS
