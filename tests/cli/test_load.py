"""Errors of the first minutes that are about the user's file: what was found, what was expected, what to do."""

import pytest

from fixtures.pages import matches
from fixtures.terminal import SHOP, Terminal

TWO_APPS = 'import refold\napp = refold.App("one")\nother = refold.App("two")\n'


@pytest.mark.parametrize("command", ["dev", "worker"])
@pytest.mark.parametrize(
    ("files", "target", "text"),
    [
        pytest.param(
            {"shop.py": SHOP},
            "shp.py",
            "refold: no such file: shp.py\n  looked in ...\n  did you mean shop.py?\n",
            id="no such file",
        ),
        pytest.param(
            {},
            "shop.py",
            "refold: no such file: shop.py\n  looked in ...\n"
            "  Python files there: none. A new one:  refold init shop\n",
            id="empty folder",
        ),
        pytest.param(
            {"shop/shop.py": SHOP},
            "shop",
            "refold: shop is a folder, not a file with an App\n  in it: shop.py\n",
            id="folder",
        ),
        pytest.param(
            {"shop.py": "answer = 42\n"},
            "shop.py",
            "refold: shop.py has no App\n"
            '  expected a line like:  app = refold.App("shop")\n'
            "  at the top level of the file, above the workflows\n",
            id="no app",
        ),
        pytest.param(
            {"shop.py": TWO_APPS},
            "shop.py",
            "refold: shop.py has 2 Apps: app, other\n  expected one, or to be told which:  shop.py:app\n",
            id="two apps",
        ),
        pytest.param(
            {"shop.py": TWO_APPS},
            "shop.py:third",
            "refold: shop.py has nothing called third\n  Apps in it: app, other\n",
            id="no such app",
        ),
        pytest.param(
            {"shop.py": "import refold\n\nimport strpie\n"},
            "shop.py",
            "refold: shop.py could not be imported: ModuleNotFoundError: No module named 'strpie'\n"
            "  shop.py, line 3:  import strpie\n  The whole traceback: --debug\n",
            id="import error",
        ),
        pytest.param(
            {"shop.py": "from prices import PRICES\n", "prices.py": "\n\nPRICES = {}['tea']\n"},
            "shop.py",
            "refold: shop.py could not be imported: KeyError: 'tea'\n"
            "  prices.py, line 3:  PRICES = {}['tea']\n  The whole traceback: --debug\n",
            id="error in a module of theirs",
        ),
        pytest.param(
            {"shop.py": "import refold\n\napp = refold.App('shop'\n"},
            "shop.py",
            "refold: shop.py is not valid Python: '(' was never closed\n"
            "  shop.py, line 3:  app = refold.App('shop'\n",
            id="syntax error",
        ),
        pytest.param(
            {"json.py": SHOP},
            "json.py",
            "refold: json.py has the name of another module: json (...)\n"
            "  Python would import that one instead. Rename the file.\n",
            id="name of another module",
        ),
        pytest.param(
            {},
            "nosuchmodule:app",
            "refold: no module called nosuchmodule\n"
            "  expected a file or a module, like:  shop.py  or  shop.main:app\n",
            id="no such module",
        ),
    ],
)
def test_what_is_wrong_with_the_file_is_said_in_a_few_lines(
    terminal: Terminal, command: str, files: dict[str, str], target: str, text: str
) -> None:
    for name, source in files.items():
        terminal.write(name, source)
    said = terminal.type(command, target)
    assert said.code == 2
    assert said.out == ""
    assert matches([text], said.err), said.err
    assert len(said.err.splitlines()) <= 4
    assert "Traceback" not in said.err


def test_a_workflow_that_cannot_be_decoded_is_named_with_its_line(terminal: Terminal) -> None:
    terminal.write(
        "shop.py",
        'import refold\n\napp = refold.App("shop")\n\n\nclass Thing:\n    pass\n\n\n'
        "@app.workflow\ndef checkout(thing: Thing) -> None: ...\n",
    )
    said = terminal.type("dev", "shop.py")
    assert said.code == 2
    assert "workflow 'checkout'" in said.err
    assert "thing" in said.err
    assert "shop.py, line 1" in said.err
    assert "Traceback" not in said.err


def test_debug_shows_the_whole_traceback(terminal: Terminal) -> None:
    terminal.write("shop.py", "PRICES = {}['tea']\n")
    said = terminal.type("dev", "shop.py", "--debug")
    assert said.code == 2
    assert "Traceback" in said.err
    assert "refold: shop.py could not be imported: KeyError: 'tea'" in said.err


def test_the_file_is_imported_under_the_name_that_its_neighbours_use(shop: Terminal) -> None:
    # Else an error class recorded by one process would have another name than in the next.
    shop.write("main.py", "from shop import app, Order\nimport shop\nassert shop.Order is Order\n")
    said = shop.type("start", "main.py", "checkout", '{"id": "o-1", "amount": 5}')
    assert said.code == 0, said.err


def test_a_module_in_a_package_is_imported_as_part_of_it(shop: Terminal) -> None:
    shop.write("shops/__init__.py", "")
    shop.write("shops/names.py", 'NAME = "shop"\n')
    shop.write("shops/main.py", f"from shops.names import NAME\n{SHOP}")
    for target in ("shops/main.py", "shops.main", "shops.main:app"):
        said = shop.type("start", target, "checkout", '{"id": "o-1", "amount": 5}', "--id", "one")
        assert said.code == 0, said.err
