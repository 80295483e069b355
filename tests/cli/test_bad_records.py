"""`--on-bad` and `--map` of the commands that read a corpus."""

import json
from pathlib import Path

import pytest

from gradprism.experiments.config import CorpusConfig
from gradprism.experiments.stages import Files, OwnFiles
from gradprism.probing.folder import ProbeFolder
from gradprism.runtime.errors import ConfigError
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.rendering import Renderer
from helpers.cli import assert_refused
from helpers.tiny import sample_trajectories, tiny_qwen3, tiny_tokenizer

NAMES = ("turns=dialog", "speaker=who", "text=said", "role.agent=assistant", "role.world=user")
MAP = [part for name in NAMES for part in ("--map", name)]


@pytest.fixture(autouse=True)
def _transformers_as_main_sets_it() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a corpus with own names, of 4 trajectories, a broken line and one that is too long."""
    tokenizer = tiny_tokenizer()
    tiny_qwen3(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = []
    for trajectory in sample_trajectories(4):
        turns = [{"who": "agent" if m.role == "assistant" else "world", "said": m.content} for m in trajectory.messages]
        lines.append(json.dumps({"id": trajectory.id, "dialog": turns}))
    late = [{"who": "world", "said": "look " * 300}, {"who": "agent", "said": "go"}]
    lines[2:2] = ["{broken", json.dumps({"id": "late", "dialog": late})]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    common = ["--model", str(folder / "model"), "--data", str(folder / "own.jsonl"), "--out", str(folder / out)]
    return [*common, "--context-length", "200", *MAP, *more]


def check_skipped(path: Path, folder: Path) -> None:
    skipped = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["id"], one["source"]) for one in skipped] == [("", f"{folder}/own.jsonl:3"), ("late", f"{folder}/own.jsonl:4")]
    assert skipped[1]["reason"].startswith("empty response mask: the response begins at token")


def test_probe_leaves_bad_records_out_and_says_which(cli, folder: Path) -> None:
    assert_refused(cli("probe", *arguments(folder, "fails")), "own.jsonl:3: broken JSON")
    code, _, said = cli("probe", *arguments(folder, "probe", "--on-bad", "skip"))
    assert code == 0
    assert f"2 records left out; {folder}/probe/skipped.jsonl says why" in said
    check_skipped(folder / "probe/skipped.jsonl", folder)
    manifest = ProbeFolder(folder / "probe").manifest
    assert (manifest.n_trajectories, manifest.read["on_bad"], manifest.read["mapping"]["turns"]) == (4, "skip", "dialog")
    assert cli("probe", *arguments(folder, "probe", "--on-bad", "skip", "--on-existing", "replace"))[0] == 0
    assert_refused(cli("probe", *arguments(folder, "x", "--on-bad", "drop")), "choose fail or skip")
    assert_refused(cli("probe", *arguments(folder, "x", "--map", "turn=a")), "map turn: unknown")


def test_sft_leaves_bad_records_out_and_says_which(cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []
    render = Renderer.render
    monkeypatch.setattr(Renderer, "render", lambda self, trajectory: rendered.append(trajectory.id) or render(self, trajectory))
    more = ("--max-steps", "1", "--batch-size", "2", "--json")
    assert_refused(cli("sft", *arguments(folder, "fails", *more)), "own.jsonl:3: broken JSON")
    code, _, _ = cli("sft", *arguments(folder, "sft", "--on-bad", "skip", *more))
    assert code == 0
    check_skipped(folder / "sft/skipped.jsonl", folder)
    assert json.loads((folder / "sft/summary.json").read_text())["examples"] == 4
    assert sorted(set(rendered)) == sorted(rendered) and len(rendered) == 5, "each once"
    code, out, _ = cli("sft", *arguments(folder, "x", "--on-bad", "skip", *more, "--dry-run", "--eval-share", "0.5"))
    assert code == 0 and json.loads(out)["trajectories"]["value"] == 2
    sft = cli("sft", *arguments(folder, "half", "--on-bad", "skip", *more, "--eval-share", "0.5"))
    assert sft[0] == 0 and json.loads(sft[1])["examples"] == 2, "a share of those that can be used"
    check_skipped(folder / "half/skipped.jsonl", folder)


def test_inspect_reads_own_names(cli, folder: Path) -> None:
    common = ("--model", folder / "model", "--data", folder / "own.jsonl", "--context-length", 200, *MAP, "--json")
    code, out, err = cli("inspect", *common)
    assert (code, json.loads(out)["trajectories"]) == (2, 4)
    assert "2 of 6 records cannot be used" in err
    assert cli("inspect", *common, "--on-bad", "skip")[0] == 0


def test_a_configuration_names_fields_and_leaves_bad_records_out(cli, folder: Path) -> None:
    names = {"turns": "dialog", "speaker": "who", "text": "said", "role": {"agent": "assistant", "world": "user"}}
    config = CorpusConfig.model_validate({"files": [str(folder / "own.jsonl")], "map": names, "on_bad": "skip"})
    files = Files.of(config)
    assert isinstance(files, OwnFiles)
    assert (dict(files.mapping)["role.world"], files.on_bad) == ("user", "skip")
    assert len(list(load_corpus(files.paths, mapping=dict(files.mapping), on_bad=files.on_bad))) == 5
    globbed = Files.of(config.model_copy(update={"files": [str(folder / "o*.jsonl")]}))
    assert globbed == files
    plain = Files.of(config.model_copy(update={"map": {}, "on_bad": "fail"}))
    assert type(plain) is Files
    with pytest.raises(ConfigError, match="map turn: unknown"):
        Files.of(config.model_copy(update={"map": {"turn": "a"}}))
