"""`gradprism probe`."""

import os
from dataclasses import asdict
from typing import Annotated, Literal

import typer

import gradprism as gp
from gradprism.cli import options as o
from gradprism.cli.config_file import ConfigFile, ConfigSet
from gradprism.probing.pass_scores import check_pass_scores
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.mapping import read_settings


@o.with_chat
def command(
    chat: o.Chat,
    model: o.Model,
    data: o.Data,
    out: Annotated[str, typer.Option(help="Probe folder to write or to go on with, or a URL that fsspec opens (s3://…).")],
    more_data: o.MoreData = None,
    format_: o.Format = None,
    map_: o.Map = None,
    on_bad: o.OnBad = "fail",
    context_length: o.ContextLength = None,
    dtype: o.Dtype = "float32",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:<number>, or auto-map: the layers spread over all visible CUDA devices.")
    ] = "auto",
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, typer.Option(help="Load the linear layers in 8 or 4 bits (bitsandbytes).")
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Padded tokens per batch; default 2048 on a CPU, else 16384.")
    ] = None,
    on_existing: o.OnExisting = "resume",
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
    scores: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]",
            help="Also take from the pass, at a price: effective_rank, nuclear_norm, gini_rows, gini_columns, token_variance, sketch; or "
            "all.",
        ),
    ] = None,
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
    config_file: ConfigFile = None,
    config_set: ConfigSet = None,
    as_json: o.AsJson = False,
) -> None:
    """Takes each trajectory's loss and the gradient norm of every weight matrix, and writes one row for each.

    A folder may be given to several runs at once: each keeps what it finishes, though what both are at is probed twice.
    """
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it when it is loaded, which is after this
    spec = gp.ModelSpec(model, dtype, device, quantise, chat)
    names = read_settings(map_)
    corpus = gp.load_corpus([*data, *(more_data or [])], format=format_, limit=limit, mapping=names, on_bad=on_bad)
    settings = gp.ProbeOptions(
        context_length,
        batch_tokens,
        per_turn,
        None if units is None else tuple(units),
        experts,
        checkpoint_activations,
        check_pass_scores([name.strip() for name in scores.split(",")] if scores else ()),
    )
    if dry_run:
        ranks = Ranks.from_environment()
        if ranks is None or ranks.is_first:
            estimate = gp.estimate_probe(spec, None, corpus, settings, out=out, on_existing=on_existing)
            o.show(estimate.to_json(), o.estimate_text(estimate), as_json)
        return
    launcher = gp.Ray(workers, gpus_per_worker, cpus_per_worker) if executor == "ray" else "auto"
    probe = gp.probe(spec, None, corpus, out=out, on_existing=on_existing, launcher=launcher, **asdict(settings))
    if probe.run is not None:  # else another process of the launcher prints
        _print(probe, out, as_json)


def _print(probe: "gp.Probe", out: str, as_json: bool) -> None:
    run, manifest = probe.run, probe.manifest
    assert run is not None
    about = {"units": len(probe.units), "parameters": manifest.parameters, "device": manifest.device}
    totals = {"trajectories": len(probe), **asdict(manifest.totals), "sha256": manifest.corpus_sha256}
    turns = run.probed_turns or run.kept_turns
    text = (
        f"{out}: {run.probed} trajectories{f' and {run.probed_turns} turns' if turns else ''} probed, "
        f"{run.kept}{f' and {run.kept_turns} turns' if turns else ''} kept, {manifest.totals.truncated} cut to the context length; "
        f"{run.trajectories_per_second:.2f} trajectories and {run.tokens_per_second:.0f} tokens per second, "
        f"{run.padding_share:.1%} padding"
    )
    o.show({**run.to_json(), **about, "corpus": totals}, text, as_json)
