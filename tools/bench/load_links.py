"""Loading from S3 over links of a given bandwidth, beside the same weights in other containers in the same bucket.

moto stands in for S3 and a throttled proxy for the link, each in a process of its own; ours and the rivals go through
s3fs. What is timed ends with all weights in memory. Owns the order of turns; must not know how a link is made.
"""

from __future__ import annotations

import functools
import io
import itertools
import shutil
import time
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numcodecs
import torch
import zarr
from forged_vit import FAMILY, ForgedVit
from load_disk import CHECKED, Rivals, load_cold
from load_rows import NO_GOAL, LoadRow, Taken, goal_for, median_of, timed
from s3_stand_in import BUCKET, s3_options, s3_stand_in
from safetensors.torch import load
from throttled_link import ThrottledLink, throttled_link
from torch import Tensor

from uws_store.api import open_registry
from uws_store.api.family import Family
from uws_store.storage import open_storage

__all__ = ["LATENCY_S", "LINKS", "Ours", "fill_bucket", "measure_links", "rivals_over"]

Weights = Mapping[str, Tensor]

LINKS: Mapping[str, float] = {"100 Mbit/s": 100e6, "1 Gbit/s": 1e9, "10 Gbit/s": 10e9}
LATENCY_S = 0.02
_GOALS = {"100 Mbit/s": 15.0, "1 Gbit/s": 2.5}
_PLAIN = "safetensors, fetched whole"
_COLD = "uws-store, nothing cached, digests checked"
_RAW_S = 1.5
_AT_ONCE = 16
# A rival takes half a minute over the slowest link, and differs by a hundredth from turn to turn.
_SLOW_BITS_PER_S = 500e6


def fill_bucket(forged: ForgedVit, rivals: Rivals, *, port: int) -> None:
    """Put the family and the rivals' containers into the bucket, around the link."""
    files = _file_system(f"http://127.0.0.1:{port}")
    for path in (rivals.plain, rivals.pickled, rivals.packed):
        files.pipe_file(f"{BUCKET}/{path.name}", path.read_bytes())
    for name, root in (("plain.zarr", rivals.arrays), ("registry", forged.registry)):
        for path in root.rglob("*"):
            if path.is_file():
                files.pipe_file(f"{BUCKET}/{name}/{path.relative_to(root).as_posix()}", path.read_bytes())


def rivals_over(link: ThrottledLink) -> dict[str, Callable[[], Weights]]:
    """The other ways of loading from the bucket, through a link."""
    files = _file_system(link.address)

    def fetched(name: str) -> bytes:
        # One stream: several would share the link, and the server reads the whole object for each.
        data: bytes = files.cat_file(f"{BUCKET}/{name}", max_concurrency=1)
        return data

    def arrays() -> Weights:
        url, options = f"s3://{BUCKET}/plain.zarr", s3_options(link.address)
        group = zarr.open_group(url, mode="r", storage_options=options, use_consolidated=True)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(pool.map(lambda held: (held[0], torch.from_numpy(held[1][:])), group.arrays()))

    return {
        _PLAIN: lambda: load(fetched("plain.safetensors")),
        "torch.load, fetched whole": lambda: torch.load(io.BytesIO(fetched("plain.pt")), weights_only=True),
        "safetensors in zstd, fetched whole": lambda: load(numcodecs.Zstd().decode(fetched("plain.zst"))),
        f"zarr arrays, {_AT_ONCE} at once": arrays,
    }


