"""The held-out loss of an experiment's arms: added to one that has run, kept by an extension, and refused where it would mean nothing."""

import json
import shutil
from pathlib import Path

import pytest

import gradprism as gp
from gradprism.experiments import apart, experiment, model_work
from gradprism.experiments.config import load_config
from gradprism.experiments.data_work import CORPUS
from gradprism.experiments.experiment import Job, job_status, run_job
from gradprism.experiments.plan import Plan
from gradprism.experiments.stage import Store, with_needs
from gradprism.experiments.stages import Collect
from gradprism.runtime.errors import ConfigError, GradprismError, ModelError
from gradprism.runtime.usage import Usage
from gradprism.training.held_out import HeldOutLoss
from helpers.training import loss_by_hand

CONFIG = f"""
name = "small"
seeds = [3]
threads = 1
[model]
path = "{gp.shipped("dialogue-tiny")}"
context_length = 512
[corpus]
collect = {{ count = 6, max_steps = 12 }}
[environment]
name = "dialogue"
workers = 1
[sft]
max_steps = 2
learning_rate = 1e-3
[evaluation]
splits = {{ unseen = 2 }}
max_steps = 1
max_action_tokens = 8
[[arms]]
name = "base"
sft = "none"
rl = "none"
max_seeds = 1
[[arms]]
name = "sft"
group = "controls"
sft = "all"
rl = "none"
"""
DEV = "held_out.collect={split='dev', count=4, max_steps=12}"


def config_of(*overrides):
    Path("small.toml").write_text(CONFIG)
    return load_config("small.toml", overrides)


def losses(results):
    """Loss by arm and seed."""
    return {(arm.name, run.seed): run.held_out and run.held_out.loss for arm in results.arms for run in arm.runs}


def pending(*overrides, **more):
    return sorted(stage.label for stage in job_status(Job(config_of(*overrides), Path("results"), **more)).pending)


def lines():
    return [json.loads(line)["stage"] for line in Path("runs/small/ledger.jsonl").read_text().splitlines()]


def test_an_experiment_that_has_run_measures_it_alone_and_an_extension_keeps_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without, made = run_job(Job(config_of(), Path("results"))), lines()
    assert losses(without) == {("base", 3): None, ("sft", 3): None}
    # By groups, and then all.
    assert pending(DEV, groups=("table1",)) == ["collect held-out demonstrations", "held-out-loss of base/3"]
    run_job(Job(config_of(DEV), Path("results"), groups=("table1",)))
    results = run_job(Job(config_of(DEV), Path("results")))
    assert lines()[len(made) :] == ["collect", "held-out-loss", "held-out-loss"]
    plan, store = Plan(config_of(DEV)), Store(Path("runs/small"))
    assert isinstance(plan.demonstrations, Collect)
    demonstrations = list(gp.load_corpus(store.path(plan.demonstrations) / CORPUS))
    for run in plan.runs:
        path = store.path(run.evaluation.model) if run.evaluation.model else Path(gp.shipped("dialogue-tiny"))
        renderer = gp.Renderer(gp.load_tokenizer(path), 512)
        loss, tokens = loss_by_hand(gp.ModelSpec(str(path)).load(), renderer, demonstrations)
        [found] = [of.held_out for arm in results.arms for of in arm.runs if arm.name == run.arm.name]
        assert found and found.loss == pytest.approx(loss, rel=1e-5)
        assert (found.tokens, found.trajectories) == (tokens, len(demonstrations))
        assert results.stages[found.stage].tokens_forward == sum(len(renderer.render(one).input_ids) for one in demonstrations)
    assert losses(results)["base", 3] != losses(results)["sft", 3]
    same = [(arm.name, run.model_copy(update={"held_out": None})) for arm in results.arms for run in arm.runs]
    assert same == [(arm.name, run) for arm in without.arms for run in arm.runs]

    # On another machine, by one more seed: what is known stays as it is.
    shutil.rmtree("runs")
    assert pending(DEV, extend=True) == []
    assert [label for label in pending(DEV, "seeds=[3, 4]", extend=True) if "loss" in label] == ["held-out-loss of sft/4"]
    more = run_job(Job(config_of(DEV, "seeds=[3, 4]"), Path("results"), extend=True))
    assert losses(more).items() > losses(results).items() and losses(more)["sft", 4]
    assert {name: more.stages[name] for name in results.stages} == results.stages
    # Other demonstrations: the losses on the first go, and where a model is not here, it is not trained for that.
    other = DEV.replace("count=4", "count=5")
    labels = ["collect held-out demonstrations", "held-out-loss of base/3", "held-out-loss of sft/4"]
    assert pending(other, "seeds=[3, 4]", extend=True) == labels
    changed = losses(run_job(Job(config_of(other, "seeds=[3, 4]"), Path("results"), extend=True)))
    assert changed["sft", 3] is None and changed["sft", 4] and changed["sft", 4] != losses(more)["sft", 4]


def test_it_waits_for_all_else_and_changes_no_other_stage():
    few = [Path("configs/dialogue-mini.toml"), ["seeds=[0]"]]
    without, planned = Plan(load_config(*few)), Plan(load_config(few[0], [*few[1], "held_out.collect={split='dev', count=4}"]))
    before, after = list(with_needs(without.wanted())), list(with_needs(planned.wanted()))
    assert after[: len(before)] == before
    assert isinstance(planned.demonstrations, Collect)
    last = [name for run in planned.runs if run.held_out for name in [run.held_out.name]]
    assert set(after[len(before) :]) == {*last, planned.demonstrations.name} and len(last) == len(planned.runs)
    assert [run.held_out.model for run in planned.runs if run.held_out] == [run.evaluation.model for run in planned.runs]


