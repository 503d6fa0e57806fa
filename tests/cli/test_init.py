"""`refold init` writes an app that works, and overwrites nothing."""

import subprocess
import sys

from fixtures.terminal import Terminal


def test_init_writes_an_app_a_test_for_it_and_a_gitignore(terminal: Terminal) -> None:
    said = terminal.type("init", "shop")
    assert said.code == 0
    assert said.out.splitlines() == [
        "wrote shop/shop.py",
        "wrote shop/test_shop.py",
        "wrote shop/.gitignore",
        "next:  refold dev shop/shop.py",
    ]
    shop = (terminal.folder / "shop" / "shop.py").read_text()
    assert (
        25 <= len([line for line in shop.splitlines() if line.strip()]) <= 32 or len(shop.splitlines()) <= 40
    )
    assert shop.count("@refold.step") == 2
    assert shop.count("@kafka.consumer") == 1
    assert shop.count("refold.sleep") == 1
    assert ".refold/" in (terminal.folder / "shop" / ".gitignore").read_text()


def test_the_test_that_init_writes_passes(terminal: Terminal) -> None:
    terminal.type("init", "bakery")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_bakery.py"],
        cwd=terminal.folder / "bakery",
        env=terminal.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_init_overwrites_nothing(terminal: Terminal) -> None:
    terminal.write("shop/shop.py", "mine\n")
    said = terminal.type("init", "shop")
    assert said.code == 2
    assert said.err == "refold: shop/shop.py exists already\n  nothing was written; choose another folder\n"
    assert (terminal.folder / "shop" / "shop.py").read_text() == "mine\n"
    assert not (terminal.folder / "shop" / ".gitignore").exists()


def test_a_name_that_is_no_python_name_is_refused(terminal: Terminal) -> None:
    said = terminal.type("init", "my-shop")
    assert said.code == 2
    assert said.err == (
        "refold: 'my-shop' can't be the name of an app: it becomes my-shop.py\n"
        "  expected letters, digits and underscores, like:  refold init shop\n"
    )


def test_init_prints_what_it_wrote_as_json(terminal: Terminal) -> None:
    said = terminal.type("init", "shop", "--json")
    assert said.json == {"written": ["shop/shop.py", "shop/test_shop.py", "shop/.gitignore"]}
