"""Tokenizers, models and trajectories small enough to build in every test."""

import random
from typing import Any

from gradprism.trajectories.record import Message, Trajectory

PLACES = ("cabinet", "drawer", "shelf", "desk", "fridge", "sinkbasin", "countertop", "microwave", "garbagecan", "bed")
OBJECTS = ("apple", "mug", "knife", "plate", "book", "lamp", "egg", "bowl", "pen", "watch")
WORDS = tuple(
    f"""
    {" ".join(PLACES)} {" ".join(OBJECTS)} {" ".join(map(str, range(21)))}
    go to take from put in on open close use heat cool clean with look at examine move pick up turn inventory
    you are the middle of a room see and it is closed nothing happens arrive an your task some find two then
    yes no think first next i need now done help which where what one there hot cold desklamp under light
    . , : ; ? ! ' - = > < / ( )
    """.split()
)
SPECIALS = ("<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}"
    "<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{%- elif message.role == 'system' -%}<|system|>{{ message.content }}"
    "{%- else -%}<|user|>{{ message.content }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
SENTENCES = (
    "You are in the middle of a room. You see a cabinet 1, a drawer 2 and a desk 1.",
    "Your task is to: put some apple on the countertop.",
    "go to cabinet 1",
    "take apple 1 from cabinet 1",
    "You pick up the apple 1 from the cabinet 1. Nothing happens.",
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> Any:
    """Word-level `PreTrainedTokenizerFast` that drops whitespace; `<|end|>`, in the generation span, ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIALS, *WORDS)))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = template
    return tokenizer


def chatml_tokenizer(template: str | None = None) -> Any:
    """Byte-level BPE with ChatML's special tokens; the template defaults to Qwen3's, which has no generation markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    if template is None:
        from trl.chat_template_utils import qwen3_chat_template

        template = qwen3_chat_template
    tokenizer.chat_template = template
    return tokenizer


def tiny_qwen3(vocab_size: int, layers: int = 2, hidden: int = 32, seed: int = 0) -> Any:
    """Random-weight `Qwen3ForCausalLM` in float32 with grouped-query attention (4 heads, 2 key/value heads) and tied embeddings."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(**_sizes(vocab_size, layers, hidden), head_dim=hidden // 4, tie_word_embeddings=True)
    ).eval()


def tiny_llama(vocab_size: int, layers: int = 2, hidden: int = 32, seed: int = 0) -> Any:
    """Random-weight `LlamaForCausalLM` in float32, grouped-query attention as in `tiny_qwen3`, with an output head of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**_sizes(vocab_size, layers, hidden), tie_word_embeddings=False)).eval()


def tiny_gemma3(vocab_size: int = 150, window: int = 12) -> Any:
    """Random-weight `Gemma3ForCausalLM` whose layers see a window and everything in turn."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(
        Gemma3TextConfig(**_sizes(vocab_size, 2, 32), head_dim=8, sliding_window=window, layer_types=kinds)
    ).eval()


def tiny_mistral(vocab_size: int = 150, window: int = 12) -> Any:
    """Random-weight `MistralForCausalLM` whose every layer sees a window."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**_sizes(vocab_size, 2, 32), sliding_window=window)).eval()


def _sizes(vocab_size: int, layers: int, hidden: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2 + hidden // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "eos_token_id": SPECIALS.index("<|end|>"),
        "pad_token_id": SPECIALS.index("<|pad|>"),
        "bos_token_id": None,
    }


def sample_trajectories(n: int, seed: int = 0) -> list[Trajectory]:
    """`n` conversations of 1 to 5 assistant turns over `WORDS`, of varying length, with distinct ids `sample-0000`…"""
    rng = random.Random(seed)

    def thing(names: tuple[str, ...]) -> str:
        return f"{rng.choice(names)} {rng.randint(1, 9)}"

    trajectories = []
    for index in range(n):
        seen = " , ".join(f"a {thing(PLACES)}" for _ in range(rng.randint(1, 8)))
        start = (
            f"you are in the middle of a room . you see {seen} . your task is to : put {rng.choice(OBJECTS)} in {thing(PLACES)} ."
        )
        messages = [Message("user", start)]
        for _ in range(rng.randint(1, 5)):
            place, item = thing(PLACES), thing(OBJECTS)
            messages.append(Message("assistant", rng.choice((f"go to {place}", f"take {item} from {place}", f"open {place}"))))
            messages.append(Message("user", f"you arrive at {place} . on the {place} , you see a {item} ."))
        trajectories.append(
            Trajectory(
                f"sample-{index:04d}", tuple(messages[:-1]), {"env": "sample", "task_id": str(index)}, f"sample.jsonl:{index + 1}"
            )
        )
    return trajectories
