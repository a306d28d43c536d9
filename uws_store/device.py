"""Where arrays are computed: copies to a device that overlap its work, and the retreat where it is full.

Owns the page-locked copies and their stream, and the order of retreat: all on the device, then piece by piece, then
the CPU. Must not know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from uws_store.errors import InvalidInputError, MemoryLimitError

__all__ = ["CPU", "each_device", "fed", "first_that_fits", "one_device", "told_of_retreat", "usable_device"]

T = TypeVar("T")

CPU = torch.device("cpu")

_FULL = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "out of memory",
    "can't allocate memory",
)


def each_device(device: torch.device) -> tuple[torch.device, ...]:
    """Give the devices that a name stands for: every GPU for a bare ``cuda``, else the one."""
    if device == torch.device("cuda"):
        return tuple(torch.device("cuda", index) for index in range(max(1, torch.cuda.device_count())))
    return (device,)


def fed(tensors: Iterable[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """Give tensors on a device, in their order, each copied while the one before is at work.

    A copy goes through page-locked memory, on a stream of its own; the tensor after the one that is at work is taken
    from its source by then, so that reading overlaps too. There are two tensors on the device at a time besides what
    the taker holds. What is there already, and everything on the CPU, is handed on as it is.

    Parameters
    ----------
    tensors : iterable of torch.Tensor
        Anywhere.
    device : torch.device
        Where they are wanted.
    """
    if device.type != "cuda":
        for tensor in tensors:
            yield tensor.to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    coming: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
    for tensor in tensors:
        begun = _begin(tensor, device, stream)
        if coming is not None:
            yield _arrived(*coming, device)
        coming = begun
    if coming is not None:
        yield _arrived(*coming, device)


def _begin(
    tensor: torch.Tensor, device: torch.device, stream: torch.cuda.Stream
) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    if tensor.device.type != CPU.type:
        return tensor.to(device), None
    with torch.cuda.stream(stream):
        copy = tensor.pin_memory().to(device, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(stream)
    return copy, copied


def _arrived(tensor: torch.Tensor, copied: torch.cuda.Event | None, device: torch.device) -> torch.Tensor:
    if copied is not None:
        at_work = torch.cuda.current_stream(device)
        at_work.wait_event(copied)
        # Its memory may go to another copy only when the work on it is done.
        tensor.record_stream(at_work)
    return tensor


def first_that_fits(ways: Sequence[tuple[str, Callable[[], T]]], *, what: str) -> tuple[T, str]:
    """Do something in the first of several ways for which there is memory.

    Parameters
    ----------
    ways : sequence of (str, callable)
        Names, and what to call; the one that needs least comes last.
    what : str
        What is done, for the error.

    Returns
    -------
    result
        What the call gave.
    name : str
        Of the way.

    Raises
    ------
    MemoryLimitError
        When there is memory for none (kind ``memory-limit/device``).
    """
    cause: RuntimeError | None = None
    for name, way in ways:
        try:
            return way(), name
        except RuntimeError as error:
            if not _is_full(error):
                raise
            # Its traceback holds on to what was on the device.
            cause = error.with_traceback(None)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
    raise MemoryLimitError(
        f"{what} finds no memory, on the CPU neither; give fewer --workers, or work where there is more",
        kind="memory-limit/device",
    ) from cause


def _is_full(error: RuntimeError) -> bool:
    """Whether something found no memory: libraries of a device, and the CPU's allocator, have no error of their own."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


def told_of_retreat(way: str, device: torch.device) -> str:
    """Say of a tensor in which of the lesser ways it was worked on, for want of room on a device."""
    if way == "cpu":
        return f"is made on the CPU: {device.type} has no room for it"
    return f"is made by {way} on {device.type}, which has no room for all of it"


def usable_device(device: str | torch.device) -> torch.device:
    """Refuse a device that cannot hold weights, or that this machine has not.

    Raises
    ------
    InvalidInputError
        Kind ``invalid-input/device``.
    """
    try:
        place = torch.device(device)
        # Also refuses a device that this build or machine has not.
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(
            f"device {device!r} cannot be used: {error}", kind="invalid-input/device"
        ) from error
    if place.type == "meta":
        raise InvalidInputError(
            "device 'meta' holds no weights; pass a module on it as into=, with the device the weights shall be on",
            kind="invalid-input/device",
        )
    return place


def one_device(device: str | torch.device) -> torch.device:
    """A usable device by its number: a bare ``cuda`` is the one that is current now, whichever is current later."""
    return torch.empty(0, device=usable_device(device)).device
