"""The same subspaces by several packages: the left and the right one of a tensor of all models.

Owns the ways, and how much of the changes' energy what they found holds. Measures no time. The PCAs see the rows of
all models, then their columns; ours takes one pass over the files, and so does IncrementalPCA, a model at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open

__all__ = ["METHODS", "TENSOR", "captured", "imported_for", "one_thread_each", "several"]

TENSOR = "layer.weight"
"""The one tensor of the zoo."""


def _slices(folder: Path, name: str = TENSOR) -> Iterator[torch.Tensor]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield file.get_tensor(name)


def _mean(folder: Path) -> torch.Tensor:
    total, count = None, 0
    for tensor in _slices(folder):
        values = tensor.to(torch.float64)
        total = values if total is None else total.add_(values)
        count += 1
    assert total is not None
    return (total / count).to(torch.float32)


def _ours(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    # A build gives each thread a tensor of its own; here there is one tensor, and each thread takes one of its sides.
    with one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        return _of_one(folder, TENSOR, rank, pool)


def several(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the subspaces of all tensors of a zoo as a build does, a thread for each tensor; the first one's are given."""
    with safe_open(min(folder.glob("*.safetensors")), framework="pt") as file:
        names = sorted(file.keys())
    with one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        return next(iter(list(pool.map(lambda name: _of_one(folder, name, rank, None), names))))


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let torch compute in the thread that asks, and tell how many it had."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _of_one(
    folder: Path, name: str, rank: int, pool: ThreadPoolExecutor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one pass over the files: moments about the first model, moved to the mean of all."""
    from uws_store.moments import SideMoment  # noqa: PLC0415 - not in every process

    slices = _slices(folder, name)
    reference = next(slices)
    total = torch.zeros(reference.shape, dtype=torch.float64)
    moments = [
        SideMoment(size=size, block=size, side=side)
        for side, size in zip(("left", "right"), reference.shape, strict=True)
    ]
    count = 1
    for tensor in slices:
        change = tensor.sub_(reference)
        at_work = [pool.submit(moment.add, change) for moment in moments] if pool else []
        total += change
        count += 1
        if pool:
            wait(at_work)
        else:
            for moment in moments:
                moment.add(change)
    total /= count

    def finished(moment: SideMoment) -> torch.Tensor:
        moment.add(total, times=-count)
        return moment.leading(rank)[0]

    left, right = (pool.map if pool else map)(finished, moments)
    return left, right


def _stacked(folder: Path) -> torch.Tensor:
    mean = _mean(folder)
    return torch.stack([tensor - mean for tensor in _slices(folder)])


def _incremental_pca(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.decomposition import IncrementalPCA  # noqa: PLC0415 - an extra

    mean = _mean(folder)
    rows, columns = IncrementalPCA(rank), IncrementalPCA(rank)
    for tensor in _slices(folder):
        change = (tensor - mean).numpy()
        rows.partial_fit(change)
        columns.partial_fit(change.T)
    return torch.from_numpy(columns.components_.T), torch.from_numpy(rows.components_.T)


def _pca(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.decomposition import PCA  # noqa: PLC0415 - an extra

    changes = _stacked(folder)
    right = PCA(rank).fit(changes.reshape(-1, changes.shape[2]).numpy()).components_.T
    left = PCA(rank).fit(changes.transpose(1, 2).reshape(-1, changes.shape[1]).numpy()).components_.T
    return torch.from_numpy(left), torch.from_numpy(right)


def _pca_lowrank(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    changes = _stacked(folder)
    torch.manual_seed(0)
    _, _, right = torch.pca_lowrank(changes.reshape(-1, changes.shape[2]), q=rank, center=False)
    _, _, left = torch.pca_lowrank(
        changes.transpose(1, 2).reshape(-1, changes.shape[1]), q=rank, center=False
    )
    return left, right


def _tucker(folder: Path, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    import tensorly  # noqa: PLC0415 - an extra
    from tensorly.decomposition import partial_tucker  # noqa: PLC0415 - an extra

    tensorly.set_backend("pytorch")
    (_, factors), _ = partial_tucker(_stacked(folder), rank=[rank, rank], modes=[1, 2])
    return factors[0], factors[1]


METHODS: Mapping[str, Callable[[Path, int], tuple[torch.Tensor, torch.Tensor]]] = {
    "ours": _ours,
    "incremental-pca": _incremental_pca,
    "pca": _pca,
    "pca-lowrank": _pca_lowrank,
    "tucker": _tucker,
}


def captured(folder: Path, left: torch.Tensor, right: torch.Tensor) -> float:
    """Share of the changes' energy inside both subspaces; factors that are not orthonormal are made so."""
    left, right = (torch.linalg.qr(side.to(torch.float64))[0] for side in (left, right))
    mean = _mean(folder).to(torch.float64)
    inside = whole = 0.0
    for tensor in _slices(folder):
        change = tensor.to(torch.float64) - mean
        inside += float((left.T @ change @ right).square().sum())
        whole += float(change.square().sum())
    return inside / whole


def imported_for(method: str) -> None:
    """Import what a method needs: that is not what is measured."""
    if method in ("pca", "incremental-pca"):
        import sklearn.decomposition  # noqa: F401, PLC0415 - an extra
    if method == "tucker":
        import tensorly.decomposition  # noqa: F401, PLC0415 - an extra
