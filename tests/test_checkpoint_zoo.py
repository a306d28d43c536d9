"""Which checkpoints a zoo holds."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.errors import FormatError, InvalidInputError, NotFoundError

ZOOS = Path(__file__).parents[2] / "shared" / "zoos"


def put(path: Path, value: float = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"w": torch.full((2,), float(value))}, path)
    else:
        torch.save({"w": torch.full((2,), float(value))}, path)


def put_shards(folder: Path, stem: str, *, indexed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        name: f"{stem}-0000{number}-of-00002.safetensors" for number, name in enumerate(("a", "b"), start=1)
    }
    for name, file in names.items():
        save_file({name: torch.ones(1)}, folder / file)
    if indexed:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def refusal(path: Path) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as error:
        scan_zoo(path)
    return error.value


def test_files_and_folders_are_members_and_nothing_else_is(tmp_path: Path) -> None:
    put(tmp_path / "b.safetensors")
    put(tmp_path / "a.v1.pt")
    put(tmp_path / "c" / "model.safetensors")
    put(tmp_path / "d" / "deeper" / "model.safetensors")
    put(tmp_path / ".hidden.safetensors")
    put(tmp_path / ".cache" / "model.safetensors")
    put(tmp_path / "optimizer.pt")
    (tmp_path / "e").mkdir()
    for name in ("README.md", "labels.json", "notes.txt", "LICENSE"):
        (tmp_path / name).write_text("text")
    members = scan_zoo(tmp_path)
    assert [(member.task, member.path.relative_to(tmp_path).as_posix()) for member in members] == [
        ("a.v1", "a.v1.pt"),
        ("b", "b.safetensors"),
        ("c", "c"),
    ]
    assert all(member.metadata == {} for member in members)
    for member in members:
        with open_checkpoint(member.path) as checkpoint:
            assert list(checkpoint.tensors) == ["w"]


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_are_one_member_without_their_number(tmp_path: Path, *, indexed: bool) -> None:
    put_shards(tmp_path, "big one", indexed=indexed)
    put_shards(tmp_path / "folder", "model", indexed=indexed)
    put(tmp_path / "small-00001-of-00001.safetensors")
    members = scan_zoo(tmp_path)
    assert [member.task for member in members] == ["big one", "folder", "small"]
    for member in members[:2]:
        with open_checkpoint(member.path) as checkpoint:
            assert list(checkpoint.tensors) == ["a", "b"]


def test_tasks_are_composed_and_sorted(tmp_path: Path) -> None:
    for name in ("z", "cafe\u0301 🙂", "B", "a b"):
        put(tmp_path / f"{name}.safetensors")
    tasks = [member.task for member in scan_zoo(str(tmp_path))]
    assert tasks == sorted(tasks)
    assert "caf\u00e9 🙂" in tasks
    assert all(unicodedata.is_normalized("NFC", task) for task in tasks)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.safetensors", "a.pt"),
        ("a.safetensors", "a/model.safetensors"),
        ("Hey.safetensors", "hey.safetensors"),
        ("caf\u00e9.safetensors", "cafe\u0301.safetensors"),
        ("x-00001-of-00001.pt", "x.pt"),
    ],
)
def test_a_duplicate_task_names_both_files(tmp_path: Path, one: str, other: str) -> None:
    put(tmp_path / one)
    put(tmp_path / other)
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/duplicate-task"
    assert len(error.problems) == 1
    assert str(tmp_path / one) in str(error)
    assert str((tmp_path / other).parent if "/" in other else tmp_path / other) in str(error)


def test_every_bad_name_is_reported(tmp_path: Path) -> None:
    for name in ("good", " leading", "with@sign", "back\\slash"):
        put(tmp_path / f"{name}.safetensors")
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/task-name"
    assert len(error.problems) == 3


def test_a_name_that_is_no_utf8_is_reported_in_text_that_prints(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system keeps names in Unicode")
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/task-name"
    str(error).encode()


def test_problems_of_several_kinds_come_together(tmp_path: Path) -> None:
    for name in ("a.pt", "a.safetensors", "b@c.pt"):
        put(tmp_path / name)
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/zoo"
    assert {problem.kind for problem in error.problems} == {
        "invalid-input/duplicate-task",
        "invalid-input/task-name",
    }


def test_a_zoo_with_nothing_in_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("soon")
    put(tmp_path / "org" / "name" / "model.safetensors")
    error = refusal(tmp_path)
    assert error.kind == "invalid-input/empty-zoo"
    assert "org" in str(error)


def test_a_zoo_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as error:
        scan_zoo(tmp_path / "none")
    assert error.value.kind == "not-found/zoo"


@pytest.mark.parametrize("indexed", [False, True])
def test_the_folder_of_one_sharded_model_is_not_a_zoo(tmp_path: Path, *, indexed: bool) -> None:
    put_shards(tmp_path, "model", indexed=indexed)
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path).kind == "invalid-input/one-model"


def test_one_file_is_not_a_zoo(tmp_path: Path) -> None:
    put_shards(tmp_path, "model", indexed=True)
    put(tmp_path / "a.safetensors")
    for name in ("a.safetensors", "model.safetensors.index.json"):
        assert refusal(tmp_path / name).kind == "invalid-input/one-model"


def test_a_zoo_of_one_member_is_found(tmp_path: Path) -> None:
    put(tmp_path / "only.safetensors")
    assert [member.task for member in scan_zoo(tmp_path)] == ["only"]


def test_a_link_to_nothing_is_a_member_that_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (member,) = scan_zoo(tmp_path)
    with pytest.raises(NotFoundError):
        open_checkpoint(member.path)


def test_a_damaged_index_is_told_when_the_member_is_opened(tmp_path: Path) -> None:
    put_shards(tmp_path, "broken", indexed=True)
    (tmp_path / "broken.safetensors.index.json").write_text("{")
    put(tmp_path / "whole.safetensors")
    members = scan_zoo(tmp_path)
    assert [member.task for member in members] == ["broken", "whole"]
    with pytest.raises(FormatError):
        open_checkpoint(members[0].path)


def manifest(folder: Path, content: object, name: str = "zoo.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_manifest_lists_members_anywhere(tmp_path: Path) -> None:
    put(tmp_path / "files" / "a.safetensors")
    put(tmp_path / "elsewhere" / "model.safetensors")
    inner = tmp_path / "inner"
    inner.mkdir()
    path = manifest(
        inner,
        [
            {"task": "org/b", "path": "../files/a.safetensors", "metadata": {"licence": "MIT"}},
            {"task": "cafe\u0301", "path": str(tmp_path / "elsewhere")},
        ],
    )
    for zoo in (path, inner):
        members = scan_zoo(zoo)
        assert [member.task for member in members] == ["caf\u00e9", "org/b"]
        assert members[1].metadata == {"licence": "MIT"}
        for member in members:
            with open_checkpoint(member.path) as checkpoint:
                assert list(checkpoint.tensors) == ["w"]
    assert len({*scan_zoo(path), *scan_zoo(inner)}) == 2


def test_every_problem_of_a_manifest_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors")
    good = {"path": "a.safetensors"}
    path = manifest(
        tmp_path,
        [
            {"task": "x", **good},
            {"task": "X", **good},
            {"task": "bad@name", **good},
            {"task": 7, **good},
            {"task": "y"},
            {"path": "a.safetensors"},
            {"task": "z", "path": "none.safetensors"},
            {"task": "p", "path": 3},
            {"task": "q", "path": "x" * 5000},
            {"task": "m", **good, "metadata": {"n": 1}},
            {"task": "s", **good, "metadata": {"n": "\ud800"}},
            {"task": "k", **good, "colour": "red"},
            "text",
        ],
        "my zoo.json",
    )
    error = refusal(path)
    assert error.kind == "invalid-input/zoo-manifest"
    assert [problem.loc for problem in error.problems] == [
        "/2/task",
        "/3/task",
        "/4/path",
        "/5/task",
        "/6/path",
        "/7/path",
        "/8/path",
        "/9/metadata",
        "/10/metadata",
        "/11/colour",
        "/12",
        "x",
    ]


def test_duplicates_alone_in_a_manifest_are_duplicates(tmp_path: Path) -> None:
    put(tmp_path / "a.safetensors")
    put(tmp_path / "b.safetensors")
    path = manifest(
        tmp_path, [{"task": "x", "path": "a.safetensors"}, {"task": "x", "path": "b.safetensors"}]
    )
    error = refusal(path)
    assert error.kind == "invalid-input/duplicate-task"
    assert "a.safetensors" in str(error)
    assert "b.safetensors" in str(error)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("", "invalid-input/zoo-manifest"),
        ("{", "invalid-input/zoo-manifest"),
        ("{}", "invalid-input/zoo-manifest"),
        ('"text"', "invalid-input/zoo-manifest"),
        ("[" * 100_000, "invalid-input/zoo-manifest"),
        ("[]", "invalid-input/empty-zoo"),
    ],
)
def test_what_is_not_a_manifest_is_refused(tmp_path: Path, content: str, kind: str) -> None:
    assert refusal(manifest(tmp_path, content)).kind == kind


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("acasxu", 45),
        ("ani_1x_1ccx", 16),
        ("hexells", 173),
        ("wakewords", 117),
        ("sb3_agents", 56),
        ("lora_sd15_r4", 2),
    ],
)
def test_real_zoos_are_scanned(name: str, count: int) -> None:
    if not (ZOOS / name).is_dir():
        pytest.skip(f"the zoo {name} is not on this machine")
    members = scan_zoo(ZOOS / name)
    assert len(members) == count
    assert {member.path for member in members} == set((ZOOS / name).glob("*.safetensors"))


def test_real_names_with_odd_characters_are_kept() -> None:
    if not (ZOOS / "wakewords").is_dir():
        pytest.skip("the zoo wakewords is not on this machine")
    tasks = {member.task for member in scan_zoo(ZOOS / "wakewords")}
    assert {
        "en__hey_friday__hey_Friday!",
        "en__mr_anderson__Mr._Anderson",
        "en__Queen_of_lights__Queen_of_lights_v0.1",
    } <= tasks
