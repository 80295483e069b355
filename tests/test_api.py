"""`import gradprism as gp`: every public name, at once and without weight."""

import ast
import importlib
import inspect
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import gradprism as gp

HEAVY = {
    "torch",
    "transformers",
    "trl",
    "datasets",
    "polars",
    "numpy",
    "pyarrow",
    "pydantic",
    "scipy",
    "matplotlib",
    "rich",
    "typer",
}


@pytest.mark.alone
def test_the_import_takes_less_than_a_third_of_a_second():
    code = "import time; a = time.perf_counter(); import gradprism; print(time.perf_counter() - a)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) for _ in range(5)
    ]
    assert statistics.median(times) < 0.3, times


def test_the_import_loads_none_of_the_heavy_libraries():
    code = f"import sys, gradprism; dir(gradprism); print(sorted({HEAVY!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_names_for_people_for_types_and_for_the_import_are_the_same():
    tree = ast.parse(Path(gp.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    typed |= {
        target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
    }
    assert set(gp.__all__) == typed
    assert list(gp.__all__) == sorted(gp.__all__, key=lambda name: (name[0].islower(), name)), "classes first"
    rooms = {path.stem for path in Path(gp.__file__).parent.iterdir()}
    assert not rooms & set(gp.__all__), "an imported room of that name would hide it"
    assert set(dir(gp)) == {*gp.__all__, "__version__"}
    with pytest.raises(AttributeError, match="'prode'"):
        _ = gp.prode


@pytest.mark.parametrize("name", gp.__all__)
def test_a_public_name_is_there_and_says_what_it_is(name):
    thing = getattr(gp, name)
    assert getattr(gp, name) is thing
    if not callable(thing):
        return
    document = inspect.getdoc(thing)
    assert document and document.split("\n\n")[0].endswith((".", ":")), name
    assert document.split()[0] not in {"What", "How", "Whether", "Why", "This"}, "begins with a noun or a verb"
    origin = importlib.import_module(thing.__module__)
    assert origin.__name__.startswith("gradprism."), name
