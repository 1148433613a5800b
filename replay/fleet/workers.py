# SPDX-License-Identifier: Apache-2.0
"""Who replays the traces of a sweep: processes of this machine, or workers of a Dask cluster.

Both get a bounded number of traces at a time, and a trace is tried again if its worker is lost. A worker
returns the bytes of a part, so it shares no folder with the sweep. Equal traces give equal bytes on any
worker.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, NamedTuple

from replay.errors import ReplayError, UsageError
from replay.fleet.sources import Source, fetched
from replay.jit import compiled
from replay.teardown import one_pass

ATTEMPTS: Final = 3
"""How often a trace is tried if its worker is lost."""

IN_FLIGHT_PER_WORKER: Final = 2
"""How many traces a worker has at a time: one to replay, and one to begin with at once."""


class Task(NamedTuple):
    """What a worker does with each trace: a function of (path, name, options), and the options as text."""

    replay: Callable[[Path, str, str], tuple[Any, int]]
    options: str


class Outcome(NamedTuple):
    """A trace that was replayed, or could not be.

    part: its bytes; error: one line, empty if there was none.
    """

    source: Source
    part: bytes = b""
    extents: int = 0
    error: str = ""


def replay_one(source: Source, task: Task) -> Outcome:
    """Fetch, replay and encode one trace, in a worker. An error becomes an `Outcome` too."""
    from replay.fleet import parts

    try:
        with tempfile.TemporaryDirectory(prefix="replay-sweep-") as folder:
            results, extents = task.replay(fetched(source, Path(folder)), source.name, task.options)
        return Outcome(source, parts.encoded(results, source, task.options), extents)
    except ReplayError as error:
        return Outcome(source, error=str(error))
    except MemoryError:
        return Outcome(source, error=f"{source.uri}: out of memory: give each worker more")
    except OSError as error:
        return Outcome(source, error=f"{source.uri}: {error.strerror or error}")


def local(sources: Sequence[Source], task: Task, jobs: int) -> Iterator[Outcome]:
    """Replay with processes of this machine, in the order in which they finish.

    When a process is killed, its whole pool ends, and nobody knows which trace it had. The traces that were
    under way are then tried again one by one, each up to `ATTEMPTS` times.
    """
    # else each of them would compile what the cache does not have
    compiled.prepare(one_pass)
    waiting = deque(sources)
    while waiting:
        suspects: list[Source] = []
        with _pool(min(jobs, len(waiting))) as pool:
            running: dict[Future[Outcome], Source] = {}
            while waiting or running:
                try:
                    while waiting and len(running) < jobs * IN_FLIGHT_PER_WORKER:
                        running[pool.submit(replay_one, waiting[0], task)] = waiting[0]
                        waiting.popleft()
                except BrokenProcessPool:
                    pass
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    source = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        suspects.append(source)
                if suspects and not running:
                    break
        yield from (_alone(source, task) for source in suspects)


def _alone(source: Source, task: Task) -> Outcome:
    """Replay one trace in a process of its own: if that is killed, this trace is the cause."""
    for _ in range(ATTEMPTS):
        with _pool(1) as pool:
            try:
                return pool.submit(replay_one, source, task).result()
            except BrokenProcessPool:
                continue
    return Outcome(source, error=f"{source.uri}: its worker was killed {ATTEMPTS} times: give it more memory")


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that inherit nothing, because threads of Arrow and polars do not survive a fork."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


LOCAL: Final = "local"
"""In place of an address: a Dask cluster on this machine."""


def check_address(address: str) -> None:
    """Raise `UsageError` for what is no address of a Dask scheduler, `ReplayError` if there is no Dask."""
    try:
        from distributed.comm import get_address_host_port
    except ImportError:
        raise ReplayError("Dask is not installed: pip install 'mm-replay[dask]'") from None
    try:
        if address != LOCAL:
            get_address_host_port(address)
    except (ValueError, TypeError):
        raise UsageError(f"'{address}' is no Dask address: give tcp://HOST:PORT, or '{LOCAL}'") from None


def dask(sources: Sequence[Source], task: Task, jobs: int, address: str) -> Iterator[Outcome]:
    """Replay on a Dask cluster, in the order in which workers finish.

    address: of the scheduler; `LOCAL` for a cluster of `jobs` processes on this machine. Raises `ReplayError`
    if the scheduler does not answer.
    """
    import distributed

    with contextlib.ExitStack() as stack:
        try:
            if address == LOCAL:
                cluster = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=jobs, threads_per_worker=1, dashboard_address=None, silence_logs="CRITICAL"
                    )
                )
                client = stack.enter_context(distributed.Client(cluster))
            else:
                client = stack.enter_context(distributed.Client(address, timeout="10s"))
        except OSError as error:
            raise ReplayError(
                f"no Dask scheduler answers at '{address}' ({error}): start one there with 'dask scheduler'"
            ) from None
        except TypeError:
            raise ReplayError(
                f"Dask has no TLS certificates for '{address}': name them in its configuration, under "
                "distributed.comm.tls"
            ) from None
        waiting = deque(sources)
        limit = IN_FLIGHT_PER_WORKER * max(jobs, len(client.scheduler_info()["workers"]))

        def submit() -> Any:
            source = waiting.popleft()
            return client.submit(replay_one, source, task, key=f"replay-{source.uri}", pure=False)

        running = distributed.as_completed([submit() for _ in range(min(limit, len(waiting)))])
        for future in running:
            try:
                yield future.result()
            except distributed.KilledWorker:
                uri = future.key.removeprefix("replay-")
                source = next(source for source in sources if source.uri == uri)
                yield Outcome(source, error=f"{uri}: its workers were lost: is there enough memory?")
            if waiting:
                running.add(submit())
