"""Your own trainer: the SFT half of a route by transformers' plain Trainer, with a probe of the RL half while it runs.

    python examples/own_trainer.py

Does training on the one half change where the gradients of the other half fall? `ProbeCallback` measures it every few steps, and leaves
the training as it is, bit for bit.
"""

import tempfile

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import gradprism as gp

MODEL = gp.shipped("alfworld-tiny")


def examples(renderer: gp.Renderer, trajectories: list[gp.Trajectory]) -> list[dict[str, torch.Tensor]]:
    """Token ids, and labels that are -100 but on the response tokens: the same mask that the probe uses."""
    rows = []
    for rendered in map(renderer.render, trajectories):
        ids = torch.as_tensor(rendered.input_ids, dtype=torch.long)
        rows.append({"input_ids": ids, "labels": ids.masked_fill(~torch.as_tensor(rendered.response_mask), -100)})
    return rows


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Rows of equal length; what is padded is neither read nor trained on."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def main(limit: int = 64, steps: int = 12) -> list[dict[str, float]]:
    """Probes, routes and trains; returns what the callback logged."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    probe = gp.probe(model, tokenizer, gp.load_corpus(gp.shipped("alfworld-quickstart.jsonl"), limit=limit), context_length=1024)
    routes = gp.route(probe, metric="gini")
    to_rl = {task.id for task in routes.rl}
    watched = [trajectory for trajectory in probe.trajectories if trajectory.id in to_rl][:16]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
            logging_steps=4,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=collate,
            train_dataset=examples(gp.Renderer(tokenizer, 1024), routes.sft),  # pyright: ignore[reportArgumentType] # a list will do
            callbacks=[gp.ProbeCallback(watched, tokenizer, every=4, metrics=("gini", "cv"), context_length=1024)],
        )
        trainer.train()
    return [row for row in trainer.state.log_history if "probe/gini_mean" in row]


if __name__ == "__main__":
    for row in main():
        print(f"step {row['step']:3.0f}: gini {row['probe/gini_mean']:.4f} ± {row['probe/gini_std']:.4f}")
