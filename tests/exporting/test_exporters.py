"""What each exporter writes of a turn, by hand: masks, tools, calls, reasoning, names, odd letters; and what all have in common."""

import json
import tracemalloc
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import datasets
import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

import gradprism as gp
from gradprism.exporting import tables
from gradprism.exporting.registry import EXPORTERS
from gradprism.routing.routes import Routes
from gradprism.routing.sets import RlTask
from gradprism.routing.split import Routing
from gradprism.runtime.errors import DataError
from gradprism.trajectories.corpus import load_corpus, weighted_chat
from gradprism.trajectories.record import Message, Trajectory
from helpers.cli import assert_refused
from helpers.exports import MASKED, PLAIN, RICH, TASK, TOOLS, WEIGHTED, calls_as_objects, write_route

BUILT_IN = ["axolotl", "datasets", "llamafactory", "ms-swift", "nemo-rl", "openrlhf", "prime-rl", "skyrl", "tinker", "trl", "verl"]


@pytest.fixture
def exported(tmp_path):
    """Exports trajectories; gives the folder and the warnings."""

    def run(name, sft, rl=(PLAIN,)):
        write_route(tmp_path / "route", list(sft), list(rl))
        made = gp.export(tmp_path / "route", name, tmp_path / "out")
        return tmp_path / "out", made.warnings

    return run


@pytest.fixture
def parquet(tmp_path):
    """The rows of Parquet files or a folder as `datasets.load_dataset` gives them."""

    def rows(path):
        cache = str(tmp_path / "cache")
        if path.is_dir():
            return list(datasets.load_dataset(str(path), cache_dir=cache)["train"])
        return list(datasets.load_dataset("parquet", data_files=str(path), cache_dir=cache)["train"])

    return rows


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_all_are_registered():
    assert set(BUILT_IN) <= set(EXPORTERS)


@pytest.mark.parametrize(
    ("name", "split"), [("trl", ""), ("openrlhf", ""), ("skyrl", "sft/train.parquet"), ("nemo-rl", "sft.jsonl")]
)
def test_chats_in_openais_form_are_whole(name, split, exported, parquet):
    sft = [replace(RICH, tools=()), PLAIN] if name == "openrlhf" else [RICH, PLAIN]
    folder, warnings = exported(name, sft)
    path = folder / (split or "sft.parquet")
    rows = lines(path) if path.suffix == ".jsonl" else parquet(path)
    assert [row["messages"] for row in rows] == [t.chat() for t in sft]
    assert [row.get("tools") or [] for row in rows] == [list(t.tools) for t in sft]
    assert [(row["id"], json.loads(row["task"])) for row in rows] == [(t.id, t.task) for t in sft]
    assert not any("not to be trained on" in warning for warning in warnings)
    assert any("all_assistant_messages must be set" in warning for warning in warnings) == (name == "skyrl")


@pytest.mark.parametrize(("name", "before", "last"), [("trl", "prompt", "completion"), ("openrlhf", "input", "output")])
def test_a_set_with_masked_turns_is_split_into_prompts_and_completions(name, before, last, exported, parquet):
    folder, warnings = exported(name, [MASKED, PLAIN])
    rows = parquet(folder / "sft.parquet")
    assert [row["id"] for row in rows] == ["masked#3", "plain#1", "plain#3"]
    turns = [MASKED.messages, PLAIN.messages[:2], PLAIN.messages]
    assert [row[before] + row[last] for row in rows] == [[m.to_chat() for m in some] for some in turns]
    assert [[m["content"] for m in row[last]] for row in rows] == [["go to desk 1"], ["look"], ["go to desk 1"]]
    assert "messages" not in rows[0]
    assert any("1 assistant turns are not to be trained on" in warning and last in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "setting"), [("skyrl", "train_on_what=last_assistant_message"), ("nemo-rl", "sft.only_unmask_final: true")]
)
def test_a_set_with_masked_turns_is_split_into_rows_whose_last_turn_is_trained_on(name, setting, exported, parquet):
    untrained = replace(MASKED, id="never", messages=MASKED.messages[:2])
    folder, warnings = exported(name, [MASKED, untrained, RICH])
    rows = lines(folder / "sft.jsonl") if name == "nemo-rl" else parquet(folder / "sft" / "train.parquet")
    assert [row["id"] for row in rows] == ["masked#3", "rich-ü#2", "rich-ü#5"]
    assert [row["messages"] for row in rows] == [MASKED.chat(), RICH.chat()[:3], RICH.chat()]
    assert [row.get("tools") or [] for row in rows] == [[], list(TOOLS), list(TOOLS)]
    assert any(setting in warning for warning in warnings)
    assert "1 trajectories have no turn to train on, so no row: never" in warnings


