import hashlib
import json
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import polars as pl
import pytest

from gradprism.concentration import BUILTIN, METRICS, coefficient_of_variation, gini, kurtosis, theil_parts
from gradprism.probing.folder import ProbeRow
from gradprism.probing.result import Probe
from gradprism.routing.policies import POLICIES
from gradprism.routing.routes import Routes
from gradprism.routing.routes import route as route_probe
from gradprism.routing.sets import RlTask
from gradprism.routing.stability import audit
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.runtime.files import write_jsonl
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from helpers.cli import assert_refused
from helpers.probes import COUNT, N, create_folder, make_probe
from helpers.tiny import sample_trajectories


@pytest.fixture
def route(cli, tmp_path):
    """Routes `tmp_path`/probe; gives exit code, stdout and stderr."""
    return lambda *arguments, out="routes": cli("route", tmp_path / "probe", "--out", tmp_path / out, *arguments)


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        ("gini", gini),
        ("cv", coefficient_of_variation),
        ("kurtosis", kurtosis),
        ("theil_kinds", lambda norms: theil_parts(norms, np.arange(N) % 7)[0]),
    ],
)
def test_the_route_folder(route, tmp_path, metric, function):
    norms = make_probe(tmp_path / "probe")
    code, out, err = route("--metric", metric, "--json")
    assert (code, err) == (0, "")
    printed, folder = json.loads(out), tmp_path / "routes"
    assert sorted(path.name for path in folder.iterdir()) == [
        "audit.json",
        "rl.jsonl",
        "routes.parquet",
        "routing.json",
        "sft.jsonl",
    ]

    table = pl.read_parquet(folder / "routes.parquet")
    trajectories = sample_trajectories(COUNT)
    assert table["id"].to_list() == [t.id for t in trajectories]
    score = function(norms)
    np.testing.assert_allclose(table["score"], score)
    np.testing.assert_array_equal(table["score"], table[metric])
    np.testing.assert_allclose(table["l2"], np.sqrt((norms**2).sum(axis=1)))
    np.testing.assert_allclose(table["margin"], score - np.median(score))
    assert table["rank"].to_list() == [int((score <= s).sum()) for s in score]
    goes_to_rl = score > np.median(score)
    assert table["route"].to_list() == ["rl" if chosen else "sft" for chosen in goes_to_rl]

    sft = list(load_corpus(folder / "sft.jsonl"))
    expected = [t for t, chosen in zip(trajectories, goes_to_rl, strict=True) if not chosen]
    assert [(t.id, t.messages, t.task) for t in sft] == [(t.id, t.messages, t.task) for t in expected]
    rl = [json.loads(line) for line in (folder / "rl.jsonl").read_text().splitlines()]
    chosen = [t for t, chosen in zip(trajectories, goes_to_rl, strict=True) if chosen]
    assert rl == [{"id": t.id, "prompt": [t.chat()[0]], "task": t.task} for t in chosen]

    routing = json.loads((folder / "routing.json").read_text())
    assert (routing["policy"], routing["metric"], routing["n_sft"], routing["n_rl"]) == ("concentration", metric, 11, 10)
    assert routing["threshold"] == pytest.approx(np.median(score))
    assert printed["routing"] == routing
    assert Routes.load(folder).audit().to_json() == printed["audit"]
    assert printed["audit"]["spearman"][metric] == pytest.approx(1)


@pytest.mark.parametrize("normalise", ["per_parameter", "per_weight_norm"])
def test_norms_are_normalised_when_they_are_routed(route, tmp_path, normalise):
    norms = make_probe(tmp_path / "probe")
    assert route("--normalise", normalise)[0] == 0
    table = pl.read_parquet(tmp_path / "routes" / "routes.parquet")
    sizes = np.arange(1, N + 1)  # √ of the numbers of parameters, and the weights' norms
    np.testing.assert_allclose(table["score"], gini(norms / sizes))
    np.testing.assert_allclose(table["cv"], coefficient_of_variation(norms / sizes))
    np.testing.assert_allclose(table["l2"], np.linalg.norm(norms, axis=1))
    assert json.loads((tmp_path / "routes" / "routing.json").read_text())["normalise"] == normalise


