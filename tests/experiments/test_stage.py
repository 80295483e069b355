"""Stages: their keys, reuse, and what is left of one that was cut short."""

import json
from dataclasses import dataclass, field

import pytest

from gradprism.experiments import stage as module
from gradprism.experiments.schedule import run_stages
from gradprism.experiments.stage import Store, with_needs
from gradprism.runtime.errors import DataError, ModelError
from gradprism.training.rl_config import RlConfig
from gradprism.training.sft_config import SftConfig
from helpers.stages import Resume, Write, words


def chain(kind=Write, b=1, **more):
    """a, then b on a, then c on b and d on a."""
    first = Write("a")
    second = kind("b", (first,), value=b, **more)
    return [Write("c", (second,)), Write("d", (first,))]


def ran(folder):
    return [json.loads(line)["key"] for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_needs_come_first_and_each_once():
    assert words(with_needs(chain()).values()) == ["a", "b", "c", "d"]


def test_a_second_run_reuses_everything(tmp_path, capsys):
    store = Store(tmp_path)
    run_stages(store, chain(), {})
    assert len(ran(tmp_path)) == 4 and store.found(chain()[0]).words == "a b c"
    records = [store.record(stage) for stage in with_needs(chain()).values()]
    run_stages(store, chain(), {})
    assert len(ran(tmp_path)) == 4 and "reused: write, write" in capsys.readouterr().err
    assert [store.record(stage) for stage in with_needs(chain()).values()] == records
    assert all(record.cost.tokens_forward == 7 for record in records)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not valid JSON"),
        ("[]", "the whole file: Input should be"),
        ('{"kind": "write"}', "key: Field required"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_broken_record_is_told_in_one_line_with_its_file(tmp_path, text, told):
    store, first = Store(tmp_path), Write("a")
    run_stages(store, chain(), {})
    path = store.path(first) / "stage.json"
    path.write_bytes(text.encode("latin-1"))
    for read in (store.record, store.found):
        with pytest.raises(DataError, match=f"stage.json: {told}") as caught:
            read(first)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        assert str(caught.value).endswith("; delete its folder, it is made again")
    assert len(store.records()) == 3, "times are estimated by the others"


def test_a_result_of_another_form_is_told_with_its_file(tmp_path):
    store, first = Store(tmp_path), Write("a")
    store.run(first)
    path = store.path(first) / "stage.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "found": {"words": 3}}))
    with pytest.raises(DataError, match=r"stage\.json: words: Input should be a valid string; delete its folder"):
        store.found(first)


def test_a_changed_value_redoes_what_depends_on_it_and_nothing_else(tmp_path):
    run_stages(Store(tmp_path), chain(), {})
    run_stages(Store(tmp_path), chain(b=2), {})
    before, after = (with_needs(chain(b=b)) for b in (1, 2))
    assert ran(tmp_path)[4:] == [after[name].key for name in after if name not in before]
    assert words(after[name] for name in after if name not in before) == ["b", "c"]
    run_stages(Store(tmp_path), chain(b=1), {})  # the earlier value's stages are still there
    assert len(ran(tmp_path)) == 6


def test_every_field_is_a_cause_but_those_that_say_they_are_none():
    assert Write("a").key != Write("a", value=1).key and Write("a").key != Write("a", (Write("b"),)).key
    assert Write("a").key == Write("a", seconds=3, fail="x").key
    assert Write("a", (Write("b"),)).needs == (Write("b"),)

    @dataclass(frozen=True)
    class Trains(Write):
        sft: SftConfig = field(default_factory=SftConfig)
        rl: RlConfig = field(default_factory=RlConfig)
        near: str = field(default="here", compare=False)

    one = Trains("a")
    assert one.key == Trains("a", sft=SftConfig(save_steps=7), rl=RlConfig(save_every=3, track=("wandb",)), near="there").key
    assert one.key != Trains("a", sft=SftConfig(epochs=7)).key


@pytest.mark.parametrize(("kind", "left"), [(Write, []), (Resume, ["partial"])])
def test_a_stage_cut_short_is_run_again_from_an_empty_folder_unless_it_resumes(tmp_path, kind, left):
    with pytest.raises(ModelError, match="no luck"):
        run_stages(Store(tmp_path), chain(kind, fail="no luck"), {})
    run_stages(Store(tmp_path), chain(kind), {})
    assert len(ran(tmp_path)) == 4
    assert Store(tmp_path).found(chain(kind)[0].on[0]).left == left


def test_a_result_of_other_code_is_told_in_one_line_and_made_again_with_fresh(tmp_path, capsys, monkeypatch):
    run_stages(Store(tmp_path), chain(Resume), {})
    monkeypatch.setattr(module, "code_sha256", lambda: "other")
    capsys.readouterr()
    run_stages(Store(tmp_path), chain(Resume), {})
    said = capsys.readouterr().err
    assert "4 of 4 reused results were made by other code (gradprism 0." in said and said.count("--fresh") == 1
    assert len(ran(tmp_path)) == 4
    run_stages(Store(tmp_path, fresh=True), chain(Resume), {})
    assert len(ran(tmp_path)) == 8 and Store(tmp_path).found(chain(Resume)[0].on[0]).left == [], "begun from nothing"
    run_stages(Store(tmp_path, fresh=True), chain(Resume), {})
    assert len(ran(tmp_path)) == 8 and "other code" not in capsys.readouterr().err


def test_what_is_made_again_takes_with_it_what_was_built_on_it(tmp_path, monkeypatch):
    run_stages(Store(tmp_path), chain(), {})
    path = Store(tmp_path).path(Write("a")) / "stage.json"
    path.write_text(path.read_text().replace(module.code_sha256(), "older"))
    assert words(Store(tmp_path, fresh=True).pending(chain())) == ["a", "b", "c", "d"]
    assert Store(tmp_path).pending(chain()) == []


def test_the_ledger_has_one_line_per_stage_that_ran(tmp_path):
    run_stages(Store(tmp_path), chain(), {})
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["write"] * 4
    assert all(row["wall_seconds"] >= 0 and row["peak_memory_mib"] > 1 and row["tokens_forward"] == 7 for row in rows)


def test_a_stage_that_used_a_gpu_holds_it_for_as_long_as_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "peak_gpu_memory_mib", lambda: 700.0)
    monkeypatch.setattr(module, "gpu_name", lambda: "Some GPU")
    record = Store(tmp_path).run(Write("a", earlier=50))
    assert record.cost.gpu_seconds == record.cost.wall_seconds > 50
    assert (record.cost.peak_gpu_memory_mib, record.machine.gpu) == (700.0, "Some GPU")
