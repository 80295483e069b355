"""Corpora as pages get them: every column, text and distance is that of the files."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from scipy.spatial.distance import cdist

import gradprism as gp
from gradprism.concentration import BUILTIN, FORMULAS, METRICS
from gradprism.probing.pass_scores import PASS_SCORES
from gradprism.probing.result import Probe
from gradprism.routing.routes import Routes
from gradprism.runtime.errors import ConfigError, DataError, MissingFileError
from gradprism.studio.resources import ChangedError, Resources
from gradprism.studio.trajectory import token_texts
from helpers.probes import make_probe
from helpers.studio import ATTACK, HOSTILE, columns_of, make_tree
from helpers.tiny import chatml_tokenizer, sample_trajectories


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    return folder, make_tree(folder)


@pytest.fixture
def tree(kept, tmp_path):
    """A copy of its own, as the model's path in the manifest is not."""
    for name in ("probe", "route"):
        shutil.copytree(kept[0] / name, tmp_path / name)
    return tmp_path


class Asked:
    """Resources of a tree, with the version that the first corpus has."""

    def __init__(self, *roots, **options):
        self.resources = Resources([str(root) for root in roots], **options)
        self.entries = json.loads(self.resources.get("index.json", {}).content)["entries"]
        self.id = next(entry["corpus"] for entry in self.entries if entry["corpus"])

    def meta(self):
        return json.loads(self.resources.get(f"corpus/{self.id}/meta.json", {}).content)

    def json(self, path, **query):
        return json.loads(self.resources.get(f"corpus/{self.id}/{path}", query).content)

    def columns(self, path, **query):
        return columns_of(self.resources.get(f"corpus/{self.id}/{path}", query).content)[1]


def test_columns_are_the_probes_and_the_tasks(kept):
    folder, trajectories = kept
    asked, probe = Asked(folder), Probe.load(folder / "probe")
    columns = asked.columns("columns.bin")
    assert columns["id"] == [t.id for t in trajectories]
    for name in ("n_tokens", "n_response_tokens", "n_turns", "loss", "l2"):
        np.testing.assert_array_equal(columns[name], probe.frame[name])
    np.testing.assert_allclose(columns["gini"], METRICS.call("gini", probe.norms))
    assert columns["task_type"] == [t.task.get("task_type") for t in trajectories]
    assert columns["task.source"] == [t.task["source"] for t in trajectories]
    more = asked.columns("more.bin")
    scaled = probe.norms / np.sqrt([unit.n_parameters for unit in probe.units])
    for metric in ("cv", "kurtosis"):
        np.testing.assert_allclose(more[metric], METRICS.call(metric, probe.norms))
        np.testing.assert_allclose(more[f"{metric}/per_parameter"], METRICS.call(metric, scaled))
    turns = probe.turn_scores("gini")
    expected = turns.group_by("index").agg(pl.col("score").max()).sort("index")["score"]
    np.testing.assert_allclose(more["turn_max"], expected)
    meta = asked.meta()
    assert (meta["n"], meta["metrics"][0], meta["per_turn"], meta["tokens"], meta["losses"]) == (12, "gini", True, True, True)
    assert [(unit["layer"], unit["matrix"]) for unit in meta["units"][6:8]] == [(0, "down"), (1, "q")]


def test_every_score_of_norms_and_of_the_pass_is_a_column_with_its_formula(kept):
    asked, probe = Asked(kept[0]), Probe.load(kept[0] / "probe")
    metrics = asked.meta()["metrics"]
    assert metrics[:3] == list(BUILTIN) and set(metrics) == {*FORMULAS, "effective_rank"} == {*METRICS, "effective_rank"}
    columns = asked.columns("columns.bin") | asked.columns("more.bin")
    headers = [columns_of(asked.resources.get(f"corpus/{asked.id}/{name}", {}).content)[0] for name in ("columns.bin", "more.bin")]
    told = {column["name"]: column for header in headers for column in header["columns"]}
    for name in metrics:
        np.testing.assert_allclose(columns[name], probe.scores(name), err_msg=name)
        formula = PASS_SCORES[name].formula if name in PASS_SCORES else FORMULAS[name].replace("`", "")
        assert told[name]["kind"] == "metric" and told[name]["help"].startswith(formula) and ". High: " in told[name]["help"]
    audit = gp.route(kept[0] / "probe", "effective_rank").audit()
    assert asked.json("audit.json", column="effective_rank")["spearman"]["l2"] == pytest.approx(audit.spearman["l2"])


def test_a_score_that_no_trajectory_has_is_no_column(tmp_path):
    make_probe(tmp_path / "probe", manifest={"units": [f"layers.0.{i}" for i in range(14)]})
    columns = Asked(tmp_path).columns("more.bin")
    assert "gini_kinds" in columns and "gini_layers" not in columns


