"""The members of a zoo as the builder sees them: opened, compared, surveyed.

Owns which checkpoints take part and which tensors are other names of one another.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from uws_store.architecture import ArchitectureReport, compare
from uws_store.builder.files import common_files
from uws_store.builder.memory import MemoryProjection
from uws_store.builder.products import choose_form, find_products, largest_start
from uws_store.builder.progress import Progress, silent
from uws_store.builder.scratch import Scratch
from uws_store.builder.search import Fidelity
from uws_store.builder.sources import Place, ZooFiles
from uws_store.builder.survey import Surveyed, SurveyJob, TensorSurvey, survey_tensor
from uws_store.builder.tiles import is_large
from uws_store.builder.work import WorkFolder, resumed
from uws_store.checkpoint import Checkpoint, Names, RenamedCheckpoint, Renaming, ZooMember, open_checkpoint
from uws_store.config import tool_version
from uws_store.errors import IncompatibleError, InvalidInputError
from uws_store.executors import Workers

__all__ = ["SMALL_ELEMENTS", "Members", "piece_name", "sample_tasks", "sampled_share"]

SMALL_ELEMENTS = 1 << 28
_PILOT_SHARE = 16
_SCRATCH = "scratch"
_SAMPLED_COEFFICIENTS = 1 << 27
_SAMPLED_MODELS = 8
_TIE_ELEMENTS = 1024


class Members:
    """The checkpoints that make a basis. A context manager.

    Parameters
    ----------
    zoo : sequence of ZooMember
        With `also` at least two.
    also : mapping of str to Checkpoint, optional
        Further members that are open; they are not closed here, and other processes cannot open them.
    skip_mismatched : bool
        Leave out members of another architecture instead of refusing the zoo.
    base : Path, optional
        The checkpoint that adapters were trained on, for its digest.
    rename : Renaming, optional
        Tensors that are to go by other names.

    Raises
    ------
    InvalidInputError
        When the map of names is for none of them (``invalid-input/rename``).
    IncompatibleError
        When members are of different architectures, or adapters of different base models
        (``incompatible/base-model``).
    """

    def __init__(
        self,
        zoo: Sequence[ZooMember],
        *,
        also: Mapping[str, Checkpoint] | None = None,
        skip_mismatched: bool = False,
        base: Path | None = None,
        rename: Renaming | None = None,
    ) -> None:
        with ExitStack() as stack:
            mine = {member.task: stack.enter_context(open_checkpoint(member.place)) for member in zoo}
            if rename is not None:
                mine = {task: rename.apply(task, checkpoint) for task, checkpoint in mine.items()}
                rename.require_used(mine)
            opened = {**(also or {}), **mine}
            paths = {task: checkpoint.source for task, checkpoint in opened.items()}
            paths |= {member.task: member.url or str(member.path) for member in zoo}
            products = find_products(opened)
            report = compare({task: products.shapes(task, checkpoint) for task, checkpoint in opened.items()})
            if not skip_mismatched:
                report.require_one_family()
            self.report: ArchitectureReport = report
            matched = {member.task for member in report.matched}
            self.checkpoints = ZooFiles(
                [
                    Place(task, paths[task], opened[task].identity(), _names_of(opened[task]))
                    for task in sorted(opened)
                    if task in matched
                ],
                opened,
                products,
            )
            if len(self.checkpoints) < 2:
                raise InvalidInputError(
                    f"a basis needs at least two models of one architecture, found {len(self.checkpoints)}"
                    + (f" of {len(opened)}" if len(opened) > 1 else "")
                    + "; add more checkpoints, or keep a single model as safetensors",
                    kind="invalid-input/one-model-zoo",
                )
            self.side_files: Mapping[str, bytes] = common_files(self.checkpoints)
            _require_one_base(self.checkpoints)
            self.base_sha256 = _digest_of_base(base)
            if products.places:
                self.checkpoints.products = choose_form(products, self.checkpoints)
            self._outliers: dict[str, tuple[str, ...]] = {}
            self._sha256: dict[str, str] = {}
            self.work: WorkFolder | None = None
            self.scratch = Scratch()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def part(self, tasks: Collection[str]) -> Members:
        """Some of these members, of the same architecture, for a basis of their own; this holds their files open."""
        found = copy.copy(self)
        found.checkpoints = self.checkpoints.part(tasks)
        found.side_files = common_files(found.checkpoints)
        found.work = None
        found.scratch = self.scratch
        found._outliers = {}  # noqa: SLF001 - of this class
        found._sha256 = dict(self._sha256)  # noqa: SLF001
        found._stack = ExitStack()  # noqa: SLF001
        return found

    def keep_work(self, parent: Path, *, options: Sequence[str], restart: bool = False) -> WorkFolder:
        """Keep finished pieces in a folder below `parent`, and go on with those of a build that was killed.

        Parameters
        ----------
        parent : Path
            For the work of all builds.
        options : sequence of str
            What the build was asked for.
        restart : bool
            Begin anew.
        """
        places = [
            text
            for place in self.checkpoints.places.values()
            for text in (place.task, place.path, place.identity)
        ]
        self.work = WorkFolder(parent, [tool_version(), self.report.digest, *options, *places])
        # What an earlier build that was killed left there is of no use.
        shutil.rmtree(self.work.path / _SCRATCH, ignore_errors=True)
        self.scratch = Scratch(self.work.path / _SCRATCH)
        if restart:
            self.work.clear()
        return self.work

    @property
    def skipped(self) -> tuple[str, ...]:
        """Tasks left out because they are of another architecture."""
        return tuple(member.task for member in self.report.mismatched)

    @property
    def odd(self) -> Mapping[str, tuple[str, ...]]:
        """Per task, the tensors that differ from the majority and will be private."""
        return {
            member.task: tuple(str(tensor) for tensor in member.odd)
            for member in self.report.matched
            if member.odd
        }

    @property
    def outliers(self) -> Mapping[str, tuple[str, ...]]:
        """Per task, the tensors kept out of the fit because their norm is far beyond the others'; after the survey."""
        return dict(self._outliers)

    def size_bytes(self, name: str, tasks: Iterable[str]) -> int:
        """Count the bytes of a tensor in the checkpoints of some members."""
        found = (self.checkpoints[task].tensors.get(name) for task in tasks)
        return sum(info.size_bytes for info in found if info is not None)

    def projected_memory(self, *, fidelity: Fidelity, exact: bool, shares_memory: bool) -> MemoryProjection:
        """Project what a build of these members will need, from headers alone."""
        signatures = self.report.majority
        elements = sum(math.prod(signature.shape) for signature in signatures)
        sizes = [info.dtype.size_bytes for one in self.checkpoints.values() for info in one.tensors.values()]
        # Products are kept as they are coded, in float64.
        products = self.checkpoints.products
        width = 8 if products and products.places else max(sizes, default=4)
        return MemoryProjection.of(
            (signature.shape for signature in signatures),
            members=len(self.checkpoints),
            sampled=len(sample_tasks(list(self.checkpoints), elements)),
            source_bytes=width,
            exact=exact,
            pinned_bytes=elements * len(self.checkpoints) * width if self.is_small and shares_memory else 0,
            shares_memory=shares_memory,
            crossed=fidelity.kind == "bits",
        )

    @property
    def is_large(self) -> bool:
        """Whether an architecture is so large that its means, and a basis's objects, lie on the disk while it is built."""
        return is_large(sum(math.prod(signature.shape) for signature in self.report.majority))

    @property
    def is_small(self) -> bool:
        """Whether all slices of all members are kept in memory from the first pass on: a GiB of float32 at most."""
        elements = sum(math.prod(signature.shape) for signature in self.report.majority)
        return elements * len(self.checkpoints) <= SMALL_ELEMENTS

    def pilot(self) -> frozenset[str]:
        """Pick a sixteenth of the architecture, spread over it, to tell the step from; all of a small zoo.

        From shapes alone, so that it depends on nothing but the zoo.
        """
        signatures = self.report.majority
        if self.is_small:
            return frozenset(signature.name for signature in signatures)
        wanted = sum(math.prod(signature.shape) for signature in signatures) / _PILOT_SHARE
        picked: set[str] = set()
        for index in np.random.default_rng(0).permutation(len(signatures)).tolist():
            if wanted <= 0:
                break
            picked.add(signatures[index].name)
            wanted -= math.prod(signatures[index].shape)
        return frozenset(picked)

    def largest_start(self) -> int:
        """How many adapters began from one random A; 0 for a zoo without products."""
        return largest_start(self.checkpoints.products, self.checkpoints) if self.checkpoints.products else 0

    def sources_digest(self, workers: Workers | None = None) -> str:
        """SHA-256, hex, over the sorted lines ``<sha256 of the checkpoint> <task>``."""
        missing = [task for task in self.checkpoints if task not in self._sha256]
        jobs = [(self.checkpoints, task) for task in missing]
        names = [f"sha256/{piece_name(task)}" for task in missing]
        found = resumed(self.work, workers or Workers(), _sha256_of, jobs, names=names, kind=str)
        for index, digest in found:
            self._sha256[missing[index]] = digest
            # The checkpoint itself need not compute it again for the model's record.
            self.checkpoints.note_sha256(missing[index], digest)
        lines = sorted(f"{self._sha256[task]} {task}\n" for task in self.checkpoints)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def survey(
        self, workers: Workers | None = None, *, report: Progress = silent
    ) -> tuple[TensorSurvey, ...]:
        """Classify every tensor of the majority's signature, reading each tensor of each member once."""
        signatures = self.report.majority
        jobs = [SurveyJob(self.checkpoints, signature.name, signature.shape) for signature in signatures]
        names = [f"survey/{index}" for index in range(len(jobs))]
        found: dict[int, Surveyed] = {}
        size_bytes = 0
        for index, surveyed in resumed(
            self.work, workers or Workers(), survey_tensor, jobs, names=names, kind=Surveyed
        ):
            found[index] = surveyed
            size_bytes += self.size_bytes(surveyed.survey.name, self.checkpoints)
            report("reading", len(found), len(signatures), size_bytes)
        in_order = [found[index] for index in range(len(signatures))]
        kept_out = {
            task: tuple(one.survey.name for one in in_order if task in one.outliers)
            for task in self.checkpoints
        }
        self._outliers = {task: tensors for task, tensors in kept_out.items() if tensors}
        return tuple(self._tied(in_order))

    def _tied(self, found: Iterable[Surveyed]) -> Iterator[TensorSurvey]:
        """Point each tensor that holds the same bytes as an earlier one, in every member, at that one."""
        seen: dict[tuple[tuple[int, ...], frozenset[tuple[str, bytes]]], str] = {}
        for one in found:
            survey, digests = one.survey, one.digests
            target = None
            if len(digests) == len(self.checkpoints):
                target = seen.setdefault((survey.shape, frozenset(digests.items())), survey.name)
            if (
                target in (None, survey.name)
                or survey.mode not in ("coded", "private")
                or math.prod(survey.shape) < _TIE_ELEMENTS
            ):
                yield survey
            else:
                yield TensorSurvey(survey.name, survey.shape, survey.dtype, "tied", target, ())


