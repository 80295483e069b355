"""`gradprism inspect`: a corpus in a model's eyes, and all that is wrong with it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gradprism as gp
from gradprism.cli import options as o
from gradprism.package_data import resolve_shipped
from gradprism.runtime.errors import ConfigError, DataError, GradprismError
from gradprism.runtime.progress import say
from gradprism.trajectories import display
from gradprism.trajectories.corpus import Skipped, weighted_chat, write_skipped
from gradprism.trajectories.doctor import Doctor, Examination, Finding, problems
from gradprism.trajectories.mapping import Names, read_settings
from gradprism.trajectories.masks import NO_NOTES, Notes
from gradprism.trajectories.parallel import map_each


@o.with_chat
def command(
    chat: o.Chat,
    data: o.Data,
    model: Annotated[
        str | None,
        typer.Option(help="Model by whose tokens and chat template to look; default none: at texts alone.", parser=o.shipped_model),
    ] = None,
    more_data: o.MoreData = None,
    format_: o.Format = None,
    map_: o.Map = None,
    on_bad: o.OnBad = "fail",
    skipped: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSONL file for the records that cannot be used, with reasons.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Held-out corpus whose tasks should not be in the data; may be repeated.", parser=resolve_shipped
        ),
    ] = None,
    env: Annotated[str | None, typer.Option(help="Environment of the split of --against-split: alfworld, webshop, …")] = None,
    data_dir: o.DataDir = None,
    env_option: o.EnvOptions = None,
    against_split: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT", help="Split of --env whose tasks should not be in the data; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Trajectories to print; the summary is over all.")] = 3,
    context_length: Annotated[
        int | None, typer.Option(min=2, help="Cut longer trajectories to so many tokens; default no cut.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Response tokens are marked: the probe counts them, and SFT trains on them. Then what cannot be used, and what harms training.

    Goes through all records, whatever is wrong with some. Exit code 2 where some cannot be used, unless --on-bad is skip.
    """
    if on_bad not in ("fail", "skip"):
        raise ConfigError(f"--on-bad {on_bad!r}: choose fail or skip")
    renderer = None if model is None else gp.Renderer(gp.load_tokenizer(model, chat), context_length)
    if renderer is None and (context_length is not None or chat != gp.ChatOptions()):
        raise ConfigError(
            "--context-length and the options of the chat template say what becomes of tokens; give --model with them"
        )
    names = read_settings(map_)
    held_out = _held_out(against or (), format_, names)
    corpus = gp.load_corpus([*data, *(more_data or [])], format=format_, mapping=names, on_bad="skip")
    doctor, is_held_out = (
        Doctor(context_length, held_out),
        _of_splits(env, o.environment_options(data_dir, env_option), against_split),
    )
    tokens, texts, notes = display.Summary(), list[tuple[int, int, int]](), NO_NOTES
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)

    def look(trajectory: gp.Trajectory) -> tuple[tuple[int, int, int], display.Counts | None, Examination, Notes]:
        size = display.text_size(trajectory)
        if renderer is None:
            return size, None, doctor.examine(trajectory), NO_NOTES
        rendered = renderer.render(trajectory)
        return size, display.Counts.of(rendered, renderer.unknown_id), doctor.examine(trajectory, rendered), rendered.notes

    for trajectory, found in map_each(look, corpus):
        if isinstance(found, GradprismError):
            corpus.account.skip(trajectory.id, trajectory.source, found)
            continue
        size, counts, examination, noted = found
        texts.append(size)
        if counts is not None:
            tokens.add(counts)
        notes += noted
        doctor.add(trajectory, examination, is_held_out is not None and is_held_out(trajectory))
        if len(texts) <= limit and not as_json:
            _show(console, trajectory, renderer)
    for line in (*notes.lines(), *(renderer.cautions() if renderer else ())):
        say(f"warning: {line}")
    if renderer is None:
        say("no --model: characters are counted in place of tokens, and nothing is said of chat templates and masks")
    if skipped is not None:
        write_skipped(skipped, [corpus])
    summary = tokens.result() if renderer else display.TextSummary.of(texts)
    bad, lints = problems(corpus.account.skipped), doctor.lints()
    if as_json:
        listed = {"problems": [asdict(one) for one in bad], "lints": [asdict(one) for one in lints]}
        o.print_json({**asdict(summary), **listed, **corpus.account.notes.to_json(), "masks": renderer and renderer.way})
    else:
        _print(console, f"{summary}\nresponse tokens found by: {renderer.way}" if renderer else str(summary), bad, lints)
    if bad and on_bad == "fail":
        count = len(corpus.account.skipped)
        raise DataError(
            f"{count} of {count + summary.trajectories} records cannot be used, the first: "
            f"{_first(corpus.account.skipped[0])}; correct them, or leave them out by --on-bad skip"
        )


def _show(console: Console, trajectory: gp.Trajectory, renderer: gp.Renderer | None) -> None:
    """Prints a trajectory as the model sees it; without a model its turns as they were read."""
    if renderer is None:
        console.print(f"── {display.visible(f'{trajectory.id} · {trajectory.source}')}", style="bold")
        for message in trajectory.messages:
            console.print(display.visible(json.dumps(weighted_chat(message), ensure_ascii=False)))
        return
    coloured = console.color_system is not None and not console.no_color
    heading = display.heading(trajectory, renderer.render(trajectory), renderer.unknown_id)
    console.print(f"── {heading}", style="bold")
    console.print(display.mask_text(renderer.marked_text(trajectory), coloured))


def _held_out(files: Sequence[str], format_: str | None, names: Names | None) -> list[gp.Trajectory]:
    corpus = gp.load_corpus(files, format=format_, mapping=names, on_bad="skip")
    trajectories = list(corpus)
    if corpus.account.skipped:
        say(
            f"{len(corpus.account.skipped)} records of the held-out corpus cannot be read, the first: {_first(corpus.account.skipped[0])}"
        )
    return trajectories


def _first(one: Skipped) -> str:
    return ": ".join(part for part in (one.source, f"trajectory {one.id!r}" if one.id else "", one.reason.split(";")[0]) if part)


def _print(console: Console, summary: str, bad: Sequence[Finding], lints: Sequence[Finding]) -> None:
    console.print(summary)
    for title, findings in (("cannot be used", bad), ("look at", lints)):
        if findings:
            console.print(f"{title}:", style="bold")
            for finding in findings:
                console.print(f"  {display.visible(str(finding))}")


def _of_splits(env: str | None, options: dict[str, str], splits: Sequence[str] | None) -> Callable[[gp.Trajectory], bool] | None:
    """Whether a trajectory's task is one of the splits; a task that the environment does not know is none."""
    if not splits:
        return None
    if env is None:
        raise ConfigError("--against-split: name the environment by --env")
    environment = gp.make_environment(env, **options)
    ids = {task_id for split in splits for task_id in environment.ids(split)}

    def held_out(trajectory: gp.Trajectory) -> bool:
        try:
            return environment.task(trajectory.task).id in ids
        except GradprismError:
            return False

    return held_out
