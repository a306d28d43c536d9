"""The step of the models that a basis was made from, where it is finer than that of models that are added later.

Owns the option by which a basis remembers it. A reader of models needs neither: each has its own step on record.
"""

from __future__ import annotations

import re

from uws_store.basis import Basis, step_of
from uws_store.canonical import Step
from uws_store.errors import FormatError, InvalidInputError

__all__ = ["member_step", "member_step_option"]

_OPTION = "member-step"
_FORM = re.compile(r"([0-9]{3}) \* 2\^(-?[0-9]{1,3})")


def member_step_option(members: Step, others: Step) -> tuple[tuple[str, str], ...]:
    """Write it down; nothing where all models have one step."""
    return ((_OPTION, f"{members.mantissa} * 2^{members.exponent}"),) if members != others else ()


def member_step(basis: Basis) -> Step:
    """Read it back: the basis's own step where it says nothing else.

    Raises
    ------
    FormatError
        When the basis says something that is no step (``format/document``).
    """
    text = dict(basis.document.build.options).get(_OPTION)
    if text is None:
        return step_of(basis.document.step)
    read = _FORM.fullmatch(text)
    if read is None:
        raise _problem(basis, text)
    try:
        return Step(int(read[1]), int(read[2]))
    except InvalidInputError as error:
        raise _problem(basis, text) from error


def _problem(basis: Basis, text: str) -> FormatError:
    return FormatError(
        f"basis {basis.digest[:12]} was built with {_OPTION} {text[:40]!r}, which is no step such as '200 * 2^-9'; models "
        "can be added to it, and none that it was made from can be encoded anew",
        kind="format/document",
    )
