"""JSON in and out: what is read is bounded, unambiguous and reported in full; what is written is canonical."""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
import tracemalloc
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from uws_store.errors import FormatError, Problem
from uws_store.metadata.document import MAX_DEPTH, Document, Part, problems_of
from uws_store.metadata.log import (
    AliasAction,
    BasisAction,
    Commit,
    DeleteAction,
    FamilyAction,
    HeadHint,
    ModelAction,
    RegistryDocument,
    new_nonce,
    utc_now,
)


class Apple(Part):
    op: Literal["apple"] = "apple"
    apple: str  # a field by the name of the tag: locations must tell them apart
    count: int = Field(ge=1)


class Pear(Part):
    op: Literal["pear"] = "pear"
    weight: float | None = None


class Basket(Document):
    max_bytes: ClassVar[int] = 10_000

    name: str
    fruit: tuple[Annotated[Apple | Pear, Field(discriminator="op")], ...]
    shape: tuple[int, ...] = ()


def refused(data: bytes, cls: type[Document] = Basket) -> FormatError:
    with pytest.raises(FormatError) as caught:
        cls.parse(data, where="the-place")
    assert "the-place" in str(caught.value)
    assert len(str(caught.value)) < 5000
    return caught.value


def basket(**changes: object) -> bytes:
    return json.dumps({"uws": 1, "name": "n", "fruit": [], **changes}).encode()


def test_canonical_bytes_are_these() -> None:
    value = Basket(name='é"\n😀', fruit=(Pear(), Apple(apple="a", count=2), Pear(weight=0.5)), shape=(3, 0))
    expected = (
        '{"fruit":[{"op":"pear"},{"apple":"a","count":2,"op":"apple"},{"op":"pear","weight":0.5}],'
        '"name":"é\\"\\n😀","shape":[3,0],"uws":1}'
    ).encode()
    assert value.to_bytes() == expected
    assert value.sha256() == hashlib.sha256(expected).hexdigest()
    assert Basket.parse(expected, where="x") == value


fruits = st.builds(Apple, apple=st.text(), count=st.integers(1, 2**63 - 1)) | st.builds(
    Pear, weight=st.none() | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    value=st.builds(
        Basket,
        name=st.text(max_size=100),
        fruit=st.lists(fruits, max_size=8).map(tuple),
        shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(tuple),
    )
)
def test_what_is_written_is_read_back_equal_and_writes_the_same_bytes(value: Basket) -> None:
    data = value.to_bytes()
    again = Basket.parse(data, where="x")
    assert again == value
    assert again.to_bytes() == data


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    for cls in (Basket, Commit, RegistryDocument, HeadHint):
        refused(data, cls)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["op", "uws", "number", "actions"]) | st.text(), inner)
    ),
)


@given(
    value=json_values,
    place=st.sampled_from(["uws", "number", "parent", "nonce", "time", "tool", "actions", "new"]),
)
def test_any_json_in_any_field_is_a_value_or_a_typed_error(value: object, place: str) -> None:
    raw = {**json.loads(a_commit().to_bytes()), place: value}
    try:
        document = Commit.parse(json.dumps(raw).encode(), where="x")
    except FormatError:
        return
    assert Commit.parse(document.to_bytes(), where="x") == document


def test_every_problem_is_reported_with_its_json_pointer() -> None:
    raw = {
        "fruit": [
            {"op": "apple", "count": 0},
            {"op": "plum"},
            {"op": "apple", "apple": 3, "count": 1.0, "new": 1},
            {"count": 1},
            {"op": "pear", "weight": "a"},
            "x",
        ],
        "a/b~c": 2,
        "shape": [1, "2", None],
    }
    error = refused(json.dumps(raw).encode())
    assert error.kind == "format/document"
    assert {(problem.loc, problem.kind) for problem in error.problems} == {
        ("/uws", "format/missing-field"),
        ("/name", "format/missing-field"),
        ("/fruit/0/apple", "format/missing-field"),
        ("/fruit/0/count", "format/value"),
        ("/fruit/1", "format/unknown-op"),
        ("/fruit/2/apple", "format/type"),
        ("/fruit/2/count", "format/type"),
        ("/fruit/2/new", "format/unknown-field"),
        ("/fruit/3", "format/missing-field"),
        ("/fruit/4/weight", "format/type"),
        ("/fruit/5", "format/type"),
        ("/a~1b~0c", "format/unknown-field"),
        ("/shape/1", "format/type"),
        ("/shape/2", "format/type"),
    }


