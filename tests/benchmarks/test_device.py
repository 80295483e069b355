"""The kit for a GPU: its cases go on where they were stopped, its arithmetic is right, and its parts run small on a CPU."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradprism as gp
from device import arms, book, corpus, families, lengths, model, packing, prepare, probe, run, runner, shapes, training, ways
from device.agreement import agreement_part, outside, relative, trajectories
from device.machine import Machine, peak_tflops, this_machine
from device.noise import NoiseEnvironment
from device.results import Case, Outcome, Part, Report, Store, shown, table
from device.setting import Setting
from gradprism.environments.registry import make_environment
from gradprism.runtime.errors import DataError, MissingFileError
from gradprism.runtime.files import append_jsonl
from peers import products
from peers.case import Sizes, build_case

MACHINE = Machine("a device", 80.0, 100.0, 4, "3.12", "2.11", "13.0", "5.17")


def part_of(*cases):
    return Part("part", "A part", cases)


def simple(name, run=lambda: Report([{"value": 1.0}]), seconds=0.0):
    return Case(name, "Values", run, seconds)


# --- cases, their order, and what is kept of them


def test_a_rerun_measures_only_what_is_pending(tmp_path):
    ran = []
    cases = [simple(name, lambda name=name: (ran.append(name), Report([{"value": 2}]))[1]) for name in ("a", "b")]
    Store(tmp_path, "part").write(Outcome("a", "Values", "measured", MACHINE, 1.0, [{"value": 1}]))
    assert runner.run_part(part_of(*cases), tmp_path, MACHINE, 10) == []
    assert ran == ["b"]
    text = (tmp_path / "part.md").read_text()
    assert "| a | 1 |" in text and "| b | 2 |" in text
    assert "a device, 80 GiB, 4 cores; Python 3.12, torch 2.11, CUDA 13.0, transformers 5.17." in text


def test_a_case_that_fails_is_a_line_and_not_the_end(tmp_path):
    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    def refuse():
        raise ValueError("no such\nthing")

    bounds = Report([{"value": 3.0}], "the difference is above 1")
    cases = part_of(simple("big", fail), simple("odd", refuse), simple("far", lambda: bounds), simple("good"))
    assert runner.run_part(cases, tmp_path, MACHINE, 10) == []
    text = (tmp_path / "part.md").read_text()
    assert "| big | – | out of memory |" in text
    assert "| odd | – | ValueError: no such thing |" in text
    assert "| far | 3 | the difference is above 1 |" in text
    assert "| good | 1 | – |" in text
    assert [Store(tmp_path, "part").read(name).status for name in ("big", "far", "good")] == ["failed", "failed", "measured"]  # pyright: ignore[reportOptionalMemberAccess]


def test_failed_cases_are_measured_again_only_when_asked_for(tmp_path):
    Store(tmp_path, "part").write(Outcome("a", "Values", "failed", MACHINE, reason="out of memory"))
    runner.run_part(part_of(simple("a")), tmp_path, MACHINE, 10)
    assert "out of memory" in (tmp_path / "part.md").read_text()
    runner.run_part(part_of(simple("a")), tmp_path, MACHINE, 10, retry=True)
    assert "out of memory" not in (tmp_path / "part.md").read_text()


def test_a_case_that_would_not_end_in_time_is_left_pending_and_shorter_ones_are_not(tmp_path):
    assert runner.run_part(part_of(simple("long", seconds=100), simple("short", seconds=1)), tmp_path, MACHINE, 10) == ["long"]
    assert "Pending: long." in (tmp_path / "part.md").read_text()
    assert not Store(tmp_path, "part").path("long").exists()


def test_a_case_that_runs_over_the_budget_is_stopped_and_left_pending(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.2)
    began = time.monotonic()
    assert runner.run_part(part_of(simple("slow", lambda: time.sleep(60))), tmp_path, MACHINE, 0.1) == ["slow"]
    assert time.monotonic() - began < 10
    assert Store(tmp_path, "part").begun("slow") == 0


def test_a_case_in_which_processes_ended_comes_last_and_then_not_again(tmp_path):
    ran, store = [], Store(tmp_path, "part")
    cases = part_of(*(simple(name, lambda name=name: (ran.append(name), Report([]))[1]) for name in ("a", "b")))
    store.begin("a")
    runner.run_part(cases, tmp_path, MACHINE, 10)
    assert ran == ["b", "a"]
    store.path("a").unlink()
    store.begin("a")
    store.begin("a")
    runner.run_part(cases, tmp_path, MACHINE, 10)
    assert ran == ["b", "a"]
    assert "the process ended in it 2 times" in (tmp_path / "part.md").read_text()


def lost(failure):
    raise runner.DeviceLostError(f"{failure}; give the same command again")


def test_a_lost_device_ends_the_process_and_keeps_what_is_known(tmp_path, monkeypatch):
    def lose():
        yield Report([{"value": 7}], done=1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(runner, "check_device", lost)
    with pytest.raises(runner.DeviceLostError, match="give the same command again"):
        runner.run_part(part_of(simple("bad", lose), simple("next")), tmp_path, MACHINE, 10)
    assert "| bad | 7 | RuntimeError: CUDA error: an illegal" in (tmp_path / "part.md").read_text()
    assert runner.run_part(part_of(simple("bad", lose), simple("next")), tmp_path, MACHINE, 10) == []


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_a_librarys_lack_of_memory_is_one_and_the_run_goes_on_where_the_device_does(tmp_path, words):
    def fail():
        raise RuntimeError(words)

    assert runner.run_part(part_of(simple("big", fail), simple("next")), tmp_path, MACHINE, 10) == []
    assert "| big | – | out of memory |" in (tmp_path / "part.md").read_text()
    assert "| next | 1 | – |" in (tmp_path / "part.md").read_text()


def growing(counts, end=lambda: None):
    """A case's reports of so many repetitions each, and what happens then."""
    for count in counts:
        yield Report([{"times": count}], done=count)
    end()


