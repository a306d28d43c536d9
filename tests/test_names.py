"""Which names tasks and families may have."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uws_store.errors import InvalidInputError
from uws_store.names import check_family_name, check_task_name, collision_key


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "task-07",
        "en__mr_anderson__Mr._Anderson",
        "hey Friday!",
        "org/name",
        "a/b/c",
        "...",
        "a..b",
        "日本語",
        "🙂",
        "👩‍👩‍👧 family",
        "a" * 200,
        "é" * 127,
    ],
)
def test_ordinary_task_names_are_kept_as_they_are(name: str) -> None:
    assert check_task_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "\u3000a",
        "/a",
        "a/",
        "a//b",
        "/",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/.",
        "a\\b",
        "a@prod",
        "a\x00b",
        "a\nb",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "abc\u202egnp",
        "a\ud800",
        "\udcff",
        "a" * 201,
        "é" * 128,
        "🙂" * 64,
    ],
)
def test_task_names_that_would_do_harm_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        check_task_name(name)
    assert error.value.kind == "invalid-input/task-name"
    str(error.value).encode()


@pytest.mark.parametrize("check", [check_task_name, check_family_name])
def test_names_that_are_not_text_are_refused(check: object) -> None:
    assert callable(check)
    for value in (None, 7, b"a"):
        with pytest.raises(InvalidInputError):
            check(value)


def test_a_decomposed_task_name_is_composed() -> None:
    assert check_task_name("cafe\u0301") == "caf\u00e9"


def test_length_is_counted_after_composition() -> None:
    assert check_task_name("e\u0301" * 127) == "é" * 127


@given(st.text(max_size=40))
def test_a_task_name_is_refused_or_becomes_a_fixed_point(name: str) -> None:
    try:
        checked = check_task_name(name)
    except InvalidInputError:
        with pytest.raises(InvalidInputError):
            check_task_name(unicodedata.normalize("NFD", name))
    else:
        assert checked == unicodedata.normalize("NFC", name)
        assert check_task_name(checked) == checked
        assert 0 < len(checked.encode()) <= 255
        assert not {"\\", "@", "\x00"} & set(checked)
        assert not {"", ".", ".."} & set(checked.split("/"))


@pytest.mark.parametrize(
    "name", ["a", "vit-digits", "ViT_b.16", "_x", "0", "a" * 100, "console", "com", "con-1"]
)
def test_ordinary_family_names_are_kept(name: str) -> None:
    assert check_family_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-rf",
        "a/b",
        "a\\b",
        "a b",
        "a@1",
        "é",
        "٣",
        "a\n",
        "a.",
        "a" * 101,
        "CON",
        "con",
        "nul.txt",
        "Com1",
        "lpt9.a.b",
        "aux.",
        "a:b",
        "\ud800",
    ],
)
def test_family_names_that_are_no_folder_everywhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        check_family_name(name)
    assert error.value.kind == "invalid-input/family-name"
    str(error.value).encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [("Hey", "hEY"), ("cafe\u0301", "CAF\u00c9"), ("Straße", "STRASSE"), ("\u1fb3", "\u0391\u0345")],
)
def test_names_that_differ_in_case_or_form_alone_collide(one: str, other: str) -> None:
    assert collision_key(one) == collision_key(other)


def test_other_names_do_not_collide() -> None:
    assert collision_key("task-1") != collision_key("task-2")
    assert collision_key("e") != collision_key("é")


@given(st.text(max_size=20))
def test_a_collision_key_does_not_depend_on_case_or_form(name: str) -> None:
    key = collision_key(name)
    assert collision_key(unicodedata.normalize("NFD", name)) == key
    assert collision_key(unicodedata.normalize("NFC", name)) == key
    assert collision_key(name.casefold()) == collision_key(unicodedata.normalize("NFD", name.casefold()))
