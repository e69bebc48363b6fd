"""Sides: of each method ours and its authors' code, set up for the same work."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import math
import sys
import types
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tta_apm.backbones.classifiers import Classifier
from tta_apm.registry import METHODS
from tta_apm.toolbox.domain_images import TensorImages

Side = Callable[[Tensor], Any]
HOST = "test-time-adaptation"
# A share of ln K that no entropy exceeds.
OPEN = 1.05
LR = 2.5e-4


class Bench:
    """A network, and the folder with the clones.

    Args:
        batch: a first one.
    """

    def __init__(self, clones: Path, network: Classifier, batch: Tensor, num_classes: int) -> None:
        self.clones = clones
        self.network = network
        self.batch = batch
        self.num_classes = num_classes

    def ours(self, name: str, **keywords: Any) -> Side:
        return METHODS.load(name)(self.network, **keywords)

    def module(self, file: str) -> Any:
        """A module of a clone, by its file."""
        path = self.clones / file
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def ready(self, module: Any) -> tuple[nn.Module, list[nn.Parameter]]:
        """A copy of the network as a module's `configure_model` wants it, and what it adapts."""
        model = module.configure_model(copy.deepcopy(self.network))
        parameters, _ = module.collect_params(model)
        return model, parameters

    def hosted(self, name: str, *options: object, first: int | None = None) -> Any:
        """A method of online-tta that has met the `first` images of a batch, without what our
        adapter does around each call."""
        from tta_apm.interop.hosts.online_tta_methods import OnlineTta

        words = ("OPTIM.METHOD", "SGD", "OPTIM.NESTEROV", False, "OPTIM.LR", LR, *options)
        method = OnlineTta(self.network, repo=str(self.clones / HOST), name=name,
                           options=list(map(str, words)))
        method(self.batch[:first])
        return method.adapted


def eata(bench: Bench) -> tuple[Side, Side]:
    module = bench.module("EATA/eata.py")
    model, parameters = bench.ready(module)
    theirs = module.EATA(model, torch.optim.SGD(parameters, LR, momentum=0.9), d_margin=2.0,
                         e_margin=OPEN * math.log(bench.num_classes))
    return bench.ours("eata", fisher_alpha=0.0, entropy_margin=OPEN, diversity_margin=2.0), theirs


def sar(bench: Bench) -> tuple[Side, Side]:
    module = bench.module("SAR/sar.py")
    model, parameters = bench.ready(module)
    optimizer = bench.module("SAR/sam.py").SAM(parameters, torch.optim.SGD, lr=LR, momentum=0.9)
    theirs = module.SAR(model, optimizer, margin_e0=OPEN * math.log(bench.num_classes))
    return bench.ours("sar", entropy_margin=OPEN, recovery=0.0), theirs


def deyo(bench: Bench) -> tuple[Side, Side]:
    """With the second filter at 0, which about half of the images pass."""
    module = bench.module("DeYO/methods/deyo.py")
    model, parameters = bench.ready(module)
    words = argparse.Namespace(
        wandb_log=False, filter_ent=True, filter_plpd=True, aug_type="patch", patch_len=4,
        plpd_threshold=0.0, reweight_ent=1, reweight_plpd=1)
    largest = math.log(bench.num_classes)
    method = module.DeYO(model, words, torch.optim.SGD(parameters, LR, momentum=0.9),
                         deyo_margin=OPEN * largest, margin_e0=0.4 * largest)
    return bench.ours("deyo", entropy_margin=OPEN, plpd=0.0), lambda images: method(images, 0)


def cotta(bench: Bench, views: int = 0) -> tuple[Side, Side]:
    """Where the source network is sure of all."""
    ours = bench.ours("cotta", lr=LR, optimizer="sgd", confidence=float(views > 0),
                      num_views=max(1, views))
    return ours, bench.hosted("cotta", "COTTA.AP", float(views > 0), "TEST.N_AUGMENTATIONS", views)


def cotta_views(bench: Bench) -> tuple[Side, Side]:
    """Where it is not: with 8 views in place of 32, for time."""
    return cotta(bench, 8)


def roid(bench: Bench) -> tuple[Side, Side]:
    return bench.ours("roid", lr=LR, optimizer="sgd"), bench.hosted("roid")


def rotta(bench: Bench) -> tuple[Side, Side]:
    """One update for each batch; with the call mended that stops theirs."""
    size = len(bench.batch)
    theirs = bench.hosted("rotta", "ROTTA.MEMORY_SIZE", size, "ROTTA.UPDATE_FREQUENCY", size,
                          first=size - 1)  # no update until the call is mended
    theirs.loss_calculation = lambda *_: type(theirs).loss_calculation(theirs)
    return bench.ours("rotta", lr=LR, optimizer="sgd", memory=size, update_every=size), theirs


