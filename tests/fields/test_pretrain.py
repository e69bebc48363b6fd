"""Pretraining: configs, images, teachers, losses, cache, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from places import ROOT
from small_student import SHORT
from tta_apm import config
from tta_apm.apm.losses import Targets
from tta_apm.cli import main
from tta_apm.errors import UserError
from tta_apm.fields.checkpoint import build_student
from tta_apm.fields.config import from_config, keys
from tta_apm.fields.feature_cache import FeatureCache
from tta_apm.fields.losses import ColumnLosses
from tta_apm.fields.photos import Photos, Preprocessing, find_images
from tta_apm.fields.pretrain import STUDENT_FILE, pretrain
from tta_apm.fields.teachers import load_teacher
from tta_apm.toolbox.precision import computing_in

CONFIGS = sorted((ROOT / "configs/pretrain").glob("*.yaml"))
CPU = torch.device("cpu")
TAUGHT = replace(SHORT, teacher="timm/test_vit", weights="random", image_size=64, patch=8,
                 grid_weight=1.0, cls_weight=1.0, crop=0.0)


@pytest.fixture
def photos(tmp_path):
    """Five small images, two of them in a folder below, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        name = f"below/{number}.png" if number > 2 else f"{number}.jpg"
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return str(folder)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_can_be_trained_by_and_says_what_it_is(file):
    cfg = from_config(config.load_keys(file, (), keys()))
    assert file.read_text().startswith("# ")
    assert cfg.output_dir == f"results/pretrain/{file.stem}"


def test_the_config_of_section_5_is_the_student_of_table_6():
    cfg = from_config(config.load_keys("cfgs/pretrain/coco_dinov2.yaml", (), keys()))
    widths = [cfg.kernels * cfg.grid**2 + cfg.code, *cfg.hidden, 1024]
    layers = sum((before + 1) * after for before, after in zip(widths, widths[1:]))
    assert layers + cfg.kernels * (3 * cfg.patch**2 + 1) == 53_494_349


@pytest.mark.parametrize("overrides, message", [
    (["STEPZ", "3"], "unknown key 'STEPZ': did you mean 'STEPS'"),
    (["LR", "fast"], "LR takes a number"),
    (["TEACHER", "none"], "TEACHER none leaves the losses cls and grid without a target"),
    (["GRID_WEIGHT", "0", "RGB_WEIGHT", "0"], "there is no loss"),
    (["PATCH", "7"], "IMAGE_SIZE 256 is not a multiple of PATCH 7"),
    (["CODE", "6"], "CODE 6 is not a multiple of 4"),
    (["HIDDEN", "[]"], "at least one"),
    (["CROP", "1.5"], "from 0 to 1"),
    (["CACHE", "somewhere"], "set only one of the two"),
    (["PRECISION", "bfloat"], "did you mean 'bfloat16'"),
    (["BATCH_SIZE", "0"], "BATCH_SIZE 0 must be at least 1"),
    (["RGB_WEIGHT", "-1"], "RGB_WEIGHT -1.0 must be at least 0"),
    (["IMAGES", "no/such/folder"], "folder not found: 'no/such/folder'"),
    (["TEACHER", "resnet50"], "must be none or one of timm/NAME, clip/NAME"),
    (["TEACHER", "timm/test_vitt"], "timm has no such model: did you mean 'test_vit'"),
    (["TEACHER", "timm/resnet18"], "it is not a ViT of timm"),
    (["TEACHER", "clip/ViT-B-1"], "did you mean"),
    (["WEIGHTS", "no_such_file.pth"], "file not found: 'no_such_file.pth'"),
    (["DEVICE", "cuda:77"], "DEVICE 'cuda:77' cannot be used here"),
])
def test_bad_input_is_one_sentence(overrides, message, tmp_path, capsys):
    code = main(["pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "OUTPUT_DIR", str(tmp_path),
                 *overrides])
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_unreadable_image_is_named(photos, tmp_path):
    (Path(photos) / "broken.jpg").write_bytes(b"no image")
    cfg = replace(SHORT, images=photos, output_dir=str(tmp_path / "out"))
    for workers in (0, 1):
        with pytest.raises(UserError, match="cannot read the image .*broken.jpg") as caught:
            pretrain(replace(cfg, num_workers=workers))
        assert "\n" not in str(caught.value)


