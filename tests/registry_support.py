"""Actions on the registry that the tests make, and publications that are refused."""

from __future__ import annotations

import pytest
from storage_support import found_family, next_models

from uws_store.errors import (
    UwsError,
)
from uws_store.metadata.log import (
    Action,
    AliasAction,
    DeleteAction,
)
from uws_store.registry import Registry
from uws_store.storage import MemoryStorage


def of_three_commits() -> Registry:
    """A registry in memory: a family, three tasks, and a second version of ``seven``."""
    opened = Registry.over(MemoryStorage("test"), create=True)
    opened.publish(found_family())
    opened.publish(next_models("seven", "eight", "org/nine é 😀"))
    opened.publish(next_models("seven"))
    return opened


def alias(name: str, version: int | None, task: str = "seven") -> AliasAction:
    return AliasAction(family="digits", task=task, alias=name, version=version)


def delete(version: int, task: str = "seven") -> DeleteAction:
    return DeleteAction(family="digits", task=task, version=version)


def refusal_of(registry: Registry, *actions: Action) -> UwsError:
    """Publish and be refused; nothing may have been written."""
    before = registry.state()
    with pytest.raises(UwsError) as caught:
        registry.publish(lambda _: actions)
    assert registry.state() == before
    assert Registry.over(registry.storage).state() == before
    return caught.value
