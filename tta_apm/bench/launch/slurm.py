"""Slurm: workers as jobs of an array, submitted by submitit, or a batch script to submit."""

from __future__ import annotations

import getpass
import shlex
import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from yacs.config import CfgNode

from tta_apm.bench.launch.launcher import Launcher
from tta_apm.bench.launch.worker import GRACE_SECONDS, LOGS, Ending, Order, work
from tta_apm.config.launch import minutes
from tta_apm.errors import UserError, explain

# Slurm sends SIGUSR1 so long before a job's time is up, so that a worker can release its claims.
WARNING_SECONDS = 90
# A shorter job would hardly work: the signal may come a minute earlier than asked for.
SHORTEST_MINUTES = 5
QUEUE_SECONDS = 10.0  # between looks at the queue
# submitit's name of the cluster; tests use "local", this machine.
CLUSTER = "slurm"


class Task:
    """The function of a job, which submitit requeues if Slurm ends it before its work is done.

    By submitit's convention SIGUSR2 asks for it: shortly before the time is up, or when the job is
    preempted, then after a SIGTERM. A SIGTERM alone means that the job is cancelled.
    """

    def __init__(self, order: Order) -> None:
        self.order = order

    def __call__(self) -> Ending:
        handlers = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGUSR1)]
        ending = work(self.order)
        if ending.signal == signal.SIGTERM:
            time.sleep(GRACE_SECONDS)  # submitit's signal may follow: its handler ends the process
            # Without a result, since Slurm may start the job again.
            raise SystemExit(128 + signal.SIGTERM)
        if ending.signal:
            for handler in filter(callable, handlers):
                handler(ending.signal, None)  # it calls `checkpoint` and ends the process
        return ending

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(self)