@pytest.mark.parametrize("name", ["trl", "openrlhf", "skyrl", "nemo-rl", "llamafactory"])
def test_any_set_is_split_on_demand(name, cli, parquet, tmp_path):
    """For templates that render a turn otherwise once another follows."""
    write_route(tmp_path / "route", [PLAIN], [PLAIN])
    export = ("export", name, tmp_path / "route", "--out", tmp_path / "out", "--option")
    assert_refused(cli(*export, "rows=words"), "rows 'words': choose auto or turns")
    code, out, _ = cli(*export, "rows=turns")
    assert code == 0 and "warning: there is a row for each turn that is trained on, and only a row's last turn may be" in out
    [path] = [path for path in (tmp_path / "out").rglob("*") if path.name in ("sft.jsonl", "sft.parquet", "train.parquet")]
    rows = lines(path) if path.suffix == ".jsonl" else parquet(path)
    assert [row["id"] for row in rows] == ["plain#1", "plain#3"]


@pytest.mark.parametrize("name", ["axolotl", "prime-rl"])
def test_flat_messages_have_no_key_of_another_call(name, exported, parquet):
    folder, _ = exported(name, [RICH, PLAIN] if name == "prime-rl" else [RICH, MASKED])
    rows = parquet(folder / "sft" if name == "prime-rl" else folder / "sft.parquet")
    flags = [[m.pop("train") for m in row["messages"]] for row in rows] if name == "axolotl" else None
    assert calls_as_objects(rows[0]["messages"]) == RICH.chat()
    assert all(isinstance(call["function"]["arguments"], str) for call in rows[0]["messages"][2]["tool_calls"])
    assert [json.loads(row["tools"] or "[]") for row in rows] == [list(TOOLS), []]
    assert flags == ([[False, False, True, False, False, True], [False, False, False, True]] if name == "axolotl" else None)


def test_prime_rl_refuses_masked_turns(exported):
    with pytest.raises(DataError, match=r"sft.jsonl:2: trajectory 'masked': 1 of its turns are not to be trained on"):
        exported("prime-rl", [PLAIN, MASKED])


def test_openrlhf_refuses_tools_beside_chats(exported):
    with pytest.raises(DataError, match="trajectory 'rich-ü': has tools; OpenRLHF renders chats without them"):
        exported("openrlhf", [RICH])


def test_datasets_on_disk_give_the_trajectories_back(exported):
    sft = [RICH, MASKED, WEIGHTED]
    folder, _ = exported("datasets", sft, [RICH, MASKED])
    loaded = datasets.load_from_disk(str(folder))
    assert isinstance(loaded, datasets.DatasetDict)
    rows: Any = list(loaded["sft"])
    assert [row["messages"] for row in rows] == [[weighted_chat(m) for m in t.messages] for t in sft]
    assert [row["tools"] or [] for row in rows] == [list(t.tools) for t in sft]
    assert list(load_corpus(loaded["sft"]))[1:] == sft[1:]
    assert [m.get("train") for m in loaded["sft"][1]["messages"]] == [None, False, None, None]
    assert loaded["sft"][2]["messages"][1]["weight"] == 0.5
    rl = loaded["rl"][0]
    assert (rl["prompt"], rl["tools"], rl["env"], rl["task_id"]) == (RICH.prompt(), list(TOOLS), TASK["env"], TASK["id"])
    assert json.loads(rl["task"]) == TASK
    assert loaded["rl"][1]["tools"] is None


