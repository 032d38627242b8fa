"""A thread that works on models, one job after the other, while the server answers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias, TypeVar, final

_T = TypeVar("_T")
_R = TypeVar("_R")
Post: TypeAlias = Callable[[Callable[[], object]], None]
"""Has something called on the server's thread, soon; itself callable from any."""


@final
class Worker:
    """Does jobs in the order they are given, and has their results delivered.

    Args:
        post: Brings a result to the server's thread.
        num_threads: Cores that a job may share its parts among.

    Attributes:
        small: Whether all jobs are so small that another thread would take longer.
    """

    def __init__(self, post: Post, *, num_threads: int) -> None:
        self._post = post
        self._num_threads = num_threads
        self.small = False
        self._jobs = ThreadPoolExecutor(1, thread_name_prefix="flare-fold")
        self._parts = ThreadPoolExecutor(num_threads, thread_name_prefix="flare-part")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="flare-disk")

    def do(
        self, job: Callable[[], _T], then: Callable[[_T], object] = lambda _: None
    ) -> None:
        """Do a job; on the server's thread only.

        Args:
            job: Called on the worker's thread, or here if all are small.
            then: Called on the server's with what the job returned.  What the job
                raises, the server's thread raises.
        """
        if self.small:
            then(job())
            return
        future = self._jobs.submit(job)
        future.add_done_callback(lambda done: self._post(partial(_deliver, done, then)))

    def do_aside(
        self, job: Callable[[], _T], then: Callable[[_T], object] = lambda _: None
    ) -> None:
        """Do, in order, what no other job waits for, such as waiting for a disk.

        Args:
            job: Called on a thread of its own.
            then: As in `do`.
        """
        future = self._aside.submit(job)
        future.add_done_callback(lambda done: self._post(partial(_deliver, done, then)))

    def each(
        self, function: Callable[[_T], _R], items: Iterable[_T], /
    ) -> Iterator[_R]:
        """Yield the results in order, worked on by all threads, a few ahead."""
        if self.small:
            yield from map(function, items)
            return
        ahead: deque[Future[_R]] = deque()
        for item in items:
            ahead.append(self._parts.submit(function, item))
            if len(ahead) > 2 * self._num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def close(self) -> None:
        """End, as soon as the job in hand and what is aside is done."""
        self._jobs.shutdown(cancel_futures=True)
        self._parts.shutdown()
        self._aside.shutdown()


def _deliver(done: Future[_T], then: Callable[[_T], object]) -> None:
    then(done.result())