def test_a_size_that_is_not_known_is_refused(route, tmp_path):
    make_probe(tmp_path / "probe", manifest={"weight_norms": [*range(1, N), None], "n_parameters": None})
    assert_refused(route("--normalise", "per_weight_norm"), "layers.1.6", "could not be read")
    assert_refused(route("--normalise", "per_parameter"), "layers.0.0 has no size to divide by", "probe again")
    assert_refused(route("--normalise", "by_size"), "choose one of none, per_parameter, per_weight_norm, per_corpus_median")


def test_the_corpus_s_texts_are_passed_on_as_they_are(route, tmp_path):
    """Also numbers and characters that a JSON reader might change, and turns that are not trained on."""
    odd = [
        Trajectory(
            'ü\u2028\\ "messages": [', (Message("user", 'a\n"task": {}'), Message("assistant", "b")), {"n": 10**30, "x": [1e300]}
        ),
        Trajectory(
            "second",
            (
                Message("system", "s", weight=0.0),
                Message("user", "\U0001f600"),
                Message("assistant", "no", weight=0.0),
                Message("user", "{}"),
                Message("assistant", "yes"),
            ),
        ),
    ]
    for order in (odd, odd[::-1]):
        folder = tmp_path / order[0].id[-1]
        store = create_folder(folder / "probe", {"units": ["a", "b", "c"]}, order)
        store.append([ProbeRow(i, t.id, -1, 9, 3, 1, 1.0, 2.0, np.array([1, 1.5, 2 + i], np.float32)) for i, t in enumerate(order)])
        route_probe(folder / "probe").save(folder / "routes")
        sft = list(load_corpus(folder / "routes" / "sft.jsonl"))
        assert sft == order[:1]
        (rl,) = map(json.loads, (folder / "routes" / "rl.jsonl").read_bytes().splitlines())
        assert rl == {"id": order[1].id, "prompt": order[1].prompt(), "task": order[1].task}


def test_a_corpus_that_is_not_the_probed_one_is_refused(route, tmp_path):
    make_probe(tmp_path / "probe")
    path = tmp_path / "probe" / "corpus.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for other in (lines[1:], [*lines, lines[0]], [lines[1], lines[0], *lines[2:]]):
        path.write_bytes(b"".join(other))
        assert_refused(route(), "corpus.jsonl: is not the corpus that was probed")
        assert not (tmp_path / "routes").exists()


def test_same_inputs_give_the_same_bytes(route, tmp_path):
    make_probe(tmp_path / "probe")
    for out in ("a", "b"):
        assert route("--policy", "random", "--seed", "5", out=out)[0] == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("policy", ["inverse", "soft", "random", "magnitude", "loss", "length", "uncertainty"])
def test_every_control_policy_routes(route, tmp_path, policy):
    make_probe(tmp_path / "probe")
    code, out, _ = route("--policy", policy)
    assert code == 0
    assert f"{policy} of gini" in out
    assert set(pl.read_parquet(tmp_path / "routes" / "routes.parquet")["route"]) == {"sft", "rl"}


def tasks_probe(folder):
    """A probe whose trajectories name tasks `task-0`…, two trajectories each, and types; the last names none and is its own task."""
    trajectories = [
        replace(t, task={"env": "sample", "id": f"task-{i // 2}", "task_type": "pick"} if i < COUNT - 1 else {})
        for i, t in enumerate(sample_trajectories(COUNT))
    ]
    make_probe(folder, trajectories=trajectories)
    return [t.task.get("id", t.id) for t in trajectories]


