"""Slurm: workers as jobs of an array, submitted by submitit, or a batch script to submit."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from typing import Any

from yacs.config import CfgNode

from tta_apm.bench.launch.launcher import Launcher
from tta_apm.bench.launch.worker import LOGS, Ending, Order, work
from tta_apm.config.launch import minutes
from tta_apm.errors import UserError, explain

# Slurm sends SIGUSR1 so long before a job's time is up, so that a worker can release its claims.
WARNING_SECONDS = 90
# submitit's name of the cluster; tests use "local", this machine.
CLUSTER = "slurm"


class Task:
    """The function of a job; submitit requeues it if the scheduler ends it."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def __call__(self) -> Ending:
        handlers = {number: signal.getsignal(number)
                    for number in (signal.SIGUSR1, signal.SIGUSR2)}
        ending = work(self.order)
        handler = handlers.get(signal.Signals(ending.signal)) if ending.signal else None
        if callable(handler):
            handler(ending.signal, None)  # submitit's: it calls `checkpoint` and ends the process
        return ending

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(self)


class Slurm(Launcher):
    """Submits an array of jobs with the resources of LAUNCH; they go on after the command."""

    outlives_command = True

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        super().__init__(cfg, num_workers, address)
        self.jobs: dict[int, Any] = {}

    def start(self, orders: Sequence[Order]) -> str:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--launcher slurm needs the package submitit: pip install "
                            "'tta-apm[slurm]'; or submit the script that --dry-run prints") \
                from error
        try:
            executor = submitit.AutoExecutor(self.folder / LOGS, CLUSTER)
        except RuntimeError as error:
            raise UserError(f"--launcher slurm: {explain(error)}; on a machine where sbatch is not "
                            "found, --dry-run prints the script to submit elsewhere") from error
        executor.update_parameters(**self._parameters())
        try:
            with executor.batch():
                jobs = [executor.submit(Task(order)) for order in orders]
        except Exception as error:  # submitit's own classes, and what sbatch says
            raise UserError(f"--launcher slurm: sbatch did not accept the jobs: {explain(error)}") \
                from error
        self.jobs = {order.number: job for order, job in zip(orders, jobs)}
        names = ", ".join(str(job.job_id) for job in jobs)
        return f"jobs {names}; Ctrl-C ends only this display, scancel ends the jobs"

    def ended(self) -> dict[int, Ending]:
        return {number: _ending(job) for number, job in self.jobs.items() if job.done()}

    def stop(self) -> None:
        for job in self.jobs.values():
            if not job.done():
                job.cancel(check=False)

    def describe(self, command: Sequence[str]) -> str:
        """A batch script that runs the command once per worker; the commands share the folder."""
        launch = self.cfg.LAUNCH
        limit = f"%{launch.ARRAY_LIMIT}" if launch.ARRAY_LIMIT else ""
        lines = {"job-name": "tta-apm", "array": f"1-{self.num_workers}{limit}",
                 "output": "tta-apm-%A_%a.out", "signal": f"USR1@{WARNING_SECONDS}",
                 "nodes": "1", "ntasks": "1", "partition": launch.PARTITION,
                 "account": launch.ACCOUNT, "qos": launch.QOS, "time": launch.TIME,
                 "gpus-per-node": self._gpus() or "", "cpus-per-task": launch.CPUS or "",
                 "mem": launch.MEMORY, "constraint": launch.CONSTRAINT}
        return "\n".join([
            "#!/bin/bash",
            *(f"#SBATCH --{key}={value}" for key, value in lines.items() if value != ""),
            "#SBATCH --requeue", *launch.SETUP, f"srun {shlex.join(command)}",
            f'[ $? -ne {128 + signal.SIGUSR1} ] || scontrol requeue "$SLURM_JOB_ID"'])

    def _gpus(self) -> int:
        gpus: int = self.cfg.LAUNCH.GPUS
        return gpus if gpus >= 0 else int(self.cfg.DEVICE != "cpu")

    def _parameters(self) -> dict[str, Any]:
        """The resources by submitit's names."""
        launch = self.cfg.LAUNCH
        generic = {"name": "tta-apm", "nodes": 1, "tasks_per_node": 1,
                   "gpus_per_node": self._gpus(), "cpus_per_task": launch.CPUS,
                   "timeout_min": minutes(launch.TIME) if launch.TIME else 0}
        of_slurm = {"partition": launch.PARTITION, "account": launch.ACCOUNT, "qos": launch.QOS,
                    "mem": launch.MEMORY, "constraint": launch.CONSTRAINT,
                    "setup": list(launch.SETUP), "array_parallelism": launch.ARRAY_LIMIT,
                    "signal_delay_s": WARNING_SECONDS}
        return {**{key: value for key, value in generic.items() if value},
                **{f"slurm_{key}": value for key, value in of_slurm.items() if value}}


def _ending(job: Any) -> Ending:
    try:
        ending: Ending = job.result()
        return ending
    except Exception as error:  # submitit raises for a job without a result
        return Ending(died=explain(error))
