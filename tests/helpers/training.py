"""A folder to train on from the command line."""

from pathlib import Path

from gradprism.trajectories.corpus import write_messages_jsonl
from helpers.tiny import sample_trajectories, tiny_llama, tiny_qwen3, tiny_tokenizer


def make_sft_folder(folder: Path) -> Path:
    """Writes the models `qwen3` and `llama`, and 22 trajectories `corpus.jsonl`."""
    tokenizer = tiny_tokenizer()
    for name, model in (("qwen3", tiny_qwen3(len(tokenizer))), ("llama", tiny_llama(len(tokenizer)))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    write_messages_jsonl(folder / "corpus.jsonl", sample_trajectories(22))
    return folder


def sft_command(folder: Path, out: Path, *options: object, model: str = "qwen3") -> list[str]:
    """Arguments of `gradprism sft` on such a folder."""
    files = ["--model", folder / model, "--data", folder / "corpus.jsonl", "--out", out]
    return list(map(str, ["sft", *files, "--device", "cpu", "--learning-rate", 1e-3, *options]))
