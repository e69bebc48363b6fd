"""Whatever a row does, no other row of its sweep has other numbers for it."""

from __future__ import annotations

import pytest

from sweeps import STRANGERS
from tampering import CHANGES, TO_THE_BACKBONE, TO_THE_CLIP
from tta_apm import cli
from tta_apm.bench.records import load_predictions, load_record


@pytest.fixture
def sweep(tmp_path, capsys):
    """Run rows of strangers and ours; gives exit code, what was printed, rows' predictions."""
    def sweep(rows: list[str], folder: str, *overrides: str):
        config = tmp_path / f"{folder}.yaml"
        config.write_text(f"METHODS: {rows}\nPLUGINS: [{STRANGERS}]\nCORRUPTIONS: [fog, contrast]\n"
                          "NUM_IMAGES: 12\nBATCH_SIZE: 6\nSEVERITY: [5]\nSEEDS: [1]\n"
                          f"OUTPUT_DIR: {tmp_path / folder}\n")
        code = cli.main(["--cfg", str(config), *overrides])
        found: dict[str, list] = {}
        for record in sorted((tmp_path / folder).rglob("cells/**/*.json")):
            made = load_record(record)
            predictions = load_predictions(record, made)
            found.setdefault(made.row, []).append(
                (str(record.name), made.backbone, predictions.prediction.tobytes(),
                 predictions.confidence.tobytes()))
        return code, capsys.readouterr(), found
    return sweep


OURS = ["source", "norm", "tent", "clip_zero_shot", "noisy",
        "apm HIDDEN [16] STEPS 2 IMAGE_SIZE 32 PATCH 8 CODE 16"]


@pytest.fixture
def alone(sweep):
    """The rows of OURS, each run alone."""
    found = {}
    for index, row in enumerate(OURS):
        code, _, rows = sweep([row], f"alone{index}")
        assert code == cli.OK
        found |= rows
    assert list(map(len, found.values())) == [2] * len(OURS)
    return found


@pytest.mark.slow
def test_tent_without_a_copy_fails_by_name_and_changes_no_other_row(sweep, alone):
    code, printed, found = sweep(["tent_without_a_copy", *OURS], "together")
    assert code == cli.FAILED_CELLS
    assert found == alone
    assert "FAILED: changed what is not its own: the shared backbone (" in printed.out
    assert "tent_without_a_copy/fog-5-seed1" in printed.err
    assert "tent_without_a_copy/contrast-5-seed1" in printed.err


MOMENTS = ("init", "reset", "forward")


@pytest.mark.slow
@pytest.mark.parametrize("at", MOMENTS)
def test_whatever_is_done_changes_no_other_row(sweep, alone, environment, at):
    """A third of the changes each, each in a row of its own, before rows of ours."""
    changes = {index: change for index, change in enumerate(CHANGES)
               if at == ("forward" if change == "images" else MOMENTS[index % 3])}
    rows = [f"{'clip_' if change in TO_THE_CLIP else ''}spoiler CHANGE {index} AT {at}"
            for index, change in changes.items()]
    code, printed, found = sweep([*rows, *OURS], "together")
    assert code == cli.FAILED_CELLS, printed.err
    assert found == alone
    lines = [line for line in printed.out.splitlines() if "FAILED: " in line]
    assert len(lines) == 2 * len(rows)
    for row, change, told in zip(rows, changes.values(), lines[::2]):
        assert told.startswith(row) and "FAILED: changed what is not its own: " in told
        what = ("the shared backbone (" if change in TO_THE_BACKBONE else
                "the images that it was given" if change == "images" else change)
        assert what in told
    if "no running statistics" in changes.values():
        assert ("running_mean); then it failed: RuntimeError: running_mean must be defined in "
                "evaluation mode (functional.py:") in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("how, why", [
    ("exits", "SystemExit: no message (strangers.py:"),
    ("exits_with_3", "SystemExit: 3 (strangers.py:"),
    ("closes_a_generator", "GeneratorExit: no message ("),
    ("stops", "StopIteration: no message ("),
    ("has_no_text", "Text: its message cannot be shown ("),
    ("another", "BaseException: other (strangers.py:")])
def test_however_a_method_ends_its_cells_alone_fail(sweep, how, why):
    code, printed, found = sweep([f"ends HOW {how}", "source"], "ends")
    assert code == cli.FAILED_CELLS
    assert list(found) == ["source"]
    assert printed.out.count("FAILED: " + why) == 2


def test_an_interrupt_is_none_of_a_methods_faults(sweep):
    code, printed, found = sweep(["ends HOW interrupts", "source"], "ends")
    assert code == cli.INTERRUPTED and not found


@pytest.mark.slow
@pytest.mark.parametrize("what, why", [
    ("resolved_tensor", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_nan", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_inf", "has `resolved` 'lr' that a record cannot hold"),
    ("resolved_key", "has `resolved` 1 that a record cannot hold"),
    ("resolved_list", "has `resolved` of type list instead of a dict"),
    ("details_list", "has details of type list instead of a dict"),
    ("details_nan", "has details 'cosine' that are not finite")])
def test_what_no_record_holds_fails_its_cells_alone(sweep, tmp_path, what, why):
    code, printed, found = sweep([f"tells WHAT {what}", "source"], "tells")
    assert code == cli.FAILED_CELLS
    assert list(found) == ["source"]
    assert printed.out.count("FAILED: " + why) == 2
    assert len(list((tmp_path / "tells").rglob("*.npz"))) == 2  # none without a record


@pytest.mark.slow
def test_rows_give_the_same_in_any_order(sweep, alone):
    code, _, found = sweep(OURS[::-1], "reversed")
    assert code == cli.OK and found == alone


@pytest.mark.slow
def test_what_a_method_draws_depends_on_the_seed_and_on_no_cell_before(sweep, alone):
    _, _, found = sweep(["noisy"], "contrast", "CORRUPTIONS", "[contrast]")
    assert found["noisy"] == [cell for cell in alone["noisy"] if cell[0].startswith("contrast")]
    _, _, other = sweep(["noisy"], "other", "SEEDS", "[2]")
    assert {cell[3] for cell in other["noisy"]}.isdisjoint(cell[3] for cell in alone["noisy"])


def test_a_row_that_uses_global_random_generators_is_named_once(sweep):
    code, printed, _ = sweep(["noisy", "source"], "noisy")
    assert code == cli.OK
    assert printed.err.count("uses the global random generators of") == 1
    assert ("noisy uses the global random generators of Python, numpy, torch: it is given its "
            "own, seeded with the row's seed\n") in printed.err
