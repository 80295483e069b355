"""`gradprism probe`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Option(help="Folder or hub id of the frozen model to probe with.")],
    data: Annotated[
        list[Path], typer.Option(help="Trajectories: JSONL, JSON or Parquet, plain or .gz, .xz, .zst; one or more files.")
    ],
    out: Annotated[Path, typer.Option(help="Probe folder to write or to go on with.")],
    more_data: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files, as in `--data A B C`.")
    ] = None,
    format_: Annotated[str | None, typer.Option("--format", help="Format of the data, where it should not be recognised.")] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens a trajectory may have; default the model's own limit.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16, float64 or auto.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Padded tokens a batch; default 2048 on a CPU, else 16384.")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    on_existing: Annotated[str, typer.Option(help="A folder in use: resume, replace or fail.")] = "resume",
    limit: Annotated[int | None, typer.Option(min=1, help="Probe only the first so many trajectories.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Takes each trajectory's loss and the gradient norm of every weight matrix, and writes one row for each."""
    import torch

    from gradprism import progress
    from gradprism.cli.options import print_json
    from gradprism.models import check_context_length, load_model
    from gradprism.probing.corpus import probe_corpus
    from gradprism.trajectories.readers import read_trajectories
    from gradprism.trajectories.rendering import load_tokenizer

    progress.set_quiet(as_json)
    if threads is not None:
        torch.set_num_threads(threads)
    files = [*data, *(more_data or [])]
    trajectories = read_trajectories(files, format_)[:limit]
    tokenizer = load_tokenizer(model, chat_template)
    loaded = load_model(model, dtype, device)
    summary = probe_corpus(
        loaded,
        tokenizer,
        trajectories,
        out,
        context_length=check_context_length(loaded, context_length),
        batch_tokens=batch_tokens,
        on_existing=on_existing,  # pyright: ignore[reportArgumentType] # checked there
        data=files,
    )
    if as_json:
        print_json(summary)
    else:
        cut, speed = summary["corpus"]["truncated"], summary["trajectories_per_second"]
        print(
            f"{out}: {summary['probed']} trajectories probed, {summary['kept']} kept, {cut} cut to the context length; "
            f"{speed} trajectories and {summary['tokens_per_second']:.0f} tokens a second"
        )
