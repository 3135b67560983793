"""Coordinates the processes of a run: joining, stopping, ending, and locking the work directory."""

import argparse
import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

import jax
from jax.experimental import multihost_utils

from spn_jax.errors import InputError, counted, find_input_error, first_line
from spn_jax.runtime.files import FolderLock

LAST_WORDS = 5  # seconds in which other processes may report the same error
# what JAX says on CPUs of a process that ended in the middle of a step
PEER_IS_GONE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket closed", re.IGNORECASE)


class Stopped(Exception):
    """Raised when the run was told to stop and its state is saved, unless it is at step 0. `status`
    is the exit status for that signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


class Stop:
    """Tells whether to stop: SIGTERM or Ctrl-C came to this process or, as all processes agree, to
    any.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals = signal.SIGTERM  # the one that came
        self._came = False

    def __call__(self, step: int) -> bool:
        """Returns whether to stop before a step. Every process must call it before every step."""
        # jax.distributed has installed a handler that tells the other processes of SIGTERM
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._came

    def came_here(self) -> bool:
        """Returns whether a signal came to this process; it may be called at any time. With several
        processes it is False, because they cannot agree in the middle of an evaluation.
        """
        return self._came

    def __enter__(self) -> Self:
        self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._note)}
        if jax.process_count() == 1:
            self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            signal.raise_signal(signal.SIGTERM)  # jax.distributed passes SIGTERM on to the others
        else:
            self._came = True


@contextlib.contextmanager
def only_run_in(workdir: Path) -> Iterator[None]:
    """Makes the work directory and locks it against other runs. Deletes a new one if nothing was
    written to it.

    Raises:
        InputError: it cannot be made, or another run holds its lock.
    """
    is_new = not workdir.exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--workdir {workdir} cannot be written ({reason}); choose another folder or free space") from error
    try:
        with FolderLock(workdir, f"another run is writing to --workdir {workdir}", "wait for it or stop it"):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                workdir.rmdir()


def join_processes(options: argparse.Namespace) -> None:
    """Joins the other processes of the run if the command line asks for several. Raises InputError
    if that fails.
    """
    by_hand = {"--coordinator": options.coordinator, "--processes": options.processes, "--process": options.process}
    missing = [name for name, value in by_hand.items() if value is None]
    if options.cluster and len(missing) < len(by_hand):
        raise InputError("--cluster finds out about the other processes by itself; leave out --coordinator, --processes and --process")
    if len(missing) == len(by_hand) and not options.cluster:
        return
    if missing and not options.cluster:
        raise InputError(f"a run of several processes needs {', '.join(by_hand)} in each of them; missing here: {', '.join(missing)}")
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would run when all are there, minutes later
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.process,
            local_device_ids=own_gpus(os.environ) if options.cluster else None,
            heartbeat_timeout_seconds=30,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes of the run did not find each other ({first_line(error)}); check --coordinator, --processes, --process"
        ) from error
    finally:
        signal.signal(signal.SIGINT, before)


def own_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs in CUDA_VISIBLE_DEVICES a process of SLURM or Open MPI takes: those that it
    sees, shared out among the processes of its machine. None where the environment does not tell.

    Left to itself, JAX takes the GPU of the process's number on its machine: one that is not there
    where each process is shown its own GPU alone, and one of several where a machine has one
    process.

    Raises:
        InputError: the processes of this machine cannot use all of the GPUs that they see.
    """
    gpus = len([name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()])
    there = _place_on_machine(environment)
    if not gpus or there is None:
        return None
    own, processes = there
    if gpus == 1:
        return [0]
    if gpus % processes:
        raise InputError(
            f"{counted(processes, 'process', 'processes')} on this machine cannot share the {gpus} GPUs that each of them sees; "
            f"start 1 or {gpus} on each machine"
        )
    share = gpus // processes
    return list(range(own * share, (own + 1) * share))


def _place_on_machine(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """The number of this process on its machine, and of how many; None if it was started in another
    way. Open MPI comes first, as in JAX.
    """
    try:
        if "OMPI_COMM_WORLD_LOCAL_RANK" in environment:
            return int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]), int(environment["OMPI_COMM_WORLD_LOCAL_SIZE"])
        # such as 8(x2),4: eight tasks on each of two machines and four on the third
        runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])
        tasks = [int(tasks) for tasks, machines in runs for _ in range(int(machines or 1))]
        return int(environment["SLURM_LOCALID"]), tasks[int(environment["SLURM_NODEID"])]
    except (KeyError, ValueError, IndexError):
        return None


def end_all_processes(error: Exception | KeyboardInterrupt) -> NoReturn:
    """Reports an error and ends this process at once, which ends the others.

    A normal exit would wait for them, while they wait for this one in the middle of a step.
    """
    if isinstance(error, KeyboardInterrupt):
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)
    wrong_input = find_input_error(error)
    if wrong_input is not None:
        print(f"error: {wrong_input}", file=sys.stderr)
    elif isinstance(error, jax.errors.JaxRuntimeError) and PEER_IS_GONE.search(str(error)):
        print("error: another process of this run has ended; its own output says why, and the same command continues", file=sys.stderr)
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # Process 0 runs the coordination service; when that ends, the other processes are aborted.
    if jax.process_index() == 0:
        time.sleep(LAST_WORDS)
    os._exit(1 if wrong_input is None else 2)
