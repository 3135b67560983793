"""Runs the network's jobs one at a time from a bounded queue; jobs can be cancelled."""

import collections
import dataclasses
import math
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Literal

from spn_jax.demo.store import new_key
from spn_jax.errors import InputError, find_input_error

FAILURE = "internal error; the server's log says more"
# takes the numbers of finished and of all passes of the network
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One picture that a job made.

    name: the file's name for download.
    file: the PNG with every bit that the photo has.
    view: a PNG for the screen.
    """

    name: str
    file: bytes
    view: bytes


class GivenUp(Exception):
    """Raised in a job that was cancelled."""


class Job:
    """A piece of work that yields results one after the other.

    Args:
        work: called in the worker's thread with `progress`, which it must call between two passes
            of the network. Its results are iterated over. A cancelled job ends between two passes
            or two results.
        held: bytes that the work keeps in memory until it ends, for instance for a mask.
        most_passes, most_seconds: the limits of the work.
        clock: returns seconds.
    """

    def __init__(
        self,
        work: Callable[[Progress], Iterator[Result]],
        held: int = 0,
        most_passes: int = 2**31,
        most_seconds: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.key = new_key()
        self.state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
        self.results: list[Result] = []
        # passes of the network; the total is 0 until it is known
        self.done, self.total = 0, 0
        self.error = ""  # one sentence if the job failed
        self.wrong_input = False  # whether the request is to blame
        self.given_up = threading.Event()
        self.held, self.most_passes, self.most_seconds, self.clock = held, most_passes, most_seconds, clock
        self._work: Callable[[Progress], Iterator[Result]] | None = work
        self._began = 0.0

    @property
    def size(self) -> int:
        return sum(len(result.file) + len(result.view) for result in list(self.results)) + (self.held if self.busy else 0)

    @property
    def busy(self) -> bool:
        return self.state in ("waiting", "running")

    def run(self) -> None:
        """Does the work. Stores errors as text, because the worker must outlive its jobs."""
        work, self._work = self._work, None  # frees the memory of photo and mask
        assert work is not None, "a job runs once"
        self._began = self.clock()
        try:
            for result in work(self.progress):
                self.results.append(result)
                if self.given_up.is_set():
                    break
            self.state = "cancelled" if self.given_up.is_set() else "done"
        except GivenUp:
            self.state = "cancelled"
        except Exception as error:
            self._fail(error)

    def progress(self, done: int, total: int) -> None:
        """Records the progress of the work.

        Raises:
            GivenUp: the job was cancelled.
            InputError: the work exceeds its limit of passes or of time.
        """
        self.done, self.total = done, total
        if self.given_up.is_set():
            raise GivenUp
        if total > self.most_passes:
            raise InputError(
                f"this hole takes {total} passes of the network, and this server makes {self.most_passes} at most for one request; "
                "ask for fewer samples, paint fewer or larger spots, or take strategy resize"
            )
        if self.clock() - self._began > self.most_seconds:
            raise InputError(
                f"this took longer than {self.most_seconds / 60:g} min, the most that this server spends on one request; "
                "ask for fewer samples, paint a smaller hole, or take strategy resize"
            )

    def cancel(self) -> None:
        """Cancels the job. A waiting job ends immediately and frees its photo and mask; a running
        one ends with its current pass of the network.
        """
        self.given_up.set()
        if self.state == "waiting":
            self.state, self._work = "cancelled", None

    def _fail(self, error: Exception) -> None:
        wrong_input = find_input_error(error)
        if wrong_input is None:
            traceback.print_exception(error)
        self.error, self.wrong_input = str(wrong_input or FAILURE), wrong_input is not None
        self.state = "failed"


class LineFull(Exception):
    """Raised if the queue is full."""


class Worker:
    """A thread that runs jobs in the order of their arrival.

    Args:
        waiting: most jobs that may wait while one runs.
    """

    def __init__(self, waiting: int):
        self.waiting = waiting
        self._line: collections.deque[Job] = collections.deque()  # a queue; the running job is the first
        self._changed = threading.Condition()
        self._open = True
        # The thread is a daemon, so that a second Ctrl-C does not wait for the completion in
        # progress.
        self._thread = threading.Thread(target=self._run, name="fills", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues a job. Raises LineFull if too many wait, or the worker has stopped."""
        with self._changed:
            if not self._open or len(self._line) > self.waiting:
                raise LineFull
            self._line.append(job)
            self._changed.notify_all()

    def before(self, job: Job) -> int:
        """Returns the number of jobs before this one, the running one included."""
        with self._changed:
            return self._line.index(job) if job in self._line else 0

    def cancel(self, job: Job) -> None:
        """Cancels a job: a waiting one leaves the queue, a running one ends with its current pass
        of the network, and an ended one stays as it is.
        """
        with self._changed:
            if job.state == "waiting":
                self._line.remove(job)
            job.cancel()

    def stop(self) -> None:
        """Cancels all jobs. Returns when the running one has finished its current pass of the
        network.
        """
        with self._changed:
            self._open = False
            for job in list(self._line):
                self.cancel(job)
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            job.run()
            with self._changed:
                self._line.popleft()

    def _next(self) -> Job | None:
        """Waits for the next job. Returns None once the worker has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or not self._open)
            if not self._line:
                return None
            self._line[0].state = "running"
            return self._line[0]
