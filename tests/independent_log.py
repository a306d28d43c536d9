"""The log for the independent reader when it begins at a checkpoint: section 4.4 of spec/uws-1.md."""

from __future__ import annotations

import hashlib
from pathlib import Path

from independent_documents import (
    Family,
    Json,
    Refusal,
    Task,
    Version,
    check_record,
    commit_path,
    fold,
    load_json,
    read_file,
    require,
)


def read_commit(registry: Path, number: int) -> tuple[dict[str, Json], bytes]:
    data = read_file(commit_path(registry, number), most_bytes=1 << 22, rule="R-LOG-6")
    commit = load_json(data, most_bytes=1 << 22)
    check_record("commit", commit, f"commit {number}")
    require(commit["number"] == number, "R-LOG-3", f"{commit['number']} at {number}")
    return commit, data


def read_snapshot(registry: Path, entry: dict[str, Json]) -> Family:
    path = registry / "_log" / "snapshots" / f"{entry['digest']}.json"
    data = read_file(path, most_bytes=1 << 26, rule="R-SNAP-3")
    require(hashlib.sha256(data).hexdigest() == entry["digest"], "R-SNAP-3", "digest")
    require(len(data) == entry["size_bytes"], "R-SNAP-1", "size")
    snapshot = load_json(data, most_bytes=1 << 26)
    check_record("snapshot", snapshot, "snapshot")
    for name in ("family", "architecture"):
        require(snapshot[name] == entry[name], "R-SNAP-3", name)
    bases = [basis["digest"] for basis in snapshot["bases"]]
    family = Family(bases=bases)
    names = [task["task"] for task in snapshot["tasks"]]
    require(names == sorted(set(names)), "R-SNAP-1", "tasks")
    for task in snapshot["tasks"]:
        versions = [version["version"] for version in task["versions"]]
        require(versions == sorted(set(versions)), "R-SNAP-1", "versions")
        require(all(version <= task["last_version"] for version in versions), "R-SNAP-1", "last version")
        aliases = [alias for alias, _ in task["aliases"]]
        require(aliases == sorted(set(aliases)), "R-SNAP-1", "aliases")
        require({version for _, version in task["aliases"]} <= set(versions), "R-SNAP-1", "aliases")
        require(all(v["basis_revision"] <= len(bases) for v in task["versions"]), "R-SNAP-1", "basis")
        family.tasks[task["task"]] = Task(
            versions={
                held["version"]: Version(held["digest"], bases[held["basis_revision"] - 1], held.get("pack"))
                for held in task["versions"]
            },
            aliases=dict(task["aliases"]),
            last=task["last_version"],
        )
    for held in snapshot.get("verifications", ()):
        fold({snapshot["family"]: family}, {**held, "op": "verification", "family": snapshot["family"]})
    return family


def read_from_checkpoint(registry: Path) -> dict[str, Family]:
    """Begin at the checkpoint that the commit under the head's number names."""
    data = read_file(registry / "_log" / "head", most_bytes=1 << 18, rule="R-LOG-7")
    head = load_json(data, most_bytes=1 << 18)
    check_record("head", head, "head")
    newest, stored = read_commit(registry, head["number"])
    number = newest["number"] if "index" in newest else newest["checkpoint"]
    commit, data = (newest, stored) if "index" in newest else read_commit(registry, number)
    if "index" not in commit:
        raise Refusal("R-SNAP-5", f"commit {number}")
    entries = commit["index"]
    names = [entry["family"] for entry in entries]
    require(names == sorted(set(names)), "R-SNAP-1", "families")
    families = {entry["family"]: read_snapshot(registry, entry) for entry in entries}
    while True:
        for action in commit["actions"]:
            fold(families, action)
        number += 1
        if not commit_path(registry, number).is_file():
            return families
        parent = hashlib.sha256(data).hexdigest()
        commit, data = read_commit(registry, number)
        require(commit.get("parent") == parent, "R-LOG-4", f"parent of {number}")
