"""Side files: which travel with a model, where they are kept, and the folders they come back in."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from cli_support import run, run_well
from safetensors.torch import load_file, save_file
from zoo_support import make_zoo, snapshot

import uws_store
from uws_store.api import ModelResult, add, build, export, show, verify
from uws_store.checkpoint import open_checkpoint
from uws_store.errors import AlreadyExistsError, FormatError, NotFoundError

CONFIG = {"model_type": "none", "labels": ["a", "b"]}
TOKENIZER = json.dumps({"vocabulary": list(range(3000))}).encode()
STRANGERS = {
    "modeling_evil.py": b"raise SystemExit",
    "training_args.json": b"{}",
    "README.md": b"# card",
    "optimizer.pt": pickle.dumps([1]),
    ".hidden.json": b"{}",
    "notes.txt": b"a note of my own",
}


def make_folders(folder: Path, *, models: int = 5) -> Path:
    """A zoo with a folder for each task: one tokenizer for all, a configuration each, and what must stay."""
    flat = make_zoo(folder.parent / "flat", models=models)
    for index, path in enumerate(sorted(flat.iterdir())):
        own = folder / path.stem
        (own / "1_Pooling").mkdir(parents=True)
        path.rename(own / "model.safetensors")
        (own / "config.json").write_text(json.dumps(CONFIG | {"task": index}))
        (own / "tokenizer.json").write_bytes(TOKENIZER)
        (own / "1_Pooling" / "config.json").write_bytes(b"{}")
        for name, data in STRANGERS.items():
            (own / name).write_bytes(data)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in snapshot(folder).items() if name != "model.safetensors"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[ModelResult, ...]]:
    folder = tmp_path_factory.mktemp("files")
    zoo = make_folders(folder / "zoo")
    made = build(zoo, family="f", registry=str(folder / "registry"), exact=True)
    return zoo, folder / "registry", made.models


def test_only_listed_files_travel(built: tuple[Path, Path, object]) -> None:
    _, registry, _ = built
    files = uws_store.load_model("f", "task-02", registry=str(registry)).side_files()
    assert set(files) == {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert json.loads(files["config.json"]) == CONFIG | {"task": 2}
    stored = b"".join(snapshot(registry).values())
    for data in (b"raise SystemExit", b"# card", b"a note of my own"):
        assert data not in stored


def test_programs_that_stay_behind_are_told(built: tuple[Path, Path, tuple[ModelResult, ...]]) -> None:
    _, _, models = built
    assert all(any("modeling_evil.py" in notice for notice in model.notices) for model in models)


def test_what_models_share_is_stored_once(built: tuple[Path, Path, tuple[ModelResult, ...]]) -> None:
    _, registry, models = built
    holding = [name for name, data in snapshot(registry).items() if TOKENIZER in data]
    assert len(holding) == 1
    assert "/basis/" in holding[0]
    # The configuration, its array's metadata, its index.
    assert all(0 < model.file_bytes < 1500 for model in models)


def test_side_files_do_not_count_as_weights(tmp_path: Path, built: tuple[Path, Path, object]) -> None:
    zoo, registry, _ = built
    bare = tmp_path / "bare"
    bare.mkdir()
    for folder in zoo.iterdir():
        os.link(folder / "model.safetensors", bare / f"{folder.name}.safetensors")
    build(bare, family="bare", registry=str(registry), exact=True)
    with_files, without = (show(family, registry=str(registry))[1] for family in ("f", "bare"))
    for one, other in zip(with_files, without, strict=True):
        assert one.side_files
        assert other.side_files == ()
        assert other.file_bytes == 0
        # The record names the files.
        assert 0 < one.compact_bytes - other.compact_bytes < 1000
        assert one.size_bytes - one.file_bytes - one.compact_bytes == other.size_bytes - other.compact_bytes


def test_a_folder_comes_back_as_it_was(built: tuple[Path, Path, object], tmp_path: Path) -> None:
    zoo, registry, _ = built
    done = export("f", "task-03", tmp_path / "back", registry=str(registry), tier="exact")
    assert Path(done.path) == tmp_path / "back"
    assert done.side_files == ("1_Pooling/config.json", "config.json", "tokenizer.json")
    found, source = snapshot(tmp_path / "back"), snapshot(zoo / "task-03")
    assert set(found) == {*done.side_files, "model.safetensors"}
    assert {name: source[name] for name in done.side_files} == files_in(tmp_path / "back")
    assert done.size_bytes == sum(map(len, found.values()))
    back = load_file(tmp_path / "back" / "model.safetensors")
    original = load_file(zoo / "task-03" / "model.safetensors")
    assert list(back) == list(original)
    assert all(torch.equal(back[name], original[name]) for name in original)


def test_a_path_that_ends_in_safetensors_gets_the_weights_alone(
    built: tuple[Path, Path, object], tmp_path: Path
) -> None:
    _, registry, _ = built
    done = export("f", "task-03", tmp_path / "alone.safetensors", registry=str(registry))
    assert done.side_files == ()
    assert [path.name for path in tmp_path.iterdir()] == ["alone.safetensors"]


def test_a_folder_with_something_in_it_is_not_overwritten_unasked(
    built: tuple[Path, Path, object], tmp_path: Path
) -> None:
    _, registry, _ = built
    target = tmp_path / "there"
    target.mkdir()
    export("f", "task-03", target, registry=str(registry))  # an empty one is as good as none
    (target / "config.json").write_bytes(b"mine")
    before = snapshot(target)
    with pytest.raises(AlreadyExistsError) as caught:
        export("f", "task-03", target, registry=str(registry))
    assert caught.value.kind == "already-exists/folder"
    assert snapshot(target) == before
    export("f", "task-02", target, registry=str(registry), overwrite=True)
    assert json.loads((target / "config.json").read_bytes())["task"] == 2
    assert set(snapshot(target)) == set(before)


def test_an_export_that_fails_leaves_nothing(
    built: tuple[Path, Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, registry, _ = built

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(uws_store.errors.StorageError):
        export("f", "task-03", tmp_path / "back", registry=str(registry))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_folders(built: tuple[Path, Path, object], tmp_path: Path) -> None:
    zoo, registry, _ = built
    one = tmp_path / "one"
    told = run_well("export", "f", "task-01", "-o", f"{one}/", "--registry", registry)
    assert "config.json" in told.stdout
    assert (one / "tokenizer.json").read_bytes() == TOKENIZER
    run_well("export", "f", "--all", "-o", tmp_path / "all", "--tier", "exact", "--registry", registry)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [f"task-{n:02d}" for n in range(5)]
    # What was exported is a zoo again, the same one.
    assert verify("f", registry=str(registry), against=zoo).ok
    again = build(tmp_path / "all", family="again", registry=str(tmp_path / "r"), exact=True)
    assert [model.rel_error for model in again.models] == [
        model.rel_error for model in show("f", registry=str(registry))[1]
    ]
    refused = run("export", "f", "--all", "-o", tmp_path / "all", "--registry", registry)
    assert refused.error_kind == "already-exists/file"


def test_an_added_model_shares_what_the_basis_has(built: tuple[Path, Path, object], tmp_path: Path) -> None:
    zoo, registry, _ = built
    new = tmp_path / "new"
    new.mkdir()
    os.link(zoo / "task-00" / "model.safetensors", new / "model.safetensors")
    (new / "tokenizer.json").write_bytes(TOKENIZER)
    (new / "vocab.txt").write_bytes("ä\n".encode())
    result = add(new, family="f", registry=str(registry))
    assert result.model.task == "new"
    weights = uws_store.load_model("f", "new", registry=str(registry))
    assert weights.side_files() == {"tokenizer.json": TOKENIZER, "vocab.txt": "ä\n".encode()}
    assert weights.model.document.shared_files == ("tokenizer.json",)
    assert [record.name for record in weights.model.document.files] == ["vocab.txt"]
    bare = add(new / "model.safetensors", family="f", task="bare", registry=str(registry))
    assert bare.model.file_bytes == 0
    assert uws_store.load_model("f", "bare", registry=str(registry)).side_files() == {}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"{'not': json}"),
        ("config.json", b"[" * 100_000),
        ("config.json", b"\xff\xfe"),
        ("vocab.txt", b"\xff\xfe\x00"),
        ("tokenizer.model", pickle.dumps({"a": 1})),
        ("spiece.model", b"PK\x03\x04..."),
    ],
)
def test_files_that_are_not_what_they_are_called_are_refused_before_anything_is_made(
    tmp_path: Path, name: str, data: bytes
) -> None:
    zoo = make_folders(tmp_path / "zoo", models=2)
    (zoo / "task-01" / name).write_bytes(data)
    with pytest.raises(FormatError) as caught:
        build(zoo, family="g", registry=str(tmp_path / "r"))
    assert caught.value.kind == "format/side-file"
    assert not (tmp_path / "r").exists()


def test_a_huge_file_is_refused_without_being_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uws_store.checkpoint.side_files.MAX_FILE_BYTES", 1000)
    zoo = make_folders(tmp_path / "zoo", models=2)
    with open_checkpoint(zoo / "task-00") as checkpoint:
        assert len(checkpoint.read_side_file("config.json")) < 1000
        with pytest.raises(FormatError, match="longer than 1000 bytes"):
            checkpoint.read_side_file("tokenizer.json")
        with pytest.raises(NotFoundError):
            checkpoint.read_side_file("modeling_evil.py")


def test_files_beside_a_bare_file_stay_where_they_are(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b"{}")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert checkpoint.side_files == ()
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.side_files == ("config.json",)
