"""docs/exporting.md's example is an exporter: of a route in memory and of a folder, by decorator, module and entry point."""

import json
import re
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.exporting.registry import EXPORTERS
from gradprism.routing.routes import route
from gradprism.runtime.errors import ConfigError
from helpers.cli import assert_refused
from helpers.probes import make_probe

DOC = Path(__file__).parents[2] / "docs" / "exporting.md"


@pytest.fixture
def exporter(tmp_path, monkeypatch):
    """The example's module, where Python finds it."""
    [code] = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 30
    (tmp_path / "my_exporters.py").write_text(code)
    info = tmp_path / "my_exporters-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-exporters\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gradprism.exporters]\nopenai = my_exporters:export_openai\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(EXPORTERS, "_known", {})


def test_the_example_exports_routes_and_folders(exporter, cli, tmp_path):
    make_probe(tmp_path / "probe")
    routes = route(tmp_path / "probe")
    assert {"verl", "openai"} < set(EXPORTERS)
    made = gp.export(routes, "openai", tmp_path / "a")
    rows = [json.loads(line) for line in (tmp_path / "a" / "train.jsonl").read_text().splitlines()]
    assert rows == [{"messages": t.chat()} for t in routes.sft]
    assert (made.source, made.files.keys(), made.routing) == (None, {"train.jsonl"}, routes.routing)
    assert made.warnings == (f"{routes.routing.n_rl} tasks of RL are left out",)

    routes.save(tmp_path / "route")
    code, out, _ = cli("export", "openai", tmp_path / "route", "--out", tmp_path / "b", "--option", "name=some.jsonl")
    assert code == 0 and "in some.jsonl" in out and "tasks of RL are left out" in out
    assert (tmp_path / "b" / "some.jsonl").read_bytes() == (tmp_path / "a" / "train.jsonl").read_bytes()
    again = gp.export(tmp_path / "route", "my_exporters:export_openai", tmp_path / "a2")
    assert again.files == made.files and again.source == str(tmp_path / "route")


def test_what_cannot_be_exported_is_one_line(exporter, cli, tmp_path):
    make_probe(tmp_path / "probe")
    route(tmp_path / "probe").save(tmp_path / "route")
    export = ["export", "openai", tmp_path / "route", "--out", tmp_path / "b"]
    assert_refused(cli("export", "csv", *export[2:]), "exporter 'csv': choose one of ", "verl, openai")
    assert_refused(cli(*export, "--option", "colour=red"), "exporter 'openai'", "unexpected keyword argument 'colour'")
    assert_refused(cli(*export, "--option", "colour"), "--option 'colour': expected key=value")
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="exporter 'csv'"):
        gp.export(tmp_path / "route", "csv", tmp_path / "b")
