"""Azurite, Microsoft's emulator of Azure Blob Storage, from npm: started by the tests on loopback, in memory."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_support import started_program

CONTAINER = "uws-tests"
VERSION = "3.35.0"
# The emulator's own account, which its documentation publishes.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
INSTALL_S = 180


def azure_options(endpoint: str, *, key: str = KEY) -> dict[str, Any]:
    """Options for an emulator at an address."""
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": ACCOUNT,
        "AccountKey": key,
        "BlobEndpoint": f"{endpoint}/{ACCOUNT}",
    }
    return {"connection_string": "".join(f"{name}={value};" for name, value in parts.items())}


def azurite_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """Where npm puts the emulator: pytest's cache, where there is one, since it takes half a minute."""
    kept = getattr(config, "cache", None)
    with contextlib.suppress(OSError):  # where nothing can be written, it is fetched each time
        if kept is not None:
            return Path(kept.mkdir(f"azurite-{VERSION}"))
    return factory.mktemp("azurite")


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Run the emulator, with the tests' container made; gives its address.

    Parameters
    ----------
    folder : Path
        Where npm puts it, unless it is there from an earlier run.
    """
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        _install(folder)
    command = [
        str(program),
        "--silent",
        "--disableTelemetry",
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
    ]
    with started_program(
        "azurite", lambda port: [*command, "--blobPort", str(port)], folder=folder
    ) as address:
        _make_container(address)
        yield address


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, which fetches azurite")
    # Other workers may be at it too: who is first moves its copy into place.
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--loglevel=error", f"azurite@{VERSION}"],
            cwd=own,
            check=True,
            capture_output=True,
            timeout=INSTALL_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm cannot install azurite: {type(error).__name__}")
    with contextlib.suppress(OSError):
        (own / "node_modules").rename(folder / "node_modules")
    shutil.rmtree(own, ignore_errors=True)


def _make_container(endpoint: str) -> None:
    from azure.storage.blob import BlobServiceClient  # noqa: PLC0415 - need not be installed

    options = azure_options(endpoint)
    with BlobServiceClient.from_connection_string(options["connection_string"]) as client:
        client.create_container(CONTAINER)
