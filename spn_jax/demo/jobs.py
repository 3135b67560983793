"""The network's work, one job at a time: jobs wait in a line of bounded length and can be
given up.
"""

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
# takes how many passes of the network are done, and how many there are
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Result:
    """One picture that a job made.

    name: of the file when it is downloaded.
    file: the PNG with every bit that the photo has.
    view: a PNG for the screen.
    """

    name: str
    file: bytes
    view: bytes


class GivenUp(Exception):
    """Nobody waits for a job any more."""


class Job:
    """A piece of work that yields results one after the other.

    Args:
        work: called in the worker's thread with `progress`, which it has to call between two passes
            of the network; what it returns is iterated over. It is given up between two passes or
            two results, if the job is.
        held: bytes that the work keeps in memory until it ends, a mask for instance.
        most_passes, most_seconds: what the work may take.
        clock: in seconds.
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
        # passes of the network; the total is 0 as long as it is not known
        self.done, self.total = 0, 0
        self.error = ""  # one sentence, once it has failed
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
        """Does the work and keeps what went wrong in words: the worker outlives its jobs."""
        work, self._work = self._work, None  # with it goes the memory of photo and mask
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
        """Notes how far the work is.

        Raises:
            GivenUp: nobody waits for it any more.
            InputError: it needs more passes of the network, or more time, than it may take.
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
        """Gives it up. What waits is over at once and lets its photo and mask go, what runs ends
        with its next pass of the network.
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
    """As many jobs wait as may."""


class Worker:
    """A thread that runs jobs in the order in which they came.

    Args:
        waiting: jobs that may wait while one runs.
    """

    def __init__(self, waiting: int):
        self.waiting = waiting
        self._line: collections.deque[Job] = collections.deque()  # the running one is the first
        self._changed = threading.Condition()
        self._open = True
        # Of the kind that a program may end without: a second Ctrl-C does not wait for the
        # completion in progress.
        self._thread = threading.Thread(target=self._run, name="fills", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Raises LineFull if too many wait, or the worker has stopped."""
        with self._changed:
            if not self._open or len(self._line) > self.waiting:
                raise LineFull
            self._line.append(job)
            self._changed.notify_all()

    def before(self, job: Job) -> int:
        """How many jobs come before it, the running one included."""
        with self._changed:
            return self._line.index(job) if job in self._line else 0

    def cancel(self, job: Job) -> None:
        """Takes a job out of the line; a running one ends with its next pass of the network, one
        that has ended stays as it is.
        """
        with self._changed:
            if job.state == "waiting":
                self._line.remove(job)
            job.cancel()

    def stop(self) -> None:
        """Gives up all jobs, and returns when the running one has made its next pass of the
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
        """Waits for the next job; None once the worker has stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._line or not self._open)
            if not self._line:
                return None
            self._line[0].state = "running"
            return self._line[0]
