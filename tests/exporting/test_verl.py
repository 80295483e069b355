"""What `gradprism export verl` writes is what verl's and verl-agent's loaders read, and what docs/verl.md says of it."""

import itertools
import json
import os
import random
import re
import runpy
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from gradprism.environments.registry import make_environment
from gradprism.environments.webshop.catalogue import read_catalogue
from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.environments.webshop.goals import make_goals
from gradprism.routing.routes import route
from gradprism.runtime.files import sha256_file, sha256_folder, write_json, write_jsonl
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.record import Message, Trajectory
from helpers.cli import assert_refused
from helpers.exports import MASKED, PLAIN, RICH, WEIGHTED, write_route
from helpers.probes import make_probe

GAMES = [f"official/train/pick_and_place_simple-Mug-None-Desk-30{n}/trial_T2019_{n}" for n in range(4)]
DOC = Path("docs/verl.md")


def alfworld_task(name):
    _, split, kind, _ = name.split("/")
    return {"env": "alfworld", "id": name, "task_type": kind.partition("-")[0], "split": split}


def webshop_task(name):
    return {"env": "webshop", "id": name, "task_type": "garden", "split": "train"}


def trajectory(name, task=None, trained=True):
    turns = (
        Message("user", f"You are in a room. {name} ü\u2028"),
        Message("assistant", "look", weight=float(trained)),
        Message("user", "Nothing."),
        Message("assistant", "go to desk 1"),
    )
    return Trajectory(name, turns, task or {})


@pytest.fixture
def export(cli, tmp_path):
    """Exports `tmp_path`/route; gives exit code, stdout and stderr."""
    return lambda *arguments, out="verl": cli("export", "verl", tmp_path / "route", "--out", tmp_path / out, *arguments)


