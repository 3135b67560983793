"""The network's work, one job at a time: jobs wait in a line of bounded length and can be given up."""

import collections
import dataclasses
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Literal

from spn_jax.demo.store import new_key
from spn_jax.errors import find_input_error

FAILURE = "the server failed at this; its terminal says why"


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


class Job:
    """A piece of work that yields results one after the other.

    Args:
        work: called and iterated over in the worker's thread, and given up between two results if the job is.
    """

    def __init__(self, work: Callable[[], Iterator[Result]]):
        self.key = new_key()
        self.state: Literal["waiting", "running", "done", "failed", "cancelled"] = "waiting"
        self.results: list[Result] = []
        self.error = ""  # one sentence, once it has failed
        self.wrong_input = False  # whether the request is to blame
        self.given_up = threading.Event()
        self._work: Callable[[], Iterator[Result]] | None = work

    @property
    def size(self) -> int:
        return sum(len(result.file) + len(result.view) for result in self.results)

    @property
    def busy(self) -> bool:
        return self.state in ("waiting", "running")

    def run(self) -> None:
        """Does the work and keeps what went wrong in words: the worker outlives its jobs."""
        work, self._work = self._work, None  # with it goes the memory of photo and mask
        assert work is not None, "a job runs once"
        try:
            for result in work():
                self.results.append(result)
                if self.given_up.is_set():
                    break
            self.state = "cancelled" if self.given_up.is_set() else "done"
        except Exception as error:
            self._fail(error)

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
        # Of the kind that a program may end without: a second Ctrl-C does not wait for the completion in progress.
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
        """Takes a job out of the line; a running one ends with its next result, one that has ended stays as it is."""
        with self._changed:
            job.given_up.set()
            if job.state == "waiting":
                job.state = "cancelled"
                self._line.remove(job)

    def stop(self) -> None:
        """Gives up all jobs, and returns when the running one has made its next result."""
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
