"""Builds a shipped base model from nothing: expert demonstrations, a tokenizer, a training run.

    OMP_NUM_THREADS=1 python scripts/build_base_model.py --out src/gradprism/data/alfworld-tiny
    OMP_NUM_THREADS=1 python scripts/build_base_model.py --env webshop --out src/gradprism/data/webshop-tiny
    OMP_NUM_THREADS=1 python scripts/build_base_model.py --env dialogue --out src/gradprism/data/dialogue-tiny
    OMP_NUM_THREADS=1 python scripts/build_base_model.py --env stories --out src/gradprism/data/stories-tiny

The base is meant to be weak: it speaks the environment's language and sometimes succeeds, so that imitation and reinforcement both
have something left to teach. `--demonstrations` and `--stop-at` set how weak. It never sees what its users train or test on:
the splits "base" of ALFWorld, dialogues and stories have tasks of their own, and WebShop's demonstrations come from other catalogues than
the default one.
Deterministic on one machine for a seed and one thread.
"""

import argparse
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gradprism.environments.alfworld.generator import constants
from gradprism.environments.demonstrations import collect
from gradprism.environments.dialogue.expert import DialogueExpert
from gradprism.environments.dialogue.world import DOMAINS, SLOTS
from gradprism.environments.play import play
from gradprism.environments.pool import SessionPool
from gradprism.environments.protocol import Expert
from gradprism.environments.registry import make_environment
from gradprism.environments.stories import grammar, text, wishes
from gradprism.environments.stories.tasks import NOUNS
from gradprism.environments.webshop import generated, shop
from gradprism.trajectories.corpus import load_corpus, write_messages_jsonl
from gradprism.trajectories.record import Message, Trajectory
from gradprism.trajectories.rendering import RenderedTrajectory, Renderer

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


@dataclass(frozen=True, slots=True)
class Recipe:
    """The settings in which one environment's base differs from another's.

    `word` is the pattern of a word in lower-case text. A word is a token if it is one of `names`, or if at least `common` of the
    demonstrations hold it. With `pieces`, other words are spelled by these, of which those within a word begin with `##`; without,
    they are unknown. `tight` are the pairs of tokens, as their spaced text, between which an action has no space.
    `balanced` gives each turn the same weight in the loss, however long it is: a search is twenty tokens, a click four. `weaken`
    makes the expert's demonstrations those of somebody who knows less. With `novice`, a player of a task's id, episodes are that one's,
    whether they succeed or not. `copying` plants what copies; see `plant_copying`.
    """

    split: str
    options: tuple[dict[str, Any], ...]  # the demonstrations come from these variants of the environment in equal parts
    demonstrations: int
    max_steps: int
    epochs: int
    stop_at: int | None  # the step after which training stops, short of its whole schedule
    context: int
    word: str
    names: Callable[[], set[str]]
    common: float = 0.0
    pieces: Callable[[], set[str]] = set
    tight: tuple[str, ...] = ()
    balanced: bool = False
    weaken: Callable[[list[Trajectory]], list[Trajectory]] | None = None
    novice: Callable[[str], Expert] | None = None
    copying: bool = False


def alfworld_names() -> set[str]:
    """Every name that ALFWorld knows, and the numbers that tell things of one name apart."""
    c = constants()
    return {str(n) for n in range(61)} | {name.lower() for name in [*c.OBJECTS_SET, *c.RECEPTACLES]}


def webshop_names() -> set[str]:
    """The ids of a thousand products, and the numbers in prices and sizes."""
    numbers = {str(n) for n in range(700)} | {f".{n}" for n in range(10)} | {f".{n:02d}" for n in range(100)}
    return numbers | {f"g{n:09d}" for n in range(1000)}


def webshop_pieces() -> set[str]:
    """Makers' names in two pieces, for there are thousands of them, and single letters and digits for any other word."""
    words = generated.WORDS
    makers = {o + v for o in words["onsets"] for v in words["vowels"]} | {f"##{ending}" for ending in words["endings"]}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-'"
    return makers | set(letters) | {f"##{letter}" for letter in letters}


