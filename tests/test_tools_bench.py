"""The bench: every method gives back every tensor, counts its bytes, and small zoos run from end to end."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

BENCH = Path(__file__).resolve().parents[1] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

import codec  # noqa: E402 - found only now
import codec_report  # noqa: E402
import coding  # noqa: E402
import exact  # noqa: E402
import low_rank_coders  # noqa: E402
import mask_coders  # noqa: E402
import plain_coders  # noqa: E402
import sign_coders  # noqa: E402
import text_tasks  # noqa: E402
import verdicts  # noqa: E402
import zoos  # noqa: E402
from rich.console import Console  # noqa: E402

SHAPES = {
    "a.weight": (48, 32),
    "a.bias": (48,),
    "conv.weight": (8, 4, 3, 3),
    "positions": (1, 5, 32),
    "scale": (1,),
}
PARAMETERS = sum(math.prod(shape) for shape in SHAPES.values())


def _models(count: int, *, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Fine-tunes of one base: small changes in few common directions, and noise."""
    random = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    common = {name: torch.randn(3, *shape, generator=random) for name, shape in SHAPES.items()}
    models: list[dict[str, torch.Tensor]] = []
    for _ in range(count):
        part = torch.randn(3, generator=random)
        models.append(
            {
                name: base[name]
                + 0.1 * torch.tensordot(part, common[name], 1)
                + 0.02 * torch.randn(shape, generator=random)
                for name, shape in SHAPES.items()
            }
        )
    return models


@pytest.fixture(scope="module")
def training() -> coding.Training:
    return coding.Training(_models(9)[:8], list(SHAPES))


@pytest.fixture(scope="module")
def held() -> dict[str, torch.Tensor]:
    return _models(9)[8]


def _error(weights: coding.Weights, original: coding.Weights) -> float:
    return math.sqrt(sum(float((weights[name] - value).square().sum()) for name, value in original.items()))


METHODS = [
    *plain_coders.rounding((2, 8)),
    *plain_coders.plain_coder((0.05, 1.0)),
    *plain_coders.mean_only(),
    *sign_coders.bitdelta(),
    *sign_coders.switch((0.3,)),
    *sign_coders.dare((0.5,)),
    *low_rank_coders.delta_come((1.0,)),
    *low_rank_coders.task_singular_vectors((0.5,)),
    *low_rank_coders.model_axis(4),
    *mask_coders.tall_masks((0.4,)),
    *mask_coders.elect_mask_rescale(),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name} {method.setting}")
def test_a_method_gives_back_every_tensor_finite_and_in_its_shape(
    method: coding.Method, training: coding.Training, held: dict[str, torch.Tensor]
) -> None:
    coded = method.fit(training).code(held)
    assert {name: tuple(value.shape) for name, value in coded.weights.items()} == SHAPES
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in coded.weights.values())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.name} {method.setting}")
def test_a_method_leaves_its_input_and_the_mean_as_they_were(
    method: coding.Method, training: coding.Training, held: dict[str, torch.Tensor]
) -> None:
    before = {name: value.clone() for name, value in held.items()}
    mean = {name: value.clone() for name, value in training.mean.items()}
    coder = method.fit(training)
    first = coder.code(held)
    second = coder.code(held)
    assert all(torch.equal(held[name], value) for name, value in before.items())
    assert all(torch.equal(training.mean[name], value) for name, value in mean.items())
    assert first.size_bytes == second.size_bytes
    assert all(torch.equal(first.weights[name], value) for name, value in second.weights.items())


def test_sign_methods_take_at_least_the_bits_they_are_named_for(
    training: coding.Training, held: dict[str, torch.Tensor]
) -> None:
    matrices = sum(math.prod(shape) for shape in SHAPES.values() if len(shape) > 1 and shape[0] > 1)
    assert 8 * sign_coders.bitdelta()[0].fit(training).code(held).size_bytes >= matrices
    for bits in (2, 3, 4, 8):
        coder = plain_coders.rounding((bits,))[0].fit(training)
        assert 8 * coder.code(held).size_bytes >= bits * PARAMETERS
        assert coder.shared_bytes == 0


