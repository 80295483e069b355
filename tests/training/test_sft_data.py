"""Rows, order and shares of SFT."""

from itertools import chain

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from trl.data_utils import pack_dataset

from gradprism.runtime.errors import ConfigError
from gradprism.training.sft_config import SftConfig
from gradprism.training.sft_data import Plan, pack, share, split_held_out
from helpers.tiny import sample_trajectories


def test_the_held_out_share_depends_on_ids_and_seed_alone():
    trajectories = sample_trajectories(40)
    config = SftConfig(eval_share=0.2, seed=3)
    trained_on, held = split_held_out(trajectories, (), config)
    assert (len(trained_on), len(held)) == (32, 8)
    assert {t.id for t in trained_on}.isdisjoint(t.id for t in held)
    assert {t.id for t in split_held_out(trajectories[::-1], (), config)[1]} == {t.id for t in held}
    assert {t.id for t in split_held_out(trajectories, (), SftConfig(eval_share=0.2))[1]} != {t.id for t in held}
    assert split_held_out(trajectories, (), SftConfig()) == (trajectories, [])


@pytest.mark.parametrize("seed", range(5))
def test_packing_fills_rows_as_trl_does(seed):
    lengths = np.random.default_rng(seed).integers(1, 60, 200)
    data = Dataset.from_dict({"input_ids": [[i] * int(n) for i, n in enumerate(lengths)]})
    disable_progress_bars()
    expected = [list(dict.fromkeys(ids)) for ids in pack_dataset(data, 64, "bfd")["input_ids"]]
    rows = pack(lengths.tolist(), 64)
    assert sorted(chain(*rows)) == list(range(200))
    assert max(sum(lengths[row]) for row in rows) <= 64
    assert [lengths[row].tolist() for row in rows] == [lengths[row].tolist() for row in expected]


@pytest.mark.parametrize("world", [1, 3])
def test_every_epoch_reads_every_row_once_over_all_processes(world):
    plan = Plan(23, world, SftConfig(batch_size=2, gradient_accumulation=3, epochs=2))
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [batch for step in steps for batch in plan.batches_of(step)]
        read = [row for batch in batches for rank in range(world) for row in share(batch, rank, 2)]
        assert sorted(read) == list(range(23))
        assert read != list(range(23))
    assert plan.epochs(plan.steps) == 2.0


@pytest.mark.parametrize("world", [1, 3])
def test_a_given_order_is_that_of_the_first_epoch_alone(world):
    config = SftConfig(batch_size=2, gradient_accumulation=3, epochs=2)
    given, shuffled = (Plan(23, world, config.model_copy(update={"order": order})) for order in ("given", "shuffled"))

    def read(plan, epoch):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        return [row for step in steps for batch in plan.batches_of(step) for row in batch]

    assert read(given, 0) == list(range(23))
    assert read(given, 1) == read(shuffled, 1) != list(range(23))


def test_packing_keeps_no_order():
    with pytest.raises(ConfigError, match="order given: packing fills rows by length"):
        SftConfig(order="given", packing="on")
