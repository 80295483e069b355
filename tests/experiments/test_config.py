import json
from pathlib import Path

import pytest

from gradprism.experiments.config import apply_overrides, load_config
from gradprism.runtime.errors import ConfigError, MissingFileError
from gradprism.trajectories.chat_options import ChatOptions


def test_the_quickstart_config_is_valid_and_its_paths_resolve_from_anywhere(monkeypatch, tmp_path):
    file = Path("configs/quickstart.toml").resolve()
    monkeypatch.chdir(tmp_path)
    config = load_config(file)
    assert Path(config.corpus.files[0]).is_file()
    assert config.folder == Path("runs/quickstart")


def test_the_run_seed_reaches_every_stage_that_sets_none():
    config = load_config(Path("configs/quickstart.toml"), ["seed=5", "rl.seed=9"])
    assert (config.sft.seed, config.rl.seed, config.evaluation.seed) == (5, 9, 5)


def test_a_configuration_without_arms_is_a_run_of_three_arms_and_one_seed():
    config = load_config(Path("configs/quickstart.toml"), ["seed=3", "route.metric=cv", "refresh.after_sft=true"])
    assert [(arm.name, arm.sft, arm.rl) for arm in config.all_arms] == [
        ("base", "none", "none"),
        ("sft", "routed", "none"),
        ("rl", "routed", "routed"),
    ]
    assert config.all_seeds == [3] and config.all_arms[1].route.metric == config.all_arms[2].route.metric == "cv"
    assert config.all_arms[2].refresh.after_sft and config.all_arms[2].rounds == config.rl.rounds
    with pytest.raises(ConfigError, match="with arms, give each its own"):
        load_config(Path("configs/alfworld-mini.toml"), ["route.metric=cv"])


def test_overrides_are_toml_values_or_plain_strings():
    values = {"rl": {"rounds": 1}}
    apply_overrides(values, ["rl.rounds=20", "rl.kl=0.5", "route.metric=cv", 'name="a b"', "evaluation.splits={unseen=6}"])
    assert values == {
        "rl": {"rounds": 20, "kl": 0.5},
        "route": {"metric": "cv"},
        "name": "a b",
        "evaluation": {"splits": {"unseen": 6}},
    }


@pytest.mark.parametrize("override", ["rl", "=3", "name.sub=3"])
def test_overrides_that_are_none_are_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"name": "x"}, [override])


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "null"), ("a.json", "[1]"), ("a.toml", "a = " + "[" * 9999), ("a.toml", "a = " + "9" * 5000)]
)
def test_documents_without_sections_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=rf"{name}: (holds no sections|not a TOML file)"):
        load_config(tmp_path / name, ["rl.rounds=2"])


def test_a_name_that_no_file_system_takes_is_left_to_its_reader(tmp_path):
    config = load_config(Path("configs/quickstart.toml"), [f'model.path="{"x" * 5000}"'])
    assert config.model.path == "x" * 5000


def test_an_override_that_no_reader_takes_for_toml_is_text():
    assert apply_overrides({}, ["a=" + "9" * 5000])["a"] == "9" * 5000


def test_files_that_are_no_config_are_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"none\.toml: no such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not a TOML file"):
        load_config(tmp_path / "bad.toml")
    (tmp_path / "short.toml").write_text("name = 'x'\n")
    with pytest.raises(ConfigError, match=r"short\.toml: model: Field required"):
        load_config(tmp_path / "short.toml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.thoughts=maybe", "model.thoughts: Input should be 'keep', 'drop' or 'fail'; got 'maybe'"),
        ("model.merge=['roles']", "model.merge.0: Input should be 'system' or 'alternate'; got 'roles'"),
        ("model.calls=json", "model.calls: Input should be 'template' or 'text'"),
        ("model.template_date=today", "model.template_date: Input should be a valid date"),
        ("model.template_args={tools = 1}", "model: template argument tools"),
        ("model.template_args=1", "model.template_args: Input should be a valid dictionary; got 1"),
        ("model.thought=keep", "model.thought: no such setting; did you mean thoughts"),
    ],
)
def test_options_of_the_chat_template_are_checked(override, words):
    with pytest.raises(ConfigError, match=r"quickstart\.toml: ") as raised:
        load_config(Path("configs/quickstart.toml"), [override])
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_options_of_the_chat_template_are_replayed(tmp_path):
    sets = ["model.merge=['system']", "model.template_date=2025-02-09", "model.template_args={effort = 'high'}"]
    config = load_config(Path("configs/quickstart.toml"), sets)
    assert config.model.chat == ChatOptions(merge=("system",), date="2025-02-09", arguments={"effort": "high"})
    (tmp_path / "config.json").write_text(json.dumps(config.portable(tmp_path)))
    assert load_config(tmp_path / "config.json").model.chat == config.model.chat


def test_what_comes_with_the_package_is_replayed_from_anywhere(tmp_path):
    config = load_config(Path("configs/quickstart.toml"))
    values = config.portable(tmp_path / "far" / "away")
    assert values["model"]["path"] == "shipped:alfworld-tiny" and values["corpus"]["files"] == ["shipped:alfworld-quickstart.jsonl"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    again = load_config(tmp_path / "config.json")
    assert Path(again.model.path).samefile(config.model.path) and Path(again.corpus.files[0]).samefile(config.corpus.files[0])
    own = tmp_path / "alfworld-tiny"
    own.mkdir()
    config = load_config(Path("configs/quickstart.toml"), [f'model.path="{own}"'])
    assert config.portable(tmp_path)["model"]["path"] == "alfworld-tiny", "another folder of the same name is none of the package's"
