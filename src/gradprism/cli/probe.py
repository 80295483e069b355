"""`gradprism probe`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from gradprism.cli.config_file import with_config_file


@with_config_file("probe")
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
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16, float16, float64 or auto.")] = "float32",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:<number>, or auto-map: the layers spread over all visible CUDA devices.")
    ] = "auto",
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, typer.Option(help="Load the linear layers in 8 or 4 bits (bitsandbytes).")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Padded tokens a batch; default 2048 on a CPU, else 16384.")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="Template file with generation markers.")] = None,
    on_existing: Annotated[str, typer.Option(help="A folder in use: resume, replace or fail.")] = "resume",
    limit: Annotated[int | None, typer.Option(min=1, help="Probe only the first so many trajectories.")] = None,
    per_turn: Annotated[bool, typer.Option("--per-turn", help="Also probe each assistant turn by its own mean loss.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts, memory and time, estimated from 20 batches; write nothing.")
    ] = False,
    units: Annotated[
        list[str] | None, typer.Option(help="Modules to measure, by pattern, where the model is not recognised; may be repeated.")
    ] = None,
    experts: Annotated[
        Literal["joined", "separate"],
        typer.Option(help="Mixture of experts: joined (a unit for all experts of a layer) or separate (one for each)."),
    ] = "joined",
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory for more time: run each layer again in the backward pass.")
    ] = False,
    executor: Annotated[
        Literal["auto", "ray"],
        typer.Option(help="auto: this process, or the processes of torchrun or accelerate launch; ray: actors of a Ray cluster."),
    ] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: actors; default as many as fit.")] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Ray: CUDA devices an actor; default 1 where there are any.")
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="Ray: processors an actor.")] = 1.0,
    shard_model: Annotated[
        bool,
        typer.Option("--shard-model", help="The launcher's processes hold the weights in shards (FSDP2): for very large models."),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default one a core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Takes each trajectory's loss and the gradient norm of every weight matrix, and writes one row for each.

    A folder may be given to several runs at once: each keeps what it finishes, though what both are at is probed twice.
    """
    from itertools import islice

    import torch

    from gradprism.cli.options import print_json
    from gradprism.probing.executors.anywhere import Where, probe_anywhere
    from gradprism.probing.executors.cluster import Cluster
    from gradprism.probing.executors.spec import ModelSpec
    from gradprism.probing.manifest import Options
    from gradprism.runtime import progress
    from gradprism.trajectories.readers import iter_trajectories

    progress.set_quiet(as_json)
    if threads is not None:
        torch.set_num_threads(threads)
    files = [*data, *(more_data or [])]
    spec = ModelSpec(model, dtype, quantise, None if units is None else tuple(units), experts, checkpoint_activations)
    result = probe_anywhere(
        spec,
        Where(device, executor, Cluster(workers, gpus_per_worker, cpus_per_worker), shard_model),
        lambda: islice(iter_trajectories(files, format_), limit),
        out,
        Options(
            context_length,
            batch_tokens,
            per_turn,
            on_existing,  # pyright: ignore[reportArgumentType] # checked there
            files,
            {"format": format_, "limit": limit},
        ),
        chat_template=chat_template,
        dry_run=dry_run,
    )
    if result is None:
        return  # another process of the launcher prints
    if as_json:
        print_json(result)
    elif dry_run:
        seconds = result["seconds"]
        print(
            f"{result['owed']} of {result['items']} items to probe: {result['tokens_read']} tokens in {result['batches']} batches of "
            f"{result['batch_tokens']}, {result['padding_share']:.1%} padding"
        )
        print(
            f"by a sample of {result['sample_batches']} batches: {seconds['probe']:.0f} s and {seconds['prepare']:.0f} s of preparation, "
            f"peak memory {result['peak_memory_mib']:.0f} MiB"
        )
    else:
        turns = f" and {result['probed_turns']} turns" if per_turn else ""
        kept_turns = f" and {result['kept_turns']} turns" if per_turn else ""
        print(
            f"{out}: {result['probed']} trajectories{turns} probed, {result['kept']}{kept_turns} kept, "
            f"{result['corpus']['truncated']} cut to the context length; {result['trajectories_per_second']} trajectories and "
            f"{result['tokens_per_second']:.0f} tokens a second, {result['padding_share']:.1%} padding"
        )
