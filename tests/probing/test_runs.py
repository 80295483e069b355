"""Runs that are cut short, run out of room, or are asked for more: what the probe folder then holds."""

import errno
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from gradprism.estimate import estimate_probe, sample_batches
from gradprism.probing import run
from gradprism.probing.api import probe as probe_corpus
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.work import ProbeOptions
from gradprism.runtime.attempts import Attempt, total_usage
from gradprism.runtime.errors import ConfigError, DataError, WriteError
from gradprism.runtime.usage import Usage
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import Renderer
from helpers.cli import assert_refused
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
KILLED = Path(__file__).parents[1] / "helpers" / "killed_probe.py"
KINDS = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}


@pytest.fixture(scope="module", autouse=True)
def _transformers_as_main_sets_it():
    # `main` sets this by environment variables, too late where a test imported transformers first.
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def model():
    return tiny_qwen3(len(TOKENIZER))


def probe(model, trajectories, out, **options):
    run = probe_corpus(model, TOKENIZER, trajectories, out=out, **{"context_length": 1024, "batch_tokens": 300, **options}).run
    assert run is not None
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Turns


def by_autograd(model, rendered, targets):
    """Loss and weight-gradient norms of the mean cross-entropy of the tokens at `targets`, read within the whole conversation."""
    parameters = dict(model.named_parameters())
    matrices = [
        parameters[f"model.layers.{layer}.{part}.{kind}_proj.weight"]
        for layer in range(2)
        for part, kinds in KINDS.items()
        for kind in kinds
    ]
    ids = torch.tensor(rendered.input_ids, dtype=torch.long)
    loss = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, targets - 1], ids[targets])
    return loss.item(), [gradient.norm().item() for gradient in torch.autograd.grad(loss, matrices)]


def test_a_turn_s_vector_is_that_of_its_own_loss(tmp_path):
    exact = tiny_qwen3(len(TOKENIZER)).double()
    untrained = Trajectory(
        "untrained",
        tuple(
            Message("assistant", f"go to desk {k}", weight=float(k != 1)) if k % 2 else Message("user", "look .") for k in range(4)
        ),
    )
    trajectories = [*sample_trajectories(6), untrained]
    summary = probe(exact, iter(trajectories), tmp_path / "probe", per_turn=True)
    rendered = [Renderer(TOKENIZER, 1024).render(t) for t in trajectories]
    expected = [(i, k) for i, r in enumerate(rendered) for k in range(len(r.turns)) if (trajectories[i].id, k) != ("untrained", 0)]
    table = ProbeFolder(tmp_path / "probe").read("turns")
    assert list(zip(table.frame["index"], table.frame["turn"], strict=True)) == expected
    assert (summary.probed, summary.probed_turns) == (7, len(expected))
    for (i, k), norms, row in zip(expected, table.norms, table.frame.iter_rows(named=True), strict=True):
        start, stop = rendered[i].turns[k]
        loss, reference = by_autograd(exact, rendered[i], np.arange(start, stop))
        np.testing.assert_allclose(norms, reference, rtol=1e-6)  # they are stored in float32
        assert row["loss"] == pytest.approx(loss, rel=1e-9)
        assert row["l2"] == pytest.approx(np.linalg.norm(reference), rel=1e-9)
        assert (row["id"], row["n_tokens"], row["n_response_tokens"], row["n_turns"]) == (trajectories[i].id, stop, stop - start, 1)
    whole = ProbeFolder(tmp_path / "probe").read()
    assert whole.frame["turn"].to_list() == [-1] * 7
    for i, (norms, l2) in enumerate(zip(whole.norms, whole.frame["l2"], strict=True)):
        np.testing.assert_allclose(norms, by_autograd(exact, rendered[i], np.flatnonzero(rendered[i].response_mask))[1], rtol=1e-6)
        assert l2 == pytest.approx(np.linalg.norm(norms.astype(np.float64)), rel=1e-7)


def test_turns_asked_for_later_are_all_that_is_probed(model, tmp_path):
    trajectories = sample_trajectories(15)
    assert probe(model, trajectories, tmp_path / "probe").probed == 15
    store = ProbeFolder(tmp_path / "probe")
    before = files(store.folder)
    n_turns = sum(m.role == "assistant" for t in trajectories for m in t.messages)
    with pytest.raises(DataError, match=rf"{n_turns} of {n_turns} turns are not probed yet; .*`gradprism probe --per-turn`"):
        store.read("turns")
    summary = probe(model, trajectories, tmp_path / "probe", per_turn=True)
    assert (summary.probed, summary.kept, summary.probed_turns, summary.kept_turns) == (0, 15, n_turns, 0)
    after = files(store.folder)
    assert all(after[name] == content for name, content in before.items() if name != "attempts.jsonl")
    assert len(store.read("turns").ids) == n_turns
    assert probe(model, trajectories, tmp_path / "probe", per_turn=True).kept_turns == n_turns
    assert probe(model, trajectories, tmp_path / "at once", per_turn=True).probed_turns == n_turns
    for kind in ("whole", "turns"):
        later, at_once = (ProbeFolder(tmp_path / name).read(kind) for name in ("probe", "at once"))
        np.testing.assert_array_equal(later.norms, at_once.norms)
        assert later.frame.equals(at_once.frame)


