"""One repository of a Hugging Face Hub: its files by ranges, and one commit on a known parent.

Must not know paths of ours, storages or errors of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from uws_store.hub.fetching import (
    LIBRARY,
    TIMEOUT_S,
    HubFileInfo,
    Sink,
    fetch_file,
    files_as_python_tells,
)

__all__ = ["HubRepo"]


class HubRepo:
    """A model or dataset repository at a revision.

    A file that is not there is told by `FileNotFoundError`; a repository by the library's `RepositoryNotFoundError`.

    Parameters
    ----------
    repo_id : str
        ``org/name``.
    repo_type : str
        ``model`` or ``dataset``.
    revision : str
        A branch, to be written to; a tag or a commit, to be read.
    endpoint : str, optional
        The Hub's address, by default the library's.
    token : str or bool, optional
        By default that of the library's own login; False for none.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        repo_type: str,
        revision: str,
        endpoint: str | None = None,
        token: str | bool | None = None,
    ) -> None:
        self.repo_id = repo_id
        self._type = repo_type
        self._revision = revision
        self._token = token
        self._api = HfApi(endpoint=endpoint, token=token, library_name=LIBRARY)
        # Uploads would draw bars of their own beside ours.
        disable_progress_bars()

    def head(self) -> str:
        """Ask for the newest commit."""
        sha = self._api.repo_info(
            repo_id=self.repo_id, repo_type=self._type, revision=self._revision, timeout=TIMEOUT_S
        ).sha
        if sha is None:
            raise OSError(f"the Hub tells no newest commit of {self.repo_id}")
        return sha

    def make(self, *, private: bool) -> None:
        """Make the repository, if there is none."""
        try:
            self.head()
        except RepositoryNotFoundError:
            self._api.create_repo(repo_id=self.repo_id, repo_type=self._type, private=private, exist_ok=True)

    def fetch(
        self, path: str, start: int | None, end: int | None, *, sink: Callable[[bool, str | None], Sink]
    ) -> bytes:
        """Read a file or a range of it; see :func:`uws_store.hub.fetching.fetch_file`."""
        url = hf_hub_url(
            filename=path,
            revision=self._revision,
            endpoint=self._api.endpoint,
            repo_id=self.repo_id,
            repo_type=self._type,
        )
        return fetch_file(url, start, end, token=self._token, sink=sink)

    def info(self, paths: Collection[str], *, times: bool = False) -> dict[str, HubFileInfo | None]:
        """Ask for files and folders by their paths: those that exist, with None for a folder."""
        found = self._api.get_paths_info(
            repo_id=self.repo_id,
            repo_type=self._type,
            paths=list(paths),
            expand=times,
            revision=self._revision,
        )
        return {
            item.path: HubFileInfo(item.size, item.last_commit.date.timestamp() if item.last_commit else None)
            if isinstance(item, RepoFile)
            else None
            for item in found
        }

    def files(self, folder: str) -> Iterator[str]:
        """Give the paths of all files below a folder (``""`` for all)."""
        with files_as_python_tells():
            for item in self._api.list_repo_tree(
                repo_id=self.repo_id,
                repo_type=self._type,
                path_in_repo=folder or None,
                recursive=True,
                revision=self._revision,
            ):
                if isinstance(item, RepoFile):
                    yield item.path

    def commit(
        self,
        changes: Mapping[str, bytes | Path | None],
        *,
        message: str,
        parent: str | None = None,
    ) -> str:
        """Change files in one commit: new contents, or None to remove.

        Parameters
        ----------
        changes : Mapping of str to bytes, Path or None
            What stands at each path afterwards.
        message : str
            What the commit is called.
        parent : str, optional
            The commit it must follow; the Hub answers 412 when that is no longer the newest.

        Returns
        -------
        str
            The commit made.
        """
        operations: list[Any] = [
            CommitOperationDelete(path_in_repo=path)
            if data is None
            else CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)
            for path, data in changes.items()
        ]
        with files_as_python_tells():
            made = self._api.create_commit(
                repo_id=self.repo_id,
                repo_type=self._type,
                operations=operations,
                commit_message=message,
                revision=self._revision,
                parent_commit=parent,
            )
        return str(made.oid)
