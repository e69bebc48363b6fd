"""Fixtures of the tests of imported rows and of hosts."""

from __future__ import annotations

import json

import pytest

from host_runs import STANDINS
from tta_apm import cli
from tta_apm.data.digits import CLASS_NAMES, TEMPLATE_SET
from tta_apm.interop import logs
from tta_apm.interop.hosts import backbones, benchmark_tta, online_tta, ttab


@pytest.fixture
def ours(write_cell):
    """Write a cell of 10 images, `right` of them classified correctly."""
    return lambda corruption, right, row="tent": write_cell(row, corruption, right,
                                                            dataset="cifar10_c")


@pytest.fixture
def log(tmp_path):
    """Write a log and read it."""
    def read(text, name="run.txt", **options):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return logs.read(file, **options)
    return read


@pytest.fixture
def hosts_of_digits(monkeypatch):
    """The stand-ins do not need the hosts' packages, and the packaged CLIP knows digits only."""
    for host in (online_tta, ttab, benchmark_tta):
        monkeypatch.setattr(host, "PACKAGES", {})
    monkeypatch.setattr(backbones, "_classes", lambda dataset: (CLASS_NAMES, TEMPLATE_SET))


def command(host: str, *words: str) -> list[str]:
    """The words of a command line that runs a stand-in."""
    return ["host", host, "--repo", str(STANDINS / host.replace("-", "_")), "--", *words]


@pytest.fixture
def refused(capsys):
    """Run a stand-in with words that are refused; returns what is said."""
    def run(host: str, *words: str) -> str:
        assert cli.main(command(host, *words)) == 2
        return capsys.readouterr().err
    return run


@pytest.fixture
def in_host(tmp_path, hosts_of_digits):
    """Run a stand-in by the command line; returns its trace."""
    def run(host: str, *words: str) -> dict:
        trace = tmp_path / "trace.json"
        option = ["--trace", str(trace)] if host == "ttab" else []
        pairs = [] if option else ["TRACE", str(trace)]
        assert cli.main(command(host, *option, *words, *pairs)) == 0
        return json.loads(trace.read_text())
    return run
