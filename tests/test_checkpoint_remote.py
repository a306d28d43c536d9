"""Zoos behind a URL: headers first, then ranges; the same family as from a disk, and typed errors for what is no zoo."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from zoo_support import make_zoo, same_bits

import uws_store
from uws_store.builder import Members
from uws_store.checkpoint import open_checkpoint, scan_zoo
from uws_store.checkpoint.remote import RemoteCheckpoint
from uws_store.errors import FormatError, InvalidInputError, NotFoundError
from uws_store.storage import MemoryStorage, open_storage

WIDE = {"a.weight": (48, 32), "b.weight": (32, 48), "norm.weight": (64,), "empty": (0, 3)}


def _upload(zoo: Path, name: str) -> str:
    storage = open_storage(f"memory://{name}", create=True)
    for path in sorted(zoo.iterdir()):
        storage.put(path.name, path.read_bytes())
    return f"memory://{name}"


def test_a_zoo_behind_a_url_makes_the_family_that_a_disk_makes(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)
    url = _upload(zoo, f"remote/{tmp_path.name}")
    assert [member.task for member in scan_zoo(url)] == [member.task for member in scan_zoo(zoo)]
    digests = []
    for registry, source in (("near", str(zoo)), ("far", url)):
        uws_store.build(source, family="f", registry=str(tmp_path / registry), exact=True, change_error=0.1)
        family = uws_store.open_family("f", registry=str(tmp_path / registry))
        digests.append([family.basis().digest, *(family.resolve(task).digest for task in family)])
    assert digests[0] == digests[1]


def test_tensors_and_rows_are_read_by_their_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=1, dtype=torch.bfloat16)
    url = _upload(zoo, f"ranges/{tmp_path.name}") + "/task-00.safetensors"
    original = load_file(zoo / "task-00.safetensors")
    read = 0
    whole = MemoryStorage.read

    def counted(self: MemoryStorage, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        nonlocal read
        data = whole(self, path, start=start, end=end)
        read += len(data)
        return data

    monkeypatch.setattr(MemoryStorage, "read", counted)
    with open_checkpoint(url) as far, open_checkpoint(zoo / "task-00.safetensors") as near:
        header = read
        assert header < near.file_size_bytes - sum(info.size_bytes for info in near.tensors.values()) + 9
        assert dict(far.tensors) == dict(near.tensors)
        assert same_bits(far.read_rows("a.weight", 3, 5), original["a.weight"][3:5])
        assert read - header == 2 * 32 * 2
        assert all(same_bits(far.read(name), original[name]) for name in original)
        assert far.sha256() == near.sha256()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"{x}",
        *(
            struct.pack("<Q", len(text)) + text
            for entry in (
                {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
                {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                {"dtype": "F32", "shape": [-2], "data_offsets": [0, 0]},
                {"dtype": "F32", "shape": "2", "data_offsets": [0, 0]},
                {"dtype": "F32", "shape": [2]},
                {"dtype": "F32", "shape": [1], "data_offsets": [True, 5]},
            )
            for text in [json.dumps({"w": entry}).encode()]
        ),
    ],
)
def test_a_damaged_object_is_refused_before_a_tensor_is_read(tmp_path: Path, data: bytes) -> None:
    storage = open_storage(f"memory://damaged/{tmp_path.name}", create=True)
    storage.put("w.safetensors", data)
    with pytest.raises(FormatError) as caught:
        open_checkpoint(f"memory://damaged/{tmp_path.name}/w.safetensors")
    assert caught.value.kind == "format/checkpoint"
    assert "w.safetensors" in caught.value.message


def test_what_is_not_there_or_no_zoo_is_told(tmp_path: Path) -> None:
    url = f"memory://nothing/{tmp_path.name}"
    storage = open_storage(url, create=True)
    with pytest.raises(InvalidInputError) as empty:
        scan_zoo(url)
    assert empty.value.kind == "invalid-input/empty-zoo"
    with pytest.raises(NotFoundError) as missing:
        open_checkpoint(f"{url}/w.safetensors")
    assert missing.value.kind == "not-found/checkpoint"
    storage.put("w.pt", b"PK")
    with pytest.raises(InvalidInputError) as other:
        open_checkpoint(f"{url}/w.pt")
    assert other.value.kind == "invalid-input/not-a-checkpoint"


def test_an_object_that_changes_is_noticed(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=1)
    url = _upload(zoo, f"changes/{tmp_path.name}")
    with open_checkpoint(f"{url}/task-00.safetensors") as far:
        data = (zoo / "task-00.safetensors").read_bytes()
        open_storage(url).put("task-00.safetensors", data + b"x")
        with pytest.raises(InvalidInputError) as caught:
            far.sha256()
    assert caught.value.kind == "invalid-input/checkpoint-changed"


def test_a_manifest_names_objects_by_url_beside_files(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", shapes=WIDE, models=5)
    url = _upload(zoo, f"manifest/{tmp_path.name}")
    folder = open_storage(f"memory://manifest/{tmp_path.name}-one", create=True)
    folder.put("model.safetensors", (zoo / "task-01.safetensors").read_bytes())
    rows: list[dict[str, object]] = [
        {"task": f"task-{index:02d}", "path": str(zoo / f"task-{index:02d}.safetensors")}
        for index in range(2, 5)
    ]
    rows += [
        {"task": "task-00", "url": f"{url}/task-00.safetensors", "metadata": {"licence": "MIT"}},
        {"task": "task-01", "url": f"memory://manifest/{tmp_path.name}-one"},
    ]
    listed = tmp_path / "my.json"
    listed.write_text(json.dumps(rows))
    members = scan_zoo(listed)
    assert members[0].metadata == {"licence": "MIT"}
    digests = []
    for registry, source in (("near", zoo), ("far", listed)):
        uws_store.build(source, family="f", registry=str(tmp_path / registry), change_error=0.1)
        family = uws_store.open_family("f", registry=str(tmp_path / registry))
        digests.append([family.basis().digest, *(family.resolve(task).digest for task in family)])
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "row",
    [{"task": "a", "url": "no-url"}, {"task": "a", "url": 3}, {"task": "a", "url": "s3://b/c", "path": "."}],
)
def test_a_manifest_s_url_is_a_url_and_alone(tmp_path: Path, row: dict[str, object]) -> None:
    (tmp_path / "zoo.json").write_text(json.dumps([row]))
    with pytest.raises(InvalidInputError) as caught:
        scan_zoo(tmp_path)
    assert caught.value.kind == "invalid-input/zoo-manifest"
    assert [problem.loc for problem in caught.value.problems] == ["/0/url"]


def test_a_folder_of_several_objects_is_no_checkpoint(tmp_path: Path) -> None:
    url = _upload(make_zoo(tmp_path / "zoo", shapes=WIDE, models=2), f"several/{tmp_path.name}")
    with pytest.raises(InvalidInputError) as several:
        open_checkpoint(url)
    assert several.value.kind == "invalid-input/ambiguous-checkpoint"
    open_storage(f"memory://several/{tmp_path.name}-none", create=True)
    with pytest.raises(NotFoundError) as none:
        open_checkpoint(f"memory://several/{tmp_path.name}-none")
    assert none.value.kind == "not-found/checkpoint"


def test_slices_over_a_network_are_read_several_at_once_and_no_more_than_eight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _upload(make_zoo(tmp_path / "zoo", shapes=WIDE, models=20), f"ahead/{tmp_path.name}")
    at_once = most = 0
    lock = threading.Lock()
    second = threading.Event()
    whole = RemoteCheckpoint.read

    def noted(self: RemoteCheckpoint, name: str) -> torch.Tensor:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
            if at_once == 2:
                second.set()
        # Whoever is alone waits for another: read one by one, none would ever come.
        assert second.wait(120)
        try:
            return whole(self, name)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(RemoteCheckpoint, "read", noted)
    with Members(scan_zoo(url)) as members:
        files = members.checkpoints
        assert [task for task, _ in files.slices("a.weight", list(files))] == list(files)
        assert 2 <= most <= 8
        # Whoever stops early waits for nothing but what has begun.
        for _ in files.slices("b.weight", list(files)):
            break
