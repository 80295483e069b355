"""`gradprism probe`."""

from dataclasses import asdict
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
    out: Annotated[str, typer.Option(help="Probe folder to write or to go on with, or a URL that fsspec opens (s3://…).")],
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
        int | None, typer.Option(min=1, help="Padded tokens per batch; default 2048 on a CPU, else 16384.")
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
        typer.Option(help="auto: this process, or the processes of torchrun or accelerate launch; ray: tasks of a Ray cluster."),
    ] = "auto",
    workers: Annotated[int | None, typer.Option(min=1, help="Ray: tasks at once; default as many as fit.")] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Ray: CUDA devices per task; default 1 where there are any.")
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="Ray: processors per task.")] = 1.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default one per core.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON and no progress.")] = False,
) -> None:
    """Takes each trajectory's loss and the gradient norm of every weight matrix, and writes one row for each.

    A folder may be given to several runs at once: each keeps what it finishes, though what both are at is probed twice.
    """
    import torch

    from gradprism.cli.options import print_json
    from gradprism.models import ModelSpec
    from gradprism.probing.api import probe
    from gradprism.probing.estimate import estimate_probe
    from gradprism.probing.rays import Ray
    from gradprism.probing.work import ProbeOptions
    from gradprism.runtime import progress
    from gradprism.runtime.ranks import Ranks
    from gradprism.trajectories.corpus import load_corpus

    progress.set_quiet(as_json)
    if threads is not None:
        torch.set_num_threads(threads)
    spec = ModelSpec(model, dtype, device, quantise, chat_template)
    corpus = load_corpus([*data, *(more_data or [])], format=format_, limit=limit)
    patterns = None if units is None else tuple(units)
    if dry_run:
        ranks = Ranks.from_environment()
        if ranks is not None and not ranks.is_first:
            return
        options = ProbeOptions(context_length, batch_tokens, per_turn, patterns, experts, checkpoint_activations)
        estimate = estimate_probe(spec, None, corpus, options, out=out, on_existing=on_existing)  # pyright: ignore[reportArgumentType]
        if as_json:
            print_json(asdict(estimate))
        else:
            print(
                f"{estimate.pending} of {estimate.items} items to probe: {estimate.tokens_read} tokens in {estimate.batches} batches of "
                f"{estimate.batch_tokens}, {estimate.padding_share:.1%} padding"
            )
            print(
                f"by a sample of {estimate.sample_batches} batches: {estimate.probe_seconds:.0f} s and {estimate.prepare_seconds:.0f} s "
                f"of preparation, peak memory {estimate.peak_memory_mib:.0f} MiB"
            )
        return
    result = probe(
        spec,
        None,
        corpus,
        out=out,
        context_length=context_length,
        batch_tokens=batch_tokens,
        per_turn=per_turn,
        units=patterns,
        experts=experts,
        checkpoint_activations=checkpoint_activations,
        on_existing=on_existing,  # pyright: ignore[reportArgumentType] # checked there
        launcher=Ray(workers, gpus_per_worker, cpus_per_worker) if executor == "ray" else "auto",
    )
    run, manifest = result.run, result.manifest
    if run is None:
        return  # another process of the launcher prints
    if as_json:
        about = {"units": len(result.units), "parameters": manifest.parameters, "device": manifest.device}
        corpus_totals = {"trajectories": len(result), **asdict(manifest.totals), "sha256": manifest.corpus_sha256}
        print_json({**run.to_json(), **about, "corpus": corpus_totals})
    else:
        turns = f" and {run.probed_turns} turns" if per_turn else ""
        kept_turns = f" and {run.kept_turns} turns" if per_turn else ""
        print(
            f"{out}: {run.probed} trajectories{turns} probed, {run.kept}{kept_turns} kept, {manifest.totals.truncated} cut to the "
            f"context length; {run.trajectories_per_second:.2f} trajectories and {run.tokens_per_second:.0f} tokens a second, "
            f"{run.padding_share:.1%} padding"
        )