def test_ms_swift_has_its_own_roles_and_a_loss_on_each_turn(exported):
    folder, warnings = exported("ms-swift", [RICH, MASKED, WEIGHTED], [RICH])
    rich, masked, weighted = lines(folder / "sft.jsonl")
    on = {"loss": True, "loss_scale": 1.0}
    call, other = RICH.messages[2].tool_calls
    assert rich["messages"] == [
        {"role": "system", "content": "You plan trips. ü"},
        {"role": "user", "content": "To Zürich?\u2028When?"},
        {"role": "assistant", "content": "<think>\nTwo tables.\nBoth.\n</think>\n\nLet me look.", **on},
        {"role": "tool_call", "content": json.dumps({"name": "train", "arguments": call.arguments}, ensure_ascii=False), **on},
        {"role": "tool_call", "content": json.dumps({"name": "weather", "arguments": other.arguments}, ensure_ascii=False), **on},
        {"role": "tool_response", "content": '{"dep": "09:12"}', "name": "train"},
        {"role": "tool_response", "content": "rain", "name": "weather"},
        {"role": "assistant", "content": "<think>\nDone.\n</think>\n\nAt 09:12, in rain.", **on},
    ]
    assert json.loads(rich["tools"]) == list(TOOLS)
    assert [(m.get("loss"), m.get("loss_scale")) for m in masked["messages"]] == [
        (None,) * 2,
        (False, 0.0),
        (None,) * 2,
        (True, 1.0),
    ]
    assert [m.get("loss_scale") for m in weighted["messages"]] == [None, 0.5, None, 1.0]
    [rl] = lines(folder / "rl.jsonl")
    assert rl["messages"] == RICH.prompt()
    assert (rl["env_config"]["name"], rl["env_config"]["task_id"]) == (TASK["env"], TASK["id"])
    assert json.loads(rl["env_config"]["task"]) == TASK
    assert any("--is_binary_loss_scale false" in warning for warning in warnings)
    assert any("2 turns have reasoning" in warning for warning in warnings)


def test_ms_swift_rows_of_an_unmasked_set_have_no_flags(exported):
    folder, _ = exported("ms-swift", [PLAIN])
    assert lines(folder / "sft.jsonl")[0]["messages"] == PLAIN.chat()


def test_llamafactory_has_sharegpt_rows_and_their_entry(exported):
    folder, warnings = exported("llamafactory", [RICH, PLAIN])
    entry = json.loads((folder / "dataset_info.json").read_text())["gradprism_sft"]
    assert (entry["file_name"], entry["formatting"]) == ("sft.jsonl", "sharegpt")
    rich, plain = lines(folder / "sft.jsonl")
    assert {rich.keys() >= set(entry["columns"].values()), plain.keys() == rich.keys()} == {True}
    call = rich["conversations"][1]
    assert (rich["system"], plain["system"], plain["tools"]) == ("You plan trips. ü", "", "")
    assert [turn["from"] for turn in rich["conversations"]] == ["human", "function_call", "observation", "gpt"]
    thoughts, _, text = call["value"].partition("<tool_call>")
    assert thoughts == "<think>\nTwo tables.\nBoth.\n</think>\n\nLet me look.\n"
    expected = [{"name": c.name, "arguments": c.arguments} for c in RICH.messages[2].tool_calls]
    assert json.loads(text.removesuffix("</tool_call>")) == expected
    assert rich["conversations"][2]["value"] == '{"dep": "09:12"}\n</tool_response>\n<tool_response>\nrain'
    assert json.loads(rich["tools"]) == list(TOOLS)
    assert any("1 tool results follow another one" in warning for warning in warnings)
    assert any("no RL in environments" in warning for warning in warnings)


def test_llamafactory_splits_masked_sets_and_refuses_what_does_not_alternate(exported, tmp_path):
    folder, warnings = exported("llamafactory", [MASKED])
    assert [[turn["value"] for turn in row["conversations"]] for row in lines(folder / "sft.jsonl")] == [
        [m.content for m in MASKED.messages]
    ]
    assert any("mask_history: true" in warning for warning in warnings)
    twice = replace(PLAIN, id="twice", messages=(PLAIN.messages[0], *PLAIN.messages))
    write_route(tmp_path / "other", [PLAIN, twice], [])
    with pytest.raises(
        DataError, match=r"sft.jsonl:2: trajectory 'twice': message 1 is of role user, where LLaMA-Factory takes an answer"
    ):
        gp.export(tmp_path / "other", "llamafactory", tmp_path / "out2")


@pytest.mark.parametrize("name", ["llamafactory", "nemo-rl", "openrlhf", "skyrl"])
def test_messages_behind_the_last_turn_are_left_out_with_a_count(name, exported, parquet):
    tail = replace(PLAIN, messages=(*PLAIN.messages, Message("user", "You win.")))
    folder, warnings = exported(name, [tail])
    assert any("1 trajectories go on behind their last turn" in warning for warning in warnings)
    [path] = [path for path in folder.rglob("*") if path.name in ("sft.jsonl", "sft.parquet", "train.parquet")]
    [row] = lines(path) if path.suffix == ".jsonl" else parquet(path)
    assert len(row["conversations" if name == "llamafactory" else "messages"]) == 4