def test_what_was_measured_before_a_stop_is_kept_unless_another_try_comes_further(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.2)

    def measured(counts, end=lambda: time.sleep(60)) -> Any:
        runner.run_part(part_of(simple("slow", lambda: growing(counts, end))), tmp_path, MACHINE, 0.2)
        return Store(tmp_path, "part").read("slow")

    stopped = measured([1, 2])
    assert (stopped.status, stopped.rows) == ("pending", [{"times": 2}])
    assert "| slow | 2 | pending: stopped after 0 s |\n\nPending: slow." in (tmp_path / "part.md").read_text()
    assert measured([1]).rows == [{"times": 2}]
    assert measured([1, 2, 3]).rows == [{"times": 3}]
    ended = measured([4], lambda: None)
    assert (ended.status, ended.rows, ended.reason) == ("measured", [{"times": 4}], "")


@pytest.fixture
def interruptible():
    """Interrupts are heard, also where the tests run in the background of a shell that has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_keeps_what_was_measured_and_counts_as_no_end_of_the_process(tmp_path, interruptible):
    with pytest.raises(KeyboardInterrupt):
        runner.run_part(
            part_of(simple("slow", lambda: growing([2], lambda: signal.raise_signal(signal.SIGINT)))), tmp_path, MACHINE, 9
        )
    assert Store(tmp_path, "part").begun("slow") == 0
    assert "| slow | 2 | pending: interrupted |" in (tmp_path / "part.md").read_text()


def test_a_killed_process_leaves_what_was_measured_and_the_next_goes_on(tmp_path):
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from device.results import Case, Part, Report
        from device.runner import run_part
        from device.machine import this_machine
        def case():
            yield Report([{"times": 3}], done=3)
            os.kill(os.getpid(), signal.SIGKILL)
        run_part(Part("part", "A part", [Case("slow", "Values", case, 0.0)]), Path(sys.argv[1]), this_machine("cpu"), 10)
    """
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.pathsep.join(["benchmarks", "src"])}
        )
        assert done.returncode == -signal.SIGKILL
    assert Store(tmp_path, "part").begun("slow") == 2
    assert runner.run_part(part_of(simple("slow"), simple("next")), tmp_path, MACHINE, 10) == []
    assert "| slow | 3 | – | the process ended in it 2 times |" in (tmp_path / "part.md").read_text()


def test_machines_are_numbered_where_there_are_several_and_summed_up_one_by_one(tmp_path):
    other = replace(MACHINE, device="another")
    for name, machine, value in (("a", MACHINE, 1), ("b", other, 2), ("c", MACHINE, 4)):
        Store(tmp_path, "part").write(Outcome(name, "Values", "measured", machine, 1.0, [{"value": value}]))
    part = replace(
        part_of(*map(simple, "abc")), summarise=lambda outcomes: [{"sum": sum(row["value"] for o in outcomes for row in o.rows)}]
    )
    runner.run_part(part, tmp_path, MACHINE, 10)
    text = (tmp_path / "part.md").read_text()
    assert "Machine 1: a device, 80 GiB" in text and "Machine 2: another, 80 GiB" in text
    assert "| 1 | a | 1 |\n| 2 | b | 2 |\n| 1 | c | 4 |" in text
    assert "| machine | sum |\n|---|---|\n| 1 | 5 |\n| 2 | 2 |" in text