def test_methods_about_a_reference_count_it(training: coding.Training) -> None:
    for method in (*sign_coders.bitdelta(), *sign_coders.dare((0.5,)), *plain_coders.mean_only()):
        assert method.fit(training).shared_bytes >= 2 * PARAMETERS
    for method in (*mask_coders.tall_masks((0.4,)), *mask_coders.elect_mask_rescale()):
        assert method.fit(training).shared_bytes >= 4 * PARAMETERS
    directions = low_rank_coders.model_axis(4)[0].fit(training).shared_bytes
    assert 2 * 4 * PARAMETERS <= directions <= 2 * 5 * PARAMETERS


@pytest.mark.parametrize("name", ["plain coder", "plain, dead zone", plain_coders.CONTROL])
def test_a_finer_plain_coder_is_nearer_and_larger(
    name: str, training: coding.Training, held: dict[str, torch.Tensor]
) -> None:
    methods = [m for m in plain_coders.plain_coder((0.1, 0.4, 1.6)) if m.name == name]
    coded = [method.fit(training).code(held) for method in methods]
    assert len(coded) == 3
    errors = [_error(each.weights, held) for each in coded]
    assert errors == sorted(errors)
    assert [each.size_bytes for each in coded] == sorted((each.size_bytes for each in coded), reverse=True)


def test_every_method_that_codes_a_change_beats_the_mean_on_weights(
    training: coding.Training, held: dict[str, torch.Tensor]
) -> None:
    mean = _error(plain_coders.mean_only()[0].fit(training).code(held).weights, held)
    for method in (
        *sign_coders.bitdelta(),
        *low_rank_coders.delta_come((1.0,)),
        *low_rank_coders.task_singular_vectors((0.5,)),
        *low_rank_coders.model_axis(4),
    ):
        assert _error(method.fit(training).code(held).weights, held) < mean


def test_the_smallest_stream_is_no_larger_than_the_entropy_by_much() -> None:
    random = np.random.default_rng(0)
    values = (random.random(100_000) < 0.05).astype(np.int64)
    entropy_bytes = 100_000 * 0.2864 / 8
    assert entropy_bytes < len(coding.smallest_stream(values)) < 1.12 * entropy_bytes
    assert len(coding.smallest_stream(np.zeros(0, np.int64))) == 1


def _tiny_zoo(folder: Path, *, private: bool = False) -> zoos.BenchZoo:
    folder.mkdir()
    members = []
    for index, model in enumerate(_models(12)):
        path = folder / f"task-{index:02d}.safetensors"
        save_file(model | ({"head.weight": torch.randn(2 + index, 3)} if private else {}), path)
        members.append((path.stem, path))
    held = tuple(members[::4])
    originals = {task: coding.LazyWeights(path) for task, path in held}

    def score(weights: coding.Weights, task: str) -> float:
        assert set(weights) == set(originals[task])
        return _error(weights, originals[task])

    return zoos.BenchZoo(
        name="tiny",
        training=tuple(member for member in members if member not in held),
        held=held,
        private=("head.",) if private else (),
        base=None,
        metric=zoos.Metric("distance", higher_is_better=False, tolerance=0.5),
        score=score,
        bits=(12.0,),
        steps=(1.0,),
        counted_models=12,
    )


def test_a_zoo_runs_from_end_to_end(tmp_path: Path) -> None:
    zoo = _tiny_zoo(tmp_path / "zoo", private=True)
    methods = [*plain_coders.plain_coder((0.2, 3.0)), *sign_coders.bitdelta()]
    result = codec.measure(zoo, methods=methods)
    ours, by_error, fine, coarse = result.points[:4]
    signs = result.points[-1]
    assert ours.method == codec.OURS
    assert by_error.method == codec.BY_ERROR
    assert by_error.weight_error <= 1.3 * ours.weight_error
    container = (ours.container_bytes + by_error.container_bytes) / 2
    assert [point.container_bytes for point in (fine, coarse, signs)] == [pytest.approx(container)] * 3
    heads = [4 * 3 * (2 + index) for index in (0, 4, 8)]
    assert all(point.private_bytes == sum(heads) / 3 for point in (fine, coarse, signs))
    assert ours.private_bytes >= sum(heads) / 3
    assert result.originals == (0.0, 0.0, 0.0)
    assert result.loss(fine) < result.loss(coarse)
    assert fine.weight_error < coarse.weight_error
    assert result.bits(signs) > result.payload_bits(signs) >= 0.9
    out = io.StringIO()
    codec_report.show(result, Console(file=out, width=150))
    assert "BitDelta" in out.getvalue()
    document = codec_report.as_document([result], absent={})
    assert document == json.loads(json.dumps(document, allow_nan=False))
    assert "| BitDelta |" in codec_report.markdown([result], absent={"acas": "gone"}, command="bench")