def sample_tasks(tasks: Sequence[str], parameters: int) -> list[str]:
    """Pick the members, spread over the zoo, whose coefficients are kept for the search of the step."""
    count = max(1, min(_SAMPLED_MODELS, len(tasks), _SAMPLED_COEFFICIENTS // max(1, parameters)))
    picked = np.linspace(0, len(tasks) - 1, count).round().astype(int)
    return [tasks[index] for index in picked]


def sampled_share(parameters: int) -> float:
    """Part of a sampled member's coefficients that is kept."""
    return min(1.0, _SAMPLED_COEFFICIENTS / max(1, parameters))


def piece_name(task: str) -> str:
    """Name a task's piece of work so that any disk can hold it."""
    return hashlib.sha256(task.encode()).hexdigest()[:32]


def _require_one_base(checkpoints: Mapping[str, Checkpoint]) -> None:
    """Refuse adapters of several base models: what they add means nothing to another."""
    bases: dict[str, str] = {}
    for task, checkpoint in checkpoints.items():
        if checkpoint.adapter is not None:
            bases.setdefault(checkpoint.adapter.base_model, task)
    if len(bases) > 1:
        named = "; ".join(f"{task} is for {base or 'none that it names'}" for base, task in bases.items())
        raise IncompatibleError(
            f"the adapters are for {len(bases)} base models ({named}); make a family for each",
            kind="incompatible/base-model",
        )


def _digest_of_base(base: Path | None) -> str | None:
    if base is None:
        return None
    with open_checkpoint(base) as checkpoint:
        return checkpoint.sha256()


def _names_of(checkpoint: Checkpoint) -> Names:
    return checkpoint.names if isinstance(checkpoint, RenamedCheckpoint) else ()


def _sha256_of(job: tuple[ZooFiles, str]) -> str:
    files, task = job
    return files[task].sha256()
