"""Builds the shipped base model from nothing: games of the split "base", expert demonstrations, a tokenizer, a training run.

    OMP_NUM_THREADS=1 python scripts/build_base_model.py --out models/alfworld-tiny

The base is meant to be weak: it speaks the environment's language and sometimes succeeds, so that imitation and reinforcement both
have something left to teach. `--demonstrations` and `--stop-at` set how weak. Deterministic on one machine for a seed and one thread.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gradprism.environments.alfworld.generator import constants
from gradprism.environments.demonstrations import collect
from gradprism.environments.registry import make_environment
from gradprism.trajectories.readers import read_trajectories, write_messages_jsonl
from gradprism.trajectories.record import Trajectory
from gradprism.trajectories.rendering import Renderer

WORD = Regex(r"[a-z]+|\d+|[^\sa-z\d]")
# Words that task templates and observations use beyond the names of things.
SPECIAL = ["<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}
{%- elif message.role == 'system' -%}
<|system|>{{ message.content }}
{%- else -%}
<|user|>{{ message.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def build_tokenizer(trajectories: list[Trajectory]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the demonstrations' words and every name that ALFWorld knows."""
    words = {str(n) for n in range(61)}
    c = constants()
    words |= {name.lower() for name in [*c.OBJECTS_SET, *c.RECEPTACLES]}
    splitter = pre_tokenizers.Split(WORD, behavior="removed", invert=True)
    normalizer = normalizers.Lowercase()
    for trajectory in trajectories:
        for message in trajectory.messages:
            words |= {w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(message.content))}
    vocabulary = {token: index for index, token in enumerate(SPECIAL + sorted(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|unk|>",
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    fast.chat_template = TEMPLATE
    return fast


def build_model(vocabulary: int, arguments: argparse.Namespace) -> Qwen3ForCausalLM:
    """A random Qwen3-architecture model with tied embeddings."""
    torch.manual_seed(arguments.seed)
    heads = arguments.hidden // 32
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 8 // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<|pad|>"),
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def batches(lengths: list[int], budget: int, rng: random.Random) -> list[list[int]]:
    """Index batches of similar length, each of at most `budget` padded tokens, in random order."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i] + rng.random() * 40)
    result, current, longest = [], [], 0
    for index in order:
        longest = max(longest, lengths[index])
        if current and longest * (len(current) + 1) > budget:
            result.append(current)
            current, longest = [], lengths[index]
        current.append(index)
    result.append(current)
    rng.shuffle(result)
    return result


def train(model: Qwen3ForCausalLM, sequences: list[tuple[np.ndarray, np.ndarray]], arguments: argparse.Namespace) -> None:
    """AdamW with a cosine schedule. Observations are learnt too, at a low weight: the base should know its world, not only its part."""
    rng = random.Random(arguments.seed)
    plan = [b for _ in range(arguments.epochs) for b in batches([len(ids) for ids, _ in sequences], arguments.batch_tokens, rng)]
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=arguments.lr, betas=(0.9, 0.98)
    )
    model.train()
    begin = time.monotonic()
    for step, batch in enumerate(plan[: arguments.stop_at]):
        fraction = step / len(plan)
        rate = arguments.lr * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * fraction)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        width = max(len(sequences[i][0]) for i in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        weight = torch.zeros(len(batch), width)
        for row, i in enumerate(batch):
            tokens, mask = sequences[i]
            ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
            weight[row, : len(tokens)] = torch.from_numpy(np.where(mask, 1.0, arguments.observation_weight).astype(np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids).logits  # right padding under a causal mask needs no attention mask
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        w = weight[:, 1:].flatten()
        loss = (loss * w).sum() / w.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0:
            print(
                f"step {step + 1}/{len(plan)} loss {loss.item():.4f} {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--difficulty", default="small")
    parser.add_argument("--demonstrations", type=int, default=3100, help="expert episodes")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--observation-weight", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path, help="file that keeps the material between runs")
    parser.add_argument("--stop-at", type=int, default=340, help="step after which training stops, short of its whole schedule")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    environment = make_environment("alfworld", {"difficulty": arguments.difficulty})
    if arguments.cache and arguments.cache.exists():
        trajectories = read_trajectories([arguments.cache])[: arguments.demonstrations]
    else:
        trajectories = collect(environment, environment.tasks("base", arguments.demonstrations), workers=arguments.workers)
        if arguments.cache:
            write_messages_jsonl(arguments.cache, trajectories)
    tokenizer = build_tokenizer(trajectories)
    renderer = Renderer(tokenizer, context_length=1024)
    rendered = [renderer.render(t) for t in trajectories]
    sequences = [(r.input_ids, r.response_mask) for r in rendered]
    model = build_model(len(tokenizer), arguments)
    print(
        json.dumps(
            {
                "parameters": model.num_parameters(),
                "vocabulary": len(tokenizer),
                "trajectories": len(sequences),
                "tokens": sum(len(ids) for ids, _ in sequences),
            }
        ),
        flush=True,
    )

    train(model, sequences, arguments)
    # bfloat16 halves the file; what is shipped is what was rounded, so nothing changes on loading.
    rounded: Any = model
    rounded.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
