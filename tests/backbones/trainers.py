"""Files of weights in the formats of many trainers."""

from __future__ import annotations

import argparse
import collections
import pathlib
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tta_apm.backbones import small_resnets  # noqa: F401  (makes them known to timm)


class Written(NamedTuple):
    """The weights that a file should give, and other weights of the same network."""

    right: dict[str, Any]
    other: dict[str, Any]
    folder: Path


class Shape(NamedTuple):
    kind: str  # C: classifier, L: CLIP, P: CoOp, Q: CoCoOp
    what: str
    write: Callable[[Written], Path]
    told: str = ""  # in the error; "" where the weights are read
    label: str = ""  # of the set in the record, where it says which
    key: str = ""  # of the set, given by the user


def pre(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(make, name="weights.pth", **options):
    """A function that writes torch.save of `make(right weights, other weights)`."""
    def write(written):
        content = make(written.right, written.other)
        torch.save(content, written.folder / name, **options)
        return written.folder / name
    return write


def bytes_of(content, name="weights.pth"):
    def write(written):
        (written.folder / name).write_bytes(content)
        return written.folder / name
    return write


def safetensors(make):
    def write(written):
        save_file({name: tensor.contiguous() for name, tensor in make(
            written.right, written.other).items()}, written.folder / "weights.safetensors")
        return written.folder / "weights.safetensors"
    return write


def npz(written):
    np.savez(written.folder / "weights.npz",
             **{name: tensor.numpy() for name, tensor in written.right.items()})
    return written.folder / "weights.npz"


def npz_of_objects(written):
    np.savez(written.folder / "weights.npz", a=np.array({"pickled": 1}, dtype=object))
    return written.folder / "weights.npz"


def cut(written):
    torch.save(written.right, written.folder / "weights.pth")
    content = (written.folder / "weights.pth").read_bytes()
    (written.folder / "weights.pth").write_bytes(content[:len(content) // 2])
    return written.folder / "weights.pth"


def packed(written):
    torch.save(written.right, written.folder / "inside.pth")
    with tarfile.open(written.folder / "weights.pth", "w") as archive:
        archive.add(written.folder / "inside.pth", "inside.pth")
    return written.folder / "weights.pth"


def zipped(written):
    torch.save(written.right, written.folder / "inside.pth")
    with zipfile.ZipFile(written.folder / "weights.pth", "w") as archive:
        archive.write(written.folder / "inside.pth", "inside.pth")
    return written.folder / "weights.pth"


class Attributes(dict):
    """Stands for a class that only the trainer has, e.g. Lightning's AttributeDict."""


class Schedule:
    """As in Dassl's warm-up: a scheduler with another scheduler, which has an optimiser."""

    def __init__(self, net):
        self.optimizer = torch.optim.SGD(net, lr=0.1, momentum=0.9)
        self.successor = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 10)

    def state_dict(self):
        return {"last_epoch": 3, "successor": self.successor, "_step_count": 4}


def timm_train(right, other):
    return {"epoch": 3, "arch": "digits_resnet", "state_dict": right, "optimizer": adam(),
            "version": 2, "args": argparse.Namespace(lr=0.1, data="/data"), "amp_scaler": {},
            "metric": np.float64(70.1)}


def adam():
    """An optimiser's state after a step, as its state_dict."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def torchvision_reference(right, other):
    return {"model": right, "optimizer": adam(), "lr_scheduler": {"last_epoch": 3},
            "epoch": 3, "args": argparse.Namespace(output_dir=pathlib.PurePosixPath("/out"))}


def lightning(right, other):
    return {"epoch": 3, "global_step": 100, "pytorch-lightning_version": "2.2.0",
            "state_dict": {**pre("model.", right), "criterion.weight": torch.ones(10)},
            "loops": {"fit_loop": {"state_dict": {}}}, "hparams_name": "kwargs",
            "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {
                "best_model_score": torch.tensor(0.5), "best_k_models": {}}},
            "optimizer_states": [adam()], "lr_schedulers": [],
            "hyper_parameters": Attributes(lr=0.1, path=pathlib.PurePosixPath("/data"))}


def deepspeed(right, other):
    return {"module": right, "buffer_names": [], "optimizer": None, "param_shapes": None,
            "ds_config": {"train_batch_size": 8}, "ds_version": "0.14.0", "dp_world_size": 1,
            "mp_world_size": 1, "global_steps": np.int64(100), "args": argparse.Namespace()}


def averaged(right, other):
    """torch.optim.swa_utils.AveragedModel's state_dict."""
    return {"n_averaged": torch.tensor(7), **pre("module.", right)}


def dassl(right, other):
    weight = nn.Parameter(torch.ones(3))
    schedule = Schedule([weight])
    classes = {"token_prefix": torch.zeros(10, 1, 64), "token_suffix": torch.zeros(10, 5, 64)}
    return {"state_dict": collections.OrderedDict({**right, **classes}), "epoch": 50,
            "optimizer": schedule.optimizer.state_dict(), "scheduler": schedule.state_dict(),
            "val_result": np.float64(60.0)}


def network(written):
    """A whole network, pickled."""
    net = timm.create_model("digits_resnet")
    net.load_state_dict(written.right)
    torch.save(net, written.folder / "weights.pth")
    return written.folder / "weights.pth"


def script(written):
    net = timm.create_model("digits_resnet").eval()
    net.load_state_dict(written.right)
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(written.folder / "weights.pth")
    return written.folder / "weights.pth"


class Named(nn.Module):
    """A module with a network's parameters and without a forward."""

    def __init__(self, state):
        super().__init__()
        for name, tensor in state.items():
            *parents, last = name.split(".")
            module = self
            for parent in parents:
                if not hasattr(module, parent):
                    module.add_module(parent, nn.Module())
                module = getattr(module, parent)
            module.register_buffer(last, tensor)

    def forward(self, x):
        return x


def openai(written):
    """As OpenAI's archives: CLIP's names, half precision, and three sizes."""
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(24),
             "vocab_size": torch.tensor(49408)}
    half = {name: tensor.half() for name, tensor in written.right.items()}
    torch.jit.trace(Named({**half, **sizes}), torch.zeros(1)).save(written.folder / "jit.pt")
    return written.folder / "jit.pt"


def open_clip_train(right, other):
    return {"epoch": np.int64(3), "name": "run", "state_dict": pre("module.", right),
            "optimizer": adam(), "scaler": {}}


def plain(right, other):
    return right


SHAPES = {
    # Plain, in every format
    "K01": Shape("C", "a state_dict, torch.save", saved(plain)),
    "K02": Shape("C", "the same in torch's older format (before 1.6)",
                 saved(plain, _use_new_zipfile_serialization=False)),
    "K03": Shape("C", "the same under another name: .th, .bin, .ckpt, .tar",
                 saved(plain, name="model.pth.tar")),
    "K04": Shape("C", ".safetensors", safetensors(plain)),
    "K25": Shape("C", ".npz of arrays", npz),
    "K23": Shape("C", "TorchScript", script),
    "K24": Shape("C", "a whole network, pickled", network),
    "K20": Shape("C", "arrays of numpy in a dict", saved(
        lambda right, other: {name: tensor.numpy() for name, tensor in right.items()})),
    "K21": Shape("C", "half precision", saved(
        lambda right, other: {name: tensor.half() if tensor.is_floating_point() else tensor
                              for name, tensor in right.items()})),
    # Envelopes
    "K06": Shape("C", "`state_dict`", saved(lambda right, other: {"state_dict": right})),
    "K07": Shape("C", "`net`, `acc`, `epoch`", saved(
        lambda right, other: {"net": right, "acc": 93.5, "epoch": 3})),
    "K08": Shape("C", "`model_state_dict`", saved(
        lambda right, other: {"model_state_dict": right, "optimizer_state_dict": adam()})),
    "K08b": Shape("C", "`model_state`", saved(lambda right, other: {"model_state": right})),
    "K08c": Shape("C", "DeepSpeed's `module`", saved(deepspeed)),
    "K11": Shape("C", "timm's train.py: `args` a Namespace", saved(timm_train)),
    "K13": Shape("C", "torchvision's references: `args` a Namespace with a path",
                 saved(torchvision_reference)),
    "K14": Shape("C", "Lightning's .ckpt: `model.`, hyper-parameters of a class, callbacks",
                 saved(lightning, name="last.ckpt")),
    "K29": Shape("C", "`model` / `state_dict`", saved(
        lambda right, other: {"model": {"state_dict": right}})),
    "K29b": Shape("C", "`state_dict` / `model`", saved(
        lambda right, other: {"state_dict": {"model": right}})),
    "K30": Shape("C", "a list", saved(lambda right, other: [right, {"epoch": 3}])),
    "K30b": Shape("C", "a tuple", saved(lambda right, other: (3, right))),
    # Prefixes
    "K10": Shape("C", "`module.` (DataParallel)", saved(
        lambda right, other: {"state_dict": pre("module.", right)})),
    "K15": Shape("C", "`_orig_mod.` (torch.compile)", saved(
        lambda right, other: pre("_orig_mod.", right))),
    "K15b": Shape("C", "`module._orig_mod.`", saved(
        lambda right, other: {"model": pre("module._orig_mod.", right)})),
    "K16": Shape("C", "`module.` in .safetensors", safetensors(
        lambda right, other: pre("module.", right))),
    "K17": Shape("C", "`net.` or `backbone.` beside other modules", saved(
        lambda right, other: {**pre("backbone.", right), "projector.weight": torch.ones(3, 3)})),
    # Which of several
    "K05": Shape("C", "`model` and `model_ema`", saved(
        lambda right, other: {"model": other, "model_ema": right}), label="model_ema"),
    "K05b": Shape("C", "`state_dict` and `state_dict_ema`", saved(
        lambda right, other: {"state_dict": other, "state_dict_ema": pre("module.", right)}),
        label="state_dict_ema/module"),
    "K05c": Shape("C", "the same, WEIGHTS `file.pth#model`", saved(
        lambda right, other: {"model": right, "model_ema": other}), key="model", label="model"),
    "K05d": Shape("C", "averaged alone, as torch's AveragedModel leaves it", saved(averaged)),
    "K05e": Shape("C", "`student.` and `teacher.` in one state_dict", saved(
        lambda right, other: {"state_dict": {**pre("student.", other), **pre("teacher.", right)}}),
        told="holds 2 sets of weights that fit timm's digits_resnet: "
             "'state_dict/.*Say which, as in weights.pth#state_dict/"),
    "K05f": Shape("C", "the same, WEIGHTS `file.pth#teacher`", saved(
        lambda right, other: {"state_dict": {**pre("student.", other), **pre("teacher.", right)}}),
        key="teacher", label="state_dict/teacher"),
    "K05g": Shape("C", "one set under two names", saved(
        lambda right, other: {"model": right, "best": right})),
    "K05h": Shape("C", "a set that is not there: `file.pth#ema`", saved(
        lambda right, other: {"model": right, "best": other}), key="ema",
        told="has no set of weights 'ema'; those that fit .* are '(model|best)'"),
    # Not a checkpoint
    "K26": Shape("C", "a web page", bytes_of(b"<!DOCTYPE html><html>Sign in</html>"),
                 told="it is a web page"),
    "K26b": Shape("C", "a pointer of git-lfs", bytes_of(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "w.safetensors"),
        told="pointer of git-lfs.*git lfs pull"),
    "K26c": Shape("C", "a tar", packed, told="it is a tar archive: unpack it"),
    "K26d": Shape("C", "a zip of a checkpoint", zipped,
                  told=r"zip archive of other things \(inside.pth\): unpack it"),
    "K26e": Shape("C", "a .gz", bytes_of(b"\x1f\x8b\x08\0\0\0"), told="archive of gzip: unpack"),
    "K26f": Shape("C", "HDF5, of Keras", bytes_of(b"\x89HDF\r\n\x1a\n\0\0"), told="file of HDF5"),
    "K26g": Shape("C", "JSON, or another text", bytes_of(b'{"weights": [1, 2]}'),
                  told="it is a text, which starts with '{\"weights\""),
    "K27": Shape("C", "an empty file", bytes_of(b""), told="it is empty: get it again"),
    "K27b": Shape("C", "a file that is cut off", cut, told="it is incomplete: .*get it again"),
    "K28": Shape("C", "no tensors", saved(lambda right, other: {"epoch": 3}),
                 told="it holds no tensors"),
    # Of another network
    "K31": Shape("C", "a head of other classes", saved(
        lambda right, other: {**right, "fc.weight": torch.zeros(7, 128), "fc.bias": torch.zeros(7)}
        ), told="has 7 classes, the data set 10$"),
    "K32": Shape("C", "another network", saved(
        lambda right, other: timm.create_model("resnet18").state_dict()),
        told=r"of another network than timm's digits_resnet: .* It looks like timm's resnet18|"
             r"of another network .*; it looks like timm's resnet18$"),
    "K33": Shape("C", "tensors too few", saved(
        lambda right, other: {key: value for key, value in right.items() if key != "fc.bias"}),
        told=r"1 of its \d+ tensors are missing \(fc.bias\)$"),
    "K34": Shape("C", "whole numbers for weights, as quantised networks have", saved(
        lambda right, other: {**right, "fc.weight": right["fc.weight"].char()}),
        told=r"1 are of another shape \(fc.weight is \[10, 128\] int8, not \[10, 128\]\)"),
    # CLIP
    "K35": Shape("L", "open_clip's training: epoch a number of numpy, `module.`",
                 saved(open_clip_train)),
    "K36": Shape("L", "OpenAI's own archive (TorchScript)", openai,
                 told="was trained with QuickGELU according to OpenAI's archive, and 'digits_clip' "
                      "has GELU"),
    "K39": Shape("L", "`model`", saved(lambda right, other: {"model": right})),
    "K39b": Shape("L", "`model_state_dict`", saved(
        lambda right, other: {"model_state_dict": right})),
    "K41": Shape("L", "a whole network, pickled", saved(
        lambda right, other: Named(right))),
    "K42": Shape("L", ".npz", npz),
    "K42b": Shape("L", ".npz of pickled objects", npz_of_objects, told="it holds no tensors"),
    "K43": Shape("L", "{}", saved(lambda right, other: {}), told="it holds no tensors"),
    "K44": Shape("L", "a head beside", saved(
        lambda right, other: {**right, "head.weight": torch.ones(3, 3)}),
        told=r"1 are not the network's \(head.weight\)"),
    "K44b": Shape("L", "without logit_scale", saved(
        lambda right, other: {k: v for k, v in right.items() if k != "logit_scale"}),
        told=r"1 of its \d+ tensors are missing \(logit_scale\)"),
    "K44c": Shape("L", "attn_mask, position_ids beside", saved(
        lambda right, other: {**right, "attn_mask": torch.zeros(24, 24),
                              "text.position_ids": torch.arange(24)[None]})),
    "K44d": Shape("L", "logit_scale of shape [1]", saved(
        lambda right, other: {**right, "logit_scale": right["logit_scale"][None]})),
    "K45": Shape("L", "a table of positions of another resolution", saved(
        lambda right, other: {**right, "visual.positional_embedding": torch.zeros(145, 64)}),
        told=r"visual.positional_embedding is \[145, 64\], not \[65, 64\]"),
    # Prompts
    "K47": Shape("P", "CoOp, as its trainer (Dassl) writes it: a scheduler object", saved(
        dassl, name="model.pth.tar-50")),
    "K47b": Shape("Q", "CoCoOp, the same", saved(dassl, name="model.pth.tar-10")),
}