def note(bench: Bench) -> tuple[Side, Side]:
    """One update for each batch. Theirs runs each image twice, for its label in the memory and for
    its prediction; what it writes into files is left out."""
    size = len(bench.batch)
    words = argparse.Namespace(
        gpu_idx=0, use_learned_stats=True, bn_momentum=0.01, iabn=True, iabn_k=4.0, skip_thres=1,
        update_every_x=size, memory_type="PBRS", epoch=1, no_optim=False, no_adapt=False,
        temperature=1.0, opt={"num_class": bench.num_classes, "batch_size": size})
    conf, base = types.ModuleType("conf"), types.ModuleType("learner.dnn")
    conf.args = words  # type: ignore[attr-defined]
    base.DNN = object  # type: ignore[attr-defined]
    package = types.ModuleType("learner")
    package.__path__ = [str(bench.clones / "NOTE" / "learner")]
    sys.modules |= {"conf": conf, "learner": package, "learner.dnn": base}
    sys.path.insert(0, str(bench.clones / "NOTE"))
    module = importlib.import_module("learner.note")
    theirs = module.NOTE.__new__(module.NOTE)
    theirs.net = module.convert_iabn(copy.deepcopy(bench.network)).to(bench.batch.device)
    theirs.__init__()
    theirs.optimizer = torch.optim.Adam(theirs.net.parameters(), lr=LR)
    theirs.mem = module.memory.PBRS(size)
    theirs.log_loss_results = lambda *_, **__: None

    def predict(number: int, condition: str, sample: Any) -> Tensor:
        with torch.no_grad():
            return theirs.net.eval()(torch.stack(sample[0]))
    theirs.evaluation_online = predict

    @torch.enable_grad()
    def adapt(images: Tensor) -> None:
        theirs.target_train_set = images, *torch.zeros(2, len(images), dtype=torch.long)
        for number in range(1, len(images) + 1):
            theirs.train_online(number)
    return bench.ours("note", lr=LR, memory=size, update_every=size), adapt


def adacontrast(bench: Bench) -> tuple[Side, Side]:
    """With the views, which theirs makes of pictures of 8 bits, one by one."""
    from tta_apm.interop.hosts.online_tta_methods import OnlineTta

    words = ("OPTIM.METHOD", "SGD", "OPTIM.LR", LR, "OPTIM.WD", 1e-4, "CONTRAST.TEMPERATURE", 0.07)
    theirs = OnlineTta(bench.network, repo=str(bench.clones / HOST), name="adacontrast",
                       options=list(map(str, words)))
    return bench.ours("adacontrast", lr=LR), theirs


