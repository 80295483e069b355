"""What the repository ships: small, safe to load, and disjoint from what it is tested on."""

from pathlib import Path

from gradprism.environments.alfworld.generator import TASK_TYPES, generate
from gradprism.models import load_model
from gradprism.trajectories.readers import read_trajectories
from gradprism.trajectories.rendering import Renderer, load_tokenizer

MODEL, CORPUS = Path("models/alfworld-tiny"), Path("data/alfworld-quickstart.jsonl")


def test_the_base_model_is_small_and_safe():
    assert sum(f.stat().st_size for f in MODEL.iterdir()) <= 8_000_000
    assert {f.suffix for f in MODEL.iterdir()} <= {".json", ".jinja", ".safetensors"}
    model = load_model(str(MODEL))
    assert model.num_parameters() <= 3_000_000
    assert type(model).__name__ == "Qwen3ForCausalLM"


def test_the_corpus_holds_every_task_type_of_training_rooms_and_no_unknown_word():
    assert CORPUS.stat().st_size <= 1_000_000
    trajectories = read_trajectories([CORPUS])
    assert len(trajectories) >= 200
    assert {t.task["task_type"] for t in trajectories} == set(TASK_TYPES)
    assert {t.task["split"] for t in trajectories} == {"train"}
    assert all(t.id == t.task["id"] == generate(t.id).name for t in trajectories)
    tokenizer = load_tokenizer(MODEL)
    renderer = Renderer(tokenizer, None)
    assert not any((renderer.render(t).input_ids == tokenizer.unk_token_id).any() for t in trajectories)


def test_actions_decode_to_what_the_engine_reads():
    tokenizer = load_tokenizer(MODEL)
    for trajectory in read_trajectories([CORPUS])[:40]:
        for message in trajectory.messages:
            if message.role == "assistant":
                assert (
                    tokenizer.decode(tokenizer(message.content)["input_ids"], skip_special_tokens=True).strip() == message.content
                )
