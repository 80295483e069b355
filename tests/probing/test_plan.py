import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradprism.probing.plan import (
    SHORTEST,
    Items,
    item_code,
    item_of,
    padded_tokens,
    padding_share,
    pending_batches,
    plan_batches,
    plan_items,
    rope_boundaries,
)

lengths_lists = st.lists(st.integers(1, 200), min_size=1, max_size=80)


def obvious_plan(lengths, budget, boundaries):
    """One by one, longest first: a batch is closed where the next would break one of its rules."""
    batches = []
    for k in sorted(range(len(lengths)), key=lambda k: (-lengths[k], k)):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= budget and lengths[k] >= SHORTEST * longest
        if fits and all((lengths[k] > b) == (longest > b) for b in boundaries):
            batches[-1].append(k)
        else:
            batches.append([k])
    return batches


@given(lengths_lists, st.integers(1, 2000), st.lists(st.integers(0, 210), max_size=3))
def test_batches_are_those_of_the_obvious_plan(lengths, budget, boundaries):
    assert [batch.tolist() for batch in plan_batches(lengths, budget, boundaries)] == obvious_plan(lengths, budget, boundaries)


@given(lengths_lists, st.integers(1, 2000), st.integers(0, 210))
def test_batches_hold_every_item_once_within_the_budget_and_on_one_side(lengths, budget, boundary):
    batches = plan_batches(lengths, budget, [boundary])
    assert sorted(int(k) for batch in batches for k in batch) == list(range(len(lengths)))
    for batch in batches:
        inside = [lengths[k] for k in batch]
        assert len(batch) == 1 or len(batch) * max(inside) <= budget
        assert len({length > boundary for length in inside}) == 1
        assert min(inside) >= SHORTEST * max(inside)


def items(lengths, turns):
    return Items(np.arange(len(lengths)), np.array(turns, dtype=np.int32), np.array(lengths, dtype=np.int64))


@given(lengths_lists, st.integers(1, 500), st.data())
def test_turns_do_not_change_the_batches_of_the_whole(lengths, budget, data):
    extra = data.draw(lengths_lists)
    whole = plan_items(items(lengths, [-1] * len(lengths)), budget)
    both = plan_items(items([*lengths, *extra], [-1] * len(lengths) + [0] * len(extra)), budget)
    assert [batch.tolist() for batch in both[: len(whole)]] == [batch.tolist() for batch in whole]
    assert sorted(int(k) for batch in both for k in batch) == list(range(len(lengths) + len(extra)))


def test_pending_batches_keep_what_is_not_finished():
    work = Items(np.array([0, 1, 2, 0, 2]), np.array([-1, -1, -1, 0, 3], np.int32), np.array([5, 5, 5, 3, 3]))
    plan = plan_items(work, 10)
    assert [batch.tolist() for batch in plan] == [[0, 1], [2], [3, 4]]
    finished = item_code([1, 2, 2], [-1, -1, 3])
    assert [batch.tolist() for batch in pending_batches(work, plan, finished)] == [[0], [3]]
    assert len(set(item_code(work.index, work.turn).tolist())) == 5


def test_padding_is_counted():
    work = items([10, 9, 8, 4], [-1] * 4)
    plan = plan_items(work, 30)
    assert [batch.tolist() for batch in plan] == [[0, 1, 2], [3]]
    assert padded_tokens(work, plan) == 34
    assert padding_share(work, plan) == pytest.approx(3 / 34)
    assert padding_share(work, []) == 0


def config(rope, **more):
    text = SimpleNamespace(rope_parameters=rope, max_position_embeddings=4096, **more)
    return SimpleNamespace(get_text_config=lambda: text, name_or_path="m")


@pytest.mark.parametrize(
    ("rope", "boundaries"),
    [
        (None, ()),
        ({"rope_type": "default", "rope_theta": 1e4}, ()),
        ({"rope_type": "yarn", "original_max_position_embeddings": 512}, ()),
        ({"rope_type": "longrope", "original_max_position_embeddings": 512}, (512,)),
        ({"full": {"rope_type": "longrope", "original_max_position_embeddings": 512}, "sliding": {"rope_type": "default"}}, (512,)),
    ],
)
def test_boundaries_are_where_longrope_switches(rope, boundaries):
    assert rope_boundaries(config(rope)) == boundaries


def test_the_boundary_is_found_in_a_real_configuration():
    from transformers import Phi3Config

    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi3 = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        original_max_position_embeddings=64,
        pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors},
    )
    assert rope_boundaries(phi3) == (64,)


def test_item_codes_order_items_by_trajectory_and_turn_and_can_be_read_back():
    items = [(0, -1), (0, 0), (0, 5), (1, -1), (1, 1_000_000), (2**40, -1)]
    codes = np.array([int(item_code(*item)) for item in items])
    assert codes.tolist() == sorted(set(codes.tolist()))
    assert [tuple(map(int, pair)) for pair in zip(*item_of(codes), strict=True)] == items


def test_a_plan_needs_no_library_of_tables():
    code = "import gradprism.probing.plan, sys; sys.exit('polars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
