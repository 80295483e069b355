"""Bundles hold what the server would answer, run one known script, and ask no network."""

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.experiments.results import Results, write_results
from gradprism.runtime.errors import ConfigError, FolderInUseError, WriteError
from gradprism.studio.api import write_report
from gradprism.studio.bundle import BLOCK
from gradprism.studio.resources import Resources
from gradprism.studio.static_files import read_static
from helpers.cli import assert_refused
from helpers.studio import ATTACK, make_run


class Page(HTMLParser):
    """Elements with their attributes, and the data of a file bundle by path."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, bytes] = {}
        self._path: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._path = dict(attrs).get("data-path") if tag == "script" else None

    def handle_data(self, data):
        if self._path:
            self.data[self._path] = gzip.decompress(base64.b64decode(data))
            self._path = None


@pytest.fixture(scope="module")
def page(kept_tree, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "studio.html"
    assert gp.export_studio(kept_tree, path) == path
    return Page(path.read_text(encoding="utf-8"))


def test_a_bundle_holds_what_the_server_answers(kept_tree, page):
    resources = Resources([str(kept_tree)])
    index = json.loads(page.data["index.json"])
    assert index == json.loads(resources.get("index.json", {}).content) and index["problems"] == []
    single = [path for path in page.data if not re.search(r"(trajectories|tokens|blocks)/|audit|profiles", path)]
    for path in single:
        assert page.data[path] == resources.get(path, {}).content, path
    [corpus] = {entry["corpus"] for entry in index["entries"]} - {None}
    audits = json.loads(page.data[f"corpus/{corpus}/audit.json"])
    assert {"gini", "cv", "kurtosis", "gini/per_parameter"} <= audits.keys()
    for kind, single in (("trajectories", "trajectory"), ("tokens", "tokens")):
        rows = [row for k in range(-(-12 // BLOCK)) for row in json.loads(page.data[f"corpus/{corpus}/{kind}/{k}.json"])]
        assert rows == [json.loads(resources.get(f"corpus/{corpus}/{single}/{row}.json", {}).content) for row in range(12)]
    run = next(entry["id"] for entry in index["entries"] if entry["kind"] == "run")
    [evaluation] = json.loads(page.data[f"run/{run}.json"])["evaluations"]
    episodes = json.loads(page.data[f"run/{run}/episodes/{evaluation['id']}/blocks/0.json"])
    assert [episode["n"] for episode in episodes] == list(range(6))


def test_a_bundle_runs_one_script_and_asks_no_network(page):
    script = read_static("app.js").decode()
    told = [dict(attrs) for tag, attrs in page.tags if tag == "script"]
    assert [attrs for attrs in told if attrs.get("type") != "application/octet-stream"] == [{"type": "module"}]
    assert not [attrs for attrs in told if attrs.get("src")]
    assert not {"img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    [policy] = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and "connect-src 'none'" in policy and "unsafe" not in policy
    links = [attrs.get("href", "") for tag, attrs in page.tags if tag in ("link", "a")]
    assert all((link or "").startswith("data:") for link in links)
    assert {attrs["content"] for tag, attrs in page.tags if attrs.get("name") == "gradprism-source"} == {"file"}


def test_a_folder_holds_the_same_piece_by_piece(kept_tree, page, tmp_path):
    assert gp.export_studio([kept_tree], tmp_path / "out") == tmp_path / "out"
    names = json.loads((tmp_path / "out" / "data.js").read_text().removeprefix("globalThis.gradprismFiles = ").removesuffix(";\n"))
    assert names.keys() == page.data.keys()
    for path, name in names.items():
        called = re.fullmatch(r'gradprismData\("([^"]+)","([A-Za-z0-9+/=]+)"\);\n', (tmp_path / "out" / name).read_text())
        assert called and called[1] == path
        assert gzip.decompress(base64.b64decode(called[2])) == page.data[path], path
    index = Page((tmp_path / "out" / "index.html").read_text())
    assert {attrs.get("src") for tag, attrs in index.tags if tag == "script"} == {"data.js", "app.js"}
    assert (tmp_path / "out" / "app.js").read_bytes() == read_static("app.js")
    gp.export_studio([kept_tree], tmp_path / "out")  # in the place of the earlier one
    with pytest.raises(FolderInUseError, match=r"is in use and no exported studio \(no data\.js\)"):
        gp.export_studio([kept_tree], kept_tree / "model")


def test_nothing_of_the_data_is_markup(kept_tree, page):
    texts = [content.decode("utf-8", "replace") for content in page.data.values()]
    assert any("alert(1)" in text for text in texts)
    names = {tag for tag, _ in page.tags} | {name for _, attrs in page.tags for name in attrs}
    assert not {"img", "onerror"} & names
    values = [value for _, attrs in page.tags for value in attrs.values() if value]
    assert not [value for value in values if "alert" in value or "javascript:" in value]


def test_what_cannot_be_read_is_left_out_and_told(kept_tree, tmp_path, capsys):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "stages" / "sft-0123456789abcdef" / "stage.json").write_text("{}")
    gp.export_studio([kept_tree, tmp_path / "run"], tmp_path / "out.html")
    found = Page((tmp_path / "out.html").read_text())
    problems = json.loads(found.data["index.json"])["problems"]
    assert len(problems) == 1 and "stage.json: is of another version or broken" in problems[0]["message"]
    assert any(path.endswith("columns.bin") for path in found.data)
    assert "left out: " in capsys.readouterr().err


def test_the_command_exports(cli, kept_tree, tmp_path):
    code, out, _ = cli("studio", kept_tree, "--export", tmp_path / "a.html", "--device-tflops", "2")
    assert code == 0 and re.fullmatch(r".*a\.html: \d\.\d MiB\n", out)
    found = Page((tmp_path / "a.html").read_text())
    [meta] = [json.loads(content) for path, content in found.data.items() if path.endswith("meta.json")]
    assert meta["costs"]["rl"]["source"].startswith("2 TFLOP/s")
    code, out, _ = cli("studio", kept_tree, "--export", tmp_path / "b")
    assert code == 0 and (tmp_path / "b" / "index.html").is_file()
    assert_refused(cli("studio", tmp_path / "nothing"), "no such folder; name probe, route, run")
    assert_refused(cli("studio", kept_tree, "--export", tmp_path / "c.html", "--model", tmp_path / "b"), "holds no tokenizer.json")


# --- the report of a run or an experiment


@pytest.fixture
def results(tmp_path: Path) -> Path:
    found = {
        "name": f"toy {ATTACK}",
        "environment": "toy",
        "base_arm": "base",
        "sft_arm": "sft",
        "arms": [{"name": "base", "title": ATTACK, "group": "table1", "runs": [{"seed": 0, "success": {"unseen": "01"}}]}],
        "stages": {},
        "seeds": [0],
        "tasks": {"unseen": [{"id": "a"}, {"id": "b"}]},
    }
    write_results(tmp_path, Results.model_validate(found))
    return tmp_path


def test_a_report_is_the_bundle_of_its_folder(results):
    assert write_report(results) == results / "report.html"
    found = Page((results / "report.html").read_text())
    [view] = [json.loads(content) for path, content in found.data.items() if path.startswith("results/")]
    assert view["arms"][0]["success"]["unseen"]["mean"] == 0.5 and view["name"].startswith("toy </script>")
    assert "\x1b" not in json.dumps(view, ensure_ascii=False) and "\u202e" not in json.dumps(view, ensure_ascii=False)


def test_a_failed_write_keeps_the_old_report(results, monkeypatch):
    path = results / "report.html"
    path.write_text("old")
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(results, results)
    with pytest.raises(ConfigError, match=r"does not end in \.html"):
        write_report(results, results / "page.txt")
    with pytest.raises(WriteError, match="cannot be written"):
        write_report(results, path / "below-a-file.html")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradprism.runtime.files.os.replace", full)
    with pytest.raises(WriteError, match="No space left"):
        write_report(results)
    assert path.read_text() == "old"
    assert sorted(p.name for p in results.iterdir()) == ["report.html", "results.json"]


def test_a_report_of_a_very_large_corpus_leaves_its_texts_out(kept_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gradprism.studio.api.MOST_TEXTS", 11)
    monkeypatch.setattr("gradprism.studio.api.read_results", lambda folder: None)
    write_report(kept_tree, tmp_path / "report.html")
    paths = Page((tmp_path / "report.html").read_text()).data
    assert not [path for path in paths if "trajectories/" in path] and any(path.endswith("columns.bin") for path in paths)
    assert "the texts of its 12 trajectories are left out" in capsys.readouterr().err
