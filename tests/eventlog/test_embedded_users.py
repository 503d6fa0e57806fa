"""Which system user the embedded Postgres runs as, and where its data lie then (rule 22).

As root, in containers and CI, it must just work, and must not open anything to others that was closed.
"""

import os
import pwd
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fixtures.postgres import run_folder
from refold.eventlog import _embedded
from refold.eventlog._embedded import (
    EmbeddedFailed,
    Programs,
    embedded_postgres,
    open_server,
    packaged_programs,
    stop_unused,
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else"),
    pytest.mark.embedded,
]


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a project of root's that everybody can pass through."""
    folder = run_folder() / f"users-{os.getpid()}-{tmp_path_factory.mktemp('name').name}"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    yield folder
    assert stop_unused(folder / ".refold")


@pytest.fixture
def alice() -> pwd.struct_passwd:
    """Some user of this system who is not root and not the one that root's servers run as."""
    for entry in pwd.getpwall():
        if entry.pw_uid != 0 and entry.pw_name not in ("refold", "postgres", "nobody"):
            return entry
    pytest.skip("this system has no users but the usual ones")


def _owner(path: Path) -> int:
    return path.lstat().st_uid


def _works(url: str) -> bool:
    with psycopg.connect(url) as conn:
        return conn.execute("select 1").fetchone() == (1,)


def test_as_root_the_server_runs_as_a_user_without_rights(project: Path) -> None:
    with embedded_postgres(project) as server:
        assert _works(server.url)
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0
        assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700
    assert _owner(project / ".refold") == 0


def test_in_somebodys_project_root_runs_it_as_them_so_that_they_can_go_on(
    project: Path, alice: pwd.struct_passwd
) -> None:
    os.chown(project, alice.pw_uid, alice.pw_gid)
    with embedded_postgres(project) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == alice.pw_uid
    assert {_owner(path) for path in (project / ".refold").iterdir()} == {alice.pw_uid}
    said = _as_user(alice, project)
    assert said == f"{server.url} {alice.pw_uid}"


def test_without_root_it_runs_as_ourselves(project: Path, alice: pwd.struct_passwd) -> None:
    os.chown(project, alice.pw_uid, alice.pw_gid)
    url, uid = _as_user(alice, project).split()
    assert int(uid) == alice.pw_uid
    with embedded_postgres(project) as server:  # and root after them as well
        assert server.url == url
        assert _works(server.url)


def test_the_data_of_another_user_are_refused_by_name(project: Path, alice: pwd.struct_passwd) -> None:
    with embedded_postgres(project):
        pass
    refolds = project / ".refold"
    assert _as_user(alice, project) == (
        f"EmbeddedFailed the embedded Postgres in {refolds} failed: open its lock files: Permission denied: "
        f"{refolds / 'start'} (the folder belongs to root, we are {alice.pw_name})\n"
        "Put that right, or set REFOLD_DATABASE_URL to another server."
    )


def test_a_project_that_the_servers_user_cannot_reach_has_its_data_elsewhere(project: Path) -> None:
    """Root's home, for one: nothing there is opened for it."""
    closed = project / "root's own"
    inner = closed / "shop"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").touch()
    closed.chmod(0o700)
    with embedded_postgres(inner) as server:
        assert _works(server.url)
        assert server.data_dir.is_relative_to("/var/lib/refold/data")
        assert (inner / ".refold" / "data-folder").read_text() == f"{server.data_dir}\n"
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("create table facts (fact int)")
    try:
        closed.chmod(0o755)  # from now on it could lie inside; but that is where the data are
        with embedded_postgres(inner) as again, psycopg.connect(again.url) as conn:
            assert again.data_dir == server.data_dir
            assert conn.execute("select count(*) from facts").fetchone() == (0,)
    finally:
        shutil.rmtree(server.data_dir.parent)


def test_programs_that_the_servers_user_cannot_reach_are_copied(project: Path) -> None:
    """As in a virtual environment under root's home, made under a umask that shuts others out."""
    packaged = packaged_programs()
    closed = project / "closed"
    for part in packaged.parts:
        shutil.copytree(packaged.root / part, closed / part, symlinks=True)
    closed.chmod(0o700)
    programs = Programs(closed, packaged.bin, packaged.parts, packaged.major)
    copies = Path("/var/lib/refold/programs")
    before = set(copies.glob("*"))
    try:
        with open_server(project / ".refold", programs) as server:
            assert _works(server.url)
            (copied,) = set(copies.glob("*")) - before
            assert Path(f"/proc/{server.pid}/exe").readlink() == copied / packaged.bin / "postgres"
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with open_server(project / ".refold", programs) as server:  # once is enough
            assert _works(server.url)
        assert set(copies.glob("*")) - before == {copied}
    finally:
        for copied in set(copies.glob("*")) - before:
            shutil.rmtree(copied)


def test_a_socket_folder_that_somebody_else_has_made_is_not_used(
    project: Path, alice: pwd.struct_passwd
) -> None:
    with embedded_postgres(project) as server:
        url = server.url
        with psycopg.connect(url) as conn:
            row = conn.execute("show unix_socket_directories").fetchone()
    assert row
    trap = Path(row[0])
    trap.mkdir()
    trap.chmod(0o777)
    os.chown(trap, alice.pw_uid, alice.pw_gid)
    try:
        with embedded_postgres(project) as server:
            assert server.url != url
            assert _works(server.url)
        assert _owner(trap) == alice.pw_uid
        assert not list(trap.iterdir())
    finally:
        trap.rmdir()


def test_a_system_without_any_user_to_run_as_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embedded, "_ACCOUNTS", ("no_such_user",))
    with pytest.raises(EmbeddedFailed) as refused:
        embedded_postgres(project)
    assert str(refused.value) == (
        f"the embedded Postgres in {project / '.refold'} failed: find a user to run as: we are root, which Postgres "
        "refuses, and the system has no user no_such_user\n"
        "Put that right, or set REFOLD_DATABASE_URL to another server."
    )


def _as_user(user: pwd.struct_passwd, project: Path) -> str:
    """Use the project's server as `user`, in a process that was root's until it had read all its code.

    (The Python that runs the tests may lie where that user cannot read it.) Returns what it prints.
    """
    programs = packaged_programs()
    command = ["/bin/sh", "-c", 'test -x "$0"', str(programs.root / programs.bin / "postgres")]
    if subprocess.run(command, user=user.pw_uid, group=user.pw_gid, cwd="/", check=False).returncode != 0:
        pytest.skip(f"{user.pw_name} cannot reach the installed packages")
    code = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        import psycopg
        from refold.eventlog import _embedded
        psycopg.connect  # all of it is loaded
        programs = _embedded.packaged_programs()
        os.setgroups([]); os.setgid({user.pw_gid}); os.setuid({user.pw_uid})
        os.environ.pop("XDG_RUNTIME_DIR", None)
        try:
            with _embedded.open_server(Path(sys.argv[1]) / ".refold", programs) as server:
                with psycopg.connect(server.url) as conn:
                    conn.execute("select 1")
                print(server.url, Path(f"/proc/{{server.pid}}").stat().st_uid)
        except _embedded.EmbeddedError as exc:
            print(type(exc).__name__, exc)
    """)
    result = subprocess.run(
        [sys.executable, "-c", code, str(project)], cwd="/", capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