def test_a_method_that_changes_a_shape_is_refused(tmp_path: Path) -> None:
    zoo = _tiny_zoo(tmp_path / "zoo")

    def fit(_: coding.Training) -> coding.Coder:
        return coding.Coder(
            0, lambda weights: coding.Coded({name: value[:1] for name, value in weights.items()}, 1)
        )

    with pytest.raises(ValueError, match="came back as"):
        codec.measure(zoo, methods=[coding.Method("cut", "", "", fit)])


def _point(method: str, size: float, loss: float, *, error: float = 0.0) -> codec.Point:
    return codec.Point(method, "", "", size, 0.0, 0.0, 0, (loss, loss), error, 0.0)


def test_plain_coders_are_compared_at_equal_error(tmp_path: Path) -> None:
    points = (
        _point(codec.BY_ERROR, 100.0, 0.0, error=0.1),
        _point(codec.BY_ERROR, 1.0, 0.0, error=5.0),
        _point(codec.OURS, 1.0, 0.0, error=0.1),
        _point("plain coder", 400.0, 0.0, error=0.01),
        _point("plain coder", 100.0, 0.0, error=1.0),
        _point("plain, dead zone", 900.0, 0.0, error=0.01),
        _point("plain, dead zone", 400.0, 0.0, error=1.0),
        _point("BitDelta", 1.0, 0.0, error=0.1),
    )
    result = codec.ZooResult(_tiny_zoo(tmp_path / "zoo"), 1000, 1000, (0.0, 0.0), points, ())
    assert verdicts.equal_error_ratios(result, lambda point: point.model_bytes) == [pytest.approx(2)]


def test_bytes_at_the_tolerance_lie_on_the_line_between_settings(tmp_path: Path) -> None:
    zoo = _tiny_zoo(tmp_path / "zoo")
    points = (
        _point(codec.OURS, 100.0, 1.0),
        _point(codec.OURS, 400.0, 0.0),
        _point("other", 800.0, 0.2),
        _point(plain_coders.CONTROL, 500.0, 0.2),
        _point("worse", 50.0, 3.0),
        _point("broken", 10.0, math.nan),
    )
    result = codec.ZooResult(zoo, 1000, 1000, (0.0, 0.0), points, ())
    # Half way in the logarithm, where the loss is 0.5.
    assert verdicts.bytes_at_tolerance(result, codec.OURS, lambda point: point.model_bytes) == pytest.approx(
        200
    )
    assert verdicts.bytes_at_tolerance(result, "worse", lambda point: point.model_bytes) is None
    assert verdicts.bytes_at_tolerance(result, "broken", lambda point: point.model_bytes) is None
    first = verdicts.verdict_of(result)[0]
    assert first.best == "other"
    assert first.control_bytes == 500
    assert first.steady
    unsteady = (*points, _point(codec.OURS, 500.0, 2.0))
    result = codec.ZooResult(zoo, 1000, 1000, (0.0, 0.0), unsteady, ())
    assert not verdicts.verdict_of(result)[0].steady
    assert first.ratio == pytest.approx(4)
    assert first.times_smaller == pytest.approx(20)


def test_gains_do_not_pay_for_losses_where_a_metric_says_so() -> None:
    signed = zoos.Metric("accuracy", higher_is_better=True, tolerance=0.005)
    one_sided = zoos.Metric("AUC", higher_is_better=True, tolerance=0.005, gains_count=False)
    assert signed.loss(0.5, 0.75) == -0.25
    assert one_sided.loss(0.5, 0.75) == 0.0
    assert one_sided.loss(0.75, 0.5) == signed.loss(0.75, 0.5) == 0.25
    assert math.isnan(one_sided.loss(0.5, math.nan))


def test_an_absent_zoo_is_told_with_its_reason(tmp_path: Path) -> None:
    places = zoos.Places(cache=tmp_path, shared=tmp_path / "none")
    for name in ("wakewords", "ani", "hexells", "acas", "minilm"):
        with pytest.raises(zoos.AbsentError):
            zoos.open_zoo(name, places, on_progress=lambda _: None)


