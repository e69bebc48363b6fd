"""Ray: workers as actors of a Ray cluster, which places them and restarts lost ones."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from yacs.config import CfgNode

from tta_apm.bench.launch.launcher import Launcher
from tta_apm.bench.launch.worker import GRACE_SECONDS, Ending, Order, work
from tta_apm.errors import UserError, explain

PORT = 6379  # of a Ray cluster's head, if the address has none
ANSWER_SECONDS = 5.0
# A cluster that is started here sends no usage statistics.
ALONE = {"RAY_USAGE_STATS_ENABLED": "0"}
# Else Ray replaces 127.0.0.1 by another address of the machine, which may not be reachable.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


class Ray(Launcher):
    """Actors with LAUNCH.CPUS cores and LAUNCH.GPUS GPUs each. Without an address a cluster of this
    machine alone is started, on the loopback address."""

    takes_address = True

    ray: Any  # the package, once it is imported

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        super().__init__(cfg, num_workers, address)
        self.actors: list[Any] = []
        self.tasks: dict[int, Any] = {}

    def start(self, orders: Sequence[Order]) -> str:
        ray = self.ray = _import_ray(self.address)
        quietly = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not ray.is_initialized():
            try:
                if self.address:
                    ray.init(self.address, **quietly)
                else:
                    ray.init("local", include_dashboard=False, _node_ip_address="127.0.0.1",
                             **quietly)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"--address {self.address or 'local'}: Ray cannot be reached: "
                                f"{explain(error)}") from error
        cores, gpus = self._share()
        resources = ray.cluster_resources()
        self._require("CPU", cores, resources)
        self._require("GPU", gpus, resources)

        class Worker:
            def work(self, order: Order) -> Ending:
                return work(order)

        # A restarted actor runs its order again; what is recorded stays so.
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=cores,
                           num_gpus=gpus)(Worker)
        self.actors = [actor.remote() for _ in orders]
        self.tasks = {order.number: one.work.remote(order)
                      for order, one in zip(orders, self.actors)}
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        return (f"{len(orders)} Ray actors with {cores:g} cores and {gpus:g} GPUs each, on "
                f"{nodes} {'nodes' if nodes > 1 else 'node'}")

    def orders(self, *, redo: bool) -> list[Order]:
        """As Launcher.orders; each worker gets as many threads as cores."""
        threads = max(1, self.cfg.LAUNCH.CPUS)
        return [replace(order, num_threads=threads, environment={"OMP_NUM_THREADS": str(threads)})
                for order in super().orders(redo=redo)]

    def ended(self) -> dict[int, Ending]:
        ready, _ = self.ray.wait(list(self.tasks.values()), num_returns=len(self.tasks), timeout=0)
        return {number: self._ending(task) for number, task in self.tasks.items() if task in ready}

    def stop(self) -> None:
        if not self.actors:
            return
        for actor in self.actors:
            self.ray.kill(actor)
        time.sleep(min(1.0, GRACE_SECONDS))  # until the processes are gone
        with suppress(Exception):
            self.ray.shutdown()

    def _ending(self, task: Any) -> Ending:
        try:
            ending: Ending = self.ray.get(task)
            return ending
        except self.ray.exceptions.RayError as error:
            return Ending(died=explain(error))

    def _share(self) -> tuple[float, float]:
        """The cores and GPUs of a worker."""
        launch = self.cfg.LAUNCH
        has_gpus = self.ray.cluster_resources().get("GPU", 0) > 0
        wants_gpu = self.cfg.DEVICE != "cpu" and has_gpus
        return max(1, launch.CPUS), launch.GPUS if launch.GPUS >= 0 else int(wants_gpu)

    def _require(self, what: str, count: float, resources: dict[str, float]) -> None:
        if count > resources.get(what, 0):
            raise UserError(f"LAUNCH.{what}S {count:g}: the Ray cluster has "
                            f"{resources.get(what, 0):g} in all")


def _import_ray(address: str) -> Any:
    """Import Ray, with its settings for `address`.

    Raises:
        UserError: if Ray is not installed or `address` does not answer.
    """
    if address not in ("", "auto"):
        _require_answer(address)
    is_local = not address or address.startswith(("127.", "localhost"))
    for name, value in {**ALONE, **(LOOPBACK if is_local else {})}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UserError("--launcher ray needs the package ray: pip install 'tta-apm[ray]'") \
            from error
    return ray


def _require_answer(address: str) -> None:
    """Raise UserError if nobody answers at HOST[:PORT]."""
    host, _, port = address.removeprefix("ray://").partition(":")
    try:
        with socket.create_connection((host, int(port or PORT)), ANSWER_SECONDS):
            return
    except (OSError, ValueError) as error:
        raise UserError(f"--address {address}: nobody answers there ({explain(error)}); start Ray "
                        "on the head node with `ray start --head`, or leave the address out for "
                        "this machine alone") from error
