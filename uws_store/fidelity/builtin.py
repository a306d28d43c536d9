"""The built-in evaluations: accuracy on labelled examples, and agreement with the original on any.

They run a model that the caller made a module for; the weights are filled in by the loader's own rules. Knows nothing
about registries.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from uws_store.errors import InvalidInputError, UwsError
from uws_store.fidelity.evaluation import Score
from uws_store.fidelity.examples import Examples, digest_of_file, draw_examples, find_examples
from uws_store.fidelity.sides import Examiner, Weights
from uws_store.loader import fill_module

__all__ = ["BUILT_IN", "Accuracy", "Agreement", "Assembler", "ModuleFactory", "built_in", "filled"]

ModuleFactory = Callable[[str], torch.nn.Module]
"""Makes the module of a task; its weights are replaced."""

Assembler = Callable[[Weights, str], torch.nn.Module]
"""Makes the module of a task with weights in it, in evaluation mode."""

BUILT_IN = ("accuracy", "logits")
"""Names of the built-in evaluations."""

_KIND = "invalid-input/evaluation"
_IGNORED = -100


def built_in(name: str, *, data: Path | None, assemble: Assembler) -> Examiner:
    """Make a built-in evaluation.

    Parameters
    ----------
    name : {"accuracy", "logits"}
        Which.
    data : Path, optional
        See :func:`uws_store.fidelity.examples.find_examples`; ``logits`` draws inputs where there is none.
    assemble : callable
        Makes a task's module from weights.

    Raises
    ------
    InvalidInputError
        When there is no such evaluation, or accuracy is asked for without data (``invalid-input/evaluation``).
    """
    if name == "accuracy":
        if data is None:
            raise InvalidInputError(
                "accuracy needs labelled examples: data= (--data), a .safetensors or .npz file with labels, or a folder "
                "with one per task",
                kind=_KIND,
            )
        return Accuracy(data, assemble)
    if name == "logits":
        return Agreement(data, assemble)
    raise InvalidInputError(
        f"there is no built-in evaluation {name!r}; there are {', '.join(BUILT_IN)}, or name package.module:function",
        kind=_KIND,
    )


def filled(module_of: ModuleFactory) -> Assembler:
    """Make an assembler of a function that makes modules: the weights are filled in by the loader's rules."""
    made: dict[str, torch.nn.Module] = {}

    def assemble(weights: Weights, task: str) -> torch.nn.Module:
        if task not in made:
            made.clear()  # one at a time is held
            made[task] = module_of(task)
        module = made[task]
        if not isinstance(module, torch.nn.Module):
            raise InvalidInputError(
                f"the module for task {task!r} is {type(module).__name__}, not a torch.nn.Module",
                kind="invalid-input/module",
            )
        if any(value.is_meta for value in module.state_dict().values()):
            # The module takes these tensors themselves; the next side is copied into them.
            copies = {id(value): value.clone() for value in weights.values()}
            weights = {name: copies[id(value)] for name, value in weights.items()}
        return fill_module(module, weights, strict=True, name=task).eval()

    return assemble


def _run(module: torch.nn.Module, task: str, examples: Examples) -> torch.Tensor:
    """Logits, float32: (n, classes) or (n, positions, classes)."""
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for arguments, named, _part in examples.batches():
            try:
                output = module(*arguments, **named)
            except UwsError:
                raise
            except Exception as error:  # whatever a module raises, the caller learns on which data
                raise InvalidInputError(
                    f"running {type(module).__name__} of task {task!r} on {examples.name} failed: "
                    f"{type(error).__name__}: {error}",
                    kind="invalid-input/evaluation-raised",
                ) from error
            found.append(_logits_of(output, module).to(torch.float32))
    return torch.cat(found)


