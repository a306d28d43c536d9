"""One bucket of a Hugging Face Hub: its files by ranges, and changes through the Xet protocol.

A bucket keeps no history and knows no condition: who writes a file replaces what stood there. Must not know paths of
ours, storages or errors of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi
from huggingface_hub.errors import BucketNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from uws_store.hub.fetching import LIBRARY, HubFileInfo, Sink, fetch_file, files_as_python_tells

__all__ = ["HubBucket"]


class HubBucket:
    """A bucket.

    A file that is not there is told by `FileNotFoundError`; a bucket by the library's `BucketNotFoundError`.

    Parameters
    ----------
    bucket_id : str
        ``org/name``.
    endpoint : str, optional
        The Hub's address, by default the library's.
    token : str or bool, optional
        By default that of the library's own login; False for none.
    """

    def __init__(
        self, bucket_id: str, *, endpoint: str | None = None, token: str | bool | None = None
    ) -> None:
        self.bucket_id = bucket_id
        self._token = token
        self._api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY)
        disable_progress_bars()

    def make(self, *, private: bool) -> None:
        """Make the bucket, if there is none."""
        try:
            self._api.bucket_info(self.bucket_id)
        except BucketNotFoundError:
            self._api.create_bucket(self.bucket_id, private=private, exist_ok=True)

    def fetch(
        self, path: str, start: int | None, end: int | None, *, sink: Callable[[bool, str | None], Sink]
    ) -> bytes:
        """Read a file or a range of it; see :func:`uws_store.hub.fetching.fetch_file`."""
        url = f"{self._api.endpoint}/buckets/{self.bucket_id}/resolve/{quote(path)}"
        return fetch_file(url, start, end, token=self._token, sink=sink)

    def info(self, paths: Collection[str], *, times: bool = False) -> dict[str, HubFileInfo | None]:
        """Ask for files by their paths: those that exist."""
        del times  # they are told unasked
        found = self._api.get_bucket_paths_info(self.bucket_id, list(paths))
        return {item.path: _told(item.size, item.uploaded_at) for item in found}

    def files(self, folder: str) -> Iterator[tuple[str, HubFileInfo]]:
        """Give all files below a folder (``""`` for all), and perhaps others."""
        with files_as_python_tells():
            for item in self._api.list_bucket_tree(self.bucket_id, folder or None, recursive=True):
                if item.type == "file":
                    yield item.path, _told(item.size, item.uploaded_at)

    def change(self, changes: Mapping[str, bytes | Path | None]) -> None:
        """Change files: new contents, or None to remove. Not in one step: of a failure, some may be done."""
        self._api.batch_bucket_files(
            self.bucket_id,
            add=[(data, path) for path, data in changes.items() if data is not None],
            delete=[path for path, data in changes.items() if data is None],
        )


def _told(size: int, uploaded_at: object) -> HubFileInfo:
    # Not `mtime`, which is what the writer says.
    stamp = getattr(uploaded_at, "timestamp", None)
    return HubFileInfo(size, stamp() if stamp is not None else None)
