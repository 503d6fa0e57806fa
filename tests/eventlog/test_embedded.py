"""The embedded Postgres lives as long as somebody uses it, whatever happens to its users (rule 22).

Each user here is a process of its own, as in life. None of these tests uses the run's own servers.
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from fixtures.postgres import run_folder
from fixtures.postgres_versions import NotHere, find_programs
from refold.eventlog import _embedded
from refold.eventlog._embedded import (
    DataFolderInUse,
    DataFolderVersion,
    EmbeddedFailed,
    EmbeddedMissing,
    embedded_postgres,
    find_project_dir,
    open_server,
    packaged_programs,
    stop_unused,
)

pytestmark = pytest.mark.embedded

# Prints where the server is, and uses it until its standard input ends.
_USE = """
import sys
from pathlib import Path
from refold.eventlog._embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as server:
    print(server.pid, server.url, flush=True)
    sys.stdin.read()
"""


class User:
    """A process that uses the project's server."""

    def __init__(self, project: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _USE, str(project)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def address(self) -> tuple[int, str]:
        """Return the server's process ID and URL, once this user has it."""
        assert self._process.stdout is not None
        pid, url = self._process.stdout.readline().split()
        return int(pid), url

    def leave(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def press_ctrl_c(self) -> None:
        """Send SIGINT to the whole process group, as a terminal does."""
        os.killpg(self._process.pid, signal.SIGINT)
        self._process.communicate()


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project's folder that the server's user can reach (pytest's own are closed to others)."""
    folder = run_folder() / f"project of {os.getpid()}-{tmp_path_factory.mktemp('name').name}"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    yield folder
    assert stop_unused(folder / ".refold")


@pytest.fixture
def use(project: Path) -> Iterator[Callable[[], User]]:
    """Start a process that uses the project's server."""
    with ExitStack() as users:

        def start() -> User:
            user = User(project)
            users.callback(user.kill)
            return user

        yield start


def _is_alive(pid: int) -> bool:
    return _embedded._is_postgres(pid)


def _ask(url: str, question: str) -> object:
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute(question.encode()).fetchone()
    return row and row[0]


def test_data_outlive_the_server(project: Path) -> None:
    with embedded_postgres(project) as server:
        assert server.data_dir == project / ".refold" / "postgres"
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("create table facts as select 7 as fact")
    assert not _is_alive(server.pid)
    with embedded_postgres(project) as again:
        assert again.url == server.url
        assert again.pid != server.pid
        assert _ask(again.url, "select fact from facts") == 7


def test_it_is_safe_by_default(project: Path) -> None:
    with embedded_postgres(project) as server:
        assert _ask(server.url, "show fsync") == "on"
        assert _ask(server.url, "show synchronous_commit") == "on"
        assert _ask(server.url, "show max_connections") == "200"
        assert _ask(server.url, "show listen_addresses") == ""
        assert _ask(server.url, "show server_version") == server.version
        assert _ask(server.url, "show server_encoding") == "UTF8"
        socket_dir = Path(str(_ask(server.url, "show unix_socket_directories")))
        assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
        assert socket_dir.stat().st_uid == server.data_dir.stat().st_uid != 0
        assert Path(f"/proc/{server.pid}").stat().st_uid == server.data_dir.stat().st_uid
    assert not socket_dir.exists()


def test_git_never_sees_the_data(project: Path) -> None:
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    with embedded_postgres(project):
        said = subprocess.run(
            ["git", "status", "--short", "-uall"], cwd=project, capture_output=True, text=True
        )
    assert ".refold" not in said.stdout


def test_it_is_found_from_anywhere_in_the_project(project: Path) -> None:
    inner = project / "src" / "shop"
    inner.mkdir(parents=True)
    with embedded_postgres(project) as server, embedded_postgres(inner) as same:
        assert same.pid == server.pid


def test_the_last_of_two_users_stops_it(use: Callable[[], User]) -> None:
    first, second = use(), use()
    pid, url = first.address()
    assert second.address() == (pid, url)
    first.leave()
    assert _ask(url, "select 1") == 1
    second.leave()
    assert not _is_alive(pid)


def test_users_that_start_at_once_get_one_server(use: Callable[[], User]) -> None:
    users = [use() for _ in range(4)]
    addresses = {user.address() for user in users}
    assert len(addresses) == 1
    for user in users:
        user.leave()
    assert not _is_alive(addresses.pop()[0])


def test_two_uses_in_one_process_count_as_two(project: Path) -> None:
    first = embedded_postgres(project)
    second = embedded_postgres(project)
    first.close()
    first.close()  # once more changes nothing
    assert _ask(second.url, "select 1") == 1
    second.close()
    assert not _is_alive(second.pid)


def test_after_a_killed_user_the_next_clean_exit_stops_it(use: Callable[[], User]) -> None:
    killed, other = use(), use()
    pid, _ = killed.address()
    other.address()
    killed.kill()
    assert _is_alive(pid)
    other.leave()
    assert not _is_alive(pid)


def test_users_that_were_all_killed_leave_a_server_that_the_next_one_uses_and_stops(
    use: Callable[[], User],
) -> None:
    killed = [use(), use()]
    pid, url = killed[0].address()
    killed[1].address()
    for user in killed:
        user.kill()
    assert _is_alive(pid)
    following = use()
    assert following.address() == (pid, url)
    following.leave()
    assert not _is_alive(pid)


def test_ctrl_c_ends_the_user_and_not_the_server_of_another(use: Callable[[], User]) -> None:
    first, second = use(), use()
    pid, url = first.address()  # whichever of them started it
    second.address()
    first.press_ctrl_c()
    assert _ask(url, "select 1") == 1
    second.press_ctrl_c()
    assert not _is_alive(pid)


def test_a_forked_child_is_no_user(project: Path) -> None:
    # In a process without threads: from 3.12 on Python warns of a fork in another.
    forking = """if True:
        import os, sys
        from pathlib import Path
        from refold.eventlog import _embedded
        server = _embedded.embedded_postgres(Path(sys.argv[1]))
        until_told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(tell)
            os.read(until_told, 1)
            server.close()  # changes nothing: it belongs to the parent
            os._exit(0)
        server.close()
        assert not _embedded._is_postgres(server.pid)
        os.close(tell)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", forking, str(project)], check=True)


def test_kept_it_stays_until_somebody_takes_that_back(project: Path) -> None:
    with embedded_postgres(project, keep=True) as kept:
        pass
    assert _is_alive(kept.pid)
    with embedded_postgres(project) as passing:
        assert passing.pid == kept.pid
    assert _is_alive(kept.pid)
    with embedded_postgres(project, keep=False):
        pass
    assert not _is_alive(kept.pid)


def test_a_server_that_somebody_uses_is_not_stopped_as_unused(project: Path) -> None:
    with embedded_postgres(project) as server:
        assert not stop_unused(project / ".refold")
        assert _ask(server.url, "select 1") == 1


def test_a_killed_server_is_started_again_with_its_data(project: Path) -> None:
    with embedded_postgres(project) as server:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("create table facts as select 7 as fact")
        os.kill(server.pid, signal.SIGKILL)
        with embedded_postgres(project) as again:
            assert again.url == server.url
            assert _ask(again.url, "select fact from facts") == 7


def test_a_process_id_that_is_somebody_elses_by_now_is_no_obstacle(project: Path) -> None:
    """As in a restarted container, where few numbers come round again soon."""
    with embedded_postgres(project) as server:
        pid_file = server.data_dir / "postmaster.pid"
        left = pid_file.read_text()
        owner = server.data_dir.stat()
    account: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd="/", **account) as stranger:
        pid_file.write_text(left.replace(str(server.pid), str(stranger.pid), 1))
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        with embedded_postgres(project) as again:
            assert _ask(again.url, "select 1") == 1


def test_a_server_that_is_still_dying_is_waited_for(project: Path) -> None:
    """A killed process gives up its locks first; then, until it is reaped, Postgres takes it for another server."""
    with embedded_postgres(project) as server:
        pid_file = server.data_dir / "postmaster.pid"
        left = pid_file.read_text()
        owner = server.data_dir.stat()
        socket_dir = Path(str(_ask(server.url, "show unix_socket_directories")))
        port = _ask(server.url, "show port")
    account: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    program = project / "postgres"
    program.symlink_to(str(shutil.which("cat")))
    socket_dir.mkdir()
    with (
        subprocess.Popen(["cat"], executable=program, stdin=subprocess.PIPE, cwd="/", **account) as dying,
        socket.socket(socket.AF_UNIX) as door,
        ThreadPoolExecutor(1) as beside,
    ):
        pid_file.write_text(left.replace(str(server.pid), str(dying.pid), 1))
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        door.bind(str(socket_dir / f".s.PGSQL.{port}"))
        door.listen()
        door.settimeout(60)
        starting = beside.submit(embedded_postgres, project)
        knocking, _ = door.accept()  # so its process was found, and found to be a Postgres
        dying.kill()
        knocking.close()
        with starting.result() as again:
            assert _ask(again.url, "select 1") == 1


def test_a_swept_temporary_folder_is_made_again(project: Path, use: Callable[[], User]) -> None:
    killed = use()
    _, url = killed.address()
    killed.kill()
    socket_dir = Path(str(_ask(url, "show unix_socket_directories")))
    for path in socket_dir.iterdir():
        path.unlink()
    socket_dir.rmdir()
    with embedded_postgres(project) as server:
        assert _ask(server.url, "select 1") == 1


def test_what_a_kill_during_the_making_left_is_made_anew(project: Path) -> None:
    half_made = project / ".refold" / "postgres.new"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with embedded_postgres(project) as server:
        assert _ask(server.url, "select 1") == 1
    assert not half_made.exists()


@pytest.mark.parametrize("name", ["with space", "o'clock", 'say "go"', "50% $HOME `x`; é", "long" * 50])
def test_any_folder_name_will_do(project: Path, name: str) -> None:
    folder = project / name
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    try:
        with embedded_postgres(folder) as server:
            assert server.data_dir.parent.parent == folder
            assert _ask(server.url, "select 1") == 1
    finally:
        assert stop_unused(folder / ".refold")


def test_the_projects_folder_is_the_nearest_with_a_mark(tmp_path: Path) -> None:
    inner = tmp_path / "shop" / "src"
    inner.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    assert find_project_dir(inner) == tmp_path
    (tmp_path / "shop" / "pyproject.toml").touch()
    assert find_project_dir(inner) == tmp_path / "shop"


def test_without_a_mark_it_is_the_folder_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_project_dir() == tmp_path


# What it refuses, and what it says then.


@pytest.mark.raises_error("EmbeddedMissing")
def test_without_the_extra_it_says_what_to_install(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded, "_PACKAGE", "not_installed_here")
    with pytest.raises(EmbeddedMissing) as refused:
        embedded_postgres(project)
    assert str(refused.value) == (
        "no database: REFOLD_DATABASE_URL is not set, and the embedded Postgres is not installed. "
        "Set the variable to a Postgres URL, or: pip install 'refold[embedded]'"
    )


def _other_version() -> tuple[_embedded.Programs, int]:
    for major in (15, 17, 16, 14):
        try:
            return find_programs(major)[0], major
        except NotHere:
            continue
    pytest.skip("no other PostgreSQL than 18 here")


def _told_version(data_dir: Path, found: str) -> str:
    return (
        f"{data_dir} was made by PostgreSQL {found}; this refold brings PostgreSQL 18, which cannot read it. "
        f"To keep the data, run a PostgreSQL {found} on it, `pg_dump` it and restore the dump; to begin anew, "
        "move the folder away; or set REFOLD_DATABASE_URL to another server."
    )


@pytest.mark.raises_error("DataFolderVersion")
def test_a_folder_of_another_major_version_is_refused_and_left_as_it_is(project: Path) -> None:
    programs, major = _other_version()
    with open_server(project / ".refold", programs) as older:
        pass
    before = sorted(path.name for path in older.data_dir.iterdir())
    with pytest.raises(DataFolderVersion) as refused:
        embedded_postgres(project)
    assert str(refused.value) == _told_version(older.data_dir, str(major))
    assert sorted(path.name for path in older.data_dir.iterdir()) == before


def test_a_running_server_of_another_major_version_is_refused_and_runs_on(project: Path) -> None:
    programs, major = _other_version()
    with open_server(project / ".refold", programs) as older:
        with pytest.raises(DataFolderVersion) as refused:
            embedded_postgres(project)
        assert str(refused.value) == _told_version(older.data_dir, str(major))
        assert _ask(older.url, "select 1") == 1


@pytest.mark.raises_error("DataFolderInUse")
def test_a_server_started_by_hand_in_the_folder_is_left_alone(project: Path) -> None:
    with embedded_postgres(project) as server:
        pass
    owner = server.data_dir.stat()
    socket_dir = Path(str(conninfo_to_dict(server.url)["host"]))
    socket_dir.mkdir(mode=0o700)
    os.chown(socket_dir, owner.st_uid, owner.st_gid)
    programs = packaged_programs()
    pg_ctl = [str(programs.root / programs.bin / "pg_ctl"), "-D", ".", "-s", "-w"]
    account: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    subprocess.run([*pg_ctl, "-l", "by-hand.log", "start"], cwd=server.data_dir, check=True, **account)
    try:
        pid = int((server.data_dir / "postmaster.pid").read_text().splitlines()[0])
        with pytest.raises(DataFolderInUse) as refused:
            embedded_postgres(project)
        assert str(refused.value) == (
            f"{server.data_dir} is in use by a server that was started by hand (process {pid}); two servers in one "
            "folder would destroy it. Stop that one, or set REFOLD_DATABASE_URL to its address."
        )
        stop_unused(project / ".refold")
        assert _is_alive(pid)
    finally:
        subprocess.run([*pg_ctl, "stop"], cwd=server.data_dir, check=True, **account)
        socket_dir.rmdir()


def test_a_server_that_cannot_be_seen_from_here_is_not_doubled(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from another container that shares the folder: its process IDs mean nothing here, its lock does."""
    with embedded_postgres(project) as server:
        pass
    monkeypatch.setattr(_embedded, "_LEFT_OVER_SECONDS", 0.1)
    lock = _embedded._open_lock(project / ".refold" / "server")
    try:
        assert _embedded._try_lock(lock)
        with pytest.raises(DataFolderInUse, match=r"does not answer here \(another machine or container\)"):
            embedded_postgres(project)
    finally:
        os.close(lock)
    assert not (server.data_dir / "postmaster.pid").exists()


@pytest.mark.raises_error("EmbeddedFailed")
def test_a_folder_that_is_no_postgres_folder_is_left_alone(project: Path) -> None:
    data_dir = project / ".refold" / "postgres"
    data_dir.mkdir(parents=True)
    (data_dir / "letters").touch()
    with pytest.raises(EmbeddedFailed) as refused:
        embedded_postgres(project)
    assert str(refused.value) == (
        f"the embedded Postgres in {data_dir} failed: open it: it is no Postgres data folder (it has no PG_VERSION); "
        "move it away\nPut that right, or set REFOLD_DATABASE_URL to another server."
    )
    assert [path.name for path in data_dir.iterdir()] == ["letters"]


def test_what_the_server_says_when_it_cannot_start_is_passed_on(project: Path) -> None:
    with embedded_postgres(project) as server:
        pass
    with (server.data_dir / "postgresql.auto.conf").open("a") as conf:
        conf.write("shared_buffers = 'plenty'\n")
    with pytest.raises(
        EmbeddedFailed, match=r'failed: start: .*invalid value for parameter "shared_buffers": "plenty"'
    ):
        embedded_postgres(project)
    assert not (server.data_dir / "postmaster.pid").exists()