def test_pass_rates_are_the_share_of_a_task_s_episodes_that_were_won(route, tmp_path):
    tasks = tasks_probe(tmp_path / "probe")
    wins = {task: [k < i % 4 for k in range(3)] for i, task in enumerate(dict.fromkeys(tasks))}
    lines = [{"id": task, "success": won, "actions": []} for k in range(3) for task in wins for won in [wins[task][k]]]
    episodes = tmp_path / "episodes.jsonl"
    write_jsonl(episodes, [*lines, {"id": "not in the corpus", "success": True}])
    assert route("--policy", "pass_rate", "--pass-rates", episodes)[0] == 0
    table = pl.read_parquet(tmp_path / "routes" / "routes.parquet")
    assert table["pass_rate"].to_list() == [sum(wins[task]) / 3 for task in tasks]
    rl = table.filter(pl.col("route") == "rl")
    assert len(rl) == COUNT // 2
    sft = table.filter(pl.col("route") == "sft")
    assert rl["pass_rate"].to_numpy().min() >= sft["pass_rate"].to_numpy().max()
    routing, audit = (json.loads((tmp_path / "routes" / name).read_text()) for name in ("routing.json", "audit.json"))
    assert routing["pass_rates_sha256"] == hashlib.sha256(episodes.read_bytes()).hexdigest()
    assert audit["spearman"]["success"] > 0.9
    assert audit["task_type_eta_squared"] is None  # one trajectory has no type
    # What was ever won, at a threshold of 0.
    assert route("--policy", "pass_rate", "--pass-rates", episodes, "--threshold", "0", out="won")[0] == 0
    won = pl.read_parquet(tmp_path / "won" / "routes.parquet")
    assert ((won["route"] == "rl") == (won["pass_rate"] > 0)).all()
    assert route("--policy", "learnability", "--pass-rates", episodes, "--threshold", "0.2", out="learnable")[0] == 0
    learnable = pl.read_parquet(tmp_path / "learnable" / "routes.parquet")
    assert ((learnable["route"] == "rl") == (abs(learnable["pass_rate"] - 0.5) < 0.05**0.5)).all()
    # Another policy takes them for its audit alone.
    assert route("--pass-rates", episodes, out="gini")[0] == 0
    assert "success" in json.loads((tmp_path / "gini" / "audit.json").read_text())["split_by"]


def test_pass_rates_that_are_none(route, tmp_path):
    tasks = tasks_probe(tmp_path / "probe")
    episodes = tmp_path / "episodes.jsonl"
    arguments = ("--policy", "pass_rate", "--pass-rates", episodes)
    assert_refused(route("--policy", "pass_rate"), "needs pass rates; give --pass-rates")
    assert_refused(route(*arguments), "episodes.jsonl: no such file")
    whole = [{"id": task, "success": True} for task in tasks]
    write_jsonl(episodes, whole[:-1])
    assert_refused(
        route(*arguments), "trajectory 'sample-0020'", "no episode of its task 'sample-0020', and of 1 of 21 trajectories"
    )
    for line in ({"id": "a"}, {"id": "a", "success": 1}, {"id": 3, "success": True}, [], "a"):
        write_jsonl(episodes, [*whole[:3], line, *whole[3:]])
        assert_refused(route(*arguments), "episodes.jsonl:4: is no episode", "`gradprism evaluate`")
    episodes.write_text('{"id": "task-0", "success": true}\n{"id": "ta')
    assert_refused(route(*arguments), "episodes.jsonl:2: broken JSON")
    assert not (tmp_path / "routes").exists()


def test_a_corpus_line_that_is_cut_is_refused(route, tmp_path):
    make_probe(tmp_path / "probe")
    path = tmp_path / "probe" / "corpus.jsonl"
    for broken in (path.read_bytes()[:-20], b"[]\n" + path.read_bytes(), b"\xff" + path.read_bytes()[1:]):
        path.write_bytes(broken)
        assert_refused(route(), "corpus.jsonl: is not the corpus that was probed")


def test_task_types_are_audited_where_all_tasks_have_one(route, tmp_path):
    trajectories = [replace(t, task={"id": t.id, "task_type": f"type {i % 3}"}) for i, t in enumerate(sample_trajectories(COUNT))]
    make_probe(tmp_path / "probe", trajectories=trajectories)
    assert route()[0] == 0
    score = pl.read_parquet(tmp_path / "routes" / "routes.parquet")["score"].to_numpy()
    expected = (
        sum(len(score[k::3]) * (score[k::3].mean() - score.mean()) ** 2 for k in range(3)) / ((score - score.mean()) ** 2).sum()
    )
    audit = json.loads((tmp_path / "routes" / "audit.json").read_text())
    assert audit["task_type_eta_squared"] == pytest.approx(expected)


