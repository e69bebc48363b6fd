"""tta-apm status: what a folder tells of its sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time

import pytest

from tta_apm import cli
from tta_apm.bench.status import find_status

pytestmark = pytest.mark.slow  # sweeps, processes or training

RAISES = """
    from tta_apm.method import Method, register

    @register("raises")
    class Raises(Method):
        def __init__(self, backbone):
            super().__init__()
        def forward(self, images):
            raise KeyError("of a stranger")
        def reset(self):
            pass
"""


@pytest.fixture
def sweep(tmp_path, capsys):
    (tmp_path / "raises.py").write_text(textwrap.dedent(RAISES))

    def sweep(rows: str):
        plugin = ["PLUGINS", str(tmp_path / "raises.py")] if "raises" in rows else []
        code = cli.main(["--cfg", "cfgs/digits_c/base.yaml", "CORRUPTIONS", "[fog,contrast]",
                         "NUM_IMAGES", "8", "METHODS", rows, "OUTPUT_DIR",
                         str(tmp_path / "results"), *plugin])
        capsys.readouterr()
        return code, tmp_path / "results"
    return sweep


def status(folder, capsys, *words):
    assert cli.main(["status", str(folder), *words]) == cli.OK
    return capsys.readouterr().out


def test_done_failed_and_missing_cells_are_counted_and_named(sweep, capsys):
    code, folder = sweep("[source, raises]")
    assert code == cli.FAILED_CELLS
    assert status(folder, capsys).startswith(f"{folder}: 2 of 4 cells done, 2 failed, 0 missing\n")
    next(folder.rglob("source/fog*.json")).unlink()
    told = status(folder, capsys)
    assert "1 of 4 cells done, 2 failed, 1 missing" in told and "no process runs it" in told
    assert "FAILED reset_each_domain-shuffled/raises/fog-5-seed42: KeyError: 'of a str" in told
    found = json.loads(status(folder, capsys, "--json"))
    assert found["missing"] == ["reset_each_domain-shuffled/source/fog-5-seed42"]
    assert found["running"] == [] and found["seconds_left"] is None and len(found["failed"]) == 2


def test_a_failure_is_forgotten_once_its_cell_is_there(sweep, capsys):
    _, folder = sweep("[source, raises]")
    code, _ = sweep("[source]")
    assert code == cli.OK
    assert status(folder, capsys) == f"{folder}: 2 of 2 cells done, 0 failed, 0 missing\n"


def test_cells_of_another_config_are_missing(sweep, capsys):
    _, folder = sweep("[tent]")
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("BATCH_SIZE: 50", "BATCH_SIZE: 4"))
    assert "0 of 2 cells done, 0 failed, 2 missing" in status(folder, capsys)


HOLDS = """
    import sys, time
    from pathlib import Path
    from tta_apm.bench.claims import Claims
    with Claims(Path(sys.argv[1]), "work") as claims:
        units = [("one/fog", "one/snow")]
        claims.take(units, units)
        print("held", flush=True)
        time.sleep(60)
"""


def test_who_is_at_work_is_told_until_they_end(sweep, tmp_path, capsys):
    _, folder = sweep("[source]")
    (tmp_path / "holds.py").write_text(textwrap.dedent(HOLDS))
    holder = subprocess.Popen([sys.executable, tmp_path / "holds.py", folder], text=True,
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == "held\n"
    try:
        (running,) = find_status(folder).running
        assert running["pid"] == holder.pid and running["cells"] == ["one/fog", "one/snow"]
        assert f"(process {holder.pid}) since 2" in status(folder, capsys)
        assert ": one/fog and 1 more, since 2" in status(folder, capsys)
        next(folder.rglob("fog*.json")).unlink()
        time.sleep(1.1)  # its times are whole seconds
        next(folder.rglob("contrast*.json")).touch()
        found = find_status(folder)
        assert found.cells_per_minute > 0 and found.seconds_left > 0
        assert " cells a minute, about 0:0" in status(folder, capsys)
    finally:
        holder.kill()
        holder.wait()
    assert find_status(folder).running == []


def test_a_folder_without_a_sweep_is_one_sentence(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == cli.BAD_INPUT
    assert "holds no sweep: config.yaml is not found there" in capsys.readouterr().err


def test_it_is_told_without_torch(sweep, tmp_path):
    _, folder = sweep("[source]")
    code = (f"import sys; from tta_apm.bench.status import find_status; "
            f"find_status(__import__('pathlib').Path({str(folder)!r})); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