def test_a_run_of_one_seed_measures_it_of_files(tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("\n".join(Path("data/alfworld-quickstart.jsonl").read_text().splitlines()[:3]) + "\n")
    config = load_config("configs/quickstart.toml", [f"held_out.files=['{held}']"])
    planned = Plan(config)
    assert [run.held_out is not None for run in planned.runs] == [True] * 3
    # The file counts by what is in it, and is found from beside a copy of the configuration.
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "config.json").write_text(json.dumps(config.portable(tmp_path / "results")))
    assert json.loads((tmp_path / "results" / "config.json").read_text())["held_out"]["files"] == ["../held.jsonl"]
    again = load_config(tmp_path / "results" / "config.json")
    assert again.held_out and again.held_out.files == [str(held)] and Plan(again).demonstrations == planned.demonstrations


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["held_out={}"], "held_out: give either files or collect"),
        (["held_out.collect={count=3}"], "held_out.collect.split: name the split"),
        (["held_out.collect={split='', count=3}"], "held_out.collect.split: name the split"),
        (["held_out.collect={split='hidden', count=3}"], "held_out.collect: split 'hidden': choose one of"),
        (
            ["held_out.collect={split='train', count=3, skip=5}"],
            "held_out.collect.split: tasks 5 to 6 of 'train' are the corpus's, which arms train on; name another split, or give "
            "held_out.collect.skip = 6",
        ),
        (["held_out.collect={split='dev', count=100000}"], "held_out.collect: split 'dev': has "),
        (["held_out.files=['none.jsonl']"], "held_out.files: 'none.jsonl': no such file"),
        (["corpus={files=['a.jsonl']}", "held_out.files=['b.jsonl']"], "b.jsonl: is one of the corpus, which arms train on"),
    ],
)
def test_demonstrations_that_arms_train_on_or_that_are_not_there_are_refused(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError) as caught:
        Plan(config_of(*overrides))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_tasks_of_the_training_split_behind_the_corpus_are_held_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = Plan(config_of("held_out.collect={split='train', count=3, skip=6}"))
    assert isinstance(planned.demonstrations, Collect) and planned.demonstrations.config.skip == 6


def told(task=None, text="Booked.", **more):
    turns = [{"role": "user", "content": "Book it."}, {"role": "assistant", "content": text}]
    return json.dumps({"messages": turns, **({"task": task} if task else {}), **more}) + "\n"


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("files=['empty.jsonl']", r"empty\.jsonl: holds no records"),
        ("files=['broken.jsonl'], on_bad='skip'", r"^held_out\.files: hold no trajectory"),
        ("files=['broken.jsonl']", r"^.*broken\.jsonl:1: "),
        (
            "files=['other.jsonl', 'part.jsonl']",
            r"^held_out\.files: \S*part\.jsonl:1 is \S*corpus\.jsonl:2 of the corpus",
        ),
        ("files=['sharegpt.jsonl']", r"^held_out\.files: \S*sharegpt\.jsonl:1 is \S*corpus\.jsonl:2 of the corpus"),
        ("collect={split='train', count=2, skip=2}", r"^held_out\.collect: task 'train/3' is that of \S*corpus\.jsonl:1, which"),
    ],
)
def test_files_are_read_before_anything_is_paid_for(tmp_path, monkeypatch, held_out, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment, "run_stages", lambda *_: pytest.fail("a stage was run"))
    Path("corpus.jsonl").write_text(told({"env": "dialogue", "id": "train/3"}, id="a") + told(text="Done.", id="b"))
    Path("part.jsonl").write_text(told(text="Done.", id="of another name"))
    Path("other.jsonl").write_text(told(text="Yes.", id="b"))
    told_too = [{"from": "human", "value": "Book it."}, {"from": "gpt", "value": "<think>Easy.</think>Done.", "loss": True}]
    Path("sharegpt.jsonl").write_text(json.dumps({"conversations": told_too}) + "\n")
    Path("empty.jsonl").write_text("")
    Path("broken.jsonl").write_text("{nope")
    config = config_of("corpus={files=['corpus.jsonl']}", f"held_out={{{held_out}}}")
    with pytest.raises(GradprismError, match=message) as caught:
        run_job(Job(config, tmp_path / "results"))
    assert "\n" not in str(caught.value)


def test_what_formats_tell_differently_is_the_same_trajectory():
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": 1}}, "id": "c1"}
    book, done = {"role": "user", "content": "Book it."}, {"role": "assistant", "content": "Done."}
    openai = [book, {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Hm."}]
    openai += [{"role": "tool", "content": "found", "name": "find", "tool_call_id": "c1"}, done]
    sharegpt = [
        {"from": "human", "value": "Book it."},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"q": 1}}'},
    ]
    sharegpt += [{"from": "observation", "value": "found"}, {"from": "gpt", "value": "Done."}]
    one, two, other = gp.load_corpus(
        [{"messages": openai}, {"conversations": sharegpt}, {"messages": [book, {**done, "content": "No."}]}]
    )
    assert apart._content(one) == apart._content(two) != apart._content(other)


def test_a_loss_that_is_no_number_is_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stage = next(run.held_out for run in Plan(config_of(DEV)).runs if run.held_out)
    measured = HeldOutLoss(float("nan"), 3, 1, 0, Usage())
    monkeypatch.setattr(model_work, "load", lambda *_: (None, None))
    monkeypatch.setattr(model_work, "corpus_of", lambda *_: [])
    monkeypatch.setattr(model_work, "held_out_loss", lambda *_: measured)
    with pytest.raises(ModelError, match="the loss on the held-out demonstrations is nan"):
        model_work.measure_held_out_loss(stage, tmp_path, Store(tmp_path))