def test_a_file_that_holds_no_outcome_is_named(tmp_path):
    store = Store(tmp_path, "part")
    store.path("a").parent.mkdir()
    store.path("a").write_text('{"case": "a"}')
    with pytest.raises(DataError, match=r"a\.json: no outcome of this kit"):
        store.read("a")


def test_tables_have_the_columns_of_all_rows():
    rows = [{"a": 1, "b": 0.123456}, {"a": 20000.4, "failed": "x | y"}, {"c": "z", "b": None}]
    assert table(rows) == [
        "| a | b | c | failed |",
        "|---|---|---|---|",
        "| 1 | 0.123 | – | – |",
        "| 20,000 | – | – | x / y |",
        "| – | – | z | – |",
    ]
    assert shown(1234567) == "1,234,567"


# --- shapes and the arithmetic of a row


@pytest.mark.parametrize(
    ("shape", "published"),
    [(shapes.QWEN3_8B, 8.19e9), (shapes.LLAMA_8B, 8.03e9), (shapes.QWEN3_30B, 30.5e9), (shapes.QWEN2_05B, 0.494e9)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shapes_have_the_published_number_of_parameters(shape, published):
    built = shapes.build(shape, "meta")
    assert built.num_parameters() == pytest.approx(published, rel=0.005)
    assert shape.parameters == pytest.approx(built.num_parameters(), rel=0.001)
    assert built.dtype == torch.bfloat16


def test_as_many_layers_as_fit():
    shape = shapes.QWEN3_30B
    assert shapes.layers_that_fit(shape, 1000) == 48
    for memory in (40, 80):
        layers = shapes.layers_that_fit(shape, memory)
        assert shape.with_layers(layers).parameters * 2 <= 0.6 * memory * 2**30 < shape.with_layers(layers + 1).parameters * 2
    assert shapes.layers_that_fit(shape, 0.1) == 1


def test_of_a_mixture_of_experts_only_what_is_used_counts():
    assert shapes.QWEN3_30B.active.ffn == 8 * 768
    assert shapes.QWEN3_8B.active == shapes.QWEN3_8B.sizes


def test_one_model_is_held_at_a_time():
    models = shapes.Models("cpu", torch.float32)
    small, other = shapes.tiny(shapes.QWEN3_8B), shapes.tiny(shapes.LLAMA_8B)
    first = models(small)
    assert models(small) is first
    assert type(models(other)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("A toaster", None)]
)
def test_peaks_are_found_by_the_devices_name(name, peak):
    assert peak_tflops(name) == peak


@pytest.fixture(scope="module")
def batch():
    shape = shapes.tiny(shapes.QWEN3_8B)
    return build_case(shapes.build(shape, "cpu", torch.float32), 2, 24, seed=0), shape


def test_every_way_is_timed_and_the_checkpointed_floor_is_the_floor(batch):
    case, shape = batch
    chosen = [*ways.WHOLE, *ways.LOOPS, *ways.CHECKPOINTED]
    with ways.FLOOR_CHECKPOINTED.open(case) as again, ways.WHOLE[0].open(case) as floor:
        torch.testing.assert_close(again(), floor())
    assert not any(module.training for module in case.model.modules())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in case.model.modules())
    *_, timed = ways.time_ways(case, chosen, "cpu", 2)
    assert {name: entry.failure for name, entry in timed.items()} == dict.fromkeys(timed, "")
    rows: Any = {row["way"]: row for row in ways.report_of(timed, case, shape, peak_tflops=1e-3).rows}
    assert len(rows) == len(chosen)
    assert rows["gradprism"]["error"] < 1e-4
    assert {row["times"] for row in rows.values()} == {2}
    assert rows["gradprism"]["× gradprism"] == 1
    assert rows["gradprism"]["× floor by arithmetic"] == products.count(shape.sizes, 24, case.columns.shape[1]).needed_ratio
    assert rows["floor (forward, input-only backward)"]["× floor"] == 1
    assert rows["floor, checkpointed"]["× floor"] == 1
    assert rows["inference (forward only)"]["% of peak"] is None


def test_ratios_are_medians_within_repetitions_and_goals_are_judged_by_them():
    floor, ours, loop = (ways.Timed(ways.WHOLE[0], seconds=s) for s in ([1.0, 2.0, 4.0], [1.1, 2.0, 4.0], [3.0, 3.0, 6.0]))
    timed = {"floor": floor, "ours": ours, "loop": loop}
    assert ways.ratio(ours, floor) == 1.0
    assert ways.ratio(floor, None) is None
    assert ways.goals(ours, timed, flops=10**12, peak_tflops=1.0) == "floor ≤ 1.10: met, loop ≥ 2: missed, peak ≥ 40 %: met"
    assert "peak ≥ 40 %: missed" in ways.goals(ours, timed, flops=10**11, peak_tflops=1.0)