@pytest.fixture
def load(tmp_path):
    """The rows of a Parquet file as verl's RLHFDataset takes them from datasets."""

    def rows(path):
        return list(datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"])

    return rows


def options(goal):
    assert isinstance(goal.options, Mapping)
    return dict(goal.options)


def snippets():
    """The lines that docs/verl.md adds to verl: the mask, the games, the goals."""
    return re.findall(r"```python\n(.*?)```", DOC.read_text(), flags=re.DOTALL)


def test_sft_messages_as_both_of_verls_loaders_read_them(export, tmp_path):
    sft = [trajectory(f"t{n}", alfworld_task(name)) for n, name in enumerate(GAMES)]
    write_route(tmp_path / "route", sft, [trajectory("r", alfworld_task(GAMES[0]))])
    code, out, err = export()
    assert (code, err) == (0, "")
    assert "4 trajectories to SFT, 1 to RL, in rl-alfworld.parquet, sft.parquet, tasks-alfworld.json" in out
    path = tmp_path / "verl" / "sft.parquet"
    today = pd.read_parquet(path, dtype_backend="pyarrow")
    # None of the columns that the loader would take for pictures, tools or a way of thinking.
    assert list(today.columns) == ["messages", "id", "task"]
    older = pd.read_parquet(path)
    for n, t in enumerate(sft):
        assert list(today.iloc[n].to_dict()["messages"]) == t.chat()
        assert list(older["messages"].tolist()[n]) == t.chat()
        assert list(older["messages"][n][:2]) == t.chat()[:2]  # prefixes, from which the older one finds the turns
        assert json.loads(today["task"].tolist()[n]) == t.task
    assert today["id"].tolist() == [t.id for t in sft]


def test_turns_that_are_not_trained_on_are_marked_and_warned_of(export, tmp_path):
    sft = [trajectory("all"), trajectory("some", trained=False)]
    write_route(tmp_path / "route", sft, [trajectory("r", alfworld_task(GAMES[0]), trained=False)])
    code, out, _ = export()
    assert code == 0
    assert "warning: 1 assistant turns are not to be trained on (loss_mask 0), but verl trains on every assistant turn" in out
    rows = pd.read_parquet(tmp_path / "verl" / "sft.parquet", dtype_backend="pyarrow")["messages"].tolist()
    assert [[m["loss_mask"] for m in row] for row in rows] == [[0, 1, 0, 1], [0, 0, 0, 1]]
    assert [[{k: m[k] for k in ("role", "content")} for m in row] for row in rows] == [t.chat() for t in sft]
    # The prompt goes as far as the first turn that is trained on.
    rl = pq.read_table(tmp_path / "verl" / "rl-alfworld.parquet").to_pylist()
    assert [m["role"] for m in rl[0]["prompt"]] == ["user", "assistant", "user"]

    torch = SimpleNamespace(zeros_like=lambda mask: [0] * len(mask))
    for message in rows[1]:
        scope = {"message": message, "torch": torch, "loss_mask": [1], "attention_mask": [1]}
        exec(snippets()[0], scope)
        assert scope["loss_mask"] == [message["loss_mask"]]


def test_tools_calls_and_reasoning_are_whole_with_the_data_set_that_decodes_them(export, tmp_path, monkeypatch):
    sft = [RICH, MASKED, PLAIN]
    write_route(tmp_path / "route", sft, [trajectory("r", alfworld_task(GAMES[0]))])
    code, out, _ = export()
    assert code == 0
    assert (
        "warning: the SFT set has tools, calls, reasoning or names: verl reads it if data.custom_cls.path names gradprism_verl.py"
        in out
    )
    assert "warning: 2 turns have reasoning; verl renders each message alone" in out
    frame = pd.read_parquet(tmp_path / "verl" / "sft.parquet", dtype_backend="pyarrow")
    assert all(isinstance(text, str) for text in frame["messages"])  # which verl's own data set fails on, rather than misread

    dataset = verl_dataset(monkeypatch, tmp_path / "verl" / "gradprism_verl.py", frame)
    assert [tools or [] for tools in dataset.tools] == [list(t.tools) for t in sft]
    masks = []
    for n, t in enumerate(sft):
        messages = dataset._build_messages(frame.iloc[n].to_dict())
        assert [{k: v for k, v in message.items() if k != "loss_mask"} for message in messages] == t.chat()
        masks.append([dataset._process_single_message(index=i, message=m)[1].tolist() for i, m in enumerate(messages)])
        assert all(seen == message for seen, message in zip(dataset.seen[-len(messages) :], t.chat(), strict=True))
    assert masks == [[[0], [0], [1], [0], [0], [1]], [[0], [0], [0], [1]], [[0], [1], [0], [1]]]


def verl_dataset(monkeypatch, path, frame):
    """The exported data set over a stand-in for verl's own, which does what verl 0.9.1's does where the two meet."""

    class MultiTurnSFTDataset:
        messages_key = "messages"

        def __init__(self, frame):
            self.dataframe, self.seen = frame, []
            self._read_files_and_process()

        def _read_files_and_process(self):
            self.tools = self.dataframe["tools"].tolist() if "tools" in self.dataframe.columns else None

        def _build_messages(self, example):
            return [dict(message) for message in example[self.messages_key]]

        def _process_single_message(self, index, message, full_message=(), tools=None, enable_thinking=None):
            self.seen.append(message)
            return torch.ones(1), torch.tensor([int(message["role"] == "assistant")]), torch.ones(1), {}

    for name in ("verl", "verl.utils", "verl.utils.dataset"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("verl.utils.dataset.multiturn_sft_dataset")
    monkeypatch.setattr(module, "MultiTurnSFTDataset", MultiTurnSFTDataset, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return runpy.run_path(str(path))["GradprismSFTDataset"](frame)


def test_rl_prompts_with_calls_are_whole(export, load, tmp_path):
    masked = replace(RICH, messages=tuple(replace(m, weight=0 if i == 2 else 1) for i, m in enumerate(RICH.messages)))
    write_route(tmp_path / "route", [PLAIN], [masked, replace(PLAIN, task={"env": "my.package:Trips", "id": "trip-8"})])
    code, out, _ = export()
    assert code == 0 and "warning: 1 my.package:Trips tasks have tools, which verl takes from its own configuration" in out
    rows = load(tmp_path / "verl" / "rl-my-package-trips.parquet")
    assert [row["prompt"] for row in rows] == [masked.prompt(), PLAIN.prompt()]
    assert json.loads(rows[0]["extra_info"]["tools"]) == list(RICH.tools)
    assert rows[1]["extra_info"]["tools"] is None


def test_weights_that_verl_cannot_be_told_are_refused(export, tmp_path):
    write_route(tmp_path / "route", [WEIGHTED], [trajectory("r", alfworld_task(GAMES[0]))])
    assert_refused(export(), "sft.jsonl:1: trajectory 'half': message 1 has weight 0.5; verl knows 0 and 1 only")


def test_rl_rows_as_verls_dataset_and_verl_agents_trainer_read_them(export, load, tmp_path):
    rl = [trajectory(f"r{n}", alfworld_task(name)) for n, name in enumerate(GAMES)]
    write_route(tmp_path / "route", [], rl)
    code, out, _ = export()
    assert code == 0
    assert "warning: the route sends nothing to SFT" in out
    assert not (tmp_path / "verl" / "sft.parquet").exists()
    rows = load(tmp_path / "verl" / "rl-alfworld.parquet")
    for n, (row, t) in enumerate(zip(rows, rl, strict=True)):
        assert row["prompt"] == t.prompt() == [{"role": "user", "content": t.messages[0].content}]
        assert row["data_source"] == "alfworld"
        assert row["ability"] == "agent"
        assert row["reward_model"] == {"style": "rule", "ground_truth": t.task["id"]}
        assert row["extra_info"].get("index", 0) == n
        assert not row["extra_info"].get("tools_kwargs", {})
        assert json.loads(row["extra_info"]["task"]) == t.task
        assert row["env_kwargs"]["task_id"] == t.task["id"]
    # As collate_fn makes a batch of it, and TrajectoryCollector hands it on.
    batch = np.array([row["env_kwargs"] for row in rows], dtype=object)
    assert [kwargs["game_file"] for kwargs in batch] == json.loads((tmp_path / "verl" / "tasks-alfworld.json").read_text())[
        "game_files"
    ]


def test_the_games_are_listed_as_alfworld_lays_them_out(export, tmp_path, monkeypatch):
    tasks = [alfworld_task(name) for name in GAMES[:3]]
    older = {"env": "alfworld", "game_file": f"/data/json_2.1.1/{GAMES[3].partition('/')[2]}/game.tw-pddl", "reward": 1.0}
    rl = [trajectory(f"r{n}", task) for n, task in enumerate([*tasks, older, tasks[0]])]
    write_route(tmp_path / "route", [trajectory("s")], rl)
    code, out, _ = export("--json")
    assert code == 0
    exported = json.loads(out)
    assert (exported["routing"]["n_rl"], exported["warnings"]) == (5, [])
    assert pq.read_metadata(tmp_path / "verl" / "rl-alfworld.parquet").num_rows == 4
    allowed = json.loads((tmp_path / "verl" / "tasks-alfworld.json").read_text())
    files = [f"json_2.1.1/{name.partition('/')[2]}/game.tw-pddl" for name in GAMES]
    assert allowed == {"environment": "alfworld", "game_files": files}

    # The lines that docs/verl.md adds to AlfworldEnvs.__init__, on a collection of more games.
    monkeypatch.setenv("ALFWORLD_DATA", "/data/alfworld")
    monkeypatch.setenv("GRADPRISM_TASKS", str(tmp_path / "verl" / "tasks-alfworld.json"))
    there = [f"/data/alfworld/{file}" for file in [*files[::-1], "json_2.1.1/train/other/trial/game.tw-pddl"]]
    base_env = SimpleNamespace(game_files=list(there), num_games=5)
    scope = {"base_env": base_env, "is_train": True, "os": os}
    exec(snippets()[1], scope)
    assert (base_env.game_files, base_env.num_games) == (there[:4][::-1], 4)
    base_env.game_files = there[1:]
    with pytest.raises(FileNotFoundError, match="1 routed games are not in the training split"):
        exec(snippets()[1], scope)
    exec(snippets()[1], {**scope, "is_train": False})
    assert base_env.game_files == there[1:]


@pytest.fixture
def shop(tmp_path):
    """A catalogue in the official files, and its environment."""
    items, instructions = generate_catalogue(300, 0)
    write_json(tmp_path / "shop" / "items_shuffle.json", items)
    write_json(tmp_path / "shop" / "items_ins_v2.json", instructions)
    return make_environment("webshop", data_dir=str(tmp_path / "shop"))


def test_goals_are_listed_with_what_they_ask_for(export, load, shop, tmp_path, monkeypatch):
    numbers = [len(shop.store.goals) - 1, 600, 499]
    rl = [trajectory(f"r{n}", webshop_task(f"{shop.store.id}/{number}")) for n, number in enumerate(numbers)]
    write_route(tmp_path / "route", [trajectory("s")], rl)
    code, out, _ = export("--data-dir", tmp_path / "shop")
    assert code == 0
    assert "warning: goal_indices count in the shuffle of seed 233" in out
    assert "warning: 1 WebShop goals are among the 500 on which verl-agent validates" in out
    assert "--data-dir" not in out
    allowed = json.loads((tmp_path / "verl" / "tasks-webshop.json").read_text())
    assert (allowed["catalogue"], allowed["human_goals"], allowed["shuffle_seed"]) == (shop.store.id.split("/")[0], False, 233)
    assert allowed["goal_indices"] == numbers
    for number, goal in zip(numbers, allowed["goals"], strict=True):
        ours = shop.store.goals[number]
        assert goal == {"index": number, "asin": ours.asin, "options": options(ours), "instruction": ours.text}
    assert [row["env_kwargs"]["goal_index"] for row in load(tmp_path / "verl" / "rl-webshop.parquet")] == numbers

    # The lines that docs/verl.md puts into WebshopMultiProcessEnv.__init__, and what they say of another order.
    monkeypatch.setenv("GRADPRISM_TASKS", str(tmp_path / "verl" / "tasks-webshop.json"))
    goals = [{"asin": goal.asin, "goal_options": options(goal)} for goal in shop.store.goals]
    scope = {"self": SimpleNamespace(goal_idxs=range(500, len(goals))), "goals": goals}
    exec(snippets()[2], scope)
    assert scope["self"].goal_idxs == numbers
    random.Random(0).shuffle(goals)
    with pytest.raises(ValueError, match="give every worker the seed 233"):
        exec(snippets()[2], scope)


def test_goals_have_the_places_of_the_originals_shuffle(shop, tmp_path):
    """Whatever was drawn before it: the original shuffles with the module's generator, seeded just then."""
    catalogue = read_catalogue(tmp_path / "shop")
    products = {product.asin: product for product in catalogue.products}
    state = random.getstate()
    try:
        for before in (0, 1):
            random.seed(before)
            goals = []
            for instruction in catalogue.instructions:
                random.sample(range(4), 2)  # a price bound
                values_of = products[instruction.asin].options
                names = sorted(values_of)
                goals += [
                    (instruction.asin, dict(zip(names, values, strict=True)))
                    for values in itertools.product(*(values_of[name] for name in names))
                ]
            random.seed(233)
            random.shuffle(goals)
            assert goals == [(goal.asin, options(goal)) for goal in make_goals(catalogue, human=False)]
    finally:
        random.setstate(state)


def test_tasks_without_a_counterpart_are_named_and_never_listed_as_games(export, load, tmp_path):
    names = ["small/train/pick_and_place_simple/0", GAMES[0], "small/train/pick_and_place_simple/1"]
    own = {"env": "my.package:Maze", "id": "maze-7"}
    goal = webshop_task("generated-1000-1a2b3c4d5e6f/synthetic/17")
    rl = [trajectory(f"r{n}", task) for n, task in enumerate([*map(alfworld_task, names), goal, own])]
    write_route(tmp_path / "route", [trajectory("s")], rl)
    code, out, _ = export()
    assert code == 0
    assert "warning: 2 of 3 alfworld tasks are not of the data that verl-agent plays" in out
    assert "warning: 1 of 1 webshop tasks are not" in out
    folder = tmp_path / "verl"
    assert sorted(path.name for path in folder.iterdir()) == [
        "export.json",
        "rl-alfworld.parquet",
        "rl-my-package-maze.parquet",
        "rl-webshop.parquet",
        "sft.parquet",
        "tasks-alfworld.json",
        "tasks-my-package-maze.json",
        "tasks-webshop.json",
    ]
    allowed = {env: json.loads((folder / f"tasks-{env}.json").read_text()) for env in ("alfworld", "webshop", "my-package-maze")}
    assert allowed["alfworld"]["no_counterpart"] == [names[0], names[2]]
    assert len(allowed["alfworld"]["game_files"]) == 1
    assert allowed["webshop"] == {"environment": "webshop", "no_counterpart": [goal["id"]]}
    assert allowed["my-package-maze"] == {"environment": "my.package:Maze", "no_counterpart": ["maze-7"]}
    kwargs = [row["env_kwargs"] for row in load(folder / "rl-alfworld.parquet")]
    assert [(k["task_id"], k["game_file"] is None) for k in kwargs] == [(names[0], True), (names[1], False), (names[2], True)]
    assert [row["env_kwargs"] for row in load(folder / "rl-my-package-maze.parquet")] == [{"task_id": "maze-7"}]


def test_games_of_other_splits_are_warned_of(export, tmp_path):
    name = GAMES[0].replace("/train/", "/valid_seen/")
    write_route(tmp_path / "route", [], [trajectory("r", alfworld_task(name))])
    assert "warning: some ALFWorld games are of valid_seen; verl-agent trains on those of train only" in export()[1]


def test_a_routed_probe_is_exported_whole(export, tmp_path):
    make_probe(tmp_path / "probe")
    route(tmp_path / "probe").save(tmp_path / "route")
    assert_refused(export(), "rl.jsonl:1: task {'env': 'sample'", "has no 'id'")
    assert not (tmp_path / "verl").exists()
    lines = [json.loads(line) for line in (tmp_path / "route" / "rl.jsonl").read_text().splitlines()]
    for line in lines:
        line["task"] = {"env": "sample", "id": line["task"]["task_id"]}
    write_jsonl(tmp_path / "route" / "rl.jsonl", lines)
    code, out, err = export("--json")
    assert (code, err) == (0, "")
    folder = tmp_path / "verl"
    exported = json.loads(out)
    assert exported == json.loads((folder / "export.json").read_text())
    assert exported["routing"] == json.loads((tmp_path / "route" / "routing.json").read_text())
    assert exported["source_sha256"] == sha256_folder(tmp_path / "route")
    assert exported["files"] == {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "export.json"}
    sft = list(load_corpus(tmp_path / "route" / "sft.jsonl"))
    assert [list(row) for row in pd.read_parquet(folder / "sft.parquet")["messages"]] == [t.chat() for t in sft]
    assert exported["routing"]["n_sft"] == len(sft) == 11
    # Our own readers take the SFT file as well, so nothing is lost on the way.
    assert [(t.id, t.messages) for t in list(load_corpus(folder / "sft.parquet"))] == [(t.id, t.messages) for t in sft]
    assert export(out="again")[0] == 0
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_an_output_in_use_is_replaced_only_if_it_is_an_export(export, tmp_path):
    write_route(tmp_path / "route", [trajectory("s")], [trajectory("r", alfworld_task(GAMES[0]))])
    assert export()[0] == 0
    assert_refused(export(), "verl: is not empty")
    assert export("--on-existing", "replace")[0] == 0
    assert_refused(export("--on-existing", "resume"), "choose replace or fail")
    assert_refused(export("--on-existing", "replace", out="route"), "route: is in use and no verl export (no export.json)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["route", "verl"]


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({}, ("names no task of an environment",)),
        ({"env": "alfworld"}, ("expected env 'alfworld' and the id of a task",)),
        (alfworld_task("official/train/../trial"), ("SPLIT/TASK/TRIAL",)),
        (alfworld_task("official/training/a-b/trial"), ("split 'training' is none of",)),
        (alfworld_task("small/train/juggle/0"), ("expected DIFFICULTY/SPLIT/TASK_TYPE/INDEX",)),
        ({"env": "alfworld", "game_file": "somewhere.z8"}, ("expected …/SPLIT/TASK/TRIAL/game.tw-pddl",)),
        (webshop_task("webshop_17"), ("expected the id of a goal",)),
        (
            webshop_task("official-2000-1a2b3c4d5e6f/synthetic/17"),
            ("is not of official-1000-1a2b3c4d5e6f/synthetic", "route them apart"),
        ),
    ],
)
def test_a_task_that_cannot_be_named_is_one_line(export, tmp_path, task, words):
    first = webshop_task("official-1000-1a2b3c4d5e6f/synthetic/16")
    write_route(tmp_path / "route", [], [trajectory("a", first), trajectory("b", task)])
    assert_refused(export(), "rl.jsonl:2: ", *words)
    assert not (tmp_path / "verl").exists()


def test_broken_route_folders_are_one_line(cli, export, tmp_path):
    assert_refused(export(), "route: no such folder", "`gradprism route`")
    (tmp_path / "route").mkdir()
    assert_refused(export(), "is no route folder (no routing.json)")
    (tmp_path / "route").rmdir()
    write_route(tmp_path / "route", [trajectory("s")], [trajectory("r", alfworld_task(GAMES[0]))])
    good = {path: path.read_bytes() for path in (tmp_path / "route").iterdir()}

    def changed(name, content, *words):
        (tmp_path / "route" / name).write_bytes(content)
        assert_refused(export(), *words)
        for path, before in good.items():
            path.write_bytes(before)
        assert not (tmp_path / "verl").exists()

    rl, sft = good[tmp_path / "route" / "rl.jsonl"], good[tmp_path / "route" / "sft.jsonl"]
    changed("rl.jsonl", rl[:-9], "rl.jsonl:1: is no RL task (", "truncated")
    changed("rl.jsonl", rl + b"\n", "rl.jsonl:2: is no RL task (", "truncated")
    changed("rl.jsonl", rl + rl, "rl.jsonl: holds 2 lines, routing.json says 1")
    changed("rl.jsonl", b"", "rl.jsonl: holds 0 lines")
    changed("rl.jsonl", rl.replace(b'"role"', b'"from"'), "rl.jsonl:1: is no RL task (Object missing required field `role`")
    changed("rl.jsonl", re.sub(rb'"prompt": \[.*?\]', b'"prompt": []', rl), "rl.jsonl:1: 'prompt' is empty")
    changed("rl.jsonl", rl.replace(b"You are", b"\\ud800 You are"), "rl.jsonl:1: is no RL task (", "surrogate")
    changed("sft.jsonl", sft + sft, "sft.jsonl:2: id 's' is taken")
    changed("sft.jsonl", b"", "sft.jsonl: holds 0 trajectories, routing.json says 1")
    changed("sft.jsonl", sft[:-9], "sft.jsonl:1: ")
    changed("routing.json", b"{}", "routing.json: is not of a route folder")
    changed("routing.json", b"[", "routing.json: not valid JSON")
    (tmp_path / "route" / "rl.jsonl").unlink()
    assert_refused(export(), "is no route folder (no rl.jsonl)")


def test_other_webshop_files_are_refused(export, shop, tmp_path):
    write_route(tmp_path / "route", [], [trajectory("r", webshop_task("official-1000-1a2b3c4d5e6f/synthetic/16"))])
    assert_refused(export("--data-dir", tmp_path / "shop"), "official-1000-1a2b3c4d5e6f/synthetic/16", "give the same data")
    assert_refused(export("--data-dir", tmp_path / "none"), "none: no such folder")
    code, out, _ = export()
    assert code == 0
    assert "warning: give --data-dir" in out
    assert "goals" not in json.loads((tmp_path / "verl" / "tasks-webshop.json").read_text())
    write_route(tmp_path / "route2", [], [trajectory("r", alfworld_task(GAMES[0]))])
    (tmp_path / "route").rename(tmp_path / "route1")
    (tmp_path / "route2").rename(tmp_path / "route")
    assert_refused(export("--data-dir", tmp_path / "shop", out="b"), "no RL task is a goal of WebShop's official files")
