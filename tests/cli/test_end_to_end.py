"""The command of a user, from the files of a benchmark to its tables; the networks are random."""

from __future__ import annotations

import csv

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

from tta_apm import cli
from tta_apm.backbones import clip  # noqa: F401  (makes our models known to open_clip and timm)
from tta_apm.bench.records import find_records, load_predictions, load_record
from tta_apm.data import imagenet_classes

NUM_IMAGES = 4
LISTED = imagenet_classes.robustbench_images()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """ImageNet-C as it unpacks, with two corruptions and the first images of the list."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for corruption in ("fog", "snow"):
        folder = root / "ImageNet-C" / corruption / "5"
        for wnid in imagenet_classes.wnids():
            (folder / wnid).mkdir(parents=True)
        for file in LISTED[:NUM_IMAGES]:
            pixels = generator.integers(0, 256, (7, 7, 3), np.uint8)
            Image.fromarray(pixels).resize((224, 224)).save(folder / file, quality=85)
    return root


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Local files of weights: of a classifier of 1,000 classes, and of a CLIP."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    torch.save(timm.create_model("digits_resnet", num_classes=1000).state_dict(), folder / "c.pth")
    torch.save(open_clip.create_model("digits_clip").state_dict(), folder / "clip.pth")
    return folder


@pytest.mark.slow
def test_imagenet_c_from_files_to_tables(data_dir, checkpoints, tmp_path, capsys):
    words = ["--cfg", "cfgs/imagenet_c/all.yaml", "DATA_DIR", str(data_dir),
             "OUTPUT_DIR", str(tmp_path), "METHODS", "[source, tent, clip_zero_shot, apm]",
             "CORRUPTIONS", "[fog, snow]", "NUM_IMAGES", str(NUM_IMAGES), "BATCH_SIZE", "2",
             "TEMPLATES", "single", "DEVICE", "cpu",
             "CLASSIFIER.MODEL", "timm/digits_resnet", "CLASSIFIER.WEIGHTS",
             str(checkpoints / "c.pth"),
             "CLIP.MODEL", "digits_clip", "CLIP.WEIGHTS", str(checkpoints / "clip.pth"),
             "APM.IMAGE_SIZE", "32", "APM.PATCH", "8", "APM.CODE", "16", "APM.HIDDEN", "[32]"]
    assert cli.main(words) == cli.OK
    records = {path: load_record(path) for path in find_records(tmp_path / "cells")}
    assert len(records) == 4 * 2
    for path, record in records.items():
        predictions = load_predictions(path, record)
        assert sorted(predictions.index) == list(range(NUM_IMAGES))
        wnids = [LISTED[index].split("/")[0] for index in predictions.index]
        assert [imagenet_classes.wnids()[label] for label in predictions.label] == wnids
        assert record.images_from == "official ImageNet-C, 5000 images"
        assert record.weights.startswith(("c.pth ", "clip.pth ")) and len(record.weights) > 20
    lines = (tmp_path / "table.csv").read_text().splitlines()
    rows = {row[0]: row for row in csv.reader(lines)}
    assert {"source", "tent", "clip_zero_shot", "apm"} <= rows.keys()
    assert "fog" in (tmp_path / "table.md").read_text()
    assert "\\begin{tabular}" in (tmp_path / "table.tex").read_text()
    capsys.readouterr()
    assert cli.main(words) == cli.OK  # nothing is left to run, so no image is needed
    assert "to run" not in capsys.readouterr().out


def test_without_data_the_answer_is_quick_and_leaves_nothing(tmp_path, capsys):
    folder = tmp_path / "results"
    assert cli.main(["--cfg", "cfgs/imagenet_c/apm.yaml", "DATA_DIR", str(tmp_path),
                     "OUTPUT_DIR", str(folder)]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "zenodo.org/records/2235448" in told and "ImageNet-C/fog/5" in told
    assert not folder.exists()


def test_without_weights_the_answer_says_where_to_put_them(data_dir, tmp_path, capsys):
    assert cli.main(["--cfg", "cfgs/imagenet_c/ttt_mae.yaml", "DATA_DIR", str(data_dir),
                     "CORRUPTIONS", "[fog]", "OUTPUT_DIR", str(tmp_path)]) == cli.BAD_INPUT
    told = capsys.readouterr().err
    assert "MAE.WEIGHTS: file not found: 'mae_pretrain_vit_large_full.pth'" in told
    assert "dl.fbaipublicfiles.com" in told
