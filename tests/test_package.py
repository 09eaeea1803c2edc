"""The package as a whole: what it says it has, and what importing it costs."""

import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import convlens as cl

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "matplotlib", "bokeh", "numba", "numpy", "rich")


def loaded_after(code):
    """Which of the heavy libraries a fresh process has loaded."""
    program = f"import sys; {code}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_importing_it_loads_nothing():
    assert loaded_after("import convlens") == set()


def test_reading_a_run_loads_no_torch():
    assert "torch" not in loaded_after("import convlens as cl; cl.open_run; cl.diagnose; cl.report")


def test_the_command_line_help_loads_no_torch():
    assert "torch" not in loaded_after("import convlens.cli")


def test_every_public_name_is_there():
    for name in cl.__all__:
        assert getattr(cl, name) is not None
    assert set(cl.__all__) <= set(dir(cl))
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cl.__version__)


def test_public_names_are_those_that_the_documentation_lists():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^- `(?:cl\.)?(\w+)", page, re.MULTILINE))
    assert listed == set(cl.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No convlens attribute nothing"):
        _ = cl.nothing


def test_watch_stays_a_function_whatever_is_imported_first():
    code = "import convlens.watching, convlens as cl; assert callable(cl.watch)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_changelog_knows_this_version():
    assert f"[{cl.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_python_in_the_readme_runs(monkeypatch):
    """The README's Python, with fewer epochs so that it takes seconds."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        quick = re.sub(r"fit_one_cycle\(5", "fit_one_cycle(1", block)
        exec(compile(quick, "README.md", "exec"), {})


def test_no_file_imports_itself_by_way_of_others():
    graph = grimp.build_graph("convlens", exclude_type_checking_imports=True)
    for module in sorted(graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            assert graph.find_shortest_chain(imported, module) is None, (module, imported)