def shot(bench: Bench) -> tuple[Side, Side]:
    """Each batch is a domain of its own, for one epoch in parts of a quarter. What theirs reads
    from files and prints is left out."""
    size = max(2, len(bench.batch) // 4)
    ours: Any = bench.ours("shot", epochs=1, batch_size=size, lr=LR)
    sys.path.insert(0, str(bench.clones / "SHOT/object"))
    parts, lists = types.ModuleType("network"), types.ModuleType("data_list")
    lists.ImageList = lists.ImageList_idx = None  # type: ignore[attr-defined]
    sys.modules |= {"network": parts, "data_list": lists}
    module = bench.module("SHOT/object/image_target.py")
    words = argparse.Namespace(
        net="resnet", classifier="", bottleneck=0, layer="", class_num=bench.num_classes,
        output_dir_src="", lr=10 * LR, lr_decay1=0.1, lr_decay2=1.0, max_epoch=1, interval=1,
        cls_par=0.3, ent_par=1.0, ent=True, gent=True, epsilon=1e-5, dset="", threshold=0,
        distance="cosine", name="", out_file=io.StringIO(), issave=False)

    def prepare(images: Tensor) -> None:
        ours.reset()
        ours.prepare(TensorImages(images))

    @torch.enable_grad()
    def theirs(images: Tensor) -> None:
        featurizer, head = split(copy.deepcopy(bench.network))
        featurizer.requires_grad_(True)
        featurizer.in_features = None  # type: ignore[assignment]  # no bottleneck follows
        parts.ResBase = lambda **_: featurizer  # type: ignore[attr-defined]
        parts.feat_bottleneck = lambda **_: nn.Identity()  # type: ignore[attr-defined]
        parts.feat_classifier = lambda **_: head  # type: ignore[attr-defined]
        module.data_load = lambda _: {"target": Loader(images, size), "test": Loader(images, size)}
        with (mock.patch.object(torch, "load"), mock.patch.object(nn.Module, "load_state_dict"),
              mock.patch.object(nn.Module, "cuda", lambda part: part),
              mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
              redirect_stdout(io.StringIO())):
            module.train_target(words)
    return prepare, theirs


def uda_ss(bench: Bench) -> tuple[Side, Side]:
    """Each batch is a domain of its own, on which and on as many source images a network is
    trained for one epoch, in parts of a quarter. What theirs measures on test images and prints is
    left out, and so are the crops of ours, which theirs does not make."""
    size = max(4, len(bench.batch) // 4)
    source = Source(bench.batch, torch.arange(len(bench.batch)) % bench.num_classes)
    ours: Any = bench.ours("uda_ss", epochs=1, batch_size=size, lr=LR, source=source)
    ours._augmented = lambda images: images
    mmd = types.ModuleType("utils.get_mmd")
    mmd.get_mmd = lambda *_: 0.0  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"utils": types.ModuleType("utils"), "utils.get_mmd": mmd}):
        training = bench.module("uda_release/utils/train.py")
    training.test = lambda *_: 0.0
    task_of, no_labels, turned = (
        getattr(bench.module(f"uda_release/{file}.py"), Path(file).name)
        for file in ("utils/SSTask", "dset_classes/DsetNoLabel", "dset_classes/DsetSSRotRand"))
    words = argparse.Namespace(num_batches_per_test=sys.maxsize)
    still = types.SimpleNamespace(step=lambda: None)  # no milestone in one epoch
    loss = nn.CrossEntropyLoss()

    def prepare(images: Tensor) -> None:
        ours.reset()
        ours.prepare(TensorImages(images))

    @torch.enable_grad()
    def theirs(images: Tensor) -> None:
        featurizer, head = split(copy.deepcopy(bench.network).requires_grad_(True))
        turner = nn.Linear(head.in_features, 4).to(images.device)
        classes, turns = (torch.optim.SGD([*featurizer.parameters(), *layer.parameters()], LR,
                                          momentum=0.9, weight_decay=5e-4)
                          for layer in (head, turner))
        labelled = TensorDataset(source.images, source.labels)
        looks = [DataLoader(turned(no_labels(dataset)), size // 2, shuffle=True)
                 for dataset in (labelled, TensorDataset(images))]
        task = task_of(featurizer, turner, loss, turns, still, looks[0], None, looks[1], None)
        task.assign_test(training.test)
        with (mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
              redirect_stdout(io.StringIO())):
            training.train(words, nn.Sequential(featurizer, head), featurizer, [task], loss,
                           classes, still, DataLoader(labelled, size, shuffle=True), None, None)
    return prepare, theirs


class Source:
    """Labelled images [N,3,H,W] as a method takes those of its source."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels.to(images.device)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


class Loader:
    """Images in parts, as SHOT's code takes them: with labels, here zeros, and indices."""

    def __init__(self, images: Tensor, size: int) -> None:
        self.images = images
        self.parts = torch.arange(len(images)).split(size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Loader:
        self.left = iter(self.parts)
        return self

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        part = next(self.left)
        return self.images[part], torch.zeros(len(part)), part

    next = __next__


def split(network: Classifier) -> tuple[nn.Module, nn.Linear]:
    """A network without its last linear layer, and that layer."""
    name, head = [(name, layer) for name, layer in network.named_modules()
                  if isinstance(layer, nn.Linear)][-1]
    above, _, last = name.rpartition(".")
    setattr(network.get_submodule(above), last, nn.Identity())
    return network, head


def lame(bench: Bench) -> tuple[Side, Side]:
    return bench.ours("lame"), bench.hosted("lame", "LAME.AFFINITY", "kNN", "LAME.FORCE_SYMMETRY",
                                            True)


def t3a(bench: Bench) -> tuple[Side, Side]:
    class Algorithm(nn.Module):
        def __init__(self, shape: object, classes: int, domains: int, words: dict[str, Any]):
            super().__init__()
            self.hparams = words

    stub = types.ModuleType("domainbed.algorithms")
    stub.Algorithm = Algorithm  # type: ignore[attr-defined]
    sys.modules |= {"domainbed": types.ModuleType("domainbed"), "domainbed.algorithms": stub}
    module = bench.module("T3A/domainbed/adapt_algorithms.py")
    featurizer, head = split(copy.deepcopy(bench.network))
    parts = types.SimpleNamespace(featurizer=featurizer, classifier=head)
    method = module.T3A(None, bench.num_classes, 1, {"filter_K": 20, "cached_loader": False}, parts)
    return bench.ours("t3a", num_supports=20), lambda images: method(images, adapt=True)


SIDES: dict[str, Callable[[Bench], tuple[Side, Side]]] = {
    function.__name__: function
    for function in (eata, sar, deyo, cotta, cotta_views, roid, rotta, note, adacontrast,
                     shot, uda_ss, lame, t3a)}