def test_tinker_has_a_flag_on_each_message_and_parts_for_thoughts(exported):
    folder, warnings = exported("tinker", [RICH, MASKED])
    rich, masked = lines(folder / "sft.jsonl")
    assert rich["messages"][2]["content"] == [
        {"type": "thinking", "thinking": "Two tables.\nBoth."},
        {"type": "text", "text": "Let me look."},
    ]
    plain = [{k: v for k, v in message.items() if k not in ("trainable", "content")} for message in rich["messages"]]
    chat = [{k: v for k, v in message.items() if k not in ("reasoning_content", "content")} for message in RICH.chat()]
    assert calls_as_objects(plain) == chat
    assert [m["trainable"] for m in rich["messages"]] == [False, False, True, False, False, True]
    assert [m["trainable"] for m in masked["messages"]] == [False, False, False, True]
    assert rich["tools"] == [tool["function"] for tool in TOOLS]
    assert "tools" not in masked
    assert any("FromConversationFileBuilder" in warning for warning in warnings)


def test_rl_rows_name_the_task(exported, parquet):
    nameless = replace(PLAIN, id="nameless", task={})
    folder, warnings = exported("trl", [PLAIN], [RICH, replace(RICH, id="again"), MASKED, nameless])
    rows = parquet(folder / "rl.parquet")
    assert [row["id"] for row in rows] == ["rich-ü", "masked", "nameless"]
    assert [row["prompt"] for row in rows] == [RICH.prompt(), MASKED.chat()[:3], PLAIN.chat()[:1]]
    assert [(row["environment"], row["task_id"]) for row in rows] == [
        (TASK["env"], TASK["id"]),
        ("my.package:Maze", "maze-7"),
        ("", ""),
    ]
    assert [row["tools"] for row in rows] == [list(TOOLS), None, None]
    assert json.loads(rows[0]["task"]) == TASK
    for words in ("1 RL rows name no task", "1 trajectories of RL share the task", "takes tools as Python functions"):
        assert any(words in warning for warning in warnings), words


@pytest.mark.parametrize("name", ["openrlhf", "skyrl"])
def test_rl_rows_in_the_columns_that_a_loader_hands_on(name, exported, parquet):
    folder, _ = exported(name, [PLAIN], [RICH])
    [row] = parquet(folder / "rl.parquet")
    assert (row["prompt"], row["tools"]) == (RICH.prompt(), list(TOOLS))
    if name == "openrlhf":
        assert (json.loads(row["label"]), row["datasource"]) == (TASK, TASK["env"])
    else:
        assert (row["env_class"], json.loads(row["task"]), row["reward_spec"]) == (
            TASK["env"],
            TASK,
            {"method": "rule", "ground_truth": TASK["id"]},
        )


def test_nemo_rl_prompts_are_items_of_responses(exported):
    masked = replace(RICH, messages=tuple(replace(m, weight=0 if i == 2 else 1) for i, m in enumerate(RICH.messages)))
    folder, _ = exported("nemo-rl", [PLAIN], [masked])
    [row] = lines(folder / "rl.jsonl")
    items = row["responses_create_params"]["input"]
    assert [item.get("type", item.get("role")) for item in items] == [
        *(
            "system",
            "user",
            "reasoning",
            "assistant",
            "function_call",
            "function_call",
            "function_call_output",
            "function_call_output",
        )
    ]
    assert (items[4]["call_id"], items[4]["name"]) == ("c1", "train")
    assert json.loads(items[4]["arguments"]) == RICH.messages[2].tool_calls[0].arguments
    assert items[6] == {"type": "function_call_output", "call_id": "c2", "output": "rain"}
    assert row["responses_create_params"]["tools"][1] == {"type": "function", **TOOLS[1]["function"]}
    assert (row["env"], row["task_id"], json.loads(row["task"])) == (TASK["env"], TASK["id"], TASK)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("datasets", "ms-swift")])
def test_weights_that_a_trainer_cannot_be_told_are_refused_by_id(name, exported, tmp_path):
    with pytest.raises(DataError, match=r"sft.jsonl:2: trajectory 'half': message 1 has weight 0.5; .* knows 0 and 1 only"):
        exported(name, [PLAIN, WEIGHTED])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("side", ["SFT", "RL"])