def failing(way, after, words):
    """The way, which raises an error with these words when it has been opened `after` times."""
    opened = itertools.count()

    @contextmanager
    def open_(case):
        if next(opened) >= after:
            raise RuntimeError(words)
        with way.open(case) as run_:
            yield run_

    return replace(way, open=open_)


def test_a_way_that_fails_is_a_row_that_says_so_and_keeps_its_times(batch):
    case, shape = batch
    chosen = [failing(ways.LOOPS[0], 0, "CUDA error: out of memory"), failing(ways.WHOLE[0], 3, "cuDNN error: odd"), ways.WHOLE[1]]
    *_, timed = ways.time_ways(case, chosen, "cpu", 4)
    loop, floor, ours = ways.report_of(timed, case, shape, None).rows
    assert loop["failed"] == "out of memory" and "times" not in loop
    assert (floor["times"], floor["failed"]) == (2, "RuntimeError: cuDNN error: odd")
    assert ours["times"] == 4 and "failed" not in ours
    assert ours["× floor"] is not None


def test_where_the_probe_fails_its_checkpointed_form_is_what_others_are_compared_with(batch):
    case, shape = batch
    *_, timed = ways.time_ways(case, [failing(ways.WHOLE[1], 0, "CUDA error: out of memory"), *ways.CHECKPOINTED], "cpu", 1)
    rows: Any = {row["way"]: row for row in ways.report_of(timed, case, shape, None).rows}
    assert rows["gradprism"]["failed"] == "out of memory"
    assert rows["gradprism, --checkpoint-activations"]["× gradprism"] == 1
    assert rows["floor, checkpointed"]["× gradprism"] > 0


def test_ways_that_were_timed_before_the_device_was_lost_are_kept(batch, monkeypatch):
    case, shape = batch
    monkeypatch.setattr(ways, "check_device", lost)
    told = []
    with pytest.raises(runner.DeviceLostError):
        runs = ways.time_ways(case, [ways.WHOLE[0], failing(ways.WHOLE[1], 2, "CUDA error: illegal access")], "cpu", 3)
        told.extend(ways.report_of(timed, case, shape, None) for timed in runs)
    assert [row.get("times") for row in told[-1].rows] == [1, 1]
    assert told[-1].done == 2


def test_kernels_are_ordered_by_time_and_the_others_are_one_row():
    rows = probe.top_kernels([("a", 1, 100.0), ("b", 2, 300.0), ("c", 3, 60.0), ("d", 4, 40.0), ("e", 1, 0.0)], most=2)
    assert [(row["kernel"], row["calls"], row["% of time"]) for row in rows] == [
        ("b", 2, 60.0),
        ("a", 1, 20.0),
        ("2 others", 7, pytest.approx(20.0)),
    ]


def test_4_bit_layers_take_the_place_of_linear_ones():
    pytest.importorskip("bitsandbytes")
    shape = replace(shapes.tiny(shapes.QWEN3_8B), sizes=Sizes(64, 2, 128, 4, 2, 16, 97))
    built = shapes.build(shape, "cpu", torch.float32)
    case = build_case(built, 2, 20, seed=0)
    with ways.WHOLE[1].open(case) as run_:
        whole = run_()
    assert ways.quantise(built) == 14
    assert type(built.lm_head) is torch.nn.Linear
    with ways.WHOLE[1].open(case) as run_:
        rounded = run_()
    assert 0 < float(((whole - rounded).abs() / whole).max()) < 1


# --- the probe against autograd


@pytest.mark.parametrize("family", families.FAMILIES)
def test_matrices_are_those_of_the_probe(family):
    from gradprism.probing.units import find_units

    built = families.build(family, "cpu", torch.float32)
    sizes = []
    for name, cut in families.matrices(family):
        sizes += [part.numel() for part in cut(dict(built.named_parameters())[name])]
    assert sizes == [unit.n_parameters for unit in find_units(built).units]


def test_a_wrong_norm_breaks_a_bound_and_so_does_nan():
    right = np.array([[1.0, 2.0], [4.0, 8.0]])
    assert outside(relative(right, right), (1e-5, 1e-3)) == ""
    assert outside(relative(right * [1, 1.01], right), (1e-2, 1e-3)) == "the largest difference 0.01 is above 0.001"
    assert outside(relative(right * 1.5, right), (1e-2, 1e-3)).startswith("the median")
    assert outside(relative(right * np.nan, right), (1e-2, 1e-3)) != ""


def test_sample_trajectories_have_targets_and_no_first_response():
    made = trajectories(50)
    assert all(t.n_targets >= 1 and not t.response_mask[0] for t in made)
    assert all(np.array_equal(a.input_ids, b.input_ids) for a, b in zip(made, trajectories(50), strict=True))


