"""Files of the project's own server, ``STORAGE_URL``."""

import json
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from oml.const import REQUESTS_TIMEOUT, STORAGE_URL
from oml.utils.io import DownloadError, download_file_from_url

__all__ = ["download_file_from_remote_storage", "download_folder_from_remote_storage"]


def download_file_from_remote_storage(
    remote_path: str, fname: str | Path | None = None, timeout: float = REQUESTS_TIMEOUT
) -> bytes | None:
    """As :func:`oml.utils.io.download_file_from_url`, of a path on the server."""
    return download_file_from_url(f"{STORAGE_URL}/download/{quote(remote_path.strip('/'))}", fname, timeout)


def download_folder_from_remote_storage(
    remote_folder: str, local_folder: str | Path, timeout: float = REQUESTS_TIMEOUT
) -> None:
    """Download all files of a folder on the server to the same places below ``local_folder``.

    Files that are there are replaced, each at once. ``timeout`` is as in :func:`oml.utils.io.download_file_from_url`.

    Raises:
        DownloadError: The server cannot be reached or does not list the folder, or a file cannot be downloaded. Also
            if it lists what is no path below the folder.
    """
    from oml.utils.progress import progress_bar

    remote_folder = remote_folder.strip("/")
    url = f"{STORAGE_URL}/ls/{quote(remote_folder)}"
    answer = download_file_from_url(url, timeout=timeout)
    try:
        files = [PurePosixPath(file) for file in json.loads(answer or b"")["remote_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{url} gives no list of files, which is JSON with 'remote_files'.") from error
    # listed from the server's root or from the folder: either is understood
    below = [file.relative_to(remote_folder) if file.is_relative_to(remote_folder) else file for file in files]
    if strange := [str(file) for file in below if file.is_absolute() or ".." in file.parts]:
        raise DownloadError(f"{url} lists {strange[0]!r}, which is not in the folder: nothing was downloaded.")
    with progress_bar(f"Downloading {remote_folder}") as on_progress:
        for done, file in enumerate(below, start=1):
            download_file_from_remote_storage(f"{remote_folder}/{file}", Path(local_folder, file), timeout)
            on_progress(done, len(below))
