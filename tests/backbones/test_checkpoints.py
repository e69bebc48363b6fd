"""The kinds of files that trainers write: each is written as its trainer does, and read.

docs/checkpoints.md has the same table; `python tests/backbones/test_checkpoints.py` writes it
there.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from places import ROOT
from trainers import SHAPES, Written
from tta_apm.backbones import small_resnets  # noqa: F401  (makes them known to timm)
from tta_apm.backbones.classifiers import load_classifier
from tta_apm.backbones.clip import load_clip
from tta_apm.backbones.clip_prompts import load_context
from tta_apm.backbones.weights import files
from tta_apm.data.digits import CLASS_NAMES
from tta_apm.errors import UserError

DOCS = ROOT / "docs/checkpoints.md"
BEGIN, END = "<!-- table: tests/backbones/test_checkpoints.py -->", "<!-- end -->"
KINDS = {"C": "classifier", "L": "CLIP", "P": "CoOp", "Q": "CoCoOp"}
PACKAGED = {"C": "digits_resnet", "L": "digits_clip", "P": "digits_coop", "Q": "digits_cocoop"}


def load(kind: str, weights: str, clip) -> tuple[dict[str, Any], str]:
    """The tensors of a loaded network, and their description in the record."""
    if kind == "C":
        backbone = load_classifier("timm/digits_resnet", weights, num_classes=10, device="cpu")
        return backbone.net.state_dict(), backbone.weights
    if kind == "L":
        backbone = load_clip("digits_clip", weights, class_names=CLASS_NAMES, templates=("{}",),
                             device="cpu")
        return backbone.model.state_dict(), backbone.weights
    return load_context(weights, clip, meta_net=kind == "Q").state_dict(), ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_read_or_told(name, digits_clip, tmp_path):
    shape = SHAPES[name]
    right = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in
             files.read(files.PACKAGED / f"{PACKAGED[shape.kind]}.safetensors").items()}
    other = {key: tensor + 1 for key, tensor in right.items()}
    file = shape.write(Written(right, other, tmp_path))
    weights = f"{file}#{shape.key}" if shape.key else str(file)
    if shape.told:
        with pytest.raises(UserError, match=re.escape(file.name)) as caught:
            load(shape.kind, weights, digits_clip)
        assert re.search(shape.told, str(caught.value)), caught.value
        assert "\n" not in str(caught.value)
        return
    found, told = load(shape.kind, weights, digits_clip)
    assert found.keys() == right.keys()
    for key, tensor in right.items():
        assert torch.allclose(found[key].float(), tensor.float(), atol=1e-3, rtol=1e-3), key
    if shape.kind in "CL":
        assert told.split()[0] == file.name + (f"#{shape.label}" if shape.label else "")


def table() -> str:
    """The kinds of files as the table of docs/checkpoints.md."""
    lines = ["| id | weights of | shape | what happens |", "| --- | --- | --- | --- |"]
    for name, shape in SHAPES.items():
        outcome = "read" if not shape.told else f"told: {words(shape.told)}"
        if shape.label:
            outcome += f"; the record says `#{shape.label}`"
        lines.append(f"| {name} | {KINDS[shape.kind]} | {shape.what} | {outcome} |")
    return "\n".join(lines)


def words(pattern: str) -> str:
    """A pattern as readable text."""
    text = pattern.split("|of another")[0].replace(r"\d+", "N").replace("\\", "")
    return text.replace(".*", " ... ").replace("$", "").replace("  ", " ").replace("|", " or ")


def test_the_docs_hold_the_table():
    text = DOCS.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == table()


if __name__ == "__main__":
    start, rest = DOCS.read_text(encoding="utf-8").split(BEGIN)
    DOCS.write_text(f"{start}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
