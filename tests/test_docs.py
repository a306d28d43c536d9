"""The guides are true: every block of each runs, in order, in a folder with a zoo; the reference builds in strict mode."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_support import make_adapters
from cli_support import make_small_zoo, run_well
from hub_support import TOKEN
from remote_support import KEY, SECRET, moto_server
from safetensors.torch import load_file, save_file

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDES = sorted((DOCS / "guides").glob("*.md"))
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)

SCORE = """
import torch

ANSWERS = {}

def _score(weights, task, seed):
    inputs = torch.randn(300, 48, generator=torch.Generator().manual_seed(seed))
    hidden = torch.relu(inputs @ weights["fc1.weight"].T + weights["fc1.bias"])
    answers = (hidden @ weights["fc2.weight"].T + weights["fc2.bias"]).argmax(1)
    # The first that is scored of a task is its original.
    correct = answers == ANSWERS.setdefault((task, seed), answers)
    return {"metric": "accuracy", "value": correct.double().mean(), "higher_is_better": True, "n": 300,
            "correct": correct}

def accuracy(weights, task):
    return _score(weights, task, 1)

def search(weights, task):
    return _score(weights, task, 2)
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the guides say they use."""
    make_small_zoo(tmp_path / "zoo")
    make_adapters(tmp_path / "adapters")
    make_keys(tmp_path)
    (tmp_path / "score.py").write_text(SCORE)
    new = load_file(tmp_path / "zoo" / "task-00.safetensors")
    save_file(
        {name: value + 1e-3 * torch.randn(value.shape) for name, value in new.items()},
        tmp_path / "new.safetensors",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UWS_STORE_REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("UWS_STORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def make_keys(folder: Path) -> None:
    """What ``openssl`` makes in the guide, where the package that signs is installed."""
    with contextlib.suppress(ImportError):
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an optional package
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        key = Ed25519PrivateKey.generate()
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        (folder / "jo.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (folder / "jo.pem").write_bytes(public)


def blocks(guide: Path) -> list[tuple[str, str]]:
    found = [
        (language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE))
        for indent, language, body in BLOCK.findall(guide.read_text(encoding="utf-8"))
    ]
    assert {language for language, _ in found} <= {"sh", "python", "text"}, guide
    return found


def make_bucket(name: str, endpoint: str) -> None:
    """What a team does once, by its own tools."""
    import urllib.request  # noqa: PLC0415 - here alone

    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT", headers={"x-amz-acl": "private"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 200


def run_shell(body: str, monkeypatch: pytest.MonkeyPatch, *, more: tuple[str, ...]) -> None:
    """Run a block of uws-store commands; what it exports stays; how to install is read, not done."""
    for line in body.splitlines():
        words = shlex.split(os.path.expandvars(line), comments=True)
        if not words or words[:2] == ["pip", "install"]:
            continue
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            monkeypatch.setenv(name, value)
            continue
        assert words[0] == "uws-store", line
        # What the environment would say to a client that reads it when it is imported.
        run_well(*words[1:], *(more if "hf://" in line else ()))


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # within huggingface_hub
@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_every_block_of_a_guide_runs(guide: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        if "s3://" in guide.read_text(encoding="utf-8"):
            s3fs = pytest.importorskip("s3fs", reason="the guide needs the extra s3")
            # An earlier test may have left a client that found no credentials.
            s3fs.S3FileSystem.clear_instance_cache()
            endpoint = stack.enter_context(moto_server())
            for name, value in {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
            }.items():
                monkeypatch.setenv(name, value)
            make_bucket("models", endpoint)
        if "--signature" in guide.read_text(encoding="utf-8"):
            pytest.importorskip("cryptography", reason="the guide needs the extra sign")
        more: tuple[str, ...] = ()
        if "hf://" in guide.read_text(encoding="utf-8"):
            pytest.importorskip("hf_xet", reason="what is written to a bucket goes by hf_xet")
            from bucket_support import bucket_server  # noqa: PLC0415 - needs it

            _, address = stack.enter_context(bucket_server(desk / "store"))
            more = ("--storage-option", f"endpoint={address}", "--storage-option", f"token={TOKEN}")
        names: dict[str, object] = {}
        ran = 0
        for language, body in blocks(guide):
            if language == "sh":
                run_shell(body, monkeypatch, more=more)
            elif language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(body, str(guide), "exec"), names)
            ran += language != "text"
        assert ran


def test_links_between_the_pages_lead_somewhere() -> None:
    pages = sorted(DOCS.rglob("*.md"))
    assert len(pages) > 5
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not link.startswith("https://"):
                assert (page.parent / link).exists(), f"{page}: {link}"


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"^\s+- .*: (\S+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_reference_builds_in_strict_mode(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-f",
            str(DOCS.parent / "mkdocs.yml"),
            "-d",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    python = (tmp_path / "reference" / "python" / "index.html").read_text()
    for name in ("build", "verify", "analyze"):
        assert f'id="uws-store-{name}"' in commands
        assert f"uws_store.{name}" in python or f"uws_store.api.{name}" in python