def test_the_newest_flash_attention_that_transformers_finds_is_used(monkeypatch):
    for number in (2, 3, 4):
        monkeypatch.setattr(packing.utils, f"is_flash_attn_{number}_available", lambda number=number: number < 4)
    assert packing.flash_attention() == "flash_attention_3"
    for number in (2, 3):
        monkeypatch.setattr(packing.utils, f"is_flash_attn_{number}_available", lambda: False)
    assert packing.flash_attention() is None
    assert packing.packed("flash", "cpu").failure.startswith("transformers finds no flash attention (flash-attn, flash-attn-3, ")


# --- the corpus


@pytest.mark.parametrize("text", ["0110", "1", "0", "111000", "0101010"])
def test_masks_come_back_from_their_runs(text):
    mask = np.array([character == "1" for character in text])
    assert np.array_equal(lengths.to_mask(lengths.to_runs(mask)), mask)


def test_a_corpus_of_masks_is_written_and_read(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.random(length) < 0.3 for length in (5, 1, 300)]
    lengths.save(tmp_path / "x.npz", masks)
    assert all(np.array_equal(a, b) for a, b in zip(masks, lengths.load(tmp_path / "x.npz"), strict=True))


def test_the_kept_lengths_are_those_of_all_expert_trajectories():
    masks = lengths.load()
    assert len(masks) == 3554
    assert all(mask.any() and not mask[0] for mask in masks)
    assert 1_500_000 < sum(map(len, masks)) < 3_000_000


def test_slices_share_out_every_trajectory_once_and_evenly():
    load = corpus.Corpus(lengths.load()[::10], 100)
    slices = [load.slice(number, 4, 8192) for number in range(4)]
    assert sorted(np.concatenate([batch for part in slices for batch in part])) == list(range(len(load.masks)))
    work = [sum(int(load.reads[batch].sum()) for batch in part) for part in slices]
    assert max(work) < 1.5 * min(work)
    again = corpus.Corpus(load.masks, 100).trajectory(7)
    assert np.array_equal(again.input_ids, load.trajectory(7).input_ids)
    assert np.flatnonzero(again.response_mask)[-1] == load.reads[7]


def test_hours_of_the_whole_follow_from_the_slices_that_were_measured():
    load = corpus.Corpus([np.array([False, True, True])] * 100, 10)  # 200 tokens are read
    row = {"activations": "kept", "tokens": 50, "seconds": 9.0}
    [whole] = corpus.whole(
        load, shapes.QWEN3_8B, 624.0, [Outcome("x", "t", "measured", MACHINE, rows=[row, {**row, "tokens": 10, "seconds": 3.0}])]
    )
    assert whole["% measured"] == 30
    assert whole["hours on this device"] == pytest.approx(40 / 3600)
    assert whole["× faster"] == pytest.approx(136 * 8 / 40)
    assert whole["× faster, of the same peak"] == pytest.approx(136 * 8 * 312 / (40 * 624))


def test_batches_are_halved_where_memory_runs_out():
    class Small:
        def __init__(self):
            self.probed = []

        def probe(self, trajectories):
            if sum(len(t.input_ids) for t in trajectories) > 12:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            self.probed += [t.id for t in trajectories]

    load, prober = corpus.Corpus([np.array([False, True, True, True])] * 8, 10), Small()
    assert corpus._probe(prober, load, np.arange(8), 100) == 6  # pyright: ignore[reportArgumentType]
    assert sorted(prober.probed) == [f"alfworld-{i}" for i in range(8)]


# --- trainings


def test_an_estimate_is_off_by_the_share_of_what_was_measured():
    assert training.off(1.5, 1.0) == pytest.approx(50)
    assert training.off(0.75, 1.0) == pytest.approx(-25)
    job = training.Job(shapes.QWEN2_05B, True, rank=8)
    found, expected = training.Figures(3, 2.0, 3.0, 100, 40, 10.0), training.Figures(4, 1.0, 1.0, 50, 20, 12.0)
    row = training.row_of(job, found, expected)
    assert (row["estimated update s"], row["update off, %"]) == (2.0, pytest.approx(0))
    assert (row["estimated rollout s"], row["rollout off, %"]) == (2.0, pytest.approx(-100 / 3))
    assert row["memory off, %"] == pytest.approx(20)
    assert job.name == "grpo-qwen2.5-0.5b-lora"


def test_a_training_that_takes_more_memory_than_there_is_is_not_tried():
    assert training.too_large(96.2, 79.1) == "not tried: by the estimate it takes 96 GiB, and the device has 79"
    assert training.too_large(79.0, 79.1) == training.too_large(None, 79.1) == training.too_large(96.2, None) == ""


