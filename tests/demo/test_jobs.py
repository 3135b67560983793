"""The line of jobs: one at a time, in order, bounded, to be given up, and not ended by a job that
fails.
"""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from spn_jax.demo.jobs import FAILURE, Job, LineFull, Progress, Result, Worker
from spn_jax.errors import InputError

PATIENCE = 30.0  # seconds; far more than any of these needs
RESULT = Result("a.png", b"file", b"view")


class Held:
    """A job that stays before each of its results until it is let go on."""

    def __init__(self, results: int = 1):
        self.started, self.go = threading.Event(), threading.Semaphore(0)
        self.job = Job(lambda progress: self._work(results))

    def _work(self, results: int) -> Iterator[Result]:
        self.started.set()
        for _ in range(results):
            assert self.go.acquire(timeout=PATIENCE)
            yield RESULT


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(waiting=2)
    yield worker
    worker.stop()


def wait(job: Job) -> str:
    until = time.monotonic() + PATIENCE
    while job.busy and time.monotonic() < until:
        time.sleep(0.002)
    return job.state


def quick() -> Job:
    return Job(lambda progress: iter([RESULT]))


def test_jobs_run_one_at_a_time_in_their_order(worker: Worker) -> None:
    first, second, third = Held(), quick(), quick()
    for job in (first.job, second, third):
        worker.submit(job)
    assert first.started.wait(PATIENCE)
    assert [job.state for job in (first.job, second, third)] == ["running", "waiting", "waiting"]
    assert [worker.before(job) for job in (first.job, second, third)] == [0, 1, 2]
    first.go.release()
    assert wait(third) == "done" and second.state == "done"
    assert third.results == [RESULT] and third.size == 8 and worker.before(third) == 0


def test_a_full_line_takes_no_more(worker: Worker) -> None:
    first = Held()
    for job in (first.job, quick(), quick()):
        worker.submit(job)
    with pytest.raises(LineFull):
        worker.submit(quick())
    first.go.release()
    assert wait(first.job) == "done"


def test_a_waiting_job_that_is_given_up_leaves_the_line_and_never_runs(worker: Worker) -> None:
    first, second, third = Held(), Held(), quick()
    for job in (first.job, second.job, third):
        worker.submit(job)
    worker.cancel(second.job)
    assert second.job.state == "cancelled" and worker.before(third) == 1
    first.go.release()
    assert wait(third) == "done" and not second.started.is_set()


def test_a_running_job_that_is_given_up_ends_with_its_next_result(worker: Worker) -> None:
    held = Held(results=3)
    worker.submit(held.job)
    assert held.started.wait(PATIENCE)
    worker.cancel(held.job)
    held.go.release()
    assert wait(held.job) == "cancelled" and len(held.job.results) == 1
    worker.cancel(held.job)
    assert held.job.state == "cancelled"


class Passes:
    """A job of many passes of the network, each of which stays until it is let go on."""

    def __init__(self, passes: int, **limits: Any):
        self.started, self.go, self.made = threading.Event(), threading.Semaphore(0), 0
        self.job = Job(lambda progress: self._work(progress, passes), **limits)

    def _work(self, progress: Progress, passes: int) -> Iterator[Result]:
        for done in range(passes):
            progress(done, passes)
            self.started.set()
            assert self.go.acquire(timeout=PATIENCE)
            self.made += 1
        yield RESULT


def test_a_running_job_that_is_given_up_ends_with_its_next_pass(worker: Worker) -> None:
    work = Passes(10_000)
    worker.submit(work.job)
    assert work.started.wait(PATIENCE) and (work.job.done, work.job.total) == (0, 10_000)
    worker.cancel(work.job)
    work.go.release()
    assert wait(work.job) == "cancelled" and (work.made, work.job.results) == (1, [])


def test_stopping_waits_for_one_pass_alone() -> None:
    worker, work = Worker(waiting=2), Passes(10_000)
    worker.submit(work.job)
    assert work.started.wait(PATIENCE)
    threading.Timer(0.05, work.go.release).start()
    worker.stop()
    assert (work.job.state, work.made) == ("cancelled", 1)


def test_a_job_of_too_many_passes_is_refused_before_the_first(worker: Worker) -> None:
    work = Passes(11, most_passes=10)
    worker.submit(work.job)
    assert wait(work.job) == "failed" and work.job.wrong_input and work.made == 0
    assert work.job.error.startswith("this hole takes 11 passes of the network, and this server makes 10 at most for one request;")


def test_a_job_that_takes_too_long_ends_between_two_passes(worker: Worker) -> None:
    now = iter((0.0, 1.0, 61.0))  # when it begins, and at its passes
    work = Passes(3, most_seconds=60.0, clock=lambda: next(now))
    work.go.release(3)
    worker.submit(work.job)
    assert wait(work.job) == "failed" and work.job.wrong_input and work.made == 1
    assert work.job.error.startswith("this took longer than 1 min, the most that this server spends on one request;")


def test_a_waiting_job_counts_what_it_holds_and_lets_it_go_when_it_is_given_up(worker: Worker) -> None:
    def masked() -> tuple[Job, Callable[[], np.ndarray | None]]:
        mask = np.zeros(1000, np.uint8)
        return Job(lambda progress: iter([Result(str(mask.sum()), b"file", b"view")]), held=mask.nbytes), weakref.ref(mask)

    first, (waiting, alive) = Held(), masked()
    worker.submit(first.job)
    worker.submit(waiting)
    assert (waiting.size, alive() is not None) == (1000, True)
    worker.cancel(waiting)
    gc.collect()
    assert (waiting.size, alive()) == (0, None)
    first.go.release()
    assert wait(first.job) == "done" and first.job.size == 8


def failing(error: Exception) -> Iterator[Result]:
    yield RESULT
    raise error


@pytest.mark.parametrize(
    ("error", "sentence", "told"), [(InputError("too large"), "too large", False), (ZeroDivisionError("a bug"), FAILURE, True)]
)
def test_a_job_that_fails_says_so_and_the_next_one_runs(
    worker: Worker, error: Exception, sentence: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, next_one = Job(lambda progress: failing(error)), quick()
    worker.submit(broken)
    worker.submit(next_one)
    assert wait(next_one) == "done"
    assert (broken.state, broken.error, broken.wrong_input) == ("failed", sentence, not told)
    assert ("ZeroDivisionError: a bug" in capsys.readouterr().err) == told


def test_stopping_gives_up_what_waits_and_finishes_the_result_in_progress() -> None:
    worker, held, waiting = Worker(waiting=2), Held(results=3), quick()
    worker.submit(held.job)
    worker.submit(waiting)
    assert held.started.wait(PATIENCE)
    threading.Timer(0.05, held.go.release).start()
    worker.stop()
    assert (held.job.state, len(held.job.results), waiting.state) == ("cancelled", 1, "cancelled")
    with pytest.raises(LineFull):
        worker.submit(quick())