def test_a_folder_is_searched_below_and_other_files_are_left_out(photos, tmp_path):
    assert [file.name for file in find_images(photos)] == ["0.jpg", "1.jpg", "2.jpg", "3.png",
                                                           "4.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image file"):
        find_images(str(tmp_path / "empty"))


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(photos):
    shown = Photos(find_images(photos), 16, 0.5, seed=1)
    order = [shown.index(position) for position in range(15)]
    epochs = [order[start:start + 5] for start in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    first, again = shown[3], shown[3]
    assert first[0] == again[0] and torch.equal(first[1], again[1])
    whole = Photos(find_images(photos), 16, 0.0, seed=1)
    assert not torch.equal(first[1], whole[3][1])


def test_an_order_is_drawn_once_per_epoch_and_is_that_of_its_seed(photos, monkeypatch):
    """A draw per image took as long as there are files: 118,000 in COCO."""
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: drawn.append(key) or draw(key))
    files = find_images(photos)
    for seed in (8, 9):
        shown = Photos(files, 16, 0.0, seed)
        for position in (4, 5, 3, 6, 11):  # the first two epochs together, as in a batch
            epoch, index = divmod(position, 5)
            assert shown.index(position) == draw((seed, epoch)).permutation(5)[index]
    assert drawn == [(seed, epoch) for seed in (8, 9) for epoch in (0, 1, 2)]


def test_the_losses_are_the_plain_ones():
    cfg = replace(TAUGHT, cls_weight=0.5, grid_weight=2.0, rgb_weight=3.0)
    student = build_student(cfg, 7)
    images = torch.rand(2, 3, 64, 64)
    targets = Targets(torch.randn(2, 7), torch.randn(2, 64, 7))
    objective = ColumnLosses(student, cfg)
    losses = objective(images, targets)
    expected = torch.zeros(3)
    for image, shown, wanted, grid in zip(images, Preprocessing(64)(images), targets.feature,
                                          targets.grid):
        inputs = student.unfold(shown)
        features = student.columns(inputs)
        patches = image.unfold(1, 8, 8).unfold(2, 8, 8).mean((3, 4)).flatten(1).T
        expected += torch.stack([(features.mean(0) - wanted).square().mean(),
                                 (features - grid).square().mean(),
                                 (student.colours(inputs, features) - patches).square().mean()]) / 2
    assert torch.allclose(losses, expected, rtol=1e-5)
    assert torch.allclose(objective.total(losses), expected @ torch.tensor([0.5, 2.0, 3.0]))


def test_what_every_step_needs_moves_with_the_module():
    """Once, not as a copy from the host at each step."""
    objective = ColumnLosses(build_student(TAUGHT, 7), TAUGHT).to("meta")
    assert objective.weights.device.type == objective.preprocess.std.device.type == "meta"
    assert not [name for name in objective.state_dict() if not name.startswith("student.")]


def test_precision_is_that_of_the_device(photos, tmp_path, monkeypatch):
    asked = []

    def remember(precision, device):
        asked.append(precision)
        return computing_in(precision, device)
    monkeypatch.setattr("tta_apm.fields.pretrain.computing_in", remember)
    for precision in ("auto", "bfloat16"):
        pretrain(replace(SHORT, images=photos, steps=1, precision=precision,
                         output_dir=str(tmp_path / precision)))
    assert asked == ["float32", "bfloat16"]