class Accuracy:
    """Share of labelled examples whose largest logit is at their label.

    Parameters
    ----------
    data : Path
        Labelled examples.
    assemble : callable
        Makes a task's module from weights.
    """

    def __init__(self, data: Path, assemble: Assembler) -> None:
        self._data = data
        self._assemble = assemble
        self._examples: Examples | None = None

    @property
    def identity(self) -> str:
        """Name of the evaluation and of its data."""
        return f"accuracy on {_named(self._data)}"

    def begin(self, task: str, original: Weights | None) -> None:
        """Read the task's examples; the original is scored as every other side is."""
        del original
        self._examples = find_examples(self._data, task, labelled=True)

    def scores(self, weights: Weights, task: str) -> tuple[Score, ...]:
        """Count right answers."""
        examples = self._examples
        if examples is None or examples.labels is None:
            return ()
        answers = _run(self._assemble(weights, task), task, examples).argmax(-1)
        labels = examples.labels
        if answers.shape != labels.shape:
            raise InvalidInputError(
                f"{examples.name}: labels are of shape {tuple(labels.shape)}, the model's answers of "
                f"{tuple(answers.shape)}",
                kind="invalid-input/data",
            )
        counted = labels != _IGNORED
        correct = (answers == labels)[counted].to(torch.float64).numpy()
        if not len(correct):
            return ()
        return (Score("accuracy", float(correct.mean()), True, len(correct), correct),)


class Agreement:
    """Agreement of the largest logit, and Kullback-Leibler divergence, between a model and its original.

    It needs no labels. The divergence is KL(original || model) in nats, of the softmax over the last axis, averaged over
    an example's positions.

    Parameters
    ----------
    data : Path, optional
        Examples; random inputs where there are none.
    assemble : callable
        Makes a task's module from weights.
    """

    def __init__(self, data: Path | None, assemble: Assembler) -> None:
        self._data = data
        self._assemble = assemble
        self._examples: Examples | None = None
        self._reference: torch.Tensor | None = None

    @property
    def identity(self) -> str:
        """Name of the evaluation and of its data."""
        return f"logits on {_named(self._data) if self._data else 'random inputs'}"

    def begin(self, task: str, original: Weights | None) -> None:
        """Take the original's logits as the reference; without an original there is nothing to agree with."""
        self._reference = None
        if original is None:
            return
        module = self._assemble(original, task)
        if self._data is not None:
            self._examples = find_examples(self._data, task, labelled=False)
        else:
            self._examples = draw_examples(module)
        if self._examples is not None:
            self._reference = _run(module, task, self._examples)

    def scores(self, weights: Weights, task: str) -> tuple[Score, ...]:
        """Compare with the original."""
        examples, reference = self._examples, self._reference
        if examples is None or reference is None:
            return ()
        logits = _run(self._assemble(weights, task), task, examples)
        before, after = reference.log_softmax(-1), logits.log_softmax(-1)
        divergence = (before.exp() * (before - after)).sum(-1).clamp(min=0)
        same = (reference.argmax(-1) == logits.argmax(-1)).to(torch.float64)
        weight = _position_weights(examples, same)
        agreement = _per_example(same, weight)
        nats = _per_example(divergence.to(torch.float64), weight)
        return (
            Score("agreement", float(agreement.mean()), True, len(agreement), agreement),
            Score("KL divergence", float(nats.mean()), False, len(nats), -nats),
        )


def _named(data: Path) -> str:
    """A file by its name and digest; a folder, which has one file per task, by its name."""
    return f"{data.name} sha256:{digest_of_file(data)}" if data.is_file() else data.name


def _logits_of(output: object, module: torch.nn.Module) -> torch.Tensor:
    found = getattr(output, "logits", output)
    if isinstance(found, torch.Tensor) and found.ndim >= 2 and found.is_floating_point():
        return found
    raise InvalidInputError(
        f"{type(module).__name__} returns {type(output).__name__} without logits of shape (n, ..., classes); write an "
        "evaluation of your own for it",
        kind=_KIND,
    )


def _position_weights(examples: Examples, values: torch.Tensor) -> torch.Tensor | None:
    """The attention mask, where the values are one per token."""
    mask = examples.inputs.get("attention_mask")
    return mask.to(torch.float64) if mask is not None and mask.shape == values.shape else None


def _per_example(
    values: torch.Tensor, weight: torch.Tensor | None
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if weight is not None:
        values = (values * weight).sum(-1) / weight.sum(-1).clamp(min=1)
    return values.reshape(len(values), -1).mean(-1).numpy().reshape(-1)