def test_a_trajectory_is_what_was_probed(kept):
    folder, trajectories = kept
    asked, probe = Asked(folder), Probe.load(folder / "probe")
    for row in (3, 11):
        view, trajectory = asked.json(f"trajectory/{row}.json"), trajectories[row]
        assert (view["id"], view["task"], view["note"]) == (trajectory.id, trajectory.task, "")
        assert [(m["role"], m["content"], m["reasoning"]) for m in view["messages"]] == [
            (m.role, m.content, m.reasoning) for m in trajectory.messages
        ]
        assert [m["weight"] for m in view["messages"] if m["role"] == "assistant"] == [
            m.weight for m in trajectory.messages if m.role == "assistant"
        ]
        np.testing.assert_allclose(view["norms"], probe.norms[row], rtol=1e-3)
        turns = probe.turn_measures().filter(pl.col("index") == row)
        assert [turn["turn"] for turn in view["turns"]] == turns["turn"].to_list()
        np.testing.assert_allclose([turn["scores"]["cv"] for turn in view["turns"]], turns["cv"])
        spoken = {m["turn"]: m for m in view["messages"] if m["turn"] is not None}
        assert all(spoken[turn["turn"]]["weight"] > 0 for turn in view["turns"])
    [call] = asked.json("trajectory/11.json")["messages"][2]["tool_calls"]
    assert call == {"id": "c1", "name": ATTACK, "arguments": {ATTACK: ATTACK}}
    with pytest.raises(MissingFileError, match="has no row 12, only 0 to 11"):
        asked.json("trajectory/12.json")


def test_distances_are_between_standardised_profiles(kept):
    asked, probe = Asked(kept[0]), Probe.load(kept[0] / "probe")
    profile = probe.norms.astype(float) / probe.norms.sum(axis=1, keepdims=True, dtype=float) * len(probe.units)
    z = (profile - profile.mean(axis=0)) / profile.std(axis=0)
    np.testing.assert_allclose(asked.columns("distances/4.bin")["distance"], cdist(z[4:5], z)[0], atol=1e-4)
    np.testing.assert_allclose(asked.columns("profiles.bin")["profile"].reshape(z.shape), z, rtol=1e-3, atol=1e-4)
    told = asked.json("profile.json")
    np.testing.assert_allclose(told["mean"], profile.mean(axis=0))
    np.testing.assert_allclose(told["std"], profile.std(axis=0), rtol=1e-5)


def test_norms_that_are_zero_or_alike_have_the_mean_profile(tmp_path):
    def change(norms):
        norms[2] = 0
        norms[:, 5] = norms.sum(axis=1) - norms[:, 5]  # always half of the sum

    make_probe(tmp_path / "probe", change=change)
    asked = Asked(tmp_path / "probe")
    found = asked.columns("distances/2.bin")["distance"]
    assert np.isfinite(found).all() and found[2] == 0
    assert np.isnan(asked.columns("columns.bin")["gini"][2])
    assert asked.meta()["warnings"][0] == "1 trajectories have no gini: all of their norms are zero"
    with pytest.raises(DataError, match="undefined for 1 trajectories"):
        asked.json("audit.json", column="gini")


def test_texts_are_found_whatever_their_case(kept):
    folder, trajectories = kept
    asked = Asked(folder)
    for wanted in ("CABINET 1", "alert(1)", "trajectory-0003", "c1", "ünknown"):
        inside = [
            wanted.casefold() in json.dumps([t.id, [m.to_chat() for m in t.messages]], ensure_ascii=False).casefold()
            for t in trajectories
        ]
        assert asked.columns("search.bin", q=wanted)["row"].tolist() == np.flatnonzero(inside).tolist(), wanted
    assert len(asked.columns("search.bin", q=" ")["row"]) == 12
    previews = asked.columns("previews.bin")["preview"]
    assert previews[0] == " ".join(trajectories[0].messages[0].content.split())[:160]
    assert previews[11].startswith("look at </script>") and len(previews[11]) <= 160


def test_tokens_are_those_of_the_probe_with_their_losses(kept):
    folder, trajectories = kept
    asked, probe = Asked(folder), Probe.load(folder / "probe")
    renderer = gp.Renderer(gp.load_tokenizer(str(folder / "model")), 4096)
    for row in (0, 11):
        view, rendered = asked.json(f"tokens/{row}.json"), renderer.render(trajectories[row])
        assert len(view["lengths"]) == len(view["losses"]) == len(rendered.input_ids)
        assert sum(view["lengths"]) == len(view["text"])
        mask = np.zeros(len(rendered.input_ids), dtype=bool)
        for start, stop in view["response"]:
            mask[start:stop] = True
        np.testing.assert_array_equal(mask, rendered.response_mask)
        kept_losses = probe.token_losses(row)
        assert kept_losses is not None
        told = [loss for loss in view["losses"] if loss is not None]
        np.testing.assert_allclose(told, kept_losses, atol=1e-3)
        assert np.mean(told) == pytest.approx(probe.frame["loss"][row], rel=1e-2)


