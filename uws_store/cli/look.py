"""``list`` and ``show``: what a registry holds, told from its log and its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from uws_store.api import FamilySummary, ModelSummary, VerificationSummary, list_families, list_models
from uws_store.api import show as api_show
from uws_store.api.opening import open_registry
from uws_store.cli.command import split_model
from uws_store.cli.evaluation import model_score_facts, shown_scores
from uws_store.cli.growth import growth_facts
from uws_store.cli.hints import next_command
from uws_store.cli.output import Output, as_plain, columns, counted, facts, number, problem_lines, ratio, size
from uws_store.registry import ModelEntry

__all__ = ["run_list", "run_show"]


def run_list(pattern: str | None, *, where: Sequence[str] = (), output: Output, registry: str | None) -> None:
    """List families, or models that match a pattern and conditions."""
    opened = open_registry(registry)
    if where and pattern is None:
        pattern = "*"
    models = list_models("*" if pattern is None else pattern, where=where, registry=opened)
    families = list_families(registry=opened)
    if pattern is not None:
        matched = {model.family for model in models}
        families = tuple(family for family in families if family.name in matched)
    if output.as_json:
        output.document({"registry": opened.url, "families": families, "models": models})
    elif output.quiet and pattern is None:
        output.names(family.name for family in families)
    elif output.quiet:
        output.names(f"{model.family}/{model.task}" for model in models)
    elif pattern is not None and models:
        output.show(_models(models))
    elif pattern is not None:
        every = next_command("list", "*", registry=registry)
        output.notice(
            f"no model in {opened.url} matches {' and '.join([repr(pattern), *where])}; see all with: {every}"
        )
    elif families:
        output.show(_families(families))
    else:
        build = next_command("build", "ZOO", "--family", "NAME", registry=registry)
        output.notice(f"no families yet in {opened.url}; make one with: {build}")


def run_show(names: Sequence[str], *, output: Output, registry: str | None) -> bool:
    """Describe families and models; tell whether every record could be read."""
    opened = open_registry(registry)
    shown = [(task, *api_show(family, task, registry=opened)) for family, task in map(split_model, names)]
    if output.as_json:
        output.document(
            {
                "registry": opened.url,
                "families": [
                    {"family": as_plain(family), "models": as_plain(models)} for _, family, models in shown
                ],
            }
        )
    elif output.quiet:
        output.names(
            f"{model.family}/{model.task}@{model.version}" for *_, models in shown for model in models
        )
    else:
        for task, family, models in shown:
            if task is None:
                output.show(*_family_parts(family, models, registry=registry))
            else:
                output.show(
                    f"{models[0].family}/{models[0].task}@{models[0].version}", facts(_model_facts(models[0]))
                )
    return not any(family.problems for _, family, _ in shown)


def _families(families: Sequence[FamilySummary]) -> RenderableType:
    return columns(
        {"family": "name", "tasks": "number", "versions": "number", "basis": "number", "models": "number"},
        (
            (
                family.name,
                str(family.tasks),
                str(family.versions),
                f"r{family.basis_revision}, {size(family.basis_bytes)}",
                size(family.models_bytes),
            )
            for family in families
        ),
    )


def _models(models: Sequence[ModelEntry]) -> RenderableType:
    return columns(
        {"model": "name", "version": "number", "size": "number", "tiers": "word", "published (UTC)": "word"},
        (
            (
                f"{model.family}/{model.task}",
                str(model.version),
                size(model.size_bytes),
                _tiers(exact=model.exact),
                _minute(model.time),
            )
            for model in models
        ),
    )


def _family_parts(
    family: FamilySummary, models: Sequence[ModelSummary], *, registry: str | None
) -> Iterator[RenderableType]:
    source = sum(model.source_bytes for model in models)
    compact = family.basis_bytes + sum(model.compact_bytes for model in models)
    yield f"family {family.name}"
    yield facts(
        (
            ("tasks", str(family.tasks), f"{family.versions} versions, {size(family.models_bytes)}"),
            ("basis", size(family.basis_bytes), f"revision {family.basis_revision}"),
            (
                "checkpoints / all",
                ratio(source, compact),
                "the newest versions at the compact tier, and the basis",
            ),
            *(
                growth_facts(family.growth, family=family.name, registry=registry)
                if family.growth is not None
                else ()
            ),
            *(
                _verification_facts(family.verification, family=family.name, registry=registry)
                if family.verification is not None
                else ()
            ),
        )
    )
    adapter = next((model.adapter for model in models if model.adapter is not None), None)
    if adapter is not None:
        yield f"adapters for {adapter.base_model or 'a model they do not name'}"
    yield ""
    scored = any(model.scores for model in models)
    yield columns(
        {
            "task": "name",
            "version": "number",
            "compact": "number",
            "exact": "number",
            "checkpoint": "number",
            "bits/param": "number",
            "rel. error": "number",
            **({"score": "number", "drop": "number"} if scored else {}),
        },
        (
            (
                model.task,
                str(model.version),
                size(model.compact_bytes),
                size(model.size_bytes) if model.exact else "-",
                size(model.source_bytes),
                number(model.bits_per_parameter),
                number(model.rel_error),
                *(shown_scores(model.scores) if scored else ()),
            )
            for model in models
        ),
    )
    yield from problem_lines(
        [("", problem) for problem in family.problems], what=", and these are not shown above"
    )


def _verification_facts(
    held: VerificationSummary, *, family: str, registry: str | None
) -> Iterator[tuple[str, str, str]]:
    by = f"signed off by {held.signed_off_by}" if held.signed_off_by is not None else "signed off by nobody"
    yield "verified", f"{_minute(held.time)} UTC", f"{by}, with {held.tool}"
    what = f"{counted(held.models, 'model')} at commit {held.commit}"
    yield (
        "",
        "all as recorded" if held.ok else "PROBLEMS",
        what + (" of the registry it came from" if held.elsewhere else ""),
    )
    if held.wrong:
        yield (
            "",
            str(len(held.wrong)),
            f"wrong: {', '.join(held.wrong[:5])}{', ...' if len(held.wrong) > 5 else ''}",
        )
    if held.unverified:
        again = next_command("verify", family, "--record", registry=registry)
        yield "", str(len(held.unverified)), f"newest versions are not among them: {again}"


def _model_facts(model: ModelSummary) -> Iterator[tuple[str, str, str]]:
    yield "checkpoint", size(model.source_bytes), ""
    yield (
        "compact tier",
        size(model.compact_bytes),
        f"{ratio(model.source_bytes, model.compact_bytes)} smaller",
    )
    if model.exact:
        yield (
            "exact tier",
            size(model.size_bytes),
            f"{ratio(model.source_bytes, model.size_bytes)} smaller, bit-identical",
        )
    else:
        yield "exact tier", "not stored", ""
    yield "bits per parameter", number(model.bits_per_parameter), "metadata counted, private tensors not"
    yield "relative error", number(model.rel_error), "of the compact tier; its worst tensors:"
    for name, error in model.worst_tensors:
        yield "", number(error), name
    yield from model_score_facts(model.scores)
    yield (
        "private tensors",
        str(len(model.private_tensors)),
        size(model.private_bytes) if model.private_tensors else "",
    )
    for name in model.private_tensors[:5]:
        yield "", name, ""
    if len(model.private_tensors) > 5:
        yield "", "", f"and {len(model.private_tensors) - 5} more"
    if model.adapter is not None:
        adapter = model.adapter
        yield "adapter for", adapter.base_model or "a model it does not name", adapter.base_sha256 or ""
        ranks = ", ".join(str(rank) for rank in adapter.ranks)
        yield "  products", str(adapter.products), f"rank {ranks}" if ranks else ""
        for name, value in adapter.config:
            if name == "target_modules":
                yield "", f"{name} {value}", ""
    if model.side_files:
        yield "side files", str(len(model.side_files)), ", ".join(model.side_files)
    lineage = model.lineage
    yield "basis revision", str(model.basis_revision), lineage.basis_digest
    yield "  built from", counted(lineage.basis_models, "checkpoint"), f"digest {lineage.basis_sources}"
    yield "  built by", lineage.basis_tool, f"pcodec {lineage.basis_pcodec}"
    for name, value in lineage.basis_options:
        yield "", f"{name} {value}", ""
    yield "source", lineage.source_sha256, ""
    for name, value in lineage.source_metadata:
        yield "", f"{name}: {value}", ""
    if lineage.aliases:
        yield "aliases", ", ".join(lineage.aliases), ""
    yield "published", f"{_minute(model.published)} UTC", f"commit {lineage.commit}"
    yield "digest", model.digest, ""


def _tiers(*, exact: bool) -> str:
    return "compact, exact" if exact else "compact"


def _minute(time: str) -> str:
    """Cut an RFC 3339 time in UTC down to what people read."""
    return time[:16].replace("T", " ")