def test_thresholds_by_share_and_by_value(route, tmp_path):
    norms = make_probe(tmp_path / "probe")
    assert "13 to SFT, 8 to RL" in route("--rl-share", "0.4", out="a")[1]
    assert "11 to SFT, 10 to RL" in route("--rl-share", "0.5", out="b")[1]
    value = float(np.sort(gini(norms))[4])
    assert "5 to SFT, 16 to RL" in route("--threshold", repr(value), out="c")[1]
    code, out, _ = route("--threshold", "2", out="d")
    assert code == 0
    assert "warning: all 21 trajectories go to SFT" in out
    assert (tmp_path / "d" / "rl.jsonl").read_bytes() == b""


def test_all_equal_scores_go_to_sft_with_a_warning(route, tmp_path):
    make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__(slice(None), norms[0]))
    code, out, _ = route()
    assert code == 0
    assert "21 to SFT, 0 to RL" in out
    assert "warning: the scores are all equal" in out


def test_an_incomplete_probe_says_what_is_pending(route, tmp_path):
    make_probe(tmp_path / "probe", rows=15)
    assert_refused(route(), "6 of 21 trajectories are not probed yet", "`gradprism probe`")
    assert not (tmp_path / "routes").exists()


def test_a_torn_shard_is_pending(route, tmp_path):
    make_probe(tmp_path / "probe")
    shard = min((tmp_path / "probe").glob("norms-*.parquet"))
    pending = len(pl.read_parquet(shard))
    shard.write_bytes(shard.read_bytes()[:200])
    assert_refused(route(), f"{pending} of 21 trajectories are not probed yet (cannot be read: {shard.name})")
    assert shard.exists()


def test_a_stored_norm_that_is_not_finite_is_pending(route, tmp_path):
    make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__((4, 3), np.nan))
    assert_refused(route(), "1 of 21 trajectories are not probed yet")
    assert not (tmp_path / "routes").exists()


def test_a_bad_stored_norm_names_the_trajectory(route, tmp_path):
    make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__((4, 3), -1.0))
    assert_refused(route(), "trajectory 'sample-0004': norm -1.0 of matrix 3 is negative")
    assert not (tmp_path / "routes").exists()


def test_zero_norms_name_the_trajectory(route, tmp_path):
    make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__(4, 0))
    assert_refused(route(), "trajectory 'sample-0004': all norms are zero")


def test_a_folder_in_use_is_refused_and_left_alone(route, tmp_path):
    make_probe(tmp_path / "probe")
    (tmp_path / "routes").mkdir()
    (tmp_path / "routes" / "thesis.tex").write_text("mine")
    for option in ("fail", "replace"):
        assert_refused(route("--on-existing", option), "routes: is ")
    assert [path.name for path in (tmp_path / "routes").iterdir()] == ["thesis.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe", "routes"]


