"""Folders that nobody meant: names that are no text, links in circles, files that hold other things. One takes nothing else down."""

import json
import os
import re
import shutil

import pytest

from gradprism.routing.routes import Routes, route
from gradprism.runtime.errors import ConfigError, DataError
from gradprism.studio.resources import Resources
from helpers.probes import make_probe
from helpers.studio import make_run, make_tree

SFT, RL = "run/stages/sft-0123456789abcdef", "run/stages/rl-0123456789abcdef"
EVALUATION = "run/stages/evaluate-0123456789abcdef/evaluation"


def get(resources, path):
    return json.loads(resources.get(path, {}).content)


def entries(resources):
    return {entry["kind"]: entry for entry in get(resources, "index.json")["entries"]}


def test_names_that_are_no_text_are_left_out_and_told(tmp_path):
    make_run(tmp_path / "run")
    strange = os.fsencode(tmp_path) + b"/pro\xffbe"
    shutil.copytree(tmp_path / "run", os.fsdecode(strange))
    resources = Resources([str(tmp_path)])
    index = get(resources, "index.json")
    assert entries(resources)["run"]["problem"] is None
    [problem] = index["problems"]
    assert "is not UTF-8" in problem["message"] and "another name" in problem["hint"]
    with pytest.raises(ConfigError, match="not UTF-8"):
        Resources([os.fsdecode(strange)])
    (tmp_path / "run" / os.fsdecode(b"\xff.jsonl")).write_text("x")
    assert entries(Resources([str(tmp_path)]))["run"]["problem"] is None


def test_links_in_circles_lead_nowhere(tmp_path):
    make_probe(tmp_path / "probe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "probe" / "norms-circle").symlink_to(tmp_path / "probe" / "norms-circle")
    told = entries(Resources([str(tmp_path)]))["probe"]["problem"]
    assert "norms-circle is a link that leads nowhere" in told["message"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (f"{RL}/log.jsonl", '{"step": 1e999, "episodes": 3}\n'),
        (f"{RL}/log.jsonl", '{"step": "x"}\n'),
        (f"{EVALUATION}/manifest.json", '{"tasks_sha256": "t", "config": {"splits": [1]}}'),
        (f"{EVALUATION}/summary.json", "[]"),
    ],
)
def test_a_file_of_another_form_is_a_problem_of_its_folder(tmp_path, file, content):
    make_run(tmp_path / "run")
    (tmp_path / file).write_text(content)
    resources = Resources([str(tmp_path)])
    assert entries(resources)["run"]["problem"] is None
    with pytest.raises(DataError, match="is of another version or broken"):
        get(resources, f"run/{entries(resources)['run']['id']}.json")


def test_numbers_that_no_page_can_show(tmp_path):
    make_run(tmp_path / "run", running=True)
    huge = "1" + "0" * 400
    (tmp_path / RL / "log.jsonl").write_text(f'{{"step": 1, "loss": {huge}, "entropy": NaN}}\n')
    path = tmp_path / EVALUATION / "episodes.jsonl"
    path.write_text(re.sub(r'"r_att": ?0.25', f'"r_att": {huge}', path.read_text()))
    (tmp_path / "run" / "running" / "rl-0123456789abcdef.json").write_text('{"pid": -5, "created": 1}')
    resources = Resources([str(tmp_path)])
    run = entries(resources)["run"]["id"]
    view = get(resources, f"run/{run}.json")
    log = get(resources, f"run/{run}/log/{view['trainings'][0]['id']}.json")["columns"]
    assert (log["loss"], log["entropy"]) == ([None], [None])
    one = get(resources, f"run/{run}/episodes/{view['evaluations'][0]['id']}/0.json")
    assert one["parts"] == {"r_type": 0.5}


def test_a_route_that_cannot_be_read_is_told_and_hides_nothing(tmp_path):
    make_probe(tmp_path / "probe")
    for name in ("a", "b", "c"):
        route(tmp_path / "probe").save(tmp_path / name)
    (tmp_path / "a" / "routes.parquet").write_bytes(b"PAR1")
    (tmp_path / "b" / "audit.json").write_text("{}")
    resources = Resources([str(tmp_path)])
    listed = get(resources, "index.json")["entries"]
    told = {entry["name"]: entry["problem"] and entry["problem"]["message"] for entry in listed}
    assert "routes.parquet: cannot be read" in told["a"] and "audit.json" in told["b"] and told["c"] is None
    meta = get(resources, f"corpus/{next(entry['id'] for entry in listed if entry['kind'] == 'probe')}/meta.json")
    assert [made["name"] for made in meta["routes"]] == ["c"]


def test_a_model_that_is_none_has_no_tokens(tmp_path):
    make_tree(tmp_path)
    resources = Resources([str(tmp_path)])
    id = entries(resources)["probe"]["id"]
    assert get(resources, f"corpus/{id}/meta.json")["tokens"]
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert not get(resources, f"corpus/{id}/meta.json")["tokens"]
    manifest = tmp_path / "probe" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": "a\0b"}))
    assert not get(resources, f"corpus/{id}/meta.json")["tokens"]


def test_an_override_copies_nothing_from_elsewhere(tmp_path):
    make_probe(tmp_path / "probe")
    route(tmp_path / "probe").save(tmp_path / "route")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("s")
    for name, target in (("folder", "elsewhere"), ("file", "elsewhere/secret"), ("gone", "nothing")):
        (tmp_path / "route" / name).symlink_to(tmp_path / target)
    Routes.override_folder(tmp_path / "route", Routes.load(tmp_path / "route").frame["id"][0], "none", "x", tmp_path / "probe")
    assert all((tmp_path / "route" / name).is_symlink() for name in ("folder", "file", "gone"))
