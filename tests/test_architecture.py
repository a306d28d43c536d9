"""Majority signature, shares and digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uws_store.architecture import (
    ArchitectureReport,
    OddTensor,
    TensorSignature,
    compare,
    signature_digest,
    signature_of,
)
from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.errors import IncompatibleError, InvalidInputError

ZOOS = Path(__file__).parents[2] / "shared" / "zoos"

Shapes = dict[str, tuple[int, ...]]
BODY: Shapes = {"body.weight": (30, 30), "body.bias": (30,), "count": ()}


def zoo_report(name: str) -> ArchitectureReport:
    if not (ZOOS / name).is_dir():
        pytest.skip(f"the zoo {name} is not on this machine")
    shapes = {}
    for member in scan_zoo(ZOOS / name):
        with open_checkpoint(member.path) as checkpoint:
            shapes[member.task] = checkpoint.shapes()
    return compare(shapes)


def test_equal_members_all_fit() -> None:
    report = compare({"b": dict(BODY), "a": dict(BODY)})
    assert report.majority == signature_of(BODY)
    assert [member.task for member in report.members] == ["a", "b"]
    assert all(member.fits and member.share == 1 and not member.odd for member in report.members)
    assert report.signature_count == 1
    assert report.digest == signature_digest(signature_of(BODY))
    report.require_one_family()


def test_a_single_member_is_its_own_majority() -> None:
    report = compare({"only": BODY})
    assert report.matched == report.members
    assert report.majority == signature_of(BODY)


def test_a_zoo_of_no_members_is_refused() -> None:
    with pytest.raises(InvalidInputError) as error:
        compare({})
    assert error.value.kind == "invalid-input/empty-zoo"


def test_heads_of_odd_shape_are_odd_tensors_of_members_that_fit() -> None:
    report = compare(
        {
            "a": {**BODY, "head": (2, 3)},
            "b": {**BODY, "head": (2, 3)},
            "c": {**BODY, "head": (5, 3)},
            "d": dict(BODY),
            "e": {**BODY, "head": (2, 3), "extra": (4,)},
        }
    )
    odd = {member.task: member.odd for member in report.members}
    assert odd["a"] == odd["b"] == ()
    assert odd["c"] == (OddTensor("head", (2, 3), (5, 3)),)
    assert odd["d"] == (OddTensor("head", (2, 3), None),)
    assert odd["e"] == (OddTensor("extra", None, (4,)),)
    assert [tensor.reason for task in "cde" for tensor in odd[task]] == ["shape", "missing", "extra"]
    assert not report.mismatched
    assert report.signature_count == 4


def test_a_tensor_in_half_of_the_members_is_of_the_majority_and_in_fewer_is_not() -> None:
    members = {task: dict(BODY) for task in "abcd"}
    members["a"]["half"] = members["b"]["half"] = (1,)
    members["c"]["fewer"] = (1,)
    names = [tensor.name for tensor in compare(members).majority]
    assert "half" in names
    assert "fewer" not in names


@pytest.mark.parametrize(("own", "fits"), [(90, True), (89, False)])
def test_nine_tenths_in_common_is_the_limit(own: int, *, fits: bool) -> None:
    members: dict[str, Shapes] = {task: {"a": (own,), "b": (100 - own,)} for task in ("x", "y")}
    members["z"] = {"a": (own,), "b": (100 - own, 2)}
    member = compare(members).members[2]
    assert member.fits is fits
    assert member.share == own / 100


def test_equally_frequent_shapes_are_settled_by_the_first_task() -> None:
    one: Shapes = {"down": (4, 320), "up": (320, 4)}
    other: Shapes = {"down": (1, 320), "up": (320, 1)}
    for members in ({"a": one, "b": other}, {"b": other, "a": one}):
        report = compare(members)
        assert report.majority == signature_of(one)
        assert [member.fits for member in report.members] == [True, False]


@given(st.permutations(["a", "b", "c", "d"]))
def test_the_order_of_members_does_not_matter(order: list[str]) -> None:
    members: dict[str, Shapes] = {
        "a": {**BODY, "head": (2,)},
        "b": {**BODY, "head": (3,)},
        "c": {"x": (4,)},
        "d": dict(BODY),
    }
    assert compare({task: members[task] for task in order}) == compare(members)


def test_another_architecture_is_named_and_refused() -> None:
    members = {task: dict(BODY) for task in "abc"}
    members["odd"] = {"other.weight": (7, 7), "other.bias": (7,)}
    report = compare(members)
    assert [member.task for member in report.mismatched] == ["odd"]
    assert not report.mismatched[0].renamed
    with pytest.raises(IncompatibleError) as error:
        report.require_one_family()
    assert error.value.kind == "incompatible/architecture"
    assert [problem.loc for problem in error.value.problems] == ["odd"]
    assert "body.weight" in error.value.problems[0].message


def test_the_same_shapes_under_other_names_are_told_so() -> None:
    members = {task: dict(BODY) for task in "abc"}
    members["renamed"] = {f"encoder.{name}": shape for name, shape in BODY.items()}
    report = compare(members)
    assert [member.renamed for member in report.members] == [False, False, False, True]
    with pytest.raises(IncompatibleError) as error:
        report.require_one_family()
    assert error.value.kind == "incompatible/renamed"
    assert "--rename" in error.value.problems[0].message


def test_a_zoo_split_evenly_between_two_namings_is_told_so() -> None:
    renamed = {f"encoder.{name}": shape for name, shape in BODY.items()}
    report = compare({"a": BODY, "b": BODY, "c": renamed, "d": renamed})
    assert [member.renamed for member in report.members] == [True] * 4
    with pytest.raises(IncompatibleError) as error:
        report.require_one_family()
    assert error.value.kind == "incompatible/renamed"


def test_renamed_and_foreign_members_together_are_an_architecture_problem() -> None:
    members = {task: dict(BODY) for task in "abc"}
    members["renamed"] = {f"encoder.{name}": shape for name, shape in BODY.items()}
    members["foreign"] = {"x": (1,)}
    with pytest.raises(IncompatibleError) as error:
        compare(members).require_one_family()
    assert error.value.kind == "incompatible/architecture"
    assert [problem.kind for problem in error.value.problems] == [
        "incompatible/architecture",
        "incompatible/renamed",
    ]


def test_a_majority_without_elements_is_shared_by_its_equals_alone() -> None:
    report = compare({"a": {"x": (0, 3)}, "b": {"x": (0, 3)}, "c": {"x": (3, 0)}})
    assert [(member.fits, member.share) for member in report.members] == [(True, 1), (True, 1), (False, 0)]


def test_members_with_nothing_in_common_do_not_fit_nothing() -> None:
    report = compare({task: {f"only-{task}": (2,)} for task in "abc"})
    assert report.majority == ()
    assert [member.fits for member in report.members] == [False] * 3


def test_the_digest_is_of_the_bytes_the_docstring_says() -> None:
    signature = [TensorSignature('z"\n', (2, 3)), TensorSignature("é", ()), TensorSignature("a", (0,))]
    expected = '[["a",[0]],["z\\"\\n",[2,3]],["é",[]]]'.encode()
    assert signature_digest(signature) == hashlib.sha256(expected).hexdigest()


def test_the_digest_does_not_depend_on_order_and_does_on_everything_else() -> None:
    signature = signature_of(BODY)
    digest = signature_digest(signature)
    assert signature_digest(reversed(signature)) == digest
    assert signature_digest(signature[:-1]) != digest
    assert signature_digest(signature_of({**BODY, "body.bias": (1, 30)})) != digest
    assert (
        signature_digest(signature_of({"Body.bias" if k == "body.bias" else k: v for k, v in BODY.items()}))
        != digest
    )


def test_a_signature_that_names_a_tensor_twice_is_refused() -> None:
    with pytest.raises(InvalidInputError) as error:
        signature_digest([TensorSignature("a", (1,)), TensorSignature("a", (2,))])
    assert error.value.kind == "invalid-input/signature"


@given(
    st.dictionaries(
        st.text(max_size=6), st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6
    )
)
def test_every_member_is_judged_and_shares_stay_in_range(shapes: Shapes) -> None:
    report = compare({"a": shapes, "b": shapes, "c": {"other": (1,)}})
    assert [member.task for member in report.members] == ["a", "b", "c"]
    assert all(0 <= member.share <= 1 for member in report.members)
    assert report.members[0].fits
    assert report.members[1].fits


@pytest.mark.parametrize(
    ("name", "count"), [("acasxu", 45), ("ani_1x_1ccx", 16), ("hexells", 173), ("wakewords", 117)]
)
def test_real_zoos_of_one_family_are_one_family(name: str, count: int) -> None:
    report = zoo_report(name)
    assert len(report.members) == count
    assert report.signature_count == 1
    report.require_one_family()


def test_a_real_folder_of_thirty_architectures_is_not_one_family() -> None:
    report = zoo_report("sb3_agents")
    assert report.signature_count == 30
    with pytest.raises(IncompatibleError) as error:
        report.require_one_family()
    assert error.value.kind == "incompatible/architecture"
    assert len(error.value.problems) == len(report.mismatched) > 28


def test_real_adapters_of_two_ranks_are_not_one_family() -> None:
    report = zoo_report("lora_sd15_r4")
    assert [member.fits for member in report.members] == [True, False]
