"""Bytes on disk: hashes, whole-or-absent writing, verified downloads. No torch.

Nothing that this module leaves behind is half-written: a file appears under its name complete, or
not at all. The cache is one folder, which may be read-only and shared once it is filled.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shlex
import shutil
import stat
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import platformdirs
from filelock import FileLock, Timeout

from heptad.errors import DamagedError, MissingError, SaveError, UnusableError

try:
    import fcntl
except ImportError:  # Windows: nothing is held there, and nothing is removed behind a run's back
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
# Ends the hidden name of what is not whole yet.
UNFINISHED = ".part"
# What `writing` calls a file until then: the name it will have, and what tempfile adds.
LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.part", re.DOTALL)
# What file systems answer that know no locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
CONNECT_TIMEOUT_S = 15
PROGRESS_INTERVAL_S = 10

logger = logging.getLogger("heptad")


def user_path(text: str | Path) -> Path:
    """Turn what a user named into a path; `~` is home, and an unknown `~name` a plain name."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises for an unknown name


def as_word(path: str | Path) -> str:
    """Write a path as one word of a shell, for commands that people copy."""
    return shlex.quote(str(path))


def read_document(path: Path, *, schema: int, hint: str = "") -> dict[str, Any]:
    """Read a document of JSON that one of ours wrote, with a `schema`.

    hint: what to do if it holds something else. Raises DamagedError then, and for another schema,
    UnusableError if it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise UnusableError(f"{path} cannot be read: {error.strerror}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {error}.", hint=hint) from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is damaged: it holds no table of fields.", hint=hint)
    found = document.get("schema")
    if found != schema:
        raise DamagedError(
            f"{path} has schema {found!r}; this version of Heptad reads {schema}.",
            hint="a newer version may have written it",
        )
    return document


def cache_folder() -> Path:
    """Give the folder for data and weights: `$HEPTAD_HOME`, else the platform's cache folder."""
    given = os.environ.get("HEPTAD_HOME")
    return user_path(given) if given else platformdirs.user_cache_path("heptad")


def sha256_of(path: Path) -> str:
    """Hash a file's content; 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(document: Mapping[str, Any]) -> str:
    """Hash a document of plain values, whatever the order of its entries: SHA-256."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears as `path` when the block ends well, else not at all.

    The bytes reach the disk before the name does, and what stood under the name stays until then.
    Raises SaveError if the file cannot be written.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name[:100]}.", suffix=UNFINISHED, delete=False
        ) as file:
            temporary = Path(file.name)
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is born readable by its owner alone.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise SaveError(
            f"{path} could not be written: {error.strerror or error}.",
            hint="free some space, or choose another folder",
        ) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder onto the disk, where the system can do so."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such call for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, *, folders: bool = False) -> None:
    """Remove what a process that was killed left half-written; for the owner of a folder alone.

    Only files that `writing` made; `folders`: hidden folders too, of a place that is ours alone.
    """
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                if folders:
                    shutil.rmtree(path)
            elif LEFTOVER.fullmatch(path.name):
                path.unlink()


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there; raises SaveError."""
    with writing(path) as file:
        file.write(content)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, readable by people; raises SaveError."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def set_aside(path: Path) -> Path:
    """Rename a damaged file of the cache so that a good one can take its place; its new path."""
    aside = path.with_name(path.name + ".damaged")
    try:
        return path.replace(aside)
    except OSError as error:
        raise MissingError(
            f"{path} is damaged and cannot be set aside: {error.strerror or error}.",
            hint="replace the file by hand, or set HEPTAD_HOME to a folder of your own",
        ) from error


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that it appears complete or not at all.

    Raises MissingError if it cannot be read, SaveError if the copy cannot be written.
    """
    with writing(target) as file:
        for chunk in _chunks_of(source):
            file.write(chunk)


