"""The public door: one call, in memory or in a folder, from a loaded model or from a name."""

import gc
import json

import numpy as np
import pytest

import gradprism as gp
from gradprism.concentration import gini
from gradprism.models import ModelSpec
from gradprism.probing.api import probe
from gradprism.probing.result import Probe
from gradprism.runtime.errors import ConfigError, DataError, FolderInUseError, MissingFileError
from gradprism.runtime.files import umask
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3(len(TOKENIZER))


def test_a_probe_in_memory_is_the_one_in_a_folder_and_can_be_saved(model, tmp_path):
    trajectories = sample_trajectories(12)
    options = {"context_length": 1024, "batch_tokens": 300, "per_turn": True}
    here = probe(model, TOKENIZER, trajectories, **options)
    there = probe(model, TOKENIZER, iter(trajectories), out=tmp_path / "probe", **options)
    assert here.folder is None and there.folder == tmp_path / "probe"
    here.save(tmp_path / "saved")
    assert (tmp_path / "saved").stat().st_mode & 0o777 == 0o777 & ~umask()  # others may read it
    with pytest.raises(FolderInUseError, match="is not empty"):
        here.save(tmp_path / "saved")
    assert here.run is not None and (here.run.probed, here.run.kept) == (12, 0)
    for other in (there, Probe.load(tmp_path / "probe"), Probe.load(tmp_path / "saved")):
        assert other.ids == [t.id for t in trajectories] and len(other) == 12
        np.testing.assert_array_equal(other.norms, here.norms)
        assert other.frame.equals(here.frame)
        assert other.frame.columns == ["index", "id", "n_tokens", "n_response_tokens", "n_turns", "loss", "l2"]
        np.testing.assert_array_equal(other.turns.norms, here.turns.norms)
        assert list(other.trajectories) == list(other.trajectories) == trajectories
        assert other.usage.tokens_forward == here.run.usage.tokens_forward
        for index, (loss, n) in enumerate(other.frame.select("loss", "n_response_tokens").iter_rows()):
            losses = other.token_losses(index)
            assert losses is not None and losses.shape == (n,) and losses.mean(dtype=float) == pytest.approx(loss, rel=1e-3)
    for path in (tmp_path / "probe").glob("losses-*"):
        path.write_bytes(b"torn")
    assert Probe.load(tmp_path / "probe").token_losses(0) is None
    np.testing.assert_allclose(here.scores(), gini(here.norms))
    scaled = here.norms / np.sqrt([unit.n_parameters for unit in here.units])
    np.testing.assert_allclose(here.scores("gini", normalise="per_parameter"), gini(scaled))
    np.testing.assert_allclose(here.mean_norms, here.norms.mean(axis=0), rtol=1e-6)
    assert [(unit.name, unit.layer, unit.kind) for unit in here.units[6:8]] == [
        ("layers.0.down_proj", 0, "down"),
        ("layers.1.q_proj", 1, "q"),
    ]


def test_a_model_by_name_is_the_model_that_it_names(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    trajectories = sample_trajectories(5)
    loaded = probe(model, TOKENIZER, trajectories)
    for named in (tmp_path / "model", str(tmp_path / "model"), ModelSpec(str(tmp_path / "model"))):
        for tokenizer in (None, TOKENIZER):
            np.testing.assert_array_equal(probe(named, tokenizer, trajectories).norms, loaded.norms)


def test_what_is_read_from_a_probe_keeps_its_temporary_folder(model):
    trajectories = sample_trajectories(3)
    read = probe(model, TOKENIZER, trajectories).trajectories
    gc.collect()
    assert list(read) == trajectories


def test_saving_replaces_a_probe_alone(model, tmp_path):
    made = probe(model, TOKENIZER, sample_trajectories(2), out=tmp_path / "probe")
    trained = tmp_path / "sft"
    trained.mkdir()
    (trained / "manifest.json").write_text(json.dumps({"kind": "sft"}))
    (trained / "model.safetensors").write_text("weights")
    with pytest.raises(FolderInUseError, match="is in use and holds no probe"):
        made.save(trained, "replace")
    assert (trained / "model.safetensors").read_text() == "weights"
    made.save(tmp_path / "probe", "replace")
    assert Probe.load(tmp_path / "probe").ids == made.ids
    with pytest.raises(ConfigError, match=r"memory://saved: .*probe with this as `out`"):
        made.save("memory://saved")


def test_trajectories_may_be_whatever_a_corpus_is_loaded_from(model, tmp_path):
    trajectories = sample_trajectories(3)
    write_messages_jsonl(tmp_path / "corpus.jsonl", trajectories)
    records = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    for given in (tmp_path / "corpus.jsonl", str(tmp_path / "corpus.jsonl"), records, iter(records)):
        assert list(probe(model, TOKENIZER, given).trajectories) == trajectories


@pytest.mark.parametrize(
    ("trajectories", "said"),
    [
        (sample_trajectories(1) * 2, "id 'sample-0000' is taken by"),
        ([Trajectory("", sample_trajectories(1)[0].messages)], "record 1: 'id' is ''"),
        ([Trajectory("a", (Message("robot", "go"), Message("assistant", "go")))], "record 1: turn 1: 'role' is 'robot'"),
        (
            [Trajectory("a", sample_trajectories(1)[0].messages, {"reward": np.float32(1)})],
            "trajectory 'a' cannot be written as JSON",
        ),
        ([Trajectory("a", (Message("assistant", "go \ud800"),))], "trajectory 'a' cannot be written as JSON"),
        ([], "no trajectories"),
    ],
)
def test_trajectories_that_no_folder_could_hold_are_refused(model, tmp_path, trajectories, said):
    with pytest.raises(DataError, match=said):
        probe(model, TOKENIZER, trajectories, out=tmp_path / "probe")
    assert not (tmp_path / "probe").exists()


def test_wrong_arguments_are_told_in_one_line(model):
    with pytest.raises(ConfigError, match="experts 'both': choose joined or separate"):
        probe(model, TOKENIZER, sample_trajectories(1), experts="both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="launcher 'ray': choose auto, here"):
        probe(model, TOKENIZER, sample_trajectories(1), launcher="ray")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="the model has no name"):
        probe(model, None, sample_trajectories(1))
    with pytest.raises(MissingFileError, match=r"^memory://nothing: no such folder"):
        Probe.load("memory://nothing")
    with pytest.raises(MissingFileError, match="model 'modle': no such folder; give a model folder, or a hub id"):
        probe("modle", TOKENIZER, iter(()))


def test_a_bare_name_is_one_name(model):
    found = probe(model, TOKENIZER, sample_trajectories(3), units="*.q_proj")
    assert {unit.kind for unit in found.units} == {"q"}
    assert found.measures(metrics="cv").columns[-1] == "cv"
    assert gp.ProbeCallback(sample_trajectories(1), TOKENIZER, metrics="gini")._metrics == ("gini",)
    assert gp.audit(found, compare=found).agreement.probes["in memory 1"].shared == 3
