"""Many processes that publish at once: what they were told is published, held to what is in the registry afterwards.

Each storage is measured with one publisher, as the baseline, and with all of them. On the disk a control looks for a
commit and then writes it, as a storage without conditions would have it done: it loses commits.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import logging
import multiprocessing
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uws_store.errors import UwsError
from uws_store.metadata.log import Action, BasisAction, Commit, FamilyAction, ModelAction
from uws_store.registry import Registry, RegistryState
from uws_store.storage import LocalStorage, StorageUrl, parse_options

__all__ = [
    "BUCKET",
    "Published",
    "add_publishers_parser",
    "measure_publishers",
    "moto",
    "run_publishers",
    "show_publishers",
]

_DIGEST = "0123456789abcdef" * 4
BUCKET = "uws-bench"
_CONTROL = "disk, look then write"
_COMMIT = re.compile(r"_log/[0-9]{20}\.json")


@dataclass(frozen=True, slots=True)
class Published:
    """One storage and one number of publishers.

    Attributes
    ----------
    storage : str
        What was measured.
    processes : int
        Publishers at work at once.
    acknowledged : int
        Publications that a publisher was told had happened.
    found : int
        Versions in the registry afterwards.
    lost : int
        Acknowledged versions that are not there, or that two publishers were told are theirs.
    seconds : float
        From the common start to the last answer.
    """

    storage: str
    processes: int
    acknowledged: int
    found: int
    lost: int
    seconds: float


class _LookThenWrite(LocalStorage):
    """The control: nothing is held between the look and the write."""

    def put_if_absent(self, path: str, data: bytes, *, hints: Mapping[str, bytes] | None = None) -> bool:
        if self.size(path) is not None:
            return False
        self.put(path, data)
        for hint, held in (hints or {}).items():
            self.put(hint, held)
        return True


def add_publishers_parser(commands: Any) -> None:  # noqa: ANN401 - argparse's own
    """Add the command to the bench."""
    parser = commands.add_parser("publishers", help="many processes that publish at once: what is lost")
    parser.add_argument("--processes", type=int, default=16, help="publishers (default: 16)")
    parser.add_argument("--publishes", type=int, default=13, help="publications of each (default: 13)")
    parser.add_argument("--url", help="an empty storage; by default a folder, and moto where it is installed")
    parser.add_argument("--storage-option", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")


def run_publishers(options: argparse.Namespace, console: Console) -> int:
    """Measure, print and write; 1 when anything was lost but by the control."""
    results = measure_publishers(
        processes=options.processes,
        publishes=options.publishes,
        url=options.url,
        storage_options=parse_options(options.storage_option),
        progress=lambda what: print(what, file=sys.stderr),
    )
    show_publishers(results, console)
    if options.json:
        options.json.write_text(as_document(results))
    if options.markdown:
        command = (
            f"python tools/bench publishers --processes {options.processes} --publishes {options.publishes}"
        )
        options.markdown.write_text(as_markdown(results, command=command))
    return int(any(result.lost and result.storage != _CONTROL for result in results))


def measure_publishers(
    *,
    processes: int,
    publishes: int,
    url: str | None,
    storage_options: Mapping[str, object],
    progress: Callable[[str], None],
) -> tuple[Published, ...]:
    """Measure the disk and moto, or the storage at a URL.

    Parameters
    ----------
    processes, publishes : int
        How many publish, and how many publications each makes.
    url : str, optional
        An empty place; a folder of its own is made below it for each measurement.
    storage_options : Mapping of str to object
        See :func:`uws_store.storage.open_storage`.
    progress : callable
        Is told what is being measured.
    """
    results: list[Published] = []

    def measure(name: str, place: StorageUrl, count: int, each: int, *, control: bool = False) -> None:
        progress(f"{name}: {count} publishers")
        results.append(_measure(name, place, count, each, control=control))

    with contextlib.ExitStack() as open_places:
        if url is not None:
            places = {url.partition("://")[0]: StorageUrl(url, storage_options)}
        else:
            folder = open_places.enter_context(tempfile.TemporaryDirectory())
            places = {"disk": StorageUrl(folder)}
            address = open_places.enter_context(moto())
            if address is not None:
                options = {"endpoint_url": address, "key": "bench", "secret": "bench"}
                places["S3 (moto)"] = StorageUrl(f"s3://{BUCKET}", options)
        for name, place in places.items():
            measure(name, StorageUrl(f"{place}/one", place.options), 1, processes * publishes)
            measure(name, StorageUrl(f"{place}/all", place.options), processes, publishes)
        if "disk" in places:
            control = StorageUrl(f"{places['disk']}/control")
            measure(_CONTROL, control, processes, publishes, control=True)
    return tuple(results)


def show_publishers(results: Sequence[Published], console: Console) -> None:
    """Print the table."""
    table = Table("storage", "publishers", "acknowledged", "found", "lost", "seconds", "per second")
    for row in _rows(results):
        table.add_row(*row)
    console.print(table)


def as_markdown(results: Sequence[Published], *, command: str) -> str:
    """Write the table for ``results/``."""
    head = "| storage | publishers | acknowledged | found | lost | seconds | per second |\n|---|--:|--:|--:|--:|--:|--:|\n"
    return (
        f"# Publishing at once\n\n`{command}`\n\n{head}"
        + "".join(f"| {' | '.join(row)} |\n" for row in _rows(results))
        + "\nLost: versions that a publisher was told are its own and that are another's or nobody's. `look then write` is "
        "the control, a storage without conditions.\n"
    )


def as_document(results: Sequence[Published]) -> str:
    """Write the measurements as JSON."""
    return json.dumps([asdict(result) for result in results], indent=1) + "\n"


def _rows(results: Sequence[Published]) -> Iterator[tuple[str, ...]]:
    for result in results:
        yield (
            result.storage,
            str(result.processes),
            str(result.acknowledged),
            str(result.found),
            str(result.lost),
            f"{result.seconds:.1f}",
            f"{result.acknowledged / result.seconds:.1f}",
        )


def _measure(name: str, place: StorageUrl, count: int, each: int, *, control: bool) -> Published:
    registry = (
        Registry.over(_LookThenWrite(Path(place), create=True), create=True)
        if control
        else Registry.init(place)
    )
    registry.publish(_founding)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "uws_store.registry", "s3fs"])
    barrier = context.Barrier(count + 1)
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    workers = [
        context.Process(
            target=_publish, args=(registry.url, barrier, number, each, sender), kwargs={"control": control}
        )
        for number, (_, sender) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(300)
    began = time.perf_counter()
    told: list[tuple[int, str]] = []
    for receiver, _ in pipes:
        told += receiver.recv()
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    # From the commits themselves: the control's log does not hold together.
    stored = [
        (action.version, action.digest)
        for path in registry.storage.list("_log")
        if _COMMIT.fullmatch(path)
        for action in Commit.parse(registry.storage.read(path), where=path).actions
        if isinstance(action, ModelAction)
    ]
    owners = Counter(version for version, _ in told)
    kept = sum(answer in stored and owners[answer[0]] == 1 for answer in told)
    return Published(name, count, len(told), len(stored), len(told) - kept, seconds)


def _publish(
    url: str, barrier: Barrier, number: int, each: int, answers: Connection, *, control: bool
) -> None:
    registry = Registry.over(_LookThenWrite(Path(url))) if control else Registry.open(url)
    registry.state()
    barrier.wait(300)
    told: list[tuple[int, str]] = []
    for index in range(each):
        # The digest says whose version it is.
        digest = f"{number:032x}{index:032x}"
        try:
            commit = registry.publish(lambda state, digest=digest: [_model(state, digest)])  # type: ignore[misc]
        except UwsError:
            # The control's own doing: another replaced a commit that this one had followed.
            if not control:
                raise
            registry = Registry.over(_LookThenWrite(Path(url)))
            continue
        told += [
            (action.version, action.digest) for action in commit.actions if isinstance(action, ModelAction)
        ]
    answers.send(told)


def _founding(_state: RegistryState) -> list[Action]:
    return [
        FamilyAction(family="bench", architecture=_DIGEST),
        BasisAction(family="bench", revision=1, digest=_DIGEST, size_bytes=1),
    ]


def _model(state: RegistryState, digest: str) -> Action:
    version = state.next_version("bench", "task")
    return ModelAction(
        family="bench",
        task="task",
        version=version,
        basis_revision=1,
        digest=digest,
        size_bytes=1,
        exact=False,
    )


@contextlib.contextmanager
def moto() -> Iterator[str | None]:
    """Run moto in threads of this process, where it is installed."""
    try:
        from moto.moto_server.werkzeug_app import (  # noqa: PLC0415 - need not be installed
            DomainDispatcherApplication,
            create_backend_app,
        )
        from werkzeug.serving import make_server  # noqa: PLC0415 - comes with moto
    except ImportError:
        yield None
        return
    app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_by_one(environ: Any, start_response: Any) -> Any:  # noqa: ANN401 - WSGI's own
        # moto looks for an object and stores it in two steps, so that two requests at once can both create it.
        with lock:
            return app(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, one_by_one, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        made = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        made.request("PUT", f"/{BUCKET}")
        made.getresponse().read()
        made.close()
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(10)