@pytest.mark.slow
def test_prefix_tokens_of_a_timm_teacher_are_dropped_at_the_front():
    """CLS and the 4 registers of DINOv2 come before the patches, which must all be there."""
    cfg = replace(TAUGHT, teacher="timm/vit_small_patch14_reg4_dinov2", image_size=56, patch=14)
    teacher = load_teacher(cfg, CPU)
    images = torch.rand(1, 3, 56, 56)
    features, grid = teacher.encode(images)
    assert features.shape == (1, 384) and grid.shape == (1, 4, 4, 384)
    import timm
    torch.manual_seed(cfg.seed)
    net = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56).eval()
    tokens = net.forward_features(Preprocessing(56)(images))
    assert tokens.shape[1] == 1 + 4 + 16
    assert torch.equal(grid.flatten(1, 2), tokens[:, 5:])
    assert torch.equal(features, tokens[:, 0])


def test_weights_of_a_teacher_come_from_a_file_that_must_fit(tmp_path):
    import timm
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "right.pth")
    torch.save(timm.create_model("test_vit", depth=2).state_dict(), tmp_path / "wrong.pth")
    right = load_teacher(replace(TAUGHT, weights=str(tmp_path / "right.pth")), CPU)
    assert right.encode(torch.rand(1, 3, 64, 64))[1].shape == (1, 4, 4, 64)
    with pytest.raises(UserError, match=r"wrong.pth is of another network.*blocks.5.mlp.fc2.bias"):
        load_teacher(replace(TAUGHT, weights=str(tmp_path / "wrong.pth")), CPU)


def test_a_grid_of_another_size_is_resampled_to_the_columns():
    teacher = load_teacher(TAUGHT, CPU)
    _, grid = teacher.encode(torch.rand(1, 3, 64, 64))
    _, columns = teacher.targets(torch.rand(1, 3, 64, 64), TAUGHT.grid)
    assert grid.shape[1:3] == (4, 4) and columns.shape == (1, 64, 64)


@pytest.mark.slow
def test_cached_features_are_the_teachers_and_a_broken_off_cache_goes_on(photos, tmp_path):
    fresh = replace(TAUGHT, images=photos, output_dir=str(tmp_path / "fresh"))
    cached = replace(fresh, cache=str(tmp_path / "cache"), output_dir=str(tmp_path / "cached"))
    asked, kept = pretrain(fresh), pretrain(cached)
    assert torch.allclose(asked.losses, kept.losses, atol=2e-3)  # of float16

    done = np.load(tmp_path / "cache/done.npy", mmap_mode="r+")
    assert done.all()
    done[1:3] = 0
    grids = np.load(tmp_path / "cache/grids.npy", mmap_mode="r+")
    before = grids.copy()
    grids[1:3] = 0
    grids.flush(), done.flush()
    again = pretrain(replace(cached, output_dir=str(tmp_path / "again")))
    assert torch.equal(kept.losses, again.losses)
    assert np.array_equal(np.load(tmp_path / "cache/grids.npy"), before)


def test_a_cache_of_something_else_is_refused(photos, tmp_path):
    files = find_images(photos)
    FeatureCache(tmp_path / "cache", files, "one", 4, 3)
    with pytest.raises(UserError, match="other images or of another teacher"):
        FeatureCache(tmp_path / "cache", files, "other", 4, 3)
    with pytest.raises(UserError, match="would take .* GB"):
        FeatureCache(tmp_path / "large", files, "one", 2**40, 3)


@pytest.mark.slow
def test_the_command_leaves_a_student_and_the_picture_of_its_losses(tmp_path, capsys):
    assert main(["pretrain", "--cfg", "cfgs/pretrain/quick.yaml", "IMAGE_SIZE", "64", "STEPS", "2",
                 "BATCH_SIZE", "2", "OUTPUT_DIR", str(tmp_path)]) == 0
    assert str(tmp_path / STUDENT_FILE) in capsys.readouterr().out
    with Image.open(tmp_path / "losses.png") as picture:
        assert picture.width > 1000
    assert main(["islands", "sklearn/china.jpg", "--student", str(tmp_path / STUDENT_FILE),
                 "--embedding", "pca", "--error-map", "--out", str(tmp_path / "a.png")]) == 0
