import json
import subprocess
import sys

import numpy as np
import pytest

from gradprism.concentration import gini
from gradprism.experiments.costs import projected_hours
from gradprism.experiments.results import read_results
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.result import Probe
from gradprism.probing.scores import View, score
from gradprism.routing.agreement import agreement as agreement_of
from gradprism.routing.routes import route
from gradprism.routing.stability import audit as audit_here
from gradprism.runtime.attempts import Attempt
from gradprism.runtime.files import write_json, write_jsonl
from gradprism.runtime.usage import Usage
from helpers.cli import assert_refused
from helpers.experiments import synthetic
from helpers.probes import COUNT, N, make_probe
from helpers.tiny import sample_trajectories


@pytest.fixture
def audit(cli, tmp_path):
    """Audits `tmp_path`/probe; gives exit code, stdout and stderr."""
    return lambda *arguments: cli("audit", tmp_path / "probe", *arguments)


def agreement(a, b):
    return agreement_of(a, b).model_dump()


def audited(audit, *arguments):
    code, out, err = audit("--json", *arguments)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_audit_begins_with_the_route_s(audit, tmp_path):
    make_probe(tmp_path / "probe")
    for metric, policy in (("gini", "concentration"), ("cv", "inverse"), ("kurtosis", "soft")):
        result = audited(audit, "--metric", metric, "--policy", policy, "--seed", "3")
        expected = route(tmp_path / "probe", metric, policy=policy, seed=3).audit().to_json()
        assert expected.pop("agreement")["metrics"] == result["agreement"]["metrics"]
        assert {**expected, "notes": result["notes"], "scores": result["scores"]} == {key: result[key] for key in expected}
        assert result["routing"]["n_trajectories"] == COUNT


@pytest.mark.parametrize("normalise", ["none", "per_weight_norm"])
def test_agreement_between_normalisations_and_layers(audit, tmp_path, normalise):
    norms = make_probe(tmp_path / "probe")
    result = audited(audit, "--normalise", normalise)["agreement"]
    sizes = np.arange(1, N + 1)  # √ of the numbers of parameters, and the weights' norms
    by_median = gini(norms / np.median(norms, axis=0))
    assert result["normalisations"] == {
        "none – per_parameter": agreement(gini(norms), gini(norms / sizes)),
        "none – per_weight_norm": agreement(gini(norms), gini(norms / sizes)),
        "none – per_corpus_median": agreement(gini(norms), by_median),
        "per_parameter – per_weight_norm": {"spearman": pytest.approx(1), "same_side": 1, "jaccard": 1},
        "per_parameter – per_corpus_median": agreement(gini(norms / sizes), by_median),
        "per_weight_norm – per_corpus_median": agreement(gini(norms / sizes), by_median),
    }
    used = norms if normalise == "none" else norms / sizes
    first, second, whole = gini(used[:, :7]), gini(used[:, 7:]), gini(used)
    assert result["layers"] == {
        "first half – second half": agreement(first, second),
        "first half – all layers": agreement(first, whole),
        "second half – all layers": agreement(second, whole),
        "even layers – odd layers": agreement(first, second),  # of two layers
    }
    assert result["probes"] == {}


def test_layers_are_told_by_the_first_number_of_a_unit_s_name(audit, tmp_path):
    """Of an odd number of layers the second half has one more; names may be paths, with experts' numbers behind the layer's."""
    kinds = ["attn.q", "experts.7.up", "experts.10.up"]
    units = [f"h.{layer}.{kind}" for layer in (2, 10, 30) for kind in kinds]
    sizes = {"n_parameters": [1] * len(units), "weight_norms": [1.0] * len(units)}
    norms = make_probe(tmp_path / "probe", manifest={"units": units, **sizes})
    first, second, odd = gini(norms[:, :3]), gini(norms[:, 3:]), gini(norms[:, 3:6])
    layers = audited(audit)["agreement"]["layers"]
    assert layers["first half – second half"] == agreement(first, second)
    assert layers["even layers – odd layers"] == agreement(gini(norms[:, [0, 1, 2, 6, 7, 8]]), odd)