def test_words_are_cut_into_the_longest_known_pieces(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "un",
        "##break",
        "##able",
        "##a",
        "cafe",
        "!",
        "n",
        "'",
        "t",
    ]
    vocabulary.write_text("\n".join(tokens) + "\n")
    tokenizer = text_tasks.Tokenizer(vocabulary)
    (row,) = tokenizer.encode(["Unbreakable CAFÉ!! n't xyz"]).tolist()
    assert row[:13] == [2, 4, 5, 6, 8, 9, 9, 10, 11, 12, 1, 3, 0]
    assert len(row) == text_tasks.LENGTH
    (long,) = tokenizer.encode(["! " * 100]).tolist()
    assert (long[0], long[-1]) == (2, 3)


def test_text_splits_follow_from_the_name_and_do_not_overlap(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    words = [f"w{index}" for index in range(3000)]
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", *words]))
    (tmp_path / "subj.all").write_bytes(
        "".join(f"{index % 2} w{index}\n" for index in range(3000)).encode() + b"1 caf\xe9\n"
    )
    tokenizer = text_tasks.Tokenizer(vocabulary)
    split = text_tasks.split_of.__wrapped__("subj", tmp_path, tokenizer)
    again = text_tasks.split_of.__wrapped__("subj", tmp_path, tokenizer)
    assert torch.equal(split.train_tokens, again.train_tokens)
    assert (len(split.train_labels), len(split.test_labels), split.classes) == (2000, 400, 2)
    train = {int(row[1]) for row in split.train_tokens}
    test = {int(row[1]) for row in split.test_tokens}
    assert not train & test


def _save_zoo(folder: Path, models: list[dict[str, torch.Tensor]]) -> list[tuple[str, Path]]:
    folder.mkdir()
    for index, model in enumerate(models):
        save_file(model, folder / f"m{index}.safetensors")
    return [(path.stem, path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("dtype", exact.DTYPES)
def test_the_exact_bench_counts_whole_families_and_their_baselines(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "zipnn_size", lambda data, _: len(data) - 1)
    members = _save_zoo(tmp_path / "zoo", _models(6))
    result = exact.measure_exact("small", members, dtype, on_progress=lambda _: None)
    width = 4 if dtype == "F32" else 2
    assert result.models == 6
    assert result.bare["ZipNN"] == 6 * (width * PARAMETERS - 1)
    assert result.source_bytes > 6 * width * PARAMETERS
    assert result.basis_bytes + result.compact_bytes < result.ours_bytes
    delta = result.bare["delta to mean"]
    assert delta is not None
    assert 0 < delta < 7 * width * PARAMETERS
    assert result.met == (result.ours_bytes <= min(size for size in result.files.values() if size))
    console = Console(file=io.StringIO(), width=200)
    exact.show([result], console)
    text = exact.markdown([result], absent={"ani": "no folder"}, command="python tools/bench exact")
    assert f"| small | {dtype} | 6 |" in text
    assert "ani: skipped, no folder" in text
    document = json.loads(json.dumps(exact.as_document([result], absent={})))
    assert document["results"][0]["ours_bytes"] == result.ours_bytes


def test_the_exact_bench_says_so_when_a_bit_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = _save_zoo(tmp_path / "zoo", _models(4))
    calls = iter(range(10**6))
    monkeypatch.setattr(exact, "bytes_of", lambda tensor: tensor.numpy().tobytes() + bytes([next(calls) % 2]))
    with pytest.raises(AssertionError, match="came back changed"):
        exact.measure_exact("small", members, "F32", on_progress=lambda _: None)


def test_zipnn_is_given_copies() -> None:
    pytest.importorskip("zipnn", reason="a baseline of the bench")
    data = torch.randn(10_000).numpy().tobytes()
    before = bytes(data)
    assert 0 < exact.zipnn_size(data, "F32") < len(data)
    assert data == before


def test_a_family_of_equal_models_costs_the_mean_baseline_little_more_than_the_mean() -> None:
    model = _models(1)[0]
    one = exact.mean_difference_size([model])
    assert exact.mean_difference_size([model] * 8) < one + 8 * 200