def test_lora_and_all_weights_are_trained_at_both_sizes_by_sft_and_grpo(tmp_path):
    names = {case.name for case in training.training_part(replace(setting(tmp_path), smoke=False)).cases}
    assert names == {f"{a}-{m}-{w}" for a in ("sft", "grpo") for m in ("qwen2.5-0.5b", "qwen3-8b") for w in ("lora", "full")}


def test_steps_of_a_training_that_was_stopped_are_kept(tmp_path, monkeypatch):
    def stopped(bench, model):
        for step in range(1, 4):
            append_jsonl(bench.folder / "out" / "log.jsonl", {"step": step, "loss": 1.0, "seconds": 2.0 * step, "tokens": 10})
        raise runner.OutOfTimeError

    monkeypatch.setattr(training, "_fine_tune", stopped)
    job = training.Job(shapes.tiny(shapes.QWEN2_05B, 2048), False, "float32", recomputed=False)
    outcome = runner.try_case(simple("sft", lambda: training._measure(job, setting(tmp_path))), Store(tmp_path, "x"), MACHINE, 60)
    assert (outcome.status, outcome.done) == ("pending", 2)
    assert (outcome.rows[0]["times"], outcome.rows[0]["update s"]) == (2, 5.0)


def test_the_environment_of_noise_ends_after_its_steps_with_a_reward():
    environment = make_environment("device.noise:NoiseEnvironment", steps=2, words=5)
    assert isinstance(environment, NoiseEnvironment)
    session = environment.session()
    first, *steps = [session.reset("train/0"), session.step("a"), session.step("b")]
    assert len(first.observation.split()) == 5
    assert [step.done for step in steps] == [False, True]
    assert 0 < steps[-1].reward < 1
    assert environment.tasks("test", 2)[1].id == "test/1"


# --- the arms


@pytest.mark.parametrize("smoke", [False, True])
def test_the_experiments_configuration_is_one(tmp_path, smoke):
    path = tmp_path / "config.toml"
    path.write_text(arms.configuration(gp.shipped("webshop-tiny"), tmp_path / "run", 2, arms.Sizes(), "cpu", smoke))
    config = gp.load_config(path)
    names = [arm.name for arm in config.arms]
    paper = {"base", "sft", "grpo", "gigpo", "random", "pass-rate", "sft-then-rl", "gini", "kurtosis", "cv"}
    assert set(names) == ({"base", "sft", "gini"} if smoke else paper)
    assert config.seeds == [0, 1]
    assert config.folder == tmp_path / "run"


def test_an_arms_row_has_its_means_over_seeds():
    folder = Path("results/webshop-mini")
    rows = {row["arm"]: row for row in arms.rows_of(gp.read_results(folder))}
    written = [arm for arm in json.loads((folder / "results.json").read_text())["arms"] if arm.get("runs")]
    for arm in written:
        row = rows[arm["title"]]
        successes = [run["success"]["test"].count("1") / len(run["success"]["test"]) for run in arm["runs"]]
        scores = [np.mean(run["score"]["test"]) for run in arm["runs"]]
        assert row["seeds"] == len(arm["runs"])
        assert row["success, %"] == pytest.approx(100 * np.mean(successes), abs=0.06)
        assert row["score"] == pytest.approx(100 * np.mean(scores), abs=0.06)
    assert len(written) >= 10


def test_an_experiment_that_fails_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 2"):
        arms._experiment(tmp_path / "none.toml", tmp_path / "results", 1)


def test_an_experiment_is_ended_with_all_that_it_has_started():
    code = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
    code += "print(c.pid, flush=True); c.wait()"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    arms.end_group(process, patience=5)
    assert process.poll() is not None
    state = Path(f"/proc/{child}/stat")
    assert any(not state.exists() or state.read_text().split()[2] == "Z" or time.sleep(0.1) for _ in range(50))


def test_an_experiment_ends_with_a_process_that_was_killed():
    code = "import subprocess, sys, time; from device.arms import end_with_parent; "
    code += "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)'], preexec_fn=end_with_parent); "
    code += "print(c.pid, flush=True); c.wait()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["benchmarks", "src"])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    state = Path(f"/proc/{child}/stat")
    assert any(not state.exists() or state.read_text().split()[2] == "Z" or time.sleep(0.1) for _ in range(50))


# --- what is carried