def test_what_cannot_be_compared_is_noted(audit, tmp_path):
    def no_gradient_in_the_first_layer(norms):
        norms[4, :7] = 0

    make_probe(tmp_path / "probe", change=no_gradient_in_the_first_layer, manifest={"n_parameters": None})
    result = audited(audit)
    left = ["none – per_weight_norm", "none – per_corpus_median", "per_weight_norm – per_corpus_median"]
    assert list(result["agreement"]["normalisations"]) == left
    assert list(result["agreement"]["layers"]) == ["second half – all layers"]
    assert "layers.0.0 has no size to divide by" in result["notes"][0]
    assert (
        result["notes"][1] == "no comparison of first half and second half: the metric is undefined there for 1 of 21 trajectories"
    )
    assert "\nnote: no comparison of first half" in audit()[1]


def test_two_matrices_are_too_few_for_half_of_the_layers(cli, tmp_path):
    units = ["layers.0.q_proj", "layers.0.k_proj", *(f"layers.1.{kind}_proj" for kind in "qkvo")]
    make_probe(tmp_path / "probe", manifest={"units": units, "n_parameters": [1] * 6, "weight_norms": [1.0] * 6})
    result = json.loads(cli("audit", tmp_path / "probe", "--json")[1])
    assert (result["agreement"]["layers"], result["notes"]) == (
        {},
        ["no comparison of layers: half of the 2 has fewer than 3 matrices"],
    )


def test_views_are_undefined_row_by_row(tmp_path):
    norms = make_probe(tmp_path / "probe", change=lambda norms: norms.__setitem__((5, slice(0, 3)), 0))
    scores = score(ProbeFolder(tmp_path / "probe"), [View("gini"), View("gini", None, np.array([0, 1, 2]))]).norms
    np.testing.assert_allclose(scores[:, 0], gini(norms))
    assert np.flatnonzero(np.isnan(scores[:, 1])).tolist() == [5]
    np.testing.assert_allclose(np.delete(scores[:, 1], 5), gini(np.delete(norms[:, :3], 5, axis=0)))


def test_probes_are_compared_by_trajectory_id(audit, tmp_path):
    norms = make_probe(tmp_path / "probe", manifest={"dtype": "float32", "context_length": 64, "model": "m"})
    # The same trajectories in another order, of which two were left out.
    some = sample_trajectories(COUNT)[::-1][2:]
    noise = np.random.default_rng(5).gamma(2.0, size=(COUNT - 2, N)).astype(np.float32)

    def change(other):
        other[:] = noise

    manifest = {"dtype": "bfloat16", "context_length": 64, "model": "m"}
    make_probe(tmp_path / "a" / "bf16", change=change, manifest=manifest, trajectories=some)
    make_probe(tmp_path / "b" / "bf16", manifest={"dtype": "float32", "context_length": 64, "model": "m"})
    result = audited(audit, "--compare", tmp_path / "a" / "bf16")["agreement"]["probes"]
    ours, theirs = gini(norms[: COUNT - 2]), gini(noise)[::-1]
    differs = result["bf16"].pop("differs")
    assert result == {"bf16": {**agreement(ours, theirs), "shared": COUNT - 2}}
    assert differs.keys() == {"dtype", "corpus_sha256"}
    assert differs["dtype"] == ["float32", "bfloat16"]
    # Folders of one name are told apart; a policy's own score is compared.
    result = audited(audit, "--policy", "loss", "--compare", tmp_path / "a" / "bf16", "--compare", tmp_path / "b" / "bf16")
    same = result["agreement"]["probes"][str(tmp_path / "b" / "bf16")]
    assert same == {"spearman": pytest.approx(1), "same_side": 1.0, "jaccard": 1.0, "shared": COUNT, "differs": {}}


def test_probes_that_share_nothing_are_refused(audit, tmp_path):
    make_probe(tmp_path / "probe")
    make_probe(tmp_path / "other", trajectories=sample_trajectories(1))
    assert_refused(audit("--compare", tmp_path / "other"), "other: shares 1 trajectories with", "probes of the same corpus")
    assert_refused(audit("--compare", tmp_path / "none"), "none: no such folder")


