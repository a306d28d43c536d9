"""What every bucket is held to beside the contract of a storage. A test module gives `url`, an empty place there."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import make_small_zoo
from storage_support import found_family
from test_registry_concurrent import publish_from

from uws_store import api, load_model
from uws_store.registry import Registry
from uws_store.storage import StorageUrl

WRITERS = 4
EACH = 4


class CloudTests:
    def test_of_four_publishers_every_model_is_there_and_each_version_has_one_winner(
        self, url: StorageUrl
    ) -> None:
        registry = Registry.init(url)
        registry.publish(found_family())
        numbers = publish_from(
            registry, lambda number: ["shared"] * (EACH - 1) + [f"own-{number}"], count=WRITERS
        )
        assert sorted(numbers) == list(range(2, 2 + WRITERS * EACH))
        tasks = Registry.open(url).state().families["digits"].tasks
        assert {name: sorted(task.versions) for name, task in tasks.items()} == {
            "shared": list(range(1, WRITERS * (EACH - 1) + 1)),
            **{f"own-{number}": [1] for number in range(WRITERS)},
        }

    @pytest.mark.parametrize("pack", [False, True])
    def test_a_family_is_pushed_loaded_and_pulled(
        self, url: StorageUrl, tmp_path: Path, *, pack: bool
    ) -> None:
        source = Registry.init(str(tmp_path / "source"))
        api.build(make_small_zoo(tmp_path / "zoo", models=3), family="mlp", registry=source)
        there = Registry.init(url)
        api.push("mlp", there, registry=source, pack=pack)
        assert api.verify("mlp", registry=there).ok
        assert load_model("mlp", "task-01", registry=there)["fc1.weight"].shape == (64, 48)
        back = Registry.init(str(tmp_path / "back"))
        api.pull(there, "mlp", registry=back)
        assert [entry.digest for entry in back.state().models()] == [
            entry.digest for entry in source.state().models()
        ]
