"""Finds this process's share of an export, by the command line or the engine that started it."""

import dataclasses
import os
from collections.abc import Mapping

from spn_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Share:
    """Process `process` of `processes`."""

    process: int = 0
    processes: int = 1
    # number among the processes of this machine, if the engine provides it
    local: int | None = None
    source: str = "one process"

    def describe(self) -> str:
        """Describes the share for the log."""
        return self.source if self.processes == 1 else f"process {self.process} of {self.processes} ({self.source})"


def find_share(process: int | None, processes: int | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Returns the share by the flags --process and --processes, else by torchrun, SLURM (tasks, an
    array or both) or a Kubernetes indexed job.

    Raises:
        InputError: one flag is given without the other, the numbers make no sense, or an indexed
            job's size is not known.
    """
    if process is not None and processes is not None:
        return _checked(process, processes, None, "--process and --processes")
    if process is not None:
        raise InputError(f"--process {process} needs --processes, their number, in every one of them")
    # torchrun comes first: inside an indexed job it numbers the processes of all pods.
    if processes is None and {"RANK", "WORLD_SIZE"} <= environment.keys():
        return _checked(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"), _local(environment, "LOCAL_RANK"), "torchrun")
    # Kubernetes gives each pod its index, but not the number of pods
    if "JOB_COMPLETION_INDEX" in environment:
        if processes is None:
            raise InputError(
                "this is a pod of an indexed Kubernetes job, which does not say how many there are; add --processes COMPLETIONS"
            )
        return _checked(_number(environment, "JOB_COMPLETION_INDEX"), processes, None, "Kubernetes indexed job")
    if processes is not None:
        raise InputError(f"--processes {processes} needs --process, the number of this one, from 0 to {processes - 1}")
    return _of_slurm(environment)


def _of_slurm(environment: Mapping[str, str]) -> Share:
    """Returns the share among the jobs of an array and the tasks of each; a single share if there
    is neither.
    """
    job, jobs, task, tasks, local = 0, 1, 0, 1, None
    if in_array := {"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"} <= environment.keys():
        first, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}", default) for name, default in (("MIN", 0), ("STEP", 1)))
        job, beside = divmod(_number(environment, "SLURM_ARRAY_TASK_ID") - first, max(step, 1))
        jobs = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        if beside or not 0 <= job < jobs:
            raise InputError(
                f"the number {environment['SLURM_ARRAY_TASK_ID']} of this job in its SLURM array of {jobs} does not tell its place; "
                "submit the array as --array=0-N, or set --process and --processes"
            )
    if "SLURM_PROCID" in environment and environment.get("SLURM_NTASKS", "1") != "1":
        task, tasks = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_NTASKS")
        local = _local(environment, "SLURM_LOCALID")
    if not in_array and tasks == 1:
        return Share()
    return _checked(job * tasks + task, jobs * tasks, local, "SLURM array" if in_array else "SLURM")


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    try:
        return int(environment[name])
    except ValueError:
        raise InputError(
            f"the environment has {name}={environment[name]!r}, which is no whole number; set --process and --processes"
        ) from None


def _local(environment: Mapping[str, str], name: str) -> int | None:
    return _number(environment, name) if name in environment else None


def _checked(process: int, processes: int, local: int | None, source: str) -> Share:
    if processes < 1 or not 0 <= process < processes:
        raise InputError(f"process {process} of {processes} ({source}) makes no sense; number the processes from 0 to their number less 1")
    return Share(process, processes, local, source)