def test_the_probe_s_time_against_what_it_saves(audit, tmp_path):
    make_probe(tmp_path / "probe")
    hours = ("--full-rl-hours", "2", "--routed-hours")
    assert_refused(audit(*hours, "1"), "probe: tells no time that the probe took")
    attempt = Attempt(tmp_path / "probe")
    attempt._wall -= 7200
    attempt.add(Usage(100, 100))
    cost = audited(audit, *hours, "1")
    assert cost["cost"] == {"probe_seconds": pytest.approx(7200, abs=5), "saved_seconds": 3600}
    assert "the probe took 7200 s and its routing saves 3600 s: it costs more than it saves" in cost["warnings"]
    assert audited(audit, "--full-rl-hours", "9", *hours[2:], "1")["warnings"] == audited(audit)["warnings"]
    assert audited(audit)["cost"] is None
    assert_refused(audit("--full-rl-hours", "2"), "give both, or neither")
    assert_refused(audit(*hours, "nan"), "--routed-hours nan: must be a number of hours")
    assert_refused(audit(*hours, "-1"), "--routed-hours -1.0: must be a number of hours")


def test_what_the_probe_saves_is_projected_from_a_run(audit, tmp_path):
    make_probe(tmp_path / "probe")
    attempt = Attempt(tmp_path / "probe")
    attempt._wall -= 100
    attempt.add(Usage(100, 100))

    results = synthetic(seeds=1)
    results["arms"] = [arm for arm in results["arms"] if arm["name"] in ("base", "gini")]
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "results.json", results)
    full, routed = projected_hours(read_results(tmp_path / "run"))
    assert audited(audit, "--run", tmp_path / "run")["cost"] == {
        "probe_seconds": pytest.approx(100, abs=5),
        "saved_seconds": pytest.approx(3600 * (full - routed)),
    }
    assert_refused(audit("--run", tmp_path / "run", "--full-rl-hours", "2"), "--run and hours exclude each other")
    assert_refused(audit("--run", tmp_path / "none"), "none: no such folder")
    results["arms"] = results["arms"][:1]
    write_json(tmp_path / "run" / "results.json", results)
    assert_refused(audit("--run", tmp_path / "run"), "no run with a route and RL")


def test_one_trajectory_has_no_threshold_to_be_sure_of(cli, tmp_path):
    make_probe(tmp_path / "one", trajectories=sample_trajectories(1), rows=1)
    code, out, err = cli("audit", tmp_path / "one")
    assert (code, err) == (0, "") and "all 1 trajectories go to SFT" in out and "Standard error" not in out


def test_pass_rates_and_what_is_printed(audit, tmp_path):
    make_probe(tmp_path / "probe")
    write_jsonl(tmp_path / "episodes.jsonl", [{"id": f"sample-{i:04d}", "success": i % 3 == 0} for i in range(COUNT)])
    make_probe(tmp_path / "[red]", manifest={"dtype": "float16"})
    arguments = ("--policy", "pass_rate", "--pass-rates", tmp_path / "episodes.jsonl", "--compare", tmp_path / "[red]")
    out = tmp_path / "new" / "audit.json"
    code, printed, err = audit(*arguments, "--out", out)
    assert (code, err) == (0, "")
    assert json.loads(out.read_text()) == audited(audit, *arguments)
    for words in (
        "21 trajectories, pass_rate of gini, median split",
        "success",
        "[red]: 21 shared trajectories; dtype: float32 → float16",
    ):
        assert words in printed
    assert_refused(audit("--policy", "pass_rate"), "needs pass rates; give --pass-rates")


def test_bad_choices_are_one_line(audit, tmp_path):
    assert_refused(audit(), "probe: no such folder")
    make_probe(tmp_path / "probe", rows=15)
    assert_refused(audit(), "6 of 21 trajectories are not probed yet")
    assert_refused(audit("--metric", "size"), "metric 'size': choose one of gini, cv, kurtosis")
    assert_refused(audit("--policy", "best"), "policy 'best'")
    assert_refused(audit("--normalise", "by_size"), "choose one of none, per_parameter, per_weight_norm")


def test_audits_need_no_torch():
    code = "import sys, gradprism.routing.stability; print({'torch', 'transformers', 'textworld'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_probes_that_have_no_folder_are_told_apart(tmp_path):
    for name in ("probe", "same", "few"):
        make_probe(tmp_path / name, trajectories=sample_trajectories(3) if name == "few" else None)
    probe, same, few = (Probe(ProbeFolder(tmp_path / name, kept="memory")) for name in ("probe", "same", "few"))
    probes = audit_here(probe, compare=[same, few]).agreement.probes
    assert {name: one.shared for name, one in probes.items()} == {"in memory 1": COUNT, "in memory 2": 3}
