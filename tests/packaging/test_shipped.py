"""What the repository ships: small, safe to load, and disjoint from what it is tested on."""

from pathlib import Path

import pytest

from gradprism.environments.alfworld.generator import TASK_TYPES, generate
from gradprism.environments.demonstrations import collect
from gradprism.environments.registry import make_environment
from gradprism.models import load_model
from gradprism.trajectories.corpus import load_corpus
from gradprism.trajectories.rendering import Renderer, load_tokenizer

MODEL, CORPUS = Path("models/alfworld-tiny"), Path("data/alfworld-quickstart.jsonl")
WEBSHOP_MODEL = Path("models/webshop-tiny")
DIALOGUE_MODEL = Path("models/dialogue-tiny")


@pytest.mark.parametrize("folder", [MODEL, WEBSHOP_MODEL, Path("models/stories-tiny"), DIALOGUE_MODEL], ids=str)
def test_the_base_models_are_small_and_safe(folder: Path):
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000
    assert (folder / "model.safetensors").stat().st_size <= 2_500_000
    assert {f.suffix for f in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}
    model = load_model(str(folder))
    assert model.num_parameters() <= 3_000_000
    assert type(model).__name__ == "Qwen3ForCausalLM"
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_the_corpus_holds_every_task_type_of_training_rooms_and_no_unknown_word():
    assert CORPUS.stat().st_size <= 1_000_000
    trajectories = list(load_corpus(CORPUS))
    assert len(trajectories) >= 200
    assert {t.task["task_type"] for t in trajectories} == set(TASK_TYPES)
    assert {t.task["split"] for t in trajectories} == {"train"}
    assert all(t.id == t.task["id"] == generate(t.id).name for t in trajectories)
    tokenizer = load_tokenizer(MODEL)
    renderer = Renderer(tokenizer, None)
    assert not any((renderer.render(t).input_ids == tokenizer.unk_token_id).any() for t in trajectories)


def test_actions_decode_to_what_the_engine_reads():
    tokenizer = load_tokenizer(MODEL)
    for trajectory in list(load_corpus(CORPUS))[:40]:
        for message in trajectory.messages:
            if message.role == "assistant":
                assert (
                    tokenizer.decode(tokenizer(message.content)["input_ids"], skip_special_tokens=True).strip() == message.content
                )


@pytest.mark.parametrize(
    "action",
    [
        "search[sensitive skin, paraben free makeup bags]",
        "search[slip resistant t-shirts with arch support with color: navy blue, and size: 6.5]",
        "click[g000000185]",
        "click[buy now]",
        "click[6.5]",
        "click[x-small]",
        "click[< prev]",
        "click[pack of 1]",
        "click[x]",  # no word of the shop's: spelled by letters
    ],
)
def test_webshop_actions_decode_to_what_the_shop_reads(action: str):
    tokenizer = load_tokenizer(WEBSHOP_MODEL)
    assert tokenizer.decode(tokenizer(action)["input_ids"], skip_special_tokens=True) == action


def test_webshop_goals_and_every_page_of_the_expert_are_known_words():
    environment = make_environment("webshop")
    trajectories = collect(environment, environment.tasks("train", 40), max_steps=15, workers=1)
    tokenizer = load_tokenizer(WEBSHOP_MODEL)
    renderer = Renderer(tokenizer, tokenizer.model_max_length)
    assert len(trajectories) > 30
    for trajectory in trajectories:
        rendered = renderer.render(trajectory)
        assert rendered.n_truncated == 0
        assert not (rendered.input_ids == tokenizer.unk_token_id).any()
        for message in trajectory.messages:
            if message.role == "assistant":
                ids = tokenizer(message.content)["input_ids"]
                assert tokenizer.decode(ids, skip_special_tokens=True) == message.content
                assert len(ids) < 40  # as --max-action-tokens in the documents