def test_a_file_is_cut_and_joined_and_a_wrong_part_is_found_out(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(bytes(range(250)) * 4)
    parts = model.split(file, tmp_path / "carry", 600)
    assert [part.stat().st_size for part in parts] == [600, 400]
    (tmp_path / "out").mkdir()
    assert model.join(tmp_path / "carry", tmp_path / "out").read_bytes() == file.read_bytes()
    parts[1].write_bytes(b"x" * 400)
    with pytest.raises(DataError, match="not the file that was cut"):
        model.join(tmp_path / "carry", tmp_path / "out")
    parts[1].unlink()
    with pytest.raises(MissingFileError, match=r"2 parts make m\.gguf"):
        model.join(tmp_path / "carry", tmp_path / "out")
    with pytest.raises(MissingFileError, match=r"holds no model\.json"):
        model.join(tmp_path / "out", tmp_path)


def test_wheels_are_pinned_to_what_the_tests_ran_with():
    packages = " ".join(prepare.LOADS.values()).split()
    found = prepare.pinned(packages, prepare.ROOT / "constraints.txt")
    assert [word.partition("==")[0] for word in found] == packages
    assert all(word.partition("==")[2] for word in found)
    with pytest.raises(SystemExit, match="no version of nothing-like-this"):
        prepare.pinned(["nothing-like-this"], prepare.ROOT / "constraints.txt")


def test_the_models_template_marks_what_the_assistant_says():
    from helpers.tiny import chatml_tokenizer

    tokenizer = chatml_tokenizer(model.TEMPLATE)
    messages = [{"role": "user", "content": "go to"}, {"role": "assistant", "content": "drawer 1"}]
    found = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    said = list(itertools.compress(found["input_ids"], found["assistant_masks"]))
    assert tokenizer.decode(said) == "drawer 1<|im_end|>"
    begun = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    assert begun == "<|im_start|>user\ngo to<|im_end|>\n<|im_start|>assistant\n"


# --- the command


def test_parts_and_cases_are_listed_with_what_is_known(tmp_path, capsys):
    assert run.main(["--smoke", "--list", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in run.PARTS)
    with pytest.raises(SystemExit):
        run.main(["nonsense"])


def setting(tmp_path):
    return Setting("cpu", this_machine("cpu"), True, tmp_path)


@pytest.mark.parametrize("name", run.PARTS)
def test_case_names_are_files_and_differ(name, tmp_path):
    names = [case.name for case in run.make_part(name, setting(tmp_path)).cases]
    assert len(set(names)) == len(names)
    assert all(set(case) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for case in names)


def measured_on_a_cpu(part, tmp_path):
    """The rows of all cases by name: each is measured, but for packing with flash attention."""
    assert runner.run_part(part, tmp_path, this_machine("cpu"), 400) == []
    rows = {}
    for case in part.cases:
        outcome = Store(tmp_path, part.name).read(case.name)
        assert outcome is not None
        rows[case.name] = outcome.rows
        if case.name == "packing-flash":
            assert outcome.reason.startswith("transformers finds no flash attention")
        else:
            assert outcome.rows and not outcome.reason, case.name
    return rows


@pytest.mark.rare  # tests/probing/test_families.py has each family
def test_every_family_agrees_with_autograd_on_a_cpu_too(tmp_path):
    part = agreement_part(replace(setting(tmp_path), smoke=False))
    assert measured_on_a_cpu(part, tmp_path).keys() == {case.name for case in part.cases}


@pytest.mark.parametrize("name", ["agreement", "corpus"])
def test_parts_run_small_on_a_cpu(name, tmp_path):
    """The others take half a minute and more: see `test_the_smoke_run_measures_everything`."""
    part = run.make_part(name, setting(tmp_path))
    assert measured_on_a_cpu(part, tmp_path).keys() == {case.name for case in part.cases}


def test_what_cannot_be_begun_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "kept-1-of-8.json").write_text("{")
    for arguments, words in (
        (["agreement", "--smoke", "--out", str(tmp_path / "file")], "file"),
        (["corpus", "--smoke", "--out", str(tmp_path)], "kept-1-of-8.json"),
        (["agreement", "--device", "cpu"], "there is no CUDA device here"),
        (["agreement", "--device", "cuda"], "torch finds no CUDA device"),
    ):
        assert run.main(arguments) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert words in said and "Traceback" not in said
    for arguments in (["--budget", "nan"], ["--budget", "0"], ["--jobs", "0"], ["nonsense"]):
        with pytest.raises(SystemExit, match="2"):
            run.main(arguments)


def test_what_is_left_pending_is_told_from_an_error_of_the_kit(tmp_path):
    assert run.main(["agreement", "--smoke", "--budget", "1e-9", "--out", str(tmp_path)]) == run.PENDING != 1
    assert run.PENDING in book.TRIED


@pytest.mark.slow
@pytest.mark.rare
def test_the_smoke_run_measures_everything(tmp_path):
    """Within its budget of 480 seconds, after which cases would be left pending."""
    command = [sys.executable, "benchmarks/device/run.py", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4, done.stdout + done.stderr  # flash attention is missing on a CPU
    assert "0 cases pending, 1 failed" in done.stdout
    for name in run.PARTS:
        assert (tmp_path / f"{name}.md").exists()


# --- the run book


def test_the_steps_fit_the_devices_time_and_each_its_command():
    sums = [sum(command.seconds for command in commands) for _, commands in book.STEPS]
    assert max(sums) < 600
    assert sum(sums) + book.STARTS <= book.ALL
    assert book.listed().endswith(
        f"{sum(sums)} s in all, and {book.ALL - sum(sums)} of 1800 for the machine's start and the transfers"
    )


def test_every_part_is_measured_when_all_that_it_needs_is_there():
    there, measured = set(), []
    for load, commands in book.STEPS:
        there.add(load)
        for command in commands:
            if command.measures and "--smoke" not in command.words and "--retry" not in command.words:
                [part] = [word for word in command.words.split() if word in run.PARTS]
                assert there >= set(prepare.NEEDS[part])
                measured.append(part)
    assert measured == list(run.PARTS)
    assert there == {*prepare.LOADS, "model-1", "model-2"}


def test_the_document_names_the_loads_of_each_part_and_what_the_steps_carry():
    text = Path("docs/device.md").read_text(encoding="utf-8")
    for part, loads in prepare.NEEDS.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| `{part}` |")]
        assert set(loads) <= set(re.findall(r"`((?:wheels|model)-\d)`", row)) <= {*loads, "wheels-3"}
    for number, (load, _) in enumerate(book.STEPS, 1):
        assert re.search(rf"{number}\. with `{load}`", text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The book's folder: what stands in for `run.py` ends with the codes in the file `codes`, one after another."""
    script = tmp_path / book.RUN
    script.parent.mkdir(parents=True)
    script.write_text(
        "import pathlib, sys, time\n"
        "path = pathlib.Path('codes'); code, *rest = path.read_text().split(); path.write_text(' '.join(rest))\n"
        "result = pathlib.Path('build/device/results/part/case.json'); result.parent.mkdir(parents=True, exist_ok=True)\n"
        "result.write_text(sys.argv[-1]); time.sleep(60 if code == 'sleep' else 0); sys.exit(int(code))\n"
    )
    monkeypatch.setattr(book, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("codes", "left", "status"), [("3 3 4 9", "9", 0), ("3 3 3 3", "3", 1), ("5 9", "9", 0), ("2 9", "9", 1), ("1 9", "9", 1)]
)
def test_a_measurement_that_loses_the_device_is_given_again_at_most_three_times(place, codes, left, status):
    (place / "codes").write_text(codes)
    assert book.carry_out([book.Command(book.RUN, 100)], place / "out" / "step-1.tar.gz") == status
    assert (place / "codes").read_text() == left
    with tarfile.open(place / "out" / "step-1.tar.gz") as archive:
        assert archive.extractfile("results/part/case.json").read() in (b"59", b"60")  # pyright: ignore[reportOptionalMemberAccess]


def test_a_command_that_takes_too_long_is_ended_and_its_results_are_packed(place, monkeypatch):
    monkeypatch.setattr(book, "PATIENCE", 0.5)
    monkeypatch.setattr(book, "MARGIN", 0.1)
    (place / "codes").write_text("sleep")
    began = time.monotonic()
    assert book.carry_out([book.Command(book.RUN, 2)], place / "step-1.tar.gz") == 1
    assert time.monotonic() - began < 20
    with tarfile.open(place / "step-1.tar.gz") as archive:
        assert "results/part/case.json" in archive.getnames()


def test_a_step_ends_where_an_installation_fails(place, capfd):
    (place / "codes").write_text("0")
    assert book.carry_out([book.Command("nothing.py", 20), book.Command(book.RUN, 100)], place / "step-1.tar.gz") == 1
    assert "the step ends here" in capfd.readouterr().err
    assert (place / "codes").read_text() == "0"


def test_models_are_not_packed_and_a_large_archive_is_cut(tmp_path):
    noise = np.random.default_rng(0).bytes(3000)
    for name in (
        "results/arms/results/results.json",
        "results/arms/run/model",
        "results/.training-x/config.json",
        "smoke-cuda/probe.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(noise)
    parts = book.pack(tmp_path, tmp_path / "x.tar.gz", 2048)
    assert [part.name for part in parts] == ["x.tar.gz.1", "x.tar.gz.2"]
    (tmp_path / "whole").write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(tmp_path / "whole") as archive:
        assert {m.name for m in archive if m.isfile()} == {"results/arms/results/results.json", "smoke-cuda/probe.md"}