def test_links_to_empty_folders_and_the_working_folder_will_do(cli, route, tmp_path, monkeypatch):
    make_probe(tmp_path / "probe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert route(out="link")[0] == 0
    assert (tmp_path / "empty" / "routing.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli("route", tmp_path / "probe", "--out", ".")[0] == 0
    assert (tmp_path / "here" / "routing.json").is_file()


def test_replace_swaps_a_route_folder_whole(route, tmp_path):
    make_probe(tmp_path / "probe")
    assert route()[0] == 0
    assert_refused(route("--metric", "cv"), "is not empty")
    assert route("--metric", "cv", "--on-existing", "replace")[0] == 0
    assert json.loads((tmp_path / "routes" / "routing.json").read_text())["metric"] == "cv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe", "routes"]


def test_a_failed_write_leaves_the_old_folder(route, tmp_path, monkeypatch):
    make_probe(tmp_path / "probe")
    assert route()[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "routes").iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradprism.routing.sets.ProbeSets.write", full)
    for out in ("routes", "new"):
        assert_refused(route("--metric", "cv", "--on-existing", "replace", out=out), "No space left on device")
    assert {path.name: path.read_bytes() for path in (tmp_path / "routes").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["probe", "routes"]


def test_bad_choices_are_one_line(route, tmp_path):
    assert_refused(route(), "probe: no such folder")
    make_probe(tmp_path / "probe")
    assert_refused(route("--metric", "size"), "metric 'size': choose one of gini, cv, kurtosis")
    assert_refused(route("--policy", "best"), "policy 'best'")
    assert_refused(route("--threshold", "nan"), "must be a number on the score's scale")
    assert_refused(route("--threshold", "0.3", "--rl-share", "0.4"), "exclude each other")
    assert_refused(route("--on-existing", "resume"), "choose replace or fail")
    assert not (tmp_path / "routes").exists()


def test_a_route_in_memory_and_the_folder_that_it_saves_are_one(tmp_path):
    norms = make_probe(tmp_path / "probe")
    routes = route_probe(tmp_path / "probe", "cv", rl_share=0.4)
    trajectories, score = sample_trajectories(COUNT), coefficient_of_variation(norms)
    chosen = [bool(s > routes.routing.threshold) for s in score]
    assert sum(chosen) == 8
    assert repr(routes).startswith("<Routes: 13 to SFT, 8 to RL; concentration of cv, threshold ")
    assert routes.sft == [t for t, to_rl in zip(trajectories, chosen, strict=True) if not to_rl]
    assert routes.rl == [RlTask(t.id, t.prompt(), t.task) for t, to_rl in zip(trajectories, chosen, strict=True) if to_rl]
    routes.save(tmp_path / "routes")
    loaded = Routes.load(tmp_path / "routes")
    assert routes == routes != loaded and len({routes, loaded}) == 2  # by identity: tables have no hash
    assert (loaded.routing, loaded.sft, loaded.rl, loaded.audit()) == (routes.routing, routes.sft, routes.rl, routes.audit())
    assert loaded.frame.equals(routes.frame)
    loaded.save(tmp_path / "copy")
    for path in (tmp_path / "routes").iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes(), path.name
    data_sets = routes.to_datasets()
    assert data_sets["sft"]["messages"][0] == routes.sft[0].chat()
    assert [json.loads(task) for task in data_sets["rl"]["task"]] == [task.task for task in routes.rl]
    assert list(data_sets["rl"]["id"]) == [task.id for task in routes.rl]
    assert list(data_sets["rl"]["prompt"]) == [task.prompt for task in routes.rl]


def test_an_empty_side_is_a_data_set_without_rows(tmp_path):
    make_probe(tmp_path / "probe")
    routes = route_probe(tmp_path / "probe", threshold=2.0)
    routes.save(tmp_path / "routes")
    for one in (routes, Routes.load(tmp_path / "routes")):
        assert (len(one.sft), one.rl) == (COUNT, [])
        assert {name: len(rows) for name, rows in one.to_datasets().items()} == {"sft": COUNT, "rl": 0}


def test_a_metric_of_a_user_s_own_routes(route, tmp_path, monkeypatch):
    monkeypatch.setattr(METRICS, "_known", dict(METRICS._known))

    @METRICS.register("largest")
    def largest(norms):
        return norms.max(axis=1) / norms.sum(axis=1)

    norms = make_probe(tmp_path / "probe")
    assert route("--metric", "largest")[0] == 0
    table = pl.read_parquet(tmp_path / "routes" / "routes.parquet")
    np.testing.assert_allclose(table["score"], largest(norms))
    assert Routes.load(tmp_path / "routes").audit().spearman["largest"] == pytest.approx(1)


def test_other_metrics_that_are_registered_are_left_alone(route, tmp_path, monkeypatch):
    monkeypatch.setattr(METRICS, "_known", dict(METRICS._known))

    @METRICS.register("broken")
    def broken(norms):
        raise RuntimeError("broken")

    broken_import = EntryPoint("missing", "no.such.module:metric", METRICS.group)
    monkeypatch.setattr(METRICS, "_points", lambda: {"missing": broken_import})
    make_probe(tmp_path / "probe")
    assert route("--metric", "cv")[0] == 0
    assert {"broken", "missing"} < set(METRICS)
    assert set(METRICS) & set(pl.read_parquet(tmp_path / "routes" / "routes.parquet").columns) == set(BUILTIN)
    assert audit(tmp_path / "probe", compare=[tmp_path / "probe"]).agreement.metrics.keys() == {
        "gini – cv",
        "gini – kurtosis",
        "cv – kurtosis",
    }
    assert_refused(route("--metric", "broken", out="other"), "metric 'broken': raised RuntimeError: broken")


# Turns


def turns_of(rng):
    """Norms of one to four turns of each trajectory, some twice over; of one the norms of a turn are zero, of another those of all."""
    turns = {(i, k): rng.gamma(2.0, size=N).astype(np.float32) for i in range(COUNT) for k in range(1 + i % 4)}
    turns[6, 2] = turns[6, 1]
    for item in ((7, 1), (8, 0)):
        turns[item] = np.zeros(N, np.float32)
    turns[9, 0] = np.ones(N, np.float32)
    return turns


@pytest.mark.parametrize(("metric", "undefined"), [("gini", [(7, 1), (8, 0)]), ("kurtosis", [(7, 1), (8, 0), (9, 0)])])
@pytest.mark.parametrize("normalise", ["none", "per_parameter"])
def test_statistics_of_single_turns(route, tmp_path, metric, undefined, normalise):
    turns = turns_of(np.random.default_rng(3))
    make_probe(tmp_path / "probe", turns=turns)
    options = ("--metric", metric, "--normalise", normalise)
    undefined = undefined if normalise == "none" else undefined[:2]
    assert route(*options, "--per-turn")[0] == 0
    assert route(*options, out="without")[0] == 0
    table, plain = (pl.read_parquet(tmp_path / name / "routes.parquet") for name in ("routes", "without"))
    columns = ["turn_score_mean", "turn_score_std", "turn_score_min", "turn_score_max", "turn_of_max"]
    assert table.drop(columns).equals(plain), "the route goes by the whole trajectory"

    scales = 1.0 if normalise == "none" else 1 / np.arange(1, N + 1)
    scores = {
        item: float(METRICS.call(metric, (norms * scales)[None])[0]) for item, norms in turns.items() if item not in undefined
    }
    for i, row in enumerate(table.select(columns).iter_rows()):
        own = {turn: score for (index, turn), score in scores.items() if index == i}
        values = list(own.values())
        if not own:
            assert row == (None,) * 5
            continue
        assert row[:4] == pytest.approx((np.mean(values), np.std(values), min(values), max(values)), abs=1e-12)
        assert row[4] == max(own, key=own.__getitem__), "the first of equals"
    assert table["turn_score_mean"].null_count() == 1

    routing, without = (json.loads((tmp_path / name / "routing.json").read_text()) for name in ("routes", "without"))
    assert (routing["n_undefined_turns"], without["n_undefined_turns"]) == (len(undefined), None)
    assert Routes.load(tmp_path / "routes").frame.equals(table)


def test_a_policy_may_read_figures_of_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(POLICIES, "_known", dict(POLICIES._known))
    POLICIES.register("peak")(lambda table, context: table["turn_score_max"].fill_null(0.0).to_numpy())
    make_probe(tmp_path / "probe", turns=turns_of(np.random.default_rng(3)))
    frame = route_probe(tmp_path / "probe", policy="peak", per_turn=True).frame
    assert frame["score"].equals(frame["turn_score_max"].fill_null(0.0), check_names=False)


def test_a_probe_without_turns_is_refused(route, tmp_path):
    make_probe(tmp_path / "whole", turns={(0, 0): np.ones(N, np.float32), (1, 0): np.ones(N, np.float32)})
    for shard in (tmp_path / "whole").glob("norms-*.parquet"):
        if set(pl.read_parquet(shard, columns=["turn"])["turn"]) == {0}:
            shard.unlink()
    (tmp_path / "whole").rename(tmp_path / "probe")
    assert_refused(route("--per-turn"), "2 of 2 turns are not probed yet", "`gradprism probe --per-turn`")
    assert not (tmp_path / "routes").exists()
    assert route()[0] == 0


# Data sets


@pytest.mark.parametrize("untrained", [False, True])
def test_data_sets_are_read_back_as_they_were(tmp_path, untrained):
    """Tasks of different keys and types, and turns that are not trained on."""
    tasks = ({}, {"id": 1, "x": {"y": [None, "ü"]}}, {"id": "a", "{": "}"}, {"reward": 0.5})
    trajectories = [replace(t, task=tasks[i % 4]) for i, t in enumerate(sample_trajectories(COUNT))]
    if untrained:
        flagged = [replace(m, weight=float(m.role != "assistant" or k > 1)) for k, m in enumerate(trajectories[3].messages)]
        answered = (*flagged, Message("user", "and?"), Message("assistant", "yes"))
        trajectories = [replace(t, messages=answered) if i in (3, 8) else t for i, t in enumerate(trajectories)]
    make_probe(tmp_path / "probe", trajectories=trajectories)
    route_probe(tmp_path / "probe", threshold=2.0).save(tmp_path / "routes")
    for routes in (route_probe(tmp_path / "probe", threshold=2.0), Routes.load(tmp_path / "routes")):
        data_set = routes.to_datasets()["sft"]
        assert list(load_corpus(data_set)) == routes.sft == trajectories
        keys = {frozenset(message) for messages in data_set["messages"] for message in messages}
        assert keys == {frozenset({"role", "content", "train"} if untrained else {"role", "content"})}
        assert all(message.get("train") is not None for messages in data_set["messages"] for message in messages) or not untrained
    data_set.to_parquet(tmp_path / "sft.parquet")
    data_set.to_json(tmp_path / "sft.jsonl")
    assert list(load_corpus(tmp_path / "sft.parquet")) == list(load_corpus(tmp_path / "sft.jsonl")) == trajectories


def test_folders_that_are_no_route(tmp_path):
    with pytest.raises(MissingFileError, match="none: no such folder"):
        Routes.load(tmp_path / "none")
    make_probe(tmp_path / "probe")
    route_probe(tmp_path / "probe").save(tmp_path / "routes")
    for name, text in (("routing.json", "[]"), ("routing.json", '{"n_sft": 1}'), ("routes.parquet", "PAR1")):
        before = (tmp_path / "routes" / name).read_bytes()
        (tmp_path / "routes" / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: .*route again"):
            Routes.load(tmp_path / "routes")
        (tmp_path / "routes" / name).write_bytes(before)
    (tmp_path / "routes" / "rl.jsonl").unlink()
    with pytest.raises(MissingFileError, match=r"is no route folder \(no rl.jsonl\)"):
        Routes.load(tmp_path / "routes")


def test_pass_rates_by_task(tmp_path):
    tasks = tasks_probe(tmp_path / "probe")
    rates = {task: i % 5 / 4 for i, task in enumerate(dict.fromkeys(tasks))}
    assert route_probe(tmp_path / "probe", policy="pass_rate", pass_rates=rates).frame["pass_rate"].to_list() == [
        rates[task] for task in tasks
    ]
    del rates["task-3"]
    with pytest.raises(DataError, match="trajectory 'sample-0006': the pass rates hold no episode of its task 'task-3'"):
        route_probe(tmp_path / "probe", pass_rates=rates)


@pytest.mark.parametrize("rate", [float("nan"), -0.1, 2, "1"])
def test_pass_rates_that_are_no_shares_are_refused(tmp_path, rate):
    make_probe(tmp_path / "probe")
    with pytest.raises(DataError, match=r"that of task 'a' is .*; give numbers from 0 to 1"):
        route_probe(tmp_path / "probe", pass_rates={"a": rate})


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="seed -1"):
        route_probe(tmp_path / "probe", seed=-1)


def test_a_tilde_is_the_home_folder_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_probe(tmp_path / "probe")
    route_probe("~/probe").save("~/routes")
    assert Routes.load("~/routes").frame.equals(route_probe(tmp_path / "probe").frame)
    assert len(list(load_corpus("~/probe/corpus.jsonl"))) == COUNT
    Probe.load("~/probe").save("~/copy")
    Probe.load("~/probe").save("~/copy", "replace")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "probe", "routes"]


def test_calls_reasoning_tools_and_weights_go_the_whole_way(tmp_path):
    """From a probe's corpus through `sft.jsonl`, `rl.jsonl` and Hugging Face data sets, in memory and on disk."""
    tool = {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
    look = ToolCall("find", {"x": None, "city": "Chur"}, "c1")
    turns = (
        Message("system", "s", weight=0.5),
        Message("user", "when?"),
        Message("assistant", "bad", weight=0.0),
        Message("assistant", "", 0.25, "I ask", (look, ToolCall("look", {"at": [1, {"y": "z"}]}))),
        Message("tool", "09:12", name="find", tool_call_id="c1"),
        Message("assistant", "09:12"),
    )
    corpus = [Trajectory("a", turns, {"n": 1}, tools=(tool,)), Trajectory("b", turns, tools=(tool,))]
    store = create_folder(tmp_path / "probe", {"units": ["a", "b", "c"]}, corpus)
    store.append([ProbeRow(i, t.id, -1, 9, 3, 1, 1.0, 2.0, np.array([1, 1.5, 2 + i], np.float32)) for i, t in enumerate(corpus)])
    made = route_probe(tmp_path / "probe")
    made.save(tmp_path / "routes")
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "when?"}, {"role": "assistant", "content": "bad"}]
    for routes in (made, Routes.load(tmp_path / "routes")):
        assert routes.sft == corpus[:1]
        assert [(t.prompt, t.tools) for t in routes.rl] == [(prompt, [tool])]
        data_sets = routes.to_datasets()
        assert list(load_corpus(data_sets["sft"])) == corpus[:1]
        assert data_sets["sft"][0]["messages"][3]["tool_calls"][0]["function"]["arguments"] == look.arguments
        assert (data_sets["rl"][0]["prompt"], data_sets["rl"][0]["tools"]) == (prompt, [tool])
        data_sets["sft"].to_parquet(tmp_path / "sft.parquet")
        data_sets["sft"].save_to_disk(tmp_path / f"set-{routes.folder is None}")
        for source in (tmp_path / "sft.parquet", tmp_path / f"set-{routes.folder is None}"):
            assert list(load_corpus(source)) == corpus[:1]
    (line,) = map(json.loads, (tmp_path / "routes" / "rl.jsonl").read_text().splitlines())
    assert (line["prompt"], line["tools"]) == (prompt, [tool])


