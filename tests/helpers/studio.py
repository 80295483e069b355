"""A tree of folders for the studio, and how its columns are read back."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gradprism.environments.protocol import Task
from gradprism.experiments.results import Cost, Machine
from gradprism.experiments.stage import Record
from gradprism.probing.api import probe
from gradprism.rollouts.episode import Episode, StopReason, Turn
from gradprism.routing.routes import route
from gradprism.runtime.files import write_json, write_jsonl
from gradprism.trajectories.record import Message, ToolCall, Trajectory
from helpers.tiny import chatml_tokenizer, sample_trajectories, tiny_qwen3

ATTACK = (
    "</script><script>alert(1)</script>'\"><img src=x onerror=alert(2)> javascript:alert(3) \x1b[31mred\x1b[0m \u202egnp.exe ]]>"
)
HOSTILE = Trajectory(
    f"id {ATTACK}",
    (
        Message("system", ATTACK),
        Message("user", f"look at {ATTACK}"),
        Message("assistant", ATTACK, tool_calls=(ToolCall(ATTACK, {ATTACK: ATTACK}, "c1"),)),
        Message("tool", ATTACK, name=ATTACK, tool_call_id="c1"),
        Message("assistant", "go to desk 1", weight=0.0),
        Message("user", "x" * 5_000_000),
        Message("assistant", "take apple 1 from desk 1", reasoning=ATTACK),
    ),
    {"env": ATTACK, "id": "t", "task_type": ATTACK, "source": ATTACK},
    tools=({"type": "function", "function": {"name": ATTACK, "parameters": {"type": "object"}}},),
)


def corpus(n: int = 11) -> list[Trajectory]:
    """Trajectories with sources, and a hostile one at the end, which names no task of an environment."""
    made = [replace(t, task={**t.task, "source": f"s{i % 3}"}) for i, t in enumerate(sample_trajectories(n))]
    return [*made, HOSTILE]


def make_tree(folder: Path) -> list[Trajectory]:
    """A model, a probe of it with single turns and a score of the pass, and a route, below `folder`; gives the trajectories."""
    tokenizer = chatml_tokenizer()
    model = tiny_qwen3(len(tokenizer))
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    model.name_or_path = str(folder / "model")
    trajectories = corpus()
    short = [*trajectories[:-1], replace(HOSTILE, messages=(*HOSTILE.messages[:5], Message("user", "x"), HOSTILE.messages[6]))]
    made = probe(model, tokenizer, short, out=folder / "probe", context_length=4096, per_turn=True, scores="effective_rank")
    route(made).save(folder / "route")
    return short


def columns_of(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header of a `.bin` and its columns: arrays, and lists of categories' values and of texts."""
    size = int.from_bytes(content[:4], "little")
    header, body = json.loads(content[4 : 4 + size]), content[4 + size :]
    assert (4 + size) % 8 == 0
    dtypes = {"f64": "<f8", "f32": "<f4", "u32": "<u4", "i32": "<i4", "u16": "<u2", "u8": "u1"}
    found: dict[str, Any] = {}
    for column in header["columns"]:
        assert column["start"] % 8 == 0
        values = np.frombuffer(body[column["start"] : column["start"] + column["size"]], dtypes[column["dtype"]])
        if "offsets" in column:
            at = column["offsets"]
            offsets = np.frombuffer(body[at["start"] : at["start"] + at["size"]], "<u4")
            values = [bytes(values[a:b]).decode() for a, b in pairwise(offsets)]
        elif "values" in column:
            none = np.iinfo(values.dtype).max
            values = [None if code == none else column["values"][code] for code in values]
        assert len(values) == column["length"]
        found[column["name"]] = values
    return header, found


def make_run(folder: Path, *, running: bool = False) -> None:
    """A run folder with a training of each kind and an evaluation, of which one is `running`."""
    write_json(folder / "config.json", {"name": "toy", "corpus": {"files": ["a.jsonl"]}})
    for kind, command, rows in (
        ("sft", "sft", [{"step": step, "loss": 2.0 / step} for step in range(1, 5)]),
        ("rl", "rl", list(_rounds())),
    ):
        stage = folder / "stages" / f"{kind}-0123456789abcdef"
        settings = {"rounds": 40} if command == "rl" else {"max_steps": 8}
        write_json(stage / "manifest.json", {"command": command, "config": settings})
        write_jsonl(stage / "log.jsonl", rows)
        if kind == "sft":
            write_json(stage / "summary.json", {"steps": 4, "warnings": [f"weights {ATTACK}"]})
            record(stage, kind, {})
    stage = folder / "stages" / "evaluate-0123456789abcdef"
    evaluation(stage / "evaluation")
    record(stage, "evaluate", {"model": "sft-0123456789abcdef"})
    if running:
        marker = {"pid": os.getpid(), "created": psutil.Process().create_time()}
        write_json(folder / "running" / "rl-0123456789abcdef.json", marker)


def _rounds() -> Iterator[dict[str, float]]:
    for step in range(1, 13):
        yield {"step": step, "success": 0.2, "episodes": 8, "out_of_steps": 2, "invalid_share": 0.6, "entropy": 0.3}
        yield {"step": step, "loss": 0.1}


def record(stage: Path, kind: str, causes: Any) -> None:
    """Says that a stage is done."""
    about = {"kind": kind, "key": "0123456789abcdef", "causes": causes, "version": "0.1.0", "code": "c"}
    made = Record(
        **about,
        started="2026-01-01T00:00:00+00:00",
        machine=Machine(),
        cost=Cost(wall_seconds=3.0),
        evaluation_seconds=0.0,
        headline=f"done {ATTACK}",
        found={},
    )
    write_json(stage / "stage.json", made.model_dump(mode="json", exclude_defaults=True))


def evaluation(folder: Path) -> list[Episode]:
    """An evaluation's folder; gives its episodes."""
    episodes = [
        Episode(
            Task("toy", f"t{i} {ATTACK}", "pick" if i % 2 else "look", "unseen"),
            [
                Turn(f"see {ATTACK}", f"go {ATTACK}", valid=True, reward=0.25),
                Turn("again", "take", valid=False, reward=float(i % 2)),
            ],
            "the end",
            success=bool(i % 2),
            score=float(i % 2),
            stop_reason=StopReason.SUCCESS if i % 2 else StopReason.STEPS,
            details={"r_type": 0.5, "r_att": 0.25, "bought": ATTACK},
        )
        for i in range(6)
    ]
    manifest = {"agent": {"kind": "random"}, "tasks_sha256": "t", "config": {"splits": {"unseen": 6}, "attempts": 1}}
    write_json(folder / "manifest.json", manifest)
    write_jsonl(folder / "episodes.jsonl", [episode.to_json() for episode in episodes])
    write_json(folder / "summary.json", {"remarks": [f"remark {ATTACK}"]})
    return episodes
