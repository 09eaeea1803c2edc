"""Examples of the documentation and of docstrings: they run, and give what they say."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import convlens as cl

ROOT = Path(__file__).parents[1]
DOCS, SOURCE = ROOT / "docs", ROOT / "src"
PAGES = {  # the chapter's statements that each page shows
    "before-training.md": {*range(1, 10), *range(13, 20), 21, 22},
    "while-training.md": {11, 20, *range(23, 28), 29, 30, *range(33, 41)},
    "own-loop.md": set[int](),
    "not-training.md": set[int](),
    "your-own-images.md": set[int](),
    "classifier.md": set[int](),
}
FEWEST_LINES = {
    "before-training.md": 60,
    "while-training.md": 50,
    "own-loop.md": 10,
    "not-training.md": 15,
    "your-own-images.md": 15,
    "classifier.md": 20,
}
FLAGS = doctest.ELLIPSIS | doctest.REPORT_NDIFF


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def has_example(thing):
    """Whether there is one in its docstring, or in that of one of a module's functions."""
    named = [getattr(thing, name) for name in getattr(thing, "__all__", ())]
    return any(">>> " in (inspect.getdoc(one) or "") for one in (thing, *named))


def test_every_public_name_but_exceptions_has_an_example():
    public = {name: getattr(cl, name) for name in cl.__all__}
    bare = {
        name
        for name, thing in public.items()
        if not (inspect.isclass(thing) and issubclass(thing, Exception)) and not has_example(thing)
    }
    assert not bare


def modules_with_examples():
    files = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text("utf-8")]
    names = [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module(name):
    module = importlib.import_module(name)
    names = vars(module) | {"cl": cl, "torch": torch}
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name, globs=names)
    runner, said = doctest.DocTestRunner(optionflags=FLAGS), []
    for test in tests:
        torch.manual_seed(0)
        runner.run(test, out=said.append)
    assert runner.tries, "an example outside of a docstring"
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_gives_what_it_says(page):
    text = (DOCS / page).read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}  # the blocks go on from one another
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    said: list[str] = []
    for i, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {i}", None, None)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
        plt.close("all")
    assert runner.failures == 0, "".join(said)
    assert runner.tries > FEWEST_LINES[page]


@pytest.mark.parametrize("page", PAGES)
def test_every_statement_has_an_example_on_its_page(page):
    text = (DOCS / page).read_text("utf-8")
    parts = re.split(r"<!-- statements ([\d, ]+) -->", text)[1:]
    shown = set()
    for numbers, part in zip(parts[::2], parts[1::2], strict=True):
        assert ">>> " in part
        shown |= {int(number) for number in numbers.split(",")}
    assert shown == PAGES[page]


def test_every_picture_of_the_docs_is_there():
    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / path).is_file(), path