@pytest.mark.parametrize("raw", [b"[]", b"3", b"null", b'"x"', b"true"])
def test_a_document_is_an_object(raw: bytes) -> None:
    error = refused(raw)
    assert error.kind == "format/document"
    assert error.problems == (Problem("", "format/type", "expected an object"),)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1',
        b"{'a':1}",
        b'{"a":1,}',
        b"{}x",
        b"{} {}",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"a":"\xff"}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b'{"a":01}',
        b'{"a":+1}',
        b'{"a":.5}',
        b"{} // comment",
        b"\x00",
    ],
)
def test_what_is_not_json_is_refused(data: bytes) -> None:
    assert refused(data).kind == "format/json"


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        str(2**63),
        str(-(2**63) - 1),
        "9" * 5000,
        "9" * 9000,
    ],
)
def test_numbers_beyond_64_bits_are_refused(number: str) -> None:
    assert refused(f'{{"uws":1,"name":"n","fruit":[],"shape":[{number}]}}'.encode()).kind == "format/json"


def test_the_largest_integers_are_kept() -> None:
    shape = (2**63 - 1, -(2**63))
    assert Basket.parse(basket(shape=list(shape)), where="x").shape == shape


def test_half_a_surrogate_pair_is_refused() -> None:
    assert refused(rb'{"uws":1,"name":"\ud800","fruit":[]}').kind == "format/json"


@pytest.mark.parametrize(
    "data",
    [
        b'{"uws":1,"uws":1,"name":"n","fruit":[]}',
        b'{"uws":1,"name":"n","fruit":[{"op":"pear","\\u006fp":"pear"}]}',
    ],
)
def test_a_key_that_stands_twice_is_refused(data: bytes) -> None:
    error = refused(data)
    assert error.kind == "format/duplicate-key"
    assert len(error.problems) == 1


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (f'{{"a":{opening * (depth - 1)}' + f"{closing * (depth - 1)}}}").encode()


def test_nesting_is_bounded_exactly() -> None:
    assert refused(nested(MAX_DEPTH)).kind == "format/document"
    assert refused(nested(MAX_DEPTH + 1)).kind == "format/depth"


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"":'])
def test_deep_nesting_is_refused_and_does_not_overflow_the_stack(opening: str) -> None:
    assert refused((opening * 500_000).encode(), Commit).kind == "format/depth"


def test_brackets_in_strings_are_not_nesting() -> None:
    name = "[{" * 100 + '"' + "\\" + "[" * 100
    assert Basket.parse(basket(name=name), where="x").name == name


@pytest.mark.parametrize(
    "data", [b'"' + b'\\"' * 1_000_000, b"[" + b'"' * 2_000_001, b"{" + b"\\" * 2_000_000, b'"\\']
)
def test_the_scan_for_depth_takes_linear_time(data: bytes) -> None:
    started = time.process_time()
    assert refused(data, Commit).kind == "format/json"
    assert time.process_time() - started < 5


def test_a_document_that_is_too_long_is_refused_before_it_is_parsed() -> None:
    filler = basket(name="x" * (Basket.max_bytes - len(basket()) + 1))
    assert len(filler) == Basket.max_bytes
    assert Basket.parse(filler, where="x").name.startswith("x")
    data = b" " * (64 << 20)
    tracemalloc.start()
    try:
        assert refused(data).kind == "format/size"
        assert refused(filler + b" ").kind == "format/size"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("version", [2, 99, 2**62])
def test_a_newer_format_is_named_whatever_else_it_holds(version: int) -> None:
    error = refused(json.dumps({"uws": version, "other": [1]}).encode())
    assert error.kind == "format/newer-version"
    assert str(version) in str(error)


@pytest.mark.parametrize("version", [0, -1, True, "1", "2", 1.0, None, [2]])
def test_a_version_that_is_not_one_is_refused(version: object) -> None:
    error = refused(basket(uws=version))
    assert error.kind == "format/document"
    assert [problem.loc for problem in error.problems] == ["/uws"]


def test_what_a_reader_would_refuse_is_not_written() -> None:
    with pytest.raises(FormatError) as caught:
        Basket(name="x" * Basket.max_bytes, fruit=()).to_bytes()
    assert caught.value.kind == "format/size"
    with pytest.raises(FormatError) as caught:
        Basket(name="x", fruit=(), shape=(2**64,)).to_bytes()
    assert caught.value.kind == "format/json"


