"""``analyze``: what a zoo is, in words, numbers and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from uws_store.api.analysis import analyze as api_analyze
from uws_store.api.planning import plan as api_plan
from uws_store.cli.output import Output, as_plain, columns, counted, facts, number, printable, size
from uws_store.cli.planning import plan_facts, plan_totals
from uws_store.cli.progress import progress
from uws_store.errors import AlreadyExistsError, InvalidInputError, StorageError, UwsError
from uws_store.storage import StorageUrl, parse_options

if TYPE_CHECKING:
    from uws_store.analysis import ArchitectureGroup, ModeCapture, ZooAnalysis
    from uws_store.builder import Progress
    from uws_store.metadata.plan import PlanDocument

__all__ = ["run_analyze"]

_MANY = 100
_SHOWN_GROUPS = 8
_SHOWN_TASKS = 4
_SHOWN_TENSORS = 12
_MODES = {
    0: "models: 16 directions",
    1: "rows: a sixteenth",
    2: "columns: a sixteenth",
}


def run_analyze(
    zoo: str,
    *,
    plot: str | None,
    rename_out: str | None,
    plan: bool,
    overwrite: bool,
    zoo_option: tuple[str, ...],
    output: Output,
) -> None:
    """Analyse a zoo."""
    if zoo_option:
        zoo = StorageUrl(zoo, parse_options(zoo_option))
    if plot is not None:
        _check_plot(Path(plot), overwrite=overwrite)
    if rename_out is not None:
        _require_free(Path(rename_out), overwrite=overwrite)
    with progress(output) as report:
        analysis = api_analyze(zoo, progress=report)
        planned = _plan(zoo, output=output, progress=report) if plan else None
    if plot is not None:
        _draw(analysis, Path(plot))
    if rename_out is not None:
        _write_names(analysis, Path(rename_out))
        output.notice(
            f"wrote {rename_out}: shapes and order alone suggest it; check the names before you build"
        )
    if output.as_json:
        document = as_plain(analysis)
        assert isinstance(document, dict)
        # A square table of all pairs: for the plot.
        document["relations"].pop("cosine")
        shares = analysis.sharing.shares if analysis.sharing else None
        predicted = _predicted(planned, len(analysis.tasks)) if planned is not None else None
        output.document(
            {"zoo": zoo, "kind": analysis.kind, "shares": shares, "predicted": predicted} | document
        )
    elif output.quiet:
        output.names([analysis.kind])
    else:
        output.show(*_parts(analysis))
        if planned is not None:
            output.show("", *_predictions(planned, len(analysis.tasks)))
        if plot is not None:
            output.notice(f"wrote {plot}")


def _check_plot(path: Path, *, overwrite: bool) -> None:
    if path.suffix not in {".svg", ".png", ".pdf"}:
        raise InvalidInputError(f"{path}: a plot is .svg, .png or .pdf", kind="invalid-input/plot")
    _require_free(path, overwrite=overwrite)
    _load_draw_zoo()  # before minutes of analysis, not after them


def _plan(zoo: str, *, output: Output, progress: Progress | None) -> PlanDocument | None:
    """Plan the family that a build would make of the largest architecture; None where it would refuse the zoo."""
    try:
        return api_plan(zoo, skip_mismatched=True, progress=progress)
    except UwsError as error:
        output.notice(f"no prediction of bytes: {error.message}")
        return None


def _predicted(planned: PlanDocument, models: int) -> dict[str, float | None]:
    return {
        "model_bytes": planned.model_bytes,
        "basis_bytes": planned.basis_bytes,
        "source_model_bytes": planned.source_bytes,
        "family_bytes": planned.basis_bytes + models * planned.model_bytes,
        "family_bytes_at_100": planned.basis_bytes + _MANY * planned.model_bytes,
        **plan_totals(planned),
    }


def _predictions(planned: PlanDocument, models: int) -> Iterator[RenderableType]:
    yield "what `build` would store, as predicted:"
    rows = list(plan_facts(planned))
    for count, what in ((models, "now"), (_MANY, f"at {_MANY}")):
        stored, source = planned.basis_bytes + count * planned.model_bytes, count * planned.source_bytes
        rows.append(
            (f"family {what}", size(stored), f"{counted(count, 'model')}, safetensors {size(source)}")
        )
    yield facts(rows)


def _write_names(analysis: ZooAnalysis, path: Path) -> None:
    """Write the map of each task whose tensors are those of the largest group under other names."""
    names = {
        task: dict(group.rename)
        for group in analysis.architectures
        if group.renamed_from == 0
        for task in group.tasks
    }
    if not names:
        raise InvalidInputError(
            "no checkpoint has the shapes of the others under other names: there is no map to suggest",
            kind="invalid-input/rename",
        )
    try:
        path.write_text(json.dumps(names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}", kind="storage/io") from error


def _require_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise AlreadyExistsError(
            f"{path} is there already; name another file, or give --overwrite", kind="already-exists/file"
        )


def _load_draw_zoo() -> Callable[[ZooAnalysis, Path], None]:
    try:
        from uws_store.report.zoo_plot import draw_zoo  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            f"a plot needs the package {error.name!r}; install the extra: pip install 'uws-store[report]'",
            kind="invalid-input/extra",
        ) from error
    return draw_zoo


def _draw(analysis: ZooAnalysis, path: Path) -> None:
    try:
        _load_draw_zoo()(analysis, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}", kind="storage/io") from error


def _parts(analysis: ZooAnalysis) -> Iterator[RenderableType]:
    yield facts(_facts(analysis))
    yield ""
    yield columns(
        {
            "share of change captured along": "name",
            "in the fit": "number",
            "held out": "number",
            "Gaussian null": "number",
            "shuffled null": "number",
        },
        map(_mode_row, analysis.modes),
    )
    yield ""
    yield from _verdict(analysis)
    yield from _kinship(analysis)
    yield from _architectures(analysis.architectures)
    rows = [one for one in analysis.tensors if one.sharing is not None][:_SHOWN_TENSORS]
    if rows:
        yield "\nthe largest tensors:"
        yield columns(
            {
                "tensor": "name",
                "shape": "word",
                "mean only": "number",
                "bits saved": "number",
                "null": "number",
                "shares": "word",
            },
            (
                (
                    one.name,
                    " x ".join(map(str, one.shape)),
                    number(one.mean_error),
                    f"{one.sharing.gain_bits:.2f}",
                    f"{max(one.sharing.gaussian_bits, one.sharing.shuffled_bits):.2f}",
                    one.sharing.shares,
                )
                for one in rows
                if one.sharing is not None
            ),
        )


def _facts(analysis: ZooAnalysis) -> Iterator[tuple[str, str, str]]:
    yield "models", str(len(analysis.tasks)), f"of one architecture, {size(analysis.source_bytes)}"
    yield "parameters", f"{analysis.parameters:,}", "of each"
    yield "dtypes", ", ".join(f"{name} {count}" for name, count in analysis.dtypes), _mixed(analysis)
    yield "kind", analysis.kind, _KINDS.get(analysis.kind, "models of one base form a group")
    yield "mean-only error", number(analysis.mean_error), "||W - mean|| / ||W|| of models outside the mean"
    if analysis.measured_share < 1:
        yield "measured", f"{analysis.measured_share:.0%}", "of the weights: the largest tensors"


_KINDS = {
    "one base": "all models were tuned from the same weights",
    "one initialisation": "most models lean the same way and are not tuned from one base",
    "independent": "the models have nothing to do with one another beyond their shapes",
}


def _mixed(analysis: ZooAnalysis) -> str:
    return "mixed dtypes: each model keeps its own" if len(analysis.dtypes) > 1 else ""


def _mode_row(mode: ModeCapture) -> tuple[str, ...]:
    shares = (mode.fitted, mode.held_out, mode.gaussian, mode.shuffled)
    return (_MODES[mode.mode], *(f"{100 * share:.1f} %" for share in shares))


def _verdict(analysis: ZooAnalysis) -> Iterator[RenderableType]:
    shared = analysis.sharing
    if shared is None:
        yield "too few models, or no matrices, to say whether they share a subspace (four are needed)"
        return
    yield f"{shared}."
    advice = {
        "subspace": "A family will pay: build it.",
        "mean": "Factors will not pay, the mean will: a family is about as large as a plain coder about the mean makes it.",
        "nothing": "A family will be about as large as a plain coder makes it: there is nothing to share.",
    }[shared.shares]
    if len(analysis.relations.bases) > 1 and len(analysis.relations.bases[0]) > 3:
        advice += " The models are tuned from several bases: a build gives each a basis of its own where that is smaller."
    yield advice


def _kinship(analysis: ZooAnalysis) -> Iterator[RenderableType]:
    relations = analysis.relations
    groups = [group for group in relations.bases if len(group) > 1]
    if groups and len(groups[0]) < len(analysis.tasks):
        yield "\ngroups tuned from one base:"
        yield from _groups(groups)
        alone = sum(len(group) == 1 for group in relations.bases)
        if alone:
            yield f"  {counted(alone, 'model')} by themselves"
    for heading, held in (
        ("lean the same way, and are not tuned from one base", relations.initialisations),
        ("the same weights", relations.duplicates),
        ("nearly the same weights", relations.near_duplicates),
    ):
        if held:
            yield f"\n{heading}:"
            yield from _groups(held)
    if relations.outliers:
        yield Text(
            f"\nnorms a hundred times the usual or more, kept out of a fit: {printable(', '.join(relations.outliers))}",
            "yellow",
        )


def _groups(groups: tuple[tuple[str, ...], ...] | list[tuple[str, ...]]) -> Iterator[str]:
    for group in groups[:_SHOWN_GROUPS]:
        more = f" and {len(group) - _SHOWN_TASKS} more" if len(group) > _SHOWN_TASKS else ""
        yield f"  {printable(', '.join(group[:_SHOWN_TASKS]))}{more}"
    if len(groups) > _SHOWN_GROUPS:
        yield f"  and {counted(len(groups) - _SHOWN_GROUPS, 'group')} more"


def _architectures(groups: tuple[ArchitectureGroup, ...]) -> Iterator[RenderableType]:
    odd = groups[0].odd
    if odd:
        task, difference = odd[0]
        yield (
            f"\n{counted(len(odd), 'model')} with tensors that differ, kept private in a family, such as "
            f"{printable(task)}: {printable(difference)}"
        )
    if len(groups) == 1:
        return
    yield f"\n{len(groups) - 1} other architectures in this zoo (build leaves them out with --skip-mismatched):"
    for group in groups[1:_SHOWN_GROUPS]:
        line = f"  {counted(len(group.tasks), 'model')}, such as {printable(group.tasks[0])}: {group.parameters:,} parameters"
        if group.renamed_from is not None:
            line += "; the same shapes as " + _of(group.renamed_from) + " under other names"
            if group.rename:
                ours, theirs = group.rename[0]
                line += f", such as {printable(ours)} for {printable(theirs)} (--rename map.json)"
        if group.transposed_from is not None:
            line += (
                "; the shapes of "
                + _of(group.transposed_from)
                + " with axes in another order: transposed kernels"
            )
        yield line
    if len(groups) > _SHOWN_GROUPS:
        yield f"  and {len(groups) - _SHOWN_GROUPS} more"


def _of(index: int) -> str:
    return "the largest group" if index == 0 else f"group {index + 1}"
