"""The public door: one call, in memory or in a folder, from a loaded model or from a name."""

import numpy as np
import pytest

from gradprism.concentration import gini
from gradprism.models import ModelSpec
from gradprism.probing.api import probe
from gradprism.probing.result import Probe
from gradprism.runtime.errors import FolderInUseError
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
