"""`--config FILE`: what a command's options are when a run's configuration gives them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer.main

from gradprism.cli.commands import register
from gradprism.cli.config_file import SECTIONS, defaults
from gradprism.cli.help import new_app
from gradprism.runtime.errors import ConfigError
from helpers.cli import assert_refused

QUICKSTART = Path("configs/quickstart.toml")


def options_of(command: str) -> dict[str | None, bool]:
    """Whether each option of a command, by parameter, may be given several times."""
    app = new_app()
    register(app, [command])
    found = typer.main.get_command(app)
    return {each.name: getattr(each, "multiple", False) for each in found.commands[command].params}  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stage_has_its_section_and_the_models_and_environments_of_the_run():
    rl = defaults(
        "rl",
        QUICKSTART,
        ["rl.rounds=30", "rl.prompt.history=3", "environment.options.games=generated", "environment.options.data_dir=x"],
    )
    assert (rl["rounds"], rl["loss"], rl["history"], rl["env"]) == (30, "dapo", 3, "alfworld")
    assert rl["env_option"] == ["difficulty=small", "games=generated"] and rl["data_dir"] == "x"
    assert "model" not in rl and rl["context_length"] == 1024
    sft = defaults("sft", QUICKSTART, ["seed=5"])
    assert (sft["epochs"], sft["batch_size"], sft["seed"]) == (6, 8, 5) and "data" not in sft
    assert Path(sft["model"]).name == "alfworld-tiny"
    probe = defaults("probe", QUICKSTART, [])
    assert [Path(file).name for file in probe["data"]] == ["alfworld-quickstart.jsonl"]
    evaluation = defaults("evaluation", QUICKSTART, [])
    assert (evaluation["split"], evaluation["count"], evaluation["max_steps"]) == (["unseen", "seen"], 96, 20)
    assert "model" not in evaluation


@pytest.mark.parametrize("command", SECTIONS)
@pytest.mark.parametrize(
    "path", [*Path("configs").glob("*.toml"), *Path("src/gradprism/data/templates").glob("*.toml")], ids=lambda path: path.stem
)
def test_every_value_is_one_of_the_command_s_options_and_of_its_form(command, path):
    """All that a section can say, said: values that are not given would be left out."""
    given = ["model.merge=['system', 'alternate']", "model.template_args={enable_thinking = false}", "corpus.map={id='uid'}"]
    given += ["probe.scores=['effective_rank', 'gini_rows']", "rl.stop_when=['collapse']", "rl.evaluate_split='train'"]
    given += ["evaluations=[]", "evaluation.splits={train=5}"]
    options = options_of(command)
    for name, value in defaults(SECTIONS[command], path, given).items():
        assert name in options, name
        assert isinstance(value, list) == options[name], name


def test_a_probe_s_options_are_those_of_a_file(cli, tmp_path):
    sets = [
        part for value in ("probe.scores=['effective_rank', 'gini_rows']", "probe.batch_tokens=900") for part in ("--set", value)
    ]
    for given, columns in (([], set()), (sets, {"effective_rank", "gini_rows"})):
        arguments = ["probe", "--config", QUICKSTART, "--limit", 2, "--out", tmp_path / f"probe-{len(given)}", *given, "--json"]
        code, out, err = cli(*arguments)
        assert code == 0, err
        assert json.loads(out)["corpus"]["trajectories"] == 2
        table = pq.read_table(next((tmp_path / f"probe-{len(given)}").glob("norms-*.parquet")))
        assert {"effective_rank", "gini_rows"} & set(table.column_names) == columns


def test_splits_of_different_sizes_are_played_one_at_a_time():
    with pytest.raises(ConfigError, match=r"quickstart\.toml: evaluation\.splits"):
        defaults("evaluation", QUICKSTART, ["evaluation.splits.unseen=5"])


def test_the_command_line_wins_over_the_file(cli, tmp_path):
    arguments = ["evaluate", "--config", QUICKSTART, "--agent", "random", "--json"]
    sets = [
        "--set",
        "evaluation.splits={seen=2}",
        "--set",
        'environment.options={difficulty="tiny"}',
        "--set",
        "evaluation.max_steps=3",
    ]
    code, out, err = cli(*arguments, *sets, "--max-steps", 2, "--workers", 1, "--out", tmp_path / "out")
    assert code == 0, err
    [row] = [row for row in json.loads(out)["rows"] if row["task_type"] == "all"]
    assert (row["split"], row["episodes"]) == ("seen", 2) and row["mean_steps"] <= 2


def test_mistakes_name_the_file_and_the_key(cli, tmp_path):
    rl = ["rl", "--tasks", tmp_path / "rl.jsonl", "--out", tmp_path / "out"]
    assert_refused(cli(*rl, "--config", tmp_path / "none.toml"), "none.toml: no such file")
    assert_refused(
        cli(*rl, "--config", QUICKSTART, "--set", "rl.tasks_per_round=none"), "quickstart.toml: rl.tasks_per_round", "got 'none'"
    )
    assert_refused(
        cli(*rl, "--set", "rl.tasks_per_round=2", "--config", QUICKSTART, "--set", "rl.size=2"), "quickstart.toml: rl.size"
    )
    assert_refused(cli(*rl, "--model", "models/alfworld-tiny", "--set", "rl.kl=2"), "--set: overrides a value of --config FILE")


def test_the_options_of_the_chat_template_are_those_of_the_file():
    sets = ["model.thoughts=keep", "model.merge=['system', 'alternate']", "model.calls=text", "model.template_date=2025-02-09"]
    sets.append("model.template_args={enable_thinking = false, effort = 'high'}")
    for section in ("probe", "sft", "rl", "evaluation"):
        values = defaults(section, QUICKSTART, sets)
        assert (values["thoughts"], values["merge"], values["calls"]) == ("keep", "system,alternate", "text")
        assert values["template_date"] == "2025-02-09"
        assert values["template_arg"] == ["enable_thinking=false", 'effort="high"']
        assert not {"thoughts", "merge", "calls", "template_date", "template_arg"} & defaults(section, QUICKSTART, []).keys()