def test_a_document_cannot_be_changed_or_made_of_other_types() -> None:
    value = Basket(name="x", fruit=())
    with pytest.raises(pydantic.ValidationError):
        value.name = "y"  # type: ignore[misc]
    others: list[dict[str, object]] = [
        {"name": 3},
        {"name": b"x"},
        {"fruit": []},
        {"shape": (1.0,)},
        {"new": 1},
    ]
    for fields in others:
        with pytest.raises(pydantic.ValidationError):
            Basket.model_validate({"name": "x", "fruit": (), **fields})
    for number in (math.nan, math.inf):
        with pytest.raises(pydantic.ValidationError):
            Pear(weight=number)


def test_problems_of_a_value_made_in_code_are_ours() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        AliasAction(family="a/b", task="t", alias="3")
    assert [problem.kind for problem in problems_of(caught.value)] == [
        "invalid-input/family-name",
        "format/value",
    ]


def test_what_a_document_held_is_not_repeated_at_length() -> None:
    assert len(str(refused(basket(**{"k" * 5000: 1})))) < 500


def test_the_schema_asks_for_what_the_reader_asks_for() -> None:
    schema = Basket.model_json_schema()
    assert schema["required"] == ["uws", "name", "fruit"]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Apple"]["required"] == ["op", "apple", "count"]


def a_commit() -> Commit:
    digest = "a" * 64
    return Commit(
        number=2,
        parent=digest,
        nonce=new_nonce(),
        time=utc_now(),
        tool="uws-store 0",
        actions=(
            FamilyAction(family="f", architecture=digest),
            BasisAction(family="f", revision=1, digest=digest, size_bytes=0),
            ModelAction(
                family="f",
                task="a/b é",
                version=1,
                basis_revision=1,
                digest=digest,
                size_bytes=1,
                exact=False,
            ),
            AliasAction(family="f", task="t", alias="prod", version=1),
            AliasAction(family="f", task="t", alias="prod"),
            DeleteAction(family="f", task="t", version=1),
        ),
    )


def test_a_commit_comes_back_with_all_its_actions() -> None:
    commit = a_commit()
    assert Commit.parse(commit.to_bytes(), where="x") == commit
    assert re.fullmatch("[0-9a-f]{32}", commit.nonce)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", 0),
        ("number", 2**53 + 1),
        ("parent", "A" * 64),
        ("parent", "a" * 63),
        ("nonce", "a" * 31),
        ("nonce", "a" * 32 + "\n"),
        ("time", "2026-01-01T00:00:00+00:00"),
        ("time", "2026-13-01T00:00:00Z"),
        ("time", "2026-01-01T00:00:00Z\n"),
        ("time", "٢٠٢٦-01-01T00:00:00Z"),
        ("tool", "x" * 201),
        ("actions", []),
    ],
)
def test_a_commit_with_a_bad_field_is_refused(field: str, value: object) -> None:
    raw = {**json.loads(a_commit().to_bytes()), field: value}
    error = refused(json.dumps(raw).encode(), Commit)
    assert [problem.loc for problem in error.problems] == [f"/{field}"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "../../etc"),
        ("family", "a/b"),
        ("family", ".."),
        ("family", ""),
        ("family", "/etc"),
        ("family", "a\\b"),
        ("task", "../x"),
        ("task", "a@b"),
        ("task", "e\u0301"),  # not NFC
        ("digest", "../" + "a" * 61),
        ("version", 0),
        ("version", True),
        ("basis_revision", -1),
        ("size_bytes", -1),
        ("exact", 1),
        ("exact", None),
    ],
)
def test_a_model_with_a_bad_field_is_refused(field: str, value: object) -> None:
    raw = json.loads(a_commit().to_bytes())
    raw["actions"][2][field] = value
    error = refused(json.dumps(raw).encode(), Commit)
    assert [problem.loc for problem in error.problems] == [f"/actions/2/{field}"]


@pytest.mark.parametrize("alias", ["3", "", "a b", "a@b", "-x", "x" * 65, "é"])
def test_an_alias_that_could_be_taken_for_a_version_is_refused(alias: str) -> None:
    raw = json.loads(a_commit().to_bytes())
    raw["actions"][3]["alias"] = alias
    assert [problem.loc for problem in refused(json.dumps(raw).encode(), Commit).problems] == [
        "/actions/3/alias"
    ]