class Slurm(Launcher):
    """Submits an array of jobs with the resources of LAUNCH; they go on after the command."""

    outlives_command = True

    def __init__(self, cfg: CfgNode, num_workers: int, address: str = "") -> None:
        super().__init__(cfg, num_workers, address)
        limit = cfg.LAUNCH.TIME
        if limit and minutes(limit) < SHORTEST_MINUTES:
            raise UserError(f"LAUNCH.TIME {limit}: give a job at least {SHORTEST_MINUTES} minutes, "
                            "since it stops up to two and a half before its time is up")
        self.jobs: dict[int, Any] = {}
        self.gone: set[int] = set()  # the numbers of jobs that Slurm ended without a result
        self._absent: set[int] = set()  # those that were not in the queue at the last look
        self._looked = 0.0

    def orders(self, *, redo: bool) -> list[Order]:
        """As Launcher.orders; each worker gets as many threads as LAUNCH.CPUS."""
        cpus = self.cfg.LAUNCH.CPUS
        threads = {"OMP_NUM_THREADS": str(cpus)} if cpus else {}
        return [replace(order, num_threads=cpus, environment=threads)
                for order in super().orders(redo=redo)]

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
        """As Launcher.ended. A job without a result has ended if Slurm's queue lacks it twice in a
        row: a result may be seen late on a shared disk."""
        if time.monotonic() - self._looked > QUEUE_SECONDS:
            states = self._states()
            absent = {number for number, job in self.jobs.items() if job.job_id not in states}
            self.gone |= absent & self._absent
            self._absent, self._looked = absent, time.monotonic()
        with_result = [number for number, job in self.jobs.items()
                       if job.paths.result_pickle.exists()]
        return {**{number: Ending(died="Slurm ended its job") for number in self.gone},
                **{number: _ending(self.jobs[number]) for number in with_result}}

    def stop(self) -> None:
        """Cancel the jobs that have not begun, and those that do not end by themselves soon."""
        states = self._states()
        waiting = {number for number, job in self.jobs.items()
                   if states.get(job.job_id) == "PENDING"}
        self._cancel(waiting)
        running = self.jobs.keys() - waiting
        end = time.monotonic() + GRACE_SECONDS
        while running - self.ended().keys() and time.monotonic() < end:
            time.sleep(0.1)
        self._cancel(running - self.ended().keys())

    def _cancel(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self.jobs[number].cancel(check=False)

    def _states(self) -> dict[str, str]:
        """The states of the jobs that are in the queue."""
        return queue_states([job.job_id for job in self.jobs.values()])

    def describe(self, command: Sequence[str]) -> str:
        """A batch script that runs the command once per worker; the commands share the folder."""
        launch = self.cfg.LAUNCH
        limit = f"%{launch.ARRAY_LIMIT}" if launch.ARRAY_LIMIT else ""
        lines = {
            "job-name": "tta-apm", "array": f"1-{self.num_workers}{limit}",
            "output": "tta-apm-%A_%a.out", "open-mode": "append",
            "signal": f"USR1@{WARNING_SECONDS}", "nodes": "1", "ntasks": "1",
            "partition": launch.PARTITION, "account": launch.ACCOUNT, "qos": launch.QOS,
            "time": launch.TIME, "gpus-per-node": self._gpus() or "",
            "cpus-per-task": launch.CPUS or "", "mem": launch.MEMORY,
            "constraint": launch.CONSTRAINT}
        return "\n".join([
            "#!/bin/bash",
            *(f"#SBATCH --{key}={value}" for key, value in lines.items() if value != ""),
            "#SBATCH --requeue", *launch.SETUP,
            shlex.join(["srun", *self._of_srun(), *command]),
            "code=$?",
            f'[ $code -ne {128 + signal.SIGUSR1} ] || scontrol requeue "$SLURM_JOB_ID"',
            "exit $code"])

    def _gpus(self) -> int:
        gpus: int = self.cfg.LAUNCH.GPUS
        return gpus if gpus >= 0 else int(self.cfg.DEVICE != "cpu")

    def _of_srun(self) -> list[str]:
        """Options of srun, which since Slurm 22.05 does not read those of the job for a task."""
        cpus = self.cfg.LAUNCH.CPUS
        return [f"--cpus-per-task={cpus}"] if cpus else []

    def _parameters(self) -> dict[str, Any]:
        """The resources by submitit's names."""
        launch = self.cfg.LAUNCH
        if not launch.TIME:  # submitit would give it five minutes
            raise UserError("--launcher slurm: say how long a job may run, e.g. LAUNCH.TIME "
                            "4:00:00")
        generic = {"name": "tta-apm", "nodes": 1, "tasks_per_node": 1,
                   "gpus_per_node": self._gpus(), "cpus_per_task": launch.CPUS,
                   "timeout_min": minutes(launch.TIME)}
        of_slurm = {"partition": launch.PARTITION, "account": launch.ACCOUNT, "qos": launch.QOS,
                    "mem": launch.MEMORY, "constraint": launch.CONSTRAINT,
                    "setup": list(launch.SETUP), "array_parallelism": launch.ARRAY_LIMIT,
                    "signal_delay_s": WARNING_SECONDS, "srun_args": self._of_srun(),
                    "additional_parameters": {"requeue": True}}
        return {**{key: value for key, value in generic.items() if value},
                **{f"slurm_{key}": value for key, value in of_slurm.items() if value}}


def queue_states(job_ids: Sequence[str]) -> dict[str, str]:
    """The states of those jobs that are in Slurm's queue; "UNKNOWN" for all if it cannot be read.

    The queue is read, and not the accounts as submitit does, which not every cluster keeps.
    """
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i %T"],
            check=True, capture_output=True, text=True, encoding="utf-8")
    except (OSError, subprocess.CalledProcessError):
        return dict.fromkeys(job_ids, "UNKNOWN")
    states = dict(line.split() for line in done.stdout.splitlines())
    return {job_id: states[job_id] for job_id in job_ids if job_id in states}


def _ending(job: Any) -> Ending:
    try:
        ending: Ending = job.result()
        return ending
    except Exception as error:  # submitit raises for a job without a result
        return Ending(died=explain(error))