@pytest.mark.parametrize("name", ["sft.jsonl", "rl.jsonl"])
@pytest.mark.parametrize("line", [b'{"id": "\xff"}', b"[" * 100_000, b"9" * 5000, b""])
def test_a_set_whose_line_is_no_text_is_refused_by_file_and_line(route, tmp_path, name, line):
    make_probe(tmp_path / "probe")
    assert route()[0] == 0
    path = tmp_path / "routes" / name
    path.write_bytes(line + b"\n" + path.read_bytes().split(b"\n", 1)[1])
    routes = Routes.load(tmp_path / "routes")
    with pytest.raises(DataError, match=rf"{name}(:1)?: [^\n]*$"):
        _ = (routes.sft, routes.rl)


def test_a_table_that_is_damaged_anywhere_is_refused_in_one_line_or_read(route, tmp_path):
    make_probe(tmp_path / "probe")
    assert route()[0] == 0
    path = tmp_path / "routes" / "routes.parquet"
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole), 97):
        for broken in (whole[:at], whole[:at] + b"\xff" * 9 + whole[at + 9 :]):
            path.write_bytes(broken)
            try:
                Routes.load(tmp_path / "routes")
            except DataError as error:
                refused += 1
                assert "\n" not in str(error) and "routes.parquet: cannot be read" in str(error)
    assert refused > len(whole) // 97
