"""`gradprism rl --vllm colocate` on CPU processes: `torchrun -m helpers.vllm_on_cpu rl …`, with SHARDED=1 under FSDP2.

In vLLM's place stands an engine that says words drawn by the prompt alone, so that what is played does not depend on who trains. What
every process holds at the end is written to WEIGHTS/<rank>.
"""

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import trl.generation.vllm_generation

from gradprism.cli.main import main
from gradprism.probing.fingerprint import weights_fingerprint
from gradprism.training.loop import Loop
from helpers.fsdp_on_cpu import FSDP2, allow_cpu


class StandIn:
    """Takes the constructor's arguments of TRL's `VLLMGeneration` and has what is asked of one."""

    def __init__(self, model: Any, **_: Any) -> None:
        self.model, self.temperature = model, 1.0
        self.synced: list[float] = []

    def sync_weights(self) -> None:
        # As TRL's: gathering a sharded weight takes all processes.
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in self.model.parameters()]
        self.synced.append(sum(float(w.detach().double().sum()) for w in weights))

    def generate(self, prompts: list[list[int]], images: None, num_generations: int) -> tuple:
        assert self.synced, "asked before it had the weights"
        answers = []
        for number, prompt in enumerate(prompts):
            draw = random.Random(repr((number, prompt)))
            answers.append([draw.randrange(6, 60) for _ in range(draw.randint(1, 4))] + [5])  # <|end|>
        return prompts, answers, [[[-3.0] for _ in ids] for ids in answers], None


def install() -> None:
    """Puts the stand-in where TRL makes its engine, and lets vLLM pass for installed."""
    trl.generation.vllm_generation.VLLMGeneration = StandIn  # pyright: ignore
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: object() if name == "vllm" else find(name, *rest)  # pyright: ignore
    save = Loop.save_model

    def save_and_tell(self: Loop, tokenizer: Any) -> None:
        loop = self
        save(loop, tokenizer)
        folder = Path(os.environ["WEIGHTS"])
        folder.mkdir(parents=True, exist_ok=True)
        sharded = any(hasattr(p, "full_tensor") for p in loop.unwrapped.parameters())
        (folder / str(loop.rank)).write_text("sharded" if sharded else weights_fingerprint(loop.unwrapped))

    Loop.save_model = save_and_tell


if __name__ == "__main__":
    if os.environ.get("SHARDED"):
        os.environ.update(FSDP2)
    allow_cpu()
    install()
    main()