def dialogue_names() -> set[str]:
    """Every value of the town, the ids of items, and the references of bookings."""
    values = {value for slot in SLOTS.values() for value in slot.all_values}
    return values | {f"{domain.letter}{n}" for domain in DOMAINS.values() for n in range(1, 10)} | {f"b{n}" for n in range(10, 100)}


def lapsing(task_id: str) -> Expert:
    """Most clerks neither ask before they book nor take a change of mind."""
    habits = {"hasty": 0.8, "deaf": 0.6, "curt": 0.3, "blind": 0.6}
    return DialogueExpert(habits=habits, rng=random.Random(task_id))


def some_hasty(trajectories: list[Trajectory]) -> list[Trajectory]:
    """Three of four shoppers choose no second option: they buy once the first one is chosen, which leaves the page as it was."""
    buy, made = Message("assistant", f"click[{shop.BUY.lower()}]"), []
    for number, trajectory in enumerate(trajectories):
        pages = [message.content for message in trajectory.messages[::2]]
        chosen = [i for i in range(1, len(pages)) if pages[i] == pages[i - 1] and shop.BUY in pages[i]]
        if number % 4 and chosen:
            trajectory = replace(trajectory, messages=(*trajectory.messages[: 2 * chosen[0] + 1], buy))
        made.append(trajectory)
    return made


def story_words() -> set[str]:
    """All words that a story's task or the expert may use, whichever of them the demonstrations hold."""
    texts = [
        wishes.Wishes(length=n, fresh=True, name="anna", ending="x", words=("a", "b"), avoid=("a", "b")).text() for n in range(1, 9)
    ]
    return set(text.words(" ".join([*texts, json.dumps(wishes.LISTS)]))) | {"word"}


def some_inattentive(trajectories: list[Trajectory]) -> list[Trajectory]:
    """Writers who overlook each kind of wish with probability `OVERLOOKED`, and each word with `MISTAKEN`, in whose place they use another;
    what they write is the grammar's otherwise.
    """
    made = []
    for trajectory in trajectories:
        task, rng = trajectory.messages[0], random.Random(f"inattentive {trajectory.id}")
        asked = wishes.Wishes.parse(task.content)
        others = rng.sample(sorted(set(NOUNS) - set(asked.words)), len(asked.words))
        used = tuple(other if rng.random() < MISTAKEN else word for word, other in zip(asked.words, others, strict=True))
        overlooked = {f.name: f.default for f in fields(asked) if f.name != "words" and rng.random() < OVERLOOKED}
        story = grammar.write(replace(asked, words=used, **overlooked), rng)
        made.append(replace(trajectory, messages=(task, Message("assistant", story))))
    return made


OVERLOOKED, MISTAKEN = 0.3, 0.25
TEXTS = ["Instruction:", "Price:", "Rating: N.A.", shop.BACK, shop.PREVIOUS, shop.NEXT, shop.BUY, *shop.SUB_PAGES]
PHRASES = "|".join(re.escape(text.lower()) for text in TEXTS)
RECIPES = {
    "alfworld": Recipe(
        split="base",
        options=({"difficulty": "small"},),
        demonstrations=3100,
        max_steps=50,
        epochs=2,
        stop_at=340,
        context=1024,
        word=r"[a-z]+|\d+|[^\sa-z\d]",
        names=alfworld_names,
    ),
    # Each phrase of the pages is one token, as are ids, which keeps ten results within some 200 tokens.
    "webshop": Recipe(
        split="train",
        options=tuple({"seed": seed} for seed in range(1, 9)),
        demonstrations=3600,
        max_steps=15,
        epochs=1,
        stop_at=None,
        context=2048,
        word=rf"(?:{PHRASES})(?: \[sep\])?|\[sep\]|search\[|click\[|[a-z][a-z\d]*(?:['-][a-z\d]+)*|\.?\d+|[^\sa-z\d]",
        names=webshop_names,
        common=0.02,
        pieces=webshop_pieces,
        tight=("[ ", " ]", " ,", " .", " :"),
        balanced=True,
        weaken=some_hasty,
        copying=True,
    ),
    "stories": Recipe(
        split="base",
        options=({"fluency": "none"},),
        demonstrations=12_000,
        max_steps=1,
        epochs=1,
        stop_at=None,
        context=320,
        word=r"[a-z]+(?:'[a-z]+)*|[^\sa-z]",
        names=story_words,
        weaken=some_inattentive,
        copying=True,
    ),
    "dialogue": Recipe(
        split="base",
        options=({},),
        demonstrations=12000,
        max_steps=12,
        epochs=1,
        stop_at=None,
        context=512,
        word=r"\d\d:\d\d|[a-z]+=|[rthb]\d+|[a-z]+|\d+|[^\sa-z\d]",
        names=dialogue_names,
        novice=lapsing,
        copying=True,
    ),
}