def _chunks_of(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise MissingError(f"{path} could not be read: {error.strerror or error}.") from error


@contextmanager
def locked(folder: Path, *, waiting_for: str = "another process") -> Iterator[None]:
    """Make `folder` and hold it against other processes that would fill it at the same time.

    Waits for them, and says so. Raises MissingError if it cannot be made: what is to be put there
    is not here.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _refuse_lockless(folder / ".lock")
            logger.info("waiting for %s, which fills %s", waiting_for, folder)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise MissingError(
            f"the cache {folder} cannot be written: {getattr(error, 'strerror', None) or error}.",
            hint="set HEPTAD_HOME to a folder of your own",
        ) from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _refuse_lockless(path: Path) -> None:
    """Raise OSError if a file cannot be locked by anybody: one would wait for ever."""
    if fcntl is None:
        return
    with path.open("rb") as file, suppress(BlockingIOError):
        fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)


# What a process that uses a folder of the cache holds a shared lock on, and when it last did.
IN_USE = ".in-use"


class Held:
    """A shared lock on a folder of the cache, for as long as this lives or until `release`.

    The system frees it when its owner dies, however it dies.
    """

    def __init__(self, descriptor: int) -> None:
        self.release = weakref.finalize(self, os.close, descriptor)


def hold(folder: Path) -> Held | None:
    """Note that a folder of the cache is used now, and keep it from being removed meanwhile.

    None where it is not there, or nothing is removed either: where the cache is read-only and
    nobody ever wrote, or knows no locks.
    """
    path = folder / IN_USE
    while fcntl is not None:
        try:
            descriptor = _opened_or_made(path)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return None
            raise
        if lies_at(descriptor, path):
            return Held(descriptor)
        os.close(descriptor)
    return None


def lies_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is still the one at `path`.

    Whoever had its lock before may have removed it after it was opened here.
    """
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _opened_or_made(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return os.open(path, os.O_RDONLY)
    with suppress(OSError):
        os.utime(path)
    return descriptor


def hold_made(folder: Path) -> Held | None:
    """Make a folder of the cache and `hold` it; others may remove it at any time before."""
    # That it cannot be made is said by whoever has to write there.
    with suppress(OSError):
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            held = hold(folder)
            if held or folder.is_dir():
                return held
    return None


def try_lock(descriptor: int) -> None:
    """Lock an open file against all other processes until it is closed, be it by our own death.

    Raises BlockingIOError if another has it, another OSError where there is no such lock.
    """
    if fcntl is None:
        raise OSError(errno.ENOTSUP, "this system has no such lock")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """Try to have a folder of the cache for oneself; gives whether nobody holds it."""
    if fcntl is None:
        yield False
        return
    path = folder / IN_USE
    with path.open("ab") as file:
        try:
            try_lock(file.fileno())
        except BlockingIOError:
            is_mine = False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            is_mine = False
            logger.warning("%s cannot be locked, so that it is not removed", folder)
        else:
            # Else the lock is of a folder that another process has removed.
            is_mine = lies_at(file.fileno(), path)
        yield is_mine


def used_at(folder: Path) -> float:
    """Tell when a folder of the cache was last used, in seconds since 1970."""
    try:
        return (folder / IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def folder_bytes(folder: Path) -> int:
    """Add up the sizes of the files in a folder, but for what others remove meanwhile."""
    num_bytes = 0
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                found = path.stat()
                num_bytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return num_bytes


class DownloadError(Exception):
    """Why one address gave no good file; the caller tries the next or says what was tried."""


class BrokenOffError(DownloadError):
    """A download broke off; the same address may serve it whole the next time."""


def download(url: str, file: BinaryIO, *, most_bytes: int) -> None:
    """Copy what `url` serves into `file`, at most `most_bytes` of it.

    Only https is spoken, but for servers on this machine, and a redirect may not leave it.
    Raises DownloadError with the reason; what was written is then worth nothing.
    """
    num_bytes = 0
    said_at = perf_counter()
    for chunk in _chunks(url):
        num_bytes += len(chunk)
        if num_bytes > most_bytes:
            raise DownloadError(f"more than the {most_bytes:,} bytes it should have")
        file.write(chunk)
        if perf_counter() - said_at > PROGRESS_INTERVAL_S:
            said_at = perf_counter()
            logger.info("%d of at most %d MB", num_bytes // 1_000_000, most_bytes // 1_000_000)


def _chunks(url: str) -> Iterator[bytes]:
    """Give what `url` serves, in parts; whatever goes wrong on the way is a DownloadError."""
    try:
        _refuse_plain_http(url)
        with _opener().open(url, timeout=CONNECT_TIMEOUT_S) as response:
            while True:
                try:
                    chunk = response.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise BrokenOffError(f"the connection broke: {_reason(error)}") from error
                if not chunk:
                    # A short answer is no error of its own.
                    if response.length:
                        raise BrokenOffError(
                            f"the connection broke: {response.length:,} bytes did not come"
                        )
                    return
                yield chunk
    except urllib.error.HTTPError as error:
        with error:
            raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"no connection: {_reason(error.reason)}") from error
    except (OSError, http.client.HTTPException) as error:
        raise BrokenOffError(f"the connection broke: {_reason(error)}") from error


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only where the first address might have led too."""

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        """Look at the new address, the last argument, before it is asked for anything."""
        _refuse_plain_http(args[-1])
        return super().redirect_request(*args)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_HttpsRedirects)


def _reason(error: object) -> str:
    return str(getattr(error, "strerror", None) or error)


def _refuse_plain_http(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    loopback = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme != "https" and not (parts.scheme == "http" and loopback):
        raise DownloadError(f"{parts.scheme} is not spoken, only https")