def test_a_character_of_several_tokens_stands_at_its_first():
    tokenizer = chatml_tokenizer().backend_tokenizer
    for text in ("go to \U0001f600 now", "ü", " a  b\n\tc", "日本 x", "take apple 1"):
        ids = tokenizer.encode(text).ids
        pieces = token_texts(tokenizer, ids)
        assert "".join(pieces) == text and len(pieces) == len(ids)


def test_tokens_without_a_tokenizer_say_what_to_do(tree, kept):
    asked = Asked(tree)  # its model lies elsewhere
    meta = asked.meta()
    assert not meta["tokens"] and "give --model with the model's folder" in meta["tokens_hint"]
    with pytest.raises(MissingFileError, match="give --model"):
        asked.json("tokens/0.json")
    assert Asked(tree, models=[str(kept[0] / "model")]).meta()["tokens"]
    with pytest.raises(MissingFileError, match=r"holds no tokenizer\.json"):
        Asked(tree, models=[str(tree)])


def test_an_audit_of_any_cut_is_that_of_a_route(kept):
    folder, _ = kept
    asked = Asked(folder)
    expected = {
        ("gini", None): gp.route(folder / "probe"),
        ("cv", "0.4"): gp.route(folder / "probe", "cv", threshold=0.4),
        ("kurtosis/per_parameter", None): gp.route(folder / "probe", "kurtosis", normalise="per_parameter"),
    }
    for (column, threshold), routes in expected.items():
        told = asked.json("audit.json", column=column, **({"threshold": threshold} if threshold else {}))
        audit = routes.audit()
        assert told["threshold"] == pytest.approx(routes.routing.threshold)
        assert told["warnings"] == list(audit.warnings)
        for name in ("loss", "l2", "n_tokens", "n_turns"):
            assert told["spearman"][name] == pytest.approx(audit.spearman[name])
            assert told["split_by"][name]["same_side"] == pytest.approx(audit.split_by[name].same_side)
        assert told["threshold_standard_error"] == pytest.approx(audit.threshold_standard_error)
    with pytest.raises(ConfigError, match="is no metric of this corpus; choose one of gini, cv"):
        asked.json("audit.json", column="loss")
    with pytest.raises(ConfigError, match="'high': is no number"):
        asked.json("audit.json", column="gini", threshold="high")


def test_routes_are_shown_with_the_probe_that_they_are_of(tree):
    asked = Asked(tree)
    meta, probe = asked.meta(), Probe.load(tree / "probe")
    [told] = meta["routes"]
    frame = Routes.load(tree / "route").frame
    assert (told["n_sft"], told["n_rl"], told["n_overrides"], told["read_only"]) == (6, 6, 0, None)
    columns = asked.columns(f"routes/{told['id']}.bin")
    assert columns["side"] == columns["cut"] == frame["route"].to_list() and set(columns["reason"]) == {""}
    np.testing.assert_array_equal(columns["score"], frame["score"])
    entry = next(entry for entry in asked.entries if entry["kind"] == "route")
    assert entry["corpus"] == asked.id and "6 to SFT, 6 to RL" in entry["summary"]
    assert len(probe) == 12


def test_how_a_route_was_made_is_told(tree):
    ways = {
        "plain": {},
        "share": {"rl_share": 0.25, "order": "descending", "seed": 3},
        "shares": {"shares": (0.25, 0.25, 0.5), "sides": ("sft", "both", "rl"), "within": "length"},
        "weights": {"weights": "logistic", "temperature": 0.2, "per_turn": True},
    }
    for name, way in ways.items():
        gp.route(tree / "probe", **way).save(tree / name)
    asked = Asked(tree)
    told = {route["name"]: route for route in asked.meta()["routes"]}
    names = ("threshold_rule", "rl_share", "shares", "weights", "temperature", "order", "seed", "per_turn", "asks_for")
    assert {name: [told[name][key] for key in names] for name in ways} == {
        "plain": ["median", None, [], None, None, None, 0, False, []],
        "share": ["quantile", 0.25, [], None, None, "descending", 3, False, []],
        "shares": ["shares", None, [0.25, 0.25, 0.5], None, None, None, 0, False, []],
        "weights": ["weights", None, [], "logistic", 0.2, None, 0, True, []],
    }
    assert (
        told["shares"]["sides"] == ["sft", "both", "rl"]
        and told["shares"]["n_both"] == Routes.load(tree / "shares").routing.n_both > 0
    )
    columns, frame = asked.columns(f"routes/{told['weights']['id']}.bin"), Routes.load(tree / "weights").frame
    assert columns["side"] == frame["route"].to_list() and set(columns["side"]) == {"both"}
    np.testing.assert_array_equal(columns["rl_weight"], frame["rl_weight"])


