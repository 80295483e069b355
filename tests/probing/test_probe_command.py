import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from gradprism.probing import run
from gradprism.probing.api import probe as probe_corpus
from gradprism.probing.folder import ProbeFolder
from gradprism.probing.plan import plan_batches
from gradprism.probing.prober import Prober
from gradprism.runtime.attempts import total_usage
from gradprism.runtime.errors import DataError
from gradprism.trajectories.corpus import write_messages_jsonl
from gradprism.trajectories.rendering import Renderer
from helpers.cli import assert_refused
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer


@pytest.fixture(scope="module", autouse=True)
def _transformers_as_main_sets_it():
    # `main` sets this by environment variables, too late where a test imported transformers first.
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """A folder with `model`, `corpus.jsonl` (12 trajectories) and `more.jsonl` (the last 5 of them apart)."""
    folder = tmp_path_factory.mktemp("shared")
    tokenizer = tiny_tokenizer()
    tiny_qwen3(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    trajectories = sample_trajectories(12)
    write_messages_jsonl(folder / "corpus.jsonl", trajectories)
    write_messages_jsonl(folder / "first.jsonl", trajectories[:7])
    write_messages_jsonl(folder / "more.jsonl", trajectories[7:])
    return folder


@pytest.fixture
def probe(cli, shared, tmp_path):
    def run(*arguments, model=None, data=("corpus.jsonl",), out="probe"):
        files = [shared / name for name in data]
        return cli("probe", "--model", model or shared / "model", "--data", *files, "--out", tmp_path / out, *arguments)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Names and bytes of a probe folder's files, but for the account of what each attempt took."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "attempts.jsonl"}


def test_probe_writes_one_row_for_each_trajectory(probe, shared, tmp_path):
    code, out, err = probe("--json")
    assert (code, err) == (0, "")
    summary = json.loads(out)
    assert (summary["probed"], summary["kept"], summary["units"]) == (12, 0, 14)
    table = ProbeFolder(tmp_path / "probe").read()
    assert table.ids == [f"sample-{i:04d}" for i in range(12)]
    tokenizer, model = tiny_tokenizer(), tiny_qwen3(len(tiny_tokenizer()))
    rendered = [Renderer(tokenizer, 1024).render(t) for t in sample_trajectories(12)]
    expected = Prober(model).probe(rendered)
    np.testing.assert_allclose(table.norms, expected.norms, rtol=1e-4)
    np.testing.assert_allclose(table.frame["loss"], expected.loss, rtol=1e-5)
    assert table.frame["n_tokens"].to_list() == [len(r.input_ids) for r in rendered]
    assert table.frame["n_response_tokens"].to_list() == [r.n_targets for r in rendered]
    assert table.frame["n_turns"].to_list() == [len(r.turns) for r in rendered]
    assert summary["corpus"]["tokens"] == sum(len(r.input_ids) for r in rendered)


def test_the_manifest_says_what_was_probed(probe, shared, tmp_path):
    probe()
    manifest = json.loads((tmp_path / "probe" / "manifest.json").read_text())
    assert manifest["context_length"] == 1024
    assert manifest["dtype"] == "float32"
    assert manifest["units"][0] == "layers.0.q_proj"
    assert manifest["data"][0]["path"] == str(shared / "corpus.jsonl")
    assert {"weights_sha256", "tokenizer_sha256", "template_sha256", "corpus_sha256", "versions"} <= manifest.keys()


def test_several_files_with_one_flag_or_more(cli, probe, shared, tmp_path):
    assert probe(data=("first.jsonl", "more.jsonl"), out="a")[0] == 0
    flags = ["--data", shared / "first.jsonl", "--data", shared / "more.jsonl"]
    assert cli("probe", *flags, "--model", shared / "model", "--out", tmp_path / "b")[0] == 0
    assert probe(out="c")[0] == 0
    tables = [ProbeFolder(tmp_path / name).read() for name in "abc"]
    for table in tables:
        assert table.ids == tables[0].ids
        np.testing.assert_array_equal(table.norms, tables[0].norms)


def test_resume_probes_only_what_is_pending_and_gives_the_same_rows(probe, tmp_path, monkeypatch):
    assert probe("--batch-tokens", 100, out="whole")[0] == 0

    monkeypatch.setattr(run, "SHARD_ROWS", 1)
    real, calls = Prober.probe, []

    def stop_at_the_third_batch(self, trajectories):
        calls.append(len(trajectories))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, trajectories)

    monkeypatch.setattr(Prober, "probe", stop_at_the_third_batch)
    assert probe("--batch-tokens", 100)[0] == 130
    done = sum(calls[:2])
    assert len(ProbeFolder(tmp_path / "probe").finished()) == done
    before = total_usage(tmp_path / "probe")

    code, out, _ = probe("--batch-tokens", 100, "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["probed"], summary["kept"]) == (12 - done, done)
    assert summary["earlier"]["tokens_backward"] == before.tokens_backward > 0
    whole, resumed = (ProbeFolder(tmp_path / name).read() for name in ("whole", "probe"))
    np.testing.assert_array_equal(resumed.norms, whole.norms)
    assert resumed.frame.equals(whole.frame)

    summary = json.loads(probe("--batch-tokens", 100, "--json")[1])
    assert (summary["probed"], summary["kept"]) == (0, 12)


def test_same_inputs_give_the_same_bytes(probe, tmp_path):
    for out in ("a", "b"):
        assert probe(out=out)[0] == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_torn_shard_is_probed_again(probe, tmp_path):
    probe()
    before = ProbeFolder(tmp_path / "probe").read()
    (shard,) = (tmp_path / "probe").glob("norms-*.parquet")
    shard.write_bytes(shard.read_bytes()[:100])
    code, out, err = probe()
    assert code == 0
    assert "12 trajectories probed, 0 kept" in out
    assert f"{shard}: cannot be read; set aside" in err
    np.testing.assert_array_equal(ProbeFolder(tmp_path / "probe").read().norms, before.norms)


def test_a_differing_manifest_is_refused(probe, tmp_path):
    probe()
    assert_refused(probe("--context-length", 64), "holds another probe (context_length: 1024 → 64)", "--on-existing replace")
    assert_refused(probe("--dtype", "bfloat16"), 'dtype: "float32" → "bfloat16"', "weights_sha256: ")
    assert_refused(probe("--limit", 3), "n_trajectories: 12 → 3", "corpus_sha256")
    assert len(ProbeFolder(tmp_path / "probe").read().ids) == 12
    assert probe("--limit", 3, "--on-existing", "replace")[0] == 0
    assert len(ProbeFolder(tmp_path / "probe").read().ids) == 3
    assert_refused(probe("--limit", 3, "--on-existing", "fail"), "is not empty")


def test_costs_of_another_form_are_measured_again_and_in_no_readers_way(probe, cli, tmp_path):
    probe()
    path = tmp_path / "probe" / "manifest.json"
    manifest = json.loads(path.read_text())
    for n, costs in enumerate(({"outer": 1.0}, 3, None)):
        path.write_text(json.dumps({**manifest, "costs": costs}))
        assert cli("audit", tmp_path / "probe")[0] == 0
        assert cli("route", tmp_path / "probe", "--out", tmp_path / f"route-{n}")[0] == 0
        assert probe()[0] == 0


def test_a_pipe_is_refused_before_it_is_emptied(cli, shared, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    result = cli("probe", "--model", shared / "model", "--data", tmp_path / "pipe", "--out", tmp_path / "probe")
    assert_refused(result, "pipe: is no regular file; write what comes from it to one first")


def test_a_model_without_a_stated_context(cli, shared, tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4))
    bloom.save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    arguments = ["probe", "--model", tmp_path / "bloom", "--data", shared / "corpus.jsonl", "--out", tmp_path / "probe"]
    assert_refused(cli(*arguments, "--units", "*query_key_value"), "does not say its longest context; give --context-length")
    assert_refused(cli(*arguments, "--context-length", 512), "self_attention.query_key_value (×2)", "--units ")
    assert cli(*arguments, "--units", "*query_key_value", "--context-length", 512)[0] == 0
    table = ProbeFolder(tmp_path / "probe").read()
    assert ProbeFolder(tmp_path / "probe").manifest.units == tuple(
        f"transformer.h.{i}.self_attention.query_key_value" for i in range(2)
    )
    model: Any = BloomForCausalLM.from_pretrained(tmp_path / "bloom")
    rendered = Renderer(tokenizer, 512).render(sample_trajectories(1)[0])
    ids = torch.from_numpy(rendered.input_ids.astype(np.int64))
    losses = torch.nn.functional.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none")
    losses[torch.from_numpy(rendered.response_mask[1:])].mean().backward()
    expected = [block.self_attention.query_key_value.weight.grad.norm().item() for block in model.transformer.h]
    np.testing.assert_allclose(table.norms[0], expected, rtol=1e-4)


def test_the_same_weights_under_another_configuration_are_another_model(probe, shared, tmp_path):
    probe()
    shutil.copytree(shared / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    assert probe(model=tmp_path / "model")[0] == 0  # where it lies plays no part
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert_refused(probe(model=tmp_path / "model"), "holds another probe (config_sha256: ")


def test_running_out_of_memory_halves_the_batches(shared, tmp_path, monkeypatch, capsys):
    tokenizer = tiny_tokenizer()
    model, trajectories = tiny_qwen3(len(tokenizer)), sample_trajectories(12)
    probe_corpus(model, tokenizer, trajectories, out=tmp_path / "plain", context_length=1024)
    real = Prober.probe

    def little_memory(self, rendered):
        if len(rendered) > 2:
            kind = torch.OutOfMemoryError if len(rendered) > 4 else RuntimeError
            raise kind("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return real(self, rendered)

    monkeypatch.setattr(Prober, "probe", little_memory)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        summary = probe_corpus(model, tokenizer, trajectories, out=tmp_path / "probe", context_length=1024, batch_tokens=300).run
    finally:
        torch.set_num_threads(before)
    assert summary is not None and (summary.probed, summary.kept) == (12, 0)
    assert summary.batch_tokens <= 150
    said = capsys.readouterr().err
    assert "out of memory: going on with one batch at a time" in said
    assert "out of memory: going on with batches of 150 tokens" in said
    tables = [ProbeFolder(tmp_path / name).read() for name in ("plain", "probe")]
    np.testing.assert_allclose(tables[1].norms, tables[0].norms, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_do_not_depend_on_the_number_of_threads(threads, tmp_path):
    tokenizer = tiny_tokenizer()
    model, trajectories, before = tiny_qwen3(len(tokenizer)), sample_trajectories(30), torch.get_num_threads()
    whole = Prober(model).probe([Renderer(tokenizer, 1024).render(t) for t in trajectories])
    try:
        torch.set_num_threads(threads)
        probe_corpus(model, tokenizer, trajectories, out=tmp_path / "probe", context_length=1024, batch_tokens=200)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(ProbeFolder(tmp_path / "probe").read().norms, whole.norms, rtol=1e-4)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_one_and_three_threads_give_the_same_bytes(batch_tokens, tmp_path):
    tokenizer = tiny_tokenizer()
    model, trajectories, before = tiny_qwen3(len(tokenizer)), sample_trajectories(30), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = tmp_path / str(threads)
            probe_corpus(model, tokenizer, trajectories, out=out, context_length=1024, batch_tokens=batch_tokens)
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_one_trajectory_too_large_for_memory_is_named(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()

    def no_memory(self, rendered):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Prober, "probe", no_memory)
    with pytest.raises(DataError, match=r"trajectory 'sample-0000': its \d+ tokens alone need more memory"):
        probe_corpus(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(1), out=tmp_path / "probe", context_length=1024)


def test_other_runtime_errors_are_not_taken_for_memory(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()

    def broken(self, rendered):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Prober, "probe", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe_corpus(tiny_qwen3(len(tokenizer)), tokenizer, sample_trajectories(3), out=tmp_path / "probe", context_length=1024)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda result: result.loss.fill(np.nan), "the model's loss on it is nan, so the forward pass"),
        (
            lambda result: result.norms[:, 3:5].fill(np.inf),
            "the gradient norm of layers.0.o_proj and 1 more is inf, so the",
        ),
        (lambda result: result.norms[:, 1].fill(1e39), "the gradient norm of layers.0.k_proj is inf"),  # beyond the float32 stored
    ],
)
def test_a_non_finite_result_names_the_trajectory_and_keeps_the_rest(tmp_path, spoil, words):
    tokenizer = tiny_tokenizer()
    model, trajectories = tiny_qwen3(len(tokenizer)), sample_trajectories(6)
    shortest = min(trajectories, key=lambda t: len(Renderer(tokenizer, 1024).render(t).input_ids)).id
    real = Prober.probe

    def spoilt(self, rendered):
        result = real(self, rendered)
        if any(r.id == shortest for r in rendered):
            spoil(result)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prober, "probe", spoilt)
        with pytest.raises(DataError, match=f"trajectory '{shortest}': {words}.*finished trajectories are kept"):
            probe_corpus(model, tokenizer, trajectories, out=tmp_path / "probe", context_length=1024, batch_tokens=1)
    probed = {trajectories[code >> 20].id for code in ProbeFolder(tmp_path / "probe").finished()}
    assert probed == {t.id for t in trajectories} - {shortest}
    again = probe_corpus(model, tokenizer, trajectories, out=tmp_path / "probe", context_length=1024).run
    assert again is not None and again.probed == 1


def test_bad_inputs_are_one_line(cli, probe, shared, tmp_path):
    assert_refused(probe(model=tmp_path / "absent"), "no such folder")
    assert_refused(probe(data=("absent.jsonl",)), "absent.jsonl: no such file")
    assert_refused(probe("--dtype", "int8"), "dtype 'int8'")
    assert_refused(probe("--format", "csv"), "format 'csv'")
    assert_refused(probe("--on-existing", "append"), "choose resume, replace or fail")
    (tmp_path / "probe").mkdir(exist_ok=True)
    (tmp_path / "probe" / "thesis.tex").write_text("mine")
    assert_refused(probe(), "holds no probe")
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["thesis.tex"]
    (tmp_path / "broken.jsonl").write_text('{"messages": [\n')
    assert_refused(probe(data=(tmp_path / "broken.jsonl",), out="new"), "broken.jsonl:1")
    assert not (tmp_path / "new").exists()


def test_a_model_that_is_not_recognised_is_refused_until_its_units_are_named(probe, tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = tiny_tokenizer()
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert_refused(probe(model=tmp_path / "model"), "GPTNeoXForCausalLM", "gpt_neox.layers.*.mlp.dense_4h_to_h", "--units")
    code, _, err = probe("--units", "gpt_neox.layers.*.mlp.dense_*", model=tmp_path / "model")
    assert code == 0, err
    units = ProbeFolder(tmp_path / "probe").manifest.units
    assert units == ("gpt_neox.layers.0.mlp.dense_h_to_4h", "gpt_neox.layers.0.mlp.dense_4h_to_h")
    assert ProbeFolder(tmp_path / "probe").read().norms.shape == (12, 2)


def test_a_template_that_marks_nothing_is_refused_and_names_the_trajectory(probe, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{% generation %}{% endgeneration %}{{ m.content }}{% endfor %}")
    assert_refused(probe("--chat-template", template), "sample-0000")


@pytest.mark.parametrize("name", ["probe", "route"])
def test_the_commands_as_a_process(name, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", "from gradprism.cli.main import main; main()", name],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 2
    assert "Missing" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("budget", [1, 10, 37, 10_000])
def test_batches_hold_every_index_once_within_the_budget(budget):
    lengths = np.random.default_rng(0).integers(1, 30, 100).tolist()
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_the_norms_file_is_readable_by_others(probe, tmp_path):
    probe()
    frame = pl.read_parquet(tmp_path / "probe" / "norms-*.parquet")
    assert frame["norms"].dtype == pl.Array(pl.Float32, 14)
    assert len(frame) == 12