# Kills


def assert_each_item_once(folder: Path, n_items: int) -> None:
    rows = pl.concat([pl.read_parquet(path).select("index", "turn") for path in folder.glob("norms-*.parquet")])
    assert len(rows) == n_items
    assert rows.n_unique() == n_items


def test_killed_at_random_moments_and_started_again(tmp_path):
    command = [sys.executable, str(KILLED), str(tmp_path), "12", "0"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    happened = json.loads(result.stdout)
    assert happened["kills"] >= 12
    whole = ProbeFolder(tmp_path / "whole")
    expected = whole.read(), whole.read("turns")
    n_items = sum(len(table.ids) for table in expected)
    assert n_items > 100
    for k in range(happened["folders"]):
        store = ProbeFolder(tmp_path / f"killed-{k}")
        assert_each_item_once(store.folder, n_items)
        for table, reference in zip((store.read(), store.read("turns")), expected, strict=True):
            np.testing.assert_array_equal(table.norms, reference.norms)  # bit for bit
            assert table.frame.equals(reference.frame)
        assert list(store.corpus_blocks()) == list(whole.corpus_blocks())


def test_what_attempts_cost_is_summed(model, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SHARD_ROWS", 1)
    real, calls = run.BatchRun._try, []

    def stop_at_the_third(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(run.BatchRun, "_try", stop_at_the_third)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.raises(KeyboardInterrupt):
            probe(model, sample_trajectories(12), tmp_path / "probe", batch_tokens=100)
    finally:
        torch.set_num_threads(threads)
    first = total_usage(tmp_path / "probe")
    lengths = dict(enumerate(len(Renderer(TOKENIZER, 1024).render(t).input_ids) for t in sample_trajectories(12)))
    done = [code >> 20 for code in ProbeFolder(tmp_path / "probe").finished().tolist()]
    assert first.tokens_forward == first.tokens_backward == sum(lengths[i] for i in done) > 0
    summary = probe(model, sample_trajectories(12), tmp_path / "probe", batch_tokens=100)
    assert summary.earlier == first
    assert (summary.earlier + summary.usage).tokens_forward == sum(lengths.values())
    total = total_usage(tmp_path / "probe")
    assert total.tokens_forward == sum(lengths.values()) and total.wall_seconds >= first.wall_seconds > 0


def test_the_last_line_of_each_process_counts_and_torn_lines_do_not(tmp_path):
    assert total_usage(tmp_path) == Usage()
    for process in range(2):
        account = Attempt(tmp_path, "a", process)
        account.add(Usage(10, 4))
        account.add(Usage(20 + process))
    Attempt(tmp_path, "b").add(Usage(7))
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    walls = [line["wall_seconds"] for line in lines]
    with open(tmp_path / "attempts.jsonl", "a") as file:
        file.write('{"attempt": "c", "tokens_forward"')
    total = total_usage(tmp_path)
    assert (total.tokens_forward, total.tokens_backward) == (68, 8)
    assert total.wall_seconds == pytest.approx(max(walls[1], walls[3]) + walls[4])
    assert total.cpu_seconds == pytest.approx(sum(lines[k]["cpu_seconds"] for k in (1, 3, 4)))
    assert total_usage(tmp_path, without="a").tokens_forward == 7


# Room and rights


@pytest.fixture
def probe_cli(cli, tmp_path, model):
    """`gradprism probe` in this process on 15 trajectories; gives exit code, stdout and stderr."""
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    write_messages_jsonl(tmp_path / "corpus.jsonl", sample_trajectories(15))
    command = ["probe", "--model", tmp_path / "model", "--data", tmp_path / "corpus.jsonl", "--out", tmp_path / "probe"]
    return lambda *arguments: cli(*command, *arguments)


def test_a_full_disk_is_one_line_and_old_shards_stay(probe_cli, tmp_path):
    """The kernel itself refuses to let a file grow."""
    assert probe_cli()[0] == 0
    before = files(tmp_path / "probe")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard))
        result = probe_cli("--per-turn", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(result, f"{tmp_path / 'probe'}/norms-", "File too large", "make room")
    assert files(tmp_path / "probe") == before
    assert probe_cli("--per-turn")[0] == 0
    assert len(ProbeFolder(tmp_path / "probe").read("turns").ids) > 15


def refuse(number):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_one_line(probe_cli, tmp_path, number, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse(number))
        assert_refused(probe_cli("--json"), str(tmp_path / "probe"), os.strerror(number))
    assert not (tmp_path / "probe").exists()
    assert probe_cli()[0] == 0
    before = files(tmp_path / "probe")
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse(number))
        assert_refused(probe_cli("--per-turn", "--json"), f"{tmp_path / 'probe'}/norms-", os.strerror(number))
        assert probe_cli("--json")[0] == 0  # nothing is pending, so nothing is written
    assert files(tmp_path / "probe") == before


@pytest.mark.parametrize("writes", [0, 1, 3])
def test_room_that_runs_out_while_a_file_is_written(writes, model, tmp_path, monkeypatch):
    """At any write of any file: `WriteError` with the path, nothing half-written, and what was finished is kept."""
    monkeypatch.setattr(run, "SHARD_ROWS", 1)
    probe(model, sample_trajectories(9), tmp_path / "probe")
    real, count = os.fdopen, []

    def fdopen(*arguments, **options):
        file = real(*arguments, **options)
        if len(count) >= writes:
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count.append(1)
        return file

    before = files(tmp_path / "probe")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", fdopen)
        with pytest.raises(WriteError, match=rf"{tmp_path}/probe/\S+: cannot be written \(No space left on device\)"):
            probe(model, sample_trajectories(9), tmp_path / "probe", per_turn=True)
    after = files(tmp_path / "probe")
    assert all(after[name] == content for name, content in before.items() if name != "attempts.jsonl")
    assert not [name for name in after if name.endswith(".tmp")]
    probe(model, sample_trajectories(9), tmp_path / "probe", per_turn=True)
    assert len(ProbeFolder(tmp_path / "probe").read().ids) == 9


# Dry run


def test_a_dry_run_counts_what_a_run_would_do_and_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    trajectories = sample_trajectories(60)
    options = ProbeOptions(1024, 300)
    estimate = estimate_probe(model, TOKENIZER, iter(trajectories), options, out=tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []
    summary = probe(model, iter(trajectories), tmp_path / "probe")
    assert [estimate[name].value for name in ("trajectories", "items", "pending items")] == [60, 60, 60]
    assert estimate["tokens"].value == summary.usage.tokens_forward
    assert estimate["padding"].value == summary.padding_share
    assert "20 batches" in estimate["probe"].source and estimate["batches"].value > 20
    assert all(estimate[name].value > 0 for name in ("probe", "preparation", "peak memory"))
    # Of a folder that is in use: only what is pending, and the folder stays as it is.
    before = files(tmp_path / "probe")
    turns = estimate_probe(model, TOKENIZER, iter(trajectories), replace(options, per_turn=True), out=tmp_path / "probe")
    assert (
        turns["pending items"].value
        == turns["items"].value - 60
        == sum(m.role == "assistant" for t in trajectories for m in t.messages)
    )
    done = estimate_probe(model, TOKENIZER, iter(trajectories), options, out=tmp_path / "probe")
    assert [done[name].value for name in ("pending items", "batches", "probe")] == [0, 0, 0]
    assert files(tmp_path / "probe") == before
    assert [path.name for path in tmp_path.iterdir()] == ["probe"]


def test_the_dry_run_of_the_command(probe_cli, tmp_path):
    code, out, err = probe_cli("--dry-run", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["items"]["value"] == 15
    assert not (tmp_path / "probe").exists()
    code, out, _ = probe_cli("--dry-run", "--per-turn")
    assert code == 0
    assert "pending items" in out
    assert not (tmp_path / "probe").exists()
    assert_refused(probe_cli("--dry-run", "--on-existing", "append"), "choose resume, replace or fail")


def test_samples_are_spread_over_the_plan():
    batches = [np.array([k]) for k in range(100)]
    assert [int(batch[0]) for batch in sample_batches(batches, 5)] == [0, 25, 50, 74, 99]
    assert len(sample_batches(batches)) == 20
    assert len(sample_batches(batches[:7])) == 7
    assert sample_batches([]) == []


def test_bad_batch_tokens(model, tmp_path):
    with pytest.raises(ConfigError, match="batch tokens 0: must be at least 1"):
        probe(model, sample_trajectories(1), tmp_path / "probe", batch_tokens=0)
    assert not (tmp_path / "probe").exists()