class Ours:
    """Our way through a link: the basis is in memory, and the models are in no cache.

    Parameters
    ----------
    link : ThrottledLink
        The link; what is made ready here passes it.
    cache : Path
        An empty folder for the cache.
    """

    def __init__(self, link: ThrottledLink, cache: Path) -> None:
        self._options = s3_options(link.address)
        self._cache = cache
        registry = open_registry(f"s3://{BUCKET}/registry", storage_options=self._options, cache_dir=cache)
        self._family = Family(registry, FAMILY)
        self._tasks = itertools.cycle(self._family.tasks())
        self.load()

    def load(self) -> Weights:
        """Load the next model."""
        return self._family.load(next(self._tasks)).materialize()

    def load_cold(self) -> None:
        """Load a model with nothing at hand: the basis comes over the link too."""
        load_cold(open_storage(f"s3://{BUCKET}/registry", storage_options=self._options))

    def forget(self) -> None:
        """Remove the models from the cache."""
        for task in self._family.tasks():
            for path in self._cache.rglob(self._family.resolve(task, refresh=False).digest):
                shutil.rmtree(path)


def measure_links(
    forged: ForgedVit,
    rivals: Rivals,
    *,
    links: Mapping[str, float],
    folder: Path,
    say: Callable[[str], None] = lambda _text: None,
) -> list[LoadRow]:
    """Measure every way of loading over each link.

    Parameters
    ----------
    forged : ForgedVit
        The family.
    rivals : Rivals
        The same weights in other containers.
    links : mapping of str to float
        Bandwidth in bits per second, by name.
    folder : Path
        For our cache, which must be empty.
    say : callable
        Told what is being done.
    """
    rows: list[LoadRow] = []
    with s3_stand_in() as port, throttled_link(port) as link:
        say("filling the bucket")
        fill_bucket(forged, rivals, port=port)
        ours, others = Ours(link, folder), rivals_over(link)
        for name, bits_per_s in links.items():
            say(f"over {name}")
            link.set(bits_per_s=bits_per_s, latency_s=LATENCY_S)
            rows += _over(name, bits_per_s, forged=forged, link=link, ours=ours, others=others)
    return rows


def _over(
    name: str,
    bits_per_s: float,
    *,
    forged: ForgedVit,
    link: ThrottledLink,
    ours: Ours,
    others: Mapping[str, Callable[[], Weights]],
) -> list[LoadRow]:
    """One link: ours takes a turn before each rival's."""
    group = f"over {name}, {LATENCY_S * 1e3:.0f} ms"
    taken: dict[str, list[Taken]] = {CHECKED: [], **{other: [] for other in others}}
    passed = {}

    def turn(what: str, task: Callable[[], object]) -> None:
        link.passed()
        taken.setdefault(what, []).append(timed(task))
        passed[what] = link.passed()

    raw = _raw_bits_per_s(link, most_bytes=int(bits_per_s * _RAW_S / 8))
    for _ in range(1 if bits_per_s < _SLOW_BITS_PER_S else 2):
        for other, how in others.items():
            ours.forget()
            turn(CHECKED, ours.load)
            turn(other, how)
    turn(_COLD, ours.load_cold)
    found = {what: median_of(values) for what, values in taken.items()}
    goal, ratio = _GOALS.get(name), found[_PLAIN].seconds / found[CHECKED].seconds
    rows = [
        LoadRow(
            group,
            what,
            seconds=one.seconds,
            busy_s=one.busy_s,
            size_bytes=passed[what].size_bytes,
            requests=passed[what].requests,
            value=found[_PLAIN].seconds / one.seconds,
            unit="x sooner than safetensors",
            **(goal_for(forged, f"{goal:g}", met=ratio >= goal) if goal and what == CHECKED else NO_GOAL),
        )
        for what, one in found.items()
    ]
    return [*rows, LoadRow(group, "what the link lets through", value=raw / 1e6, unit="Mbit/s")]


def _raw_bits_per_s(link: ThrottledLink, *, most_bytes: int) -> float:
    """How fast the link, and the server behind it, really are: from the first byte of an object on."""
    url = _file_system(link.address).sign(f"{BUCKET}/plain.safetensors")
    with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - a server of ours
        answer.read(1)
        started_s, count, piece = time.perf_counter(), 0, bytearray(1 << 20)
        while count < most_bytes and (read := answer.readinto(piece)):
            count += read
        return 8 * count / (time.perf_counter() - started_s)


@functools.cache
def _file_system(address: str) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("s3", **s3_options(address), use_listings_cache=False)