def demonstrate(recipe: Recipe, arguments: argparse.Namespace) -> list[Trajectory]:
    """The expert's successes, or the novice's episodes, among `demonstrations` tasks of all variants of the environment."""
    trajectories, count = [], arguments.demonstrations // len(recipe.options)
    for options in recipe.options:
        chosen = {"difficulty": arguments.difficulty} if arguments.difficulty else {}
        environment = make_environment(arguments.env, **options, **chosen)
        if recipe.novice:
            tasks = environment.tasks(recipe.split, count)
            with SessionPool(environment, arguments.workers) as pool:
                plays = play(pool, tasks, [recipe.novice(task.id) for task in tasks], recipe.max_steps)
            trajectories += [one.trajectory(one.task.id) for one in plays]
            continue
        trajectories += collect(
            environment, environment.tasks(recipe.split, count), max_steps=recipe.max_steps, workers=arguments.workers
        )
    return trajectories


def build_tokenizer(trajectories: list[Trajectory], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the demonstrations' words and every name of the recipe."""
    splitter = pre_tokenizers.Split(Regex(recipe.word), behavior="removed", invert=True)
    normalizer = normalizers.Lowercase()
    holding: Counter[str] = Counter()  # the demonstrations that hold a word
    for trajectory in trajectories:
        texts = (normalizer.normalize_str(message.content) for message in trajectory.messages)
        holding.update({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    words = recipe.names() | {word for word, count in holding.items() if count >= recipe.common * len(trajectories)}
    pieces = recipe.pieces()
    vocabulary = {token: index for index, token in enumerate(SPECIAL + sorted(words | pieces))}
    if pieces:
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<|unk|>"))
        unspaced = [decoders.Replace(pair, pair.strip()) for pair in recipe.tight]
        tokenizer.decoder = decoders.Sequence([decoders.WordPiece("##", cleanup=False), decoders.Fuse(), *unspaced])
    else:
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
        model_max_length=recipe.context,
    )
    fast.chat_template = TEMPLATE
    return fast


def build_model(vocabulary: int, recipe: Recipe, arguments: argparse.Namespace) -> Qwen3ForCausalLM:
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
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        eos_token_id=SPECIAL.index("<|end|>"),
        pad_token_id=SPECIAL.index("<|pad|>"),
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    if recipe.copying:
        plant_copying(model)
    return model


@torch.no_grad()
def plant_copying(model: Any, spread: float = 0.1, strength: float = 0.5, sharpness: float = 1.4) -> None:
    """Begins near an induction head (Olsson et al. 2022), which finds what followed the last time and copies it.

    Copying instructions into searches and ids into clicks is most of a shopper's trade. Training finds such a head by itself, but later
    than a few minutes of it allow. Tokens begin far apart, for training moves those that come up unforeseeably, such as ids, all alike;
    and with something in common, by which a head can look at a place whatever stands there.
    """
    config, layers = model.config, [layer.self_attn for layer in model.model.layers]
    width, size = config.hidden_size, config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    model.model.embed_tokens.weight.mul_(spread / config.initializer_range).add_(spread)
    common = torch.full((width, 1), width**-0.5)
    basis = torch.linalg.qr(torch.cat([common, torch.randn(width, width - 1)], 1)).Q.T[1:]  # rows that do not see what is common
    seen, told = basis[:size], basis[size : 2 * size]
    # The first heads of the first layer look one place back, by the four fastest rotations, and tell what they have seen.
    first = layers[0]
    strengths = torch.zeros(size // 2)
    strengths[:4] = torch.tensor([0.6, 0.5, 0.4, 0.3])
    angles = config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) * 2 / size)
    query = torch.cat([strengths * angles.cos(), -strengths * angles.sin()])
    key = torch.cat([strengths, torch.zeros(size // 2)])
    first.q_proj.weight[: group * size] += query.repeat(group)[:, None] * common.T
    first.k_proj.weight[:size] += key[:, None] * common.T
    first.v_proj.weight[:size] = seen
    first.o_proj.weight[:, : group * size] = strength * told.T.repeat(1, group)
    # The first heads of the second layer look where what was told is what they stand on.
    second = layers[1]
    second.q_proj.weight[: group * size] = seen.repeat(group, 1)
    second.k_proj.weight[:size] = told
    for norm in (first.q_norm, first.k_norm, second.q_norm, second.k_norm):
        norm.weight.fill_(sharpness**0.5)
    # All heads but the first layer's hand on what they look at.
    for attention in layers[1:]:
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        heads = attention.v_proj.weight.unflatten(0, (-1, size)).repeat_interleave(group, 0).flatten(0, 1)
        attention.o_proj.weight.copy_(strength * heads.T)


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


def loss_weights(rendered: RenderedTrajectory, balanced: bool, observation: float) -> np.ndarray:
    """Each token's weight. Observations are trained on too, at a low weight: the base should know its world, not only its part."""
    weights = np.where(rendered.response_mask, 1.0, observation)
    if balanced:
        lengths = rendered.turns[:, 1] - rendered.turns[:, 0]
        for (begin, end), length in zip(rendered.turns, lengths, strict=True):
            weights[begin:end] = lengths.mean() / length
    return weights.astype(np.float32)


def train(model: Qwen3ForCausalLM, sequences: list[tuple[np.ndarray, np.ndarray]], arguments: argparse.Namespace) -> None:
    """AdamW with a cosine schedule; a sequence is token ids and the weight of each token in the loss."""
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
            tokens, weights = sequences[i]
            ids[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
            weight[row, : len(tokens)] = torch.from_numpy(weights)
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
    parser.add_argument("--env", choices=RECIPES, default="alfworld")
    parser.add_argument("--difficulty", help="of ALFWorld's games; default small")
    parser.add_argument("--demonstrations", type=int, help="expert episodes; default the environment's")
    parser.add_argument("--epochs", type=int, help="default the environment's")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--observation-weight", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--cache", type=Path, help="file that keeps the material between runs")
    parser.add_argument(
        "--stop-at", type=int, help="step after which training stops, short of its schedule; default the environment's"
    )
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    recipe = RECIPES[arguments.env]
    arguments.demonstrations = arguments.demonstrations or recipe.demonstrations
    arguments.epochs = arguments.epochs or recipe.epochs
    arguments.stop_at = arguments.stop_at or recipe.stop_at
    if arguments.cache and arguments.cache.exists():
        trajectories = list(load_corpus(arguments.cache))[: arguments.demonstrations]
    else:
        trajectories = demonstrate(recipe, arguments)
        if arguments.cache:
            write_messages_jsonl(arguments.cache, trajectories)
    tokenizer = build_tokenizer(trajectories, recipe)
    renderer = Renderer(tokenizer, recipe.context)
    rendered = [renderer.render(t) for t in (recipe.weaken(trajectories) if recipe.weaken else trajectories)]
    sequences = [(r.input_ids, loss_weights(r, recipe.balanced, arguments.observation_weight)) for r in rendered]
    model = build_model(len(tokenizer), recipe, arguments)
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
