"""Rows as a tree: what they share is passed once, and everything else is as if each were passed alone."""

import random

import pytest
import torch

from gradprism.attention import AttentionMasks, masks_of
from gradprism.training.batches import make_batch
from gradprism.training.head import add_head, score_tokens
from gradprism.training.rows import Row
from gradprism.training.trees import LARGEST, linear_weight, make_trees, pack
from helpers.families import family_model


def rows_that_begin_alike(seed: int, vocabulary: int = 60) -> list[Row]:
    """Episodes of three prompts; many share their first turns, some are equal, one begins another."""
    draw, rows = random.Random(seed), []
    for prompt in range(3):
        shown = [5 + prompt, *(draw.randrange(5, vocabulary) for _ in range(12))]
        for _ in range(6):
            row = Row(list(shown), [False] * len(shown))
            for _ in range(draw.randrange(1, 5)):
                act = [draw.choice((9, 10)), draw.choice((11, 12, 13))]
                row.ids += [*act, 7, 8, sum(act) % 5 + 20]
                row.chosen += [True, True, False, False, False]
                row.logprobs += [-0.5, -0.7]
                row.advantages += [draw.uniform(-1, 1)] * 2
            rows.append(row)
    return [
        *rows,
        rows[4],
        Row(rows[7].ids[:15], rows[7].chosen[:15], [-1.0] * sum(rows[7].chosen[:15]), [0.5] * sum(rows[7].chosen[:15])),
    ]


def test_a_tree_holds_every_beginning_once_and_every_row_as_a_path():
    rows = rows_that_begin_alike(0)
    trees = make_trees(rows, 1e6)
    assert len(trees) == 3 and sum(len(tree.rows) for tree in trees) == len(rows) == 20
    for tree in trees:
        beginnings = {tuple(row.ids[: n + 1]) for row in tree.rows for n in range(len(row))}
        assert len(tree) == len(beginnings)
        seen = tree.seen()
        for row, path in zip(tree.rows, tree.paths, strict=True):
            assert [tree.ids[node] for node in path] == row.ids
            assert [tree.depth[node] for node in path] == list(range(len(row)))
            assert [tree.parent[node] for node in path] == [-1, *path[:-1]]
            for number, node in enumerate(path):
                assert seen[node].nonzero()[0].tolist() == sorted(path[: number + 1])
    assert sum(map(len, trees)) < 0.7 * sum(map(len, rows))


def test_a_row_joins_a_tree_where_that_costs_less():
    """Of 42 tokens 2 are shared: 100 keys' worth of linear layers a token do not pay for being masked for one another, 10,000 do."""
    little = [Row([1, 2, *range(100 + 50 * i, 140 + 50 * i)]) for i in range(3)]
    assert [len(tree.rows) for tree in make_trees(little, 100)] == [1, 1, 1]
    assert [len(tree.rows) for tree in make_trees(little, 10_000)] == [3]
    alone = make_trees(rows_that_begin_alike(0), 0)
    assert len(alone) == 20 and not any(tree.branches for tree in alone)
    long = [Row([1] * 6000 + [2 + i] * 1500) for i in range(3)]
    assert [len(tree.rows) for tree in make_trees(long, 1e9)] == [1, 1, 1] and LARGEST < 6000 + 2 * 1500
    equal = make_trees([Row([1, 2, 3], [False, True, True])] * 3, 1)
    assert len(equal) == 1 and len(equal[0]) == 3 and not equal[0].branches


def test_the_linear_layers_weigh_as_much_as_so_many_keys():
    """By hand for a Llama of width 32, 2 layers, 80 intermediate, 4 heads of 8, 2 of keys and values, and norms of 32."""
    linear = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 80 + 2 * 32) + 32
    assert linear_weight(family_model("llama", 64)) == linear / (2 * 32 * 2)


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("qwen3", "sdpa"),
        ("mistral", "sdpa"),
        ("gemma2", "eager"),
        ("gemma3", "sdpa"),
        ("gpt2", "sdpa"),
        ("gpt_oss", "eager"),
    ],
)
def test_log_probabilities_and_gradients_are_those_of_the_rows_alone(family, attention):
    """Also where layers see a window of 16 tokens, which is counted along a row and not along the tree."""
    rows = rows_that_begin_alike(1)
    weights = {id(row): 0.1 + 0.05 * number for number, row in enumerate(rows)}
    found = []
    for branching in (False, True):
        torch.manual_seed(0)  # of what the family's constructor draws
        model = family_model(family, 64, dtype=torch.float32)
        model.set_attn_implementation(attention)
        add_head(model)
        masks, total = AttentionMasks(model, 512), {}
        for part in pack(make_trees(rows, 1e6 * branching), 300):
            of_rows = [row for tree in part for row in tree.rows]
            batch = make_batch(part, [weights[id(row)] for row in of_rows], torch.device("cpu"), masks)
            logprobs = score_tokens(model, model, batch.inputs, batch.places).log_probs[0][batch.repeated]  # pyright: ignore[reportOptionalSubscript]
            (logprobs * batch.advantages * batch.weights).sum().backward()
            ends = torch.tensor([len(row.logprobs) for row in of_rows]).cumsum(0).tolist()
            total |= {id(row): logprobs.detach()[end - len(row.logprobs) : end] for row, end in zip(of_rows, ends, strict=True)}
        found.append((total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (alone, wanted), (together, got) = found
    assert alone.keys() == together.keys() and wanted.keys() == got.keys()
    for row in alone:
        torch.testing.assert_close(together[row], alone[row], atol=2e-5, rtol=1e-4)
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_model_that_takes_no_mask_has_none():
    model = family_model("qwen3", 64)
    assert masks_of(model, 64) is not None
    model.config._attn_implementation = "flash_attention_2"
    assert masks_of(model, 64) is None