def test_a_route_without_its_probe_is_a_corpus_by_itself(tree, kept):
    asked, trajectories = Asked(tree / "route"), kept[1]
    meta = asked.meta()
    assert meta["units"] == [] and "name the probe's folder" in meta["routes"][0]["read_only"]["hint"]
    columns, frame = asked.columns("columns.bin"), Routes.load(tree / "route").frame
    assert columns["id"] == frame["id"].to_list() and columns["task.source"] == [t.task["source"] for t in trajectories]
    for row, side in enumerate(frame["route"]):
        view = asked.json(f"trajectory/{row}.json")
        said = [(m["role"], m["content"]) for m in view["messages"]]
        whole = [(m.role, m.content) for m in trajectories[row].messages]
        if side == "sft":
            assert said == whole and not view["note"]
        else:
            assert said == whole[: len(said)] and said[-1][0] == "user" and "prompts alone" in view["note"]
    with pytest.raises(DataError, match="is a route without its probe"):
        asked.json("profile.json")


def test_what_has_changed_is_told_and_read_again(tree):
    asked = Asked(tree)
    version = asked.meta()["version"]
    assert len(asked.columns("columns.bin", v=version)["id"]) == 12
    manifest = json.loads((tree / "probe" / "manifest.json").read_text())
    (tree / "probe" / "manifest.json").write_text(json.dumps({**manifest, "device": "cuda"}))
    with pytest.raises(ChangedError, match="has changed since it was read; load it again"):
        asked.columns("columns.bin", v=version)
    assert asked.meta()["version"] != version and asked.meta()["manifest"]["device"] == "cuda"
    lines = (tree / "probe" / "corpus.jsonl").read_bytes()
    (tree / "probe" / "corpus.jsonl").write_bytes(lines.replace(b"desk", b"dusk"))
    with pytest.raises(DataError, match=r"corpus\.jsonl: is not the corpus that was probed"):
        asked.columns("columns.bin")


def test_a_torn_shard_is_told(tree):
    shard = max((tree / "probe").glob("norms-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:100])
    asked = Asked(tree)
    with pytest.raises(DataError, match=r"trajectories are not probed yet \(cannot be read: norms-"):
        asked.meta()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("probe/manifest.json", '{"units": ["a"], "layers": 3, "n_parameters": "many"}', "not a probe's manifest"),
        ("probe/manifest.json", "{", "not valid JSON"),
        ("route/routing.json", '{"cut": 1}', "is not of a route folder"),
    ],
)
def test_a_folder_of_another_version_is_told_in_the_index(tree, file, content, message):
    (tree / file).write_text(content)
    entries = json.loads(Resources([str(tree)]).get("index.json", {}).content)["entries"]
    [problem] = [entry["problem"] for entry in entries if entry["kind"] == file.split("/")[0]]
    assert message in problem["message"] and problem["hint"]


def test_a_folder_that_is_gone_is_told(tree):
    asked = Asked(tree)
    shutil.rmtree(tree / "probe")
    with pytest.raises(MissingFileError, match="is gone; look at the list of folders again"):
        asked.meta()
    with pytest.raises(MissingFileError, match="no such folder; name probe, route"):
        Resources([str(tree / "nothing")])


def test_nothing_to_show_is_told(tmp_path):
    (tmp_path / "x").mkdir()
    index = json.loads(Resources([str(tmp_path)]).get("index.json", {}).content)
    assert index["entries"] == [] and "holds no folder that the studio shows" in index["problems"][0]["message"]


def test_turns_of_five_megabytes_and_what_no_reader_expects(tmp_path):
    make_probe(tmp_path / "probe", trajectories=[*sample_trajectories(3), HOSTILE])
    asked = Asked(tmp_path)
    view = asked.json("trajectory/3.json")
    assert [len(message["content"]) for message in view["messages"]][5] == 5_000_000
    assert asked.columns("search.bin", q="xxxxx")["row"].tolist() == [3]


def test_costs_are_those_of_a_device(tree):
    assert Asked(tree).meta()["costs"]["rl"] is None
    rates = Asked(tree, device_tflops=2.0).meta()
    parameters = rates["manifest"]["parameters"]
    assert rates["costs"]["rl"]["seconds_per_token"] == pytest.approx(8 * 8 * parameters / 2e12)
    assert rates["costs"]["rl"]["source"].startswith("2 TFLOP/s; 8 rollouts per task")
    assert rates["costs"]["probe_seconds"] > 0
