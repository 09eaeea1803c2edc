"""The documentation's examples: they run, and give what the page says."""

import doctest
import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
STATEMENTS = {*range(1, 10), *range(13, 20), 21, 22}


def test_the_page_on_what_is_true_before_training_gives_what_it_says():
    import matplotlib.pyplot as plt

    text = (DOCS / "before-training.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}  # the blocks go on from one another
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    said: list[str] = []
    for i, block in enumerate(blocks):
        test = doctest.DocTestParser().get_doctest(block, names, f"block {i}", None, None)
        runner.run(test, out=said.append, clear_globs=False)
        names = test.globs
        plt.close("all")
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 60


def test_every_statement_has_an_example_on_the_page():
    text = (DOCS / "before-training.md").read_text("utf-8")
    parts = re.split(r"<!-- statements ([\d, ]+) -->", text)[1:]
    shown = set()
    for numbers, part in zip(parts[::2], parts[1::2], strict=True):
        assert ">>> " in part
        shown |= {int(number) for number in numbers.split(",")}
    assert shown == STATEMENTS


def test_every_picture_of_the_docs_is_there():
    for page in DOCS.glob("*.md"):
        for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / path).is_file(), path