def test_an_empty_side_has_no_file_and_a_warning(name, side, exported):
    folder, warnings = exported(name, [] if side == "SFT" else [PLAIN], [] if side == "RL" else [PLAIN])
    assert f"the route sends nothing to {side}, so there is no file for it" in warnings
    there = {path.relative_to(folder).parts[0].partition(".")[0].partition("-")[0] for path in folder.rglob("*") if path.is_file()}
    assert (side.lower() in there, ({"SFT", "RL"} - {side}).pop().lower() in there) == (False, True)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_same_route_gives_the_same_bytes(name, tmp_path):
    write_route(tmp_path / "route", [PLAIN], [PLAIN])
    if name == "datasets":
        pytest.skip("datasets writes the time of its making")
    first, second = (gp.export(tmp_path / "route", name, tmp_path / out) for out in ("a", "b"))
    assert first.files == second.files


@dataclass
class Endless:
    """Sets of `n` trajectories and tasks that are made as they are asked for."""

    n: int
    n_rl: int

    def sft(self):
        return (Trajectory(f"t{i}", self.messages(i), {"env": "e", "id": f"{i}"}) for i in range(self.n))

    def rl(self):
        return (RlTask(f"t{i}", [self.messages(i)[0].to_chat()], {"env": "e", "id": f"{i}"}) for i in range(self.n_rl))

    def messages(self, i):
        return (Message("user", f"{i:2000}"), Message("assistant", "look"))

    def write(self, sft, rl):
        raise NotImplementedError


@pytest.mark.parametrize("name", BUILT_IN)
def test_sets_are_not_held_in_memory(name, tmp_path, monkeypatch):
    """More rows take no more memory than a hash of each task; verl's task list, which is read whole, is left out."""
    monkeypatch.setattr(tables, "ROWS", 100)
    peaks = []
    for n in (10, 400, 1200):  # the first for what is imported
        n_rl = 0 if name == "verl" else n
        routing = Routing(threshold=0.5, n_trajectories=n + n_rl, n_sft=n, n_rl=n_rl)
        routes = Routes(pl.DataFrame(), routing, Endless(n, n_rl))  # type: ignore[arg-type]
        tracemalloc.start()
        gp.export(routes, name, tmp_path / f"{len(peaks)}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[2] - peaks[1]) / 800 < 300, peaks  # bytes a row, whose text alone has 2000


@pytest.fixture
def tokenizer(tmp_path):
    """A byte-level tokenizer with Qwen3's turns and TRL's template for them: no model, and every text has its own tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = (files("trl") / "chat_templates" / "qwen3_training.jinja").read_text()
    return fast


@pytest.mark.parametrize("masked", [False, True])
def test_trls_trainer_reads_the_sft_set(masked, exported, tokenizer, tmp_path):
    """Its own preparation, with the settings of docs/exporting.md: the tokens with a loss are the trained turns'."""
    folder, _ = exported("trl", [MASKED, RICH] if masked else [PLAIN, RICH])
    rows = datasets.load_dataset(
        "parquet", data_files=str(folder / "sft.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    arguments = SFTConfig(
        output_dir=str(tmp_path / "trl"),
        assistant_only_loss=not masked,
        max_length=None,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(LlamaForCausalLM(config), arguments, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))  # type: ignore[arg-type]
    trained = [tokenizer.decode([i for i in row if i != -100]) for row in batch["labels"].tolist()]
    rendered = [tokenizer.decode(row) for row in batch["input_ids"].tolist()]
    if masked:
        ends = ("go to desk 1<|im_end|>", "</tool_call><|im_end|>", "in rain.<|im_end|>")
        assert all(text.rstrip().endswith(end) for text, end in zip(trained, ends, strict=True))
        assert not any("bad" in text or "Nothing" in text or '09:12"' in text for text in trained)
        assert "AAA bad" in rendered[0]
    else:
        assert [text in trained[0] for text in ("look<|im_end|>", "go to desk 1<|im_end|>")] == [True, True]
        assert not any(text in trained[0] + trained[1] for text in ("room", "Nothing", '09:12"'))
    assert '"via": null' in trained[1] and '"days": [1, 2.5]' in trained[1] and "Let me look." in trained[1]
    assert all(json.dumps(tool, ensure_ascii=False) in rendered[1] for tool in TOOLS)


def test_the_command_names_what_it_wrote(cli, tmp_path):
    write_route(tmp_path / "route", [RICH, MASKED], [PLAIN])
    code, out, _ = cli("export", "trl", tmp_path / "route", "--out", tmp_path / "out")
    assert code == 0 and "2 trajectories to SFT, 1 to RL, in rl.parquet, sft.parquet" in out
    assert "warning: 1 assistant turns are not to be trained on, which TRL cannot be told turn by turn" in out
