"""Ceph's S3 gateway on loopback: a monitor, a storage daemon in memory and radosgw, from Debian's packages."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import s3fs
from remote_support import BUCKET, KEY, SECRET

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = 127.0.0.1:{monitor}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon allow pool size one = true
mon data avail crit = 1
mon max pg per osd = 1000
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/run/$name.log
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{gateway}
"""


def missing_programs() -> list[str]:
    """Names of the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextlib.contextmanager
def radosgw_server(folder: Path) -> Iterator[str]:
    """Run a cluster of one, with the tests' user and bucket made; gives the gateway's address."""
    monitor, gateway = _free_port(), _free_port()
    fsid, daemon_id = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "run"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "ceph.conf"
    configuration.write_text(
        _CONFIGURATION.format(fsid=fsid, monitor=monitor, gateway=gateway, folder=folder)
    )

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [program, "-c", str(configuration), *arguments],
            check=True,
            capture_output=True,
            timeout=90,
            cwd=folder,
        )

    with contextlib.ExitStack() as running:

        def start(program: str, *arguments: str) -> None:
            daemon = subprocess.Popen(
                [program, "-f", "-c", str(configuration), *arguments],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
            )
            running.callback(daemon.wait, 20)
            running.callback(daemon.kill)

        subprocess.run(
            ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", "monmap"],
            check=True,
            capture_output=True,
            timeout=30,
            cwd=folder,
        )
        call("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap")
        start("ceph-mon", "-i", "a")
        for attempt in range(5):  # a monitor that is not up yet refuses
            try:
                call("ceph", "osd", "create", daemon_id)
                break
            except subprocess.CalledProcessError:
                if attempt == 4:
                    raise
                time.sleep(2)
        call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", daemon_id)
        start("ceph-osd", "-i", "0")
        call(
            "radosgw-admin",
            *("user", "create", "--uid=tests", "--display-name=tests"),
            *(f"--access-key={KEY}", f"--secret={SECRET}"),
        )
        start("radosgw", "-n", "client.rgw")
        address = f"http://127.0.0.1:{gateway}"
        files = s3fs.S3FileSystem(endpoint_url=address, key=KEY, secret=SECRET, use_listings_cache=False)
        for attempt in range(60):
            try:
                files.mkdir(BUCKET)
                break
            except Exception:
                if attempt == 59:
                    raise
                time.sleep(1)
        yield address
