"""Making weights whatever the caller's thread is set to: inference mode, mixed precision, another default device.

Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["plain_arithmetic"]


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Set aside, in this thread, what would change how tensors are made.

    What is kept for the next model, or handed out, must be no tensor of inference mode; products are not to be made in
    half precision; tensors belong where they are said to.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
