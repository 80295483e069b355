"""Command-line options from configuration models: one description of a setting, wherever it is set."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import typer
from pydantic import BaseModel, ValidationError

from gradprism.package_data import resolve_shipped, resolve_shipped_model
from gradprism.runtime.errors import ConfigError
from gradprism.runtime.progress import say, set_quiet, tell
from gradprism.runtime.ranks import Ranks
from gradprism.trajectories.chat_options import ChatOptions, other_options

if TYPE_CHECKING:
    from gradprism.estimate import Estimate

Chat = ChatOptions  # its place in a command's parameters is taken by options


def _told(resolve: Callable[[str], str]) -> Callable[[str], str]:
    """A parser whose error is told in its own words."""

    def parse(name: str) -> str:
        try:
            return resolve(name)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


_UNUSUAL = re.compile(r"[^\n -~]")
shipped_model, shipped_file = _told(resolve_shipped_model), _told(resolve_shipped)

Model = Annotated[
    str, typer.Option(help="Folder or hub id of the model, or shipped:alfworld-tiny, shipped:stories-tiny, …", parser=shipped_model)
]
ModelOrNone = Annotated[
    str | None,
    typer.Option(help="Folder or hub id of the model that plays, or shipped:alfworld-tiny, …", parser=shipped_model),
]
Data = Annotated[
    list[str],
    typer.Option(
        help="Trajectories: files (JSONL, JSON, Parquet, Arrow, .eval; plain or .gz, .xz, .zst), folders or globs of them.",
        parser=shipped_file,
    ),
]
MoreData = Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="Further files, as in `--data A B C`.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Format of the data: messages, sharegpt, eto, atif, …; default recognised.")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="NAME=OWN",
        help="Own names of fields and roles: turns=dialog, speaker=who, text=said, role.agent=assistant, …; or a TOML file. "
        "May be repeated.",
    ),
]
OnBad = Annotated[
    Literal["skip", "fail"],
    typer.Option(parser=str, metavar="[skip|fail]", help="What to do with records that cannot be read or rendered."),
]
ContextLength = Annotated[
    int | None, typer.Option(min=2, help="Tokens of a trajectory or an episode at most; default the model's own limit.")
]
ChatTemplate = Annotated[Path | None, typer.Option(help="Jinja file in place of the tokenizer's own chat template.")]
Thoughts = Annotated[
    str | None,
    typer.Option(
        metavar="[keep|drop|fail]",
        help="Thoughts that the chat template's render would lose: written in as <think>…</think>, left out, or an error (default).",
    ),
]
Calls = Annotated[
    str | None,
    typer.Option(
        metavar="[template|text]",
        help="Tool calls as the chat template writes them (default), or as text: <tool_call>{…}</tool_call>, with results as user turns.",
    ),
]
MergeTurns = Annotated[
    str | None,
    typer.Option(
        metavar="[system][,alternate]",
        help="For templates that take no system prompt (system: into the first user turn) or want roles to alternate (alternate: "
        "successive turns of one role become one).",
    ),
]
TemplateDate = Annotated[
    str | None, typer.Option(metavar="YYYY-MM-DD", help="Today, for chat templates that print the date; default 2026-01-01.")
]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A variable of the chat template, as enable_thinking=false; may be repeated."),
]
Dtype = Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16, float16, float64 or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
# What these may be is said in one line by who takes them, as every mistake; hence `parser=str`.
OnExisting = Annotated[
    Literal["resume", "replace", "fail"],
    typer.Option(parser=str, metavar="[resume|replace|fail]", help="What to do with a folder in use."),
]
OnExistingOutput = Annotated[
    Literal["replace", "fail"],
    typer.Option("--on-existing", parser=str, metavar="[replace|fail]", help="What to do with a folder in use."),
]


def _quiet(as_json: bool) -> bool:
    set_quiet(as_json)
    return as_json


AsJson = Annotated[bool, typer.Option("--json", callback=_quiet, help="Print the result as JSON, and no progress.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and what it would take; write nothing.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Make results again that other code has made.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value: section.key=value; may be repeated.")
]

Env = Annotated[str, typer.Option(help="Environment: alfworld, dialogue, stories, webshop, or your own as package.module:Class.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the environment's official data, where it is to be played on that.")]
EnvOptions = Annotated[
    list[str] | None, typer.Option("--env-option", metavar="KEY=VALUE", help="An environment's own option; may be repeated.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Environment processes; default one per core.")]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1, help="Dry run: devices, which shard the model (FSDP) where they are several; default the launcher's, or 1."
    ),
]
DeviceTflops = Annotated[
    float | None,
    typer.Option(help="Dry run: TFLOP/s that a device reaches; default 40 % of this GPU's data sheet, or of an A100's."),
]

# What routes and audits are made of; a test keeps the names in step with `routing.policies` and `concentration`.
ProbeFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Probe folder.")]
Metric = Annotated[
    str,
    typer.Option(
        help="Concentration of the norms: gini, cv, kurtosis; hoyer, participation, entropy, theil, top_tenth; of layers' or kinds' totals "
        "gini_layers, gini_kinds; theil between and within them theil_layers, theil_in_layers, theil_kinds, theil_in_kinds; a "
        "registered metric; or of what the probe's --scores took effective_rank, nuclear_norm, gini_rows, gini_columns, token_variance."
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        help="What goes to RL: concentration (high metrics), inverse, soft (by chance, in proportion to rank), random, magnitude, loss, "
        "length, uncertainty, pass_rate or learnability (both with --pass-rates), target (with --target), or a registered policy."
    ),
]
Normalise = Annotated[str, typer.Option(help="Norms as they are (none), per_parameter, per_weight_norm or per_corpus_median.")]
PassRates = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="episodes.jsonl of a `gradprism evaluate` of the base model on the corpus's tasks."),
]
Target = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Probe folder of target trajectories by the same model; both probes need --scores sketch."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of what is drawn by chance: routes, and the audit's bootstrap.")]


def with_config(model: type[BaseModel], *, leave_out: tuple[str, ...] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command an option for each field of `model`, and of models among those; the command receives it built, as `config`."""
    parts = {key: kind for key, field in model.model_fields.items() if (kind := _model(field.annotation))}
    fields = {key: field for key, field in model.model_fields.items() if key not in (*parts, *leave_out)}
    for part in parts.values():
        fields |= part.model_fields

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**arguments: Any) -> None:
            values = {key: arguments.pop(key) for key in fields}
            values = {key: value for key, value in values.items() if not (_is_sequence(fields[key]) and value is None)}
            for key, part in parts.items():
                values[key] = {name: values.pop(name) for name in part.model_fields if name in values}
            try:
                config = model.model_validate(values)
            except ValidationError as error:
                first = error.errors()[0]
                named = [str(word) for word in first["loc"] if word not in parts]
                if not named:  # values that do not go together
                    raise ConfigError(first["msg"].removeprefix("Value error, ")) from None
                raise ConfigError(f"--{named[0].replace('_', '-')}: {first['msg']}; got {first['input']!r}") from None
            function(config=config, **arguments)

        own = [p for p in inspect.signature(function).parameters.values() if p.name != "config"]
        options = [
            inspect.Parameter(
                key,
                inspect.Parameter.KEYWORD_ONLY,
                default=None if _is_sequence(field) else field.default,
                # One that may be repeated; what its values may be is for the model to say.
                annotation=Annotated[
                    list[str] | None if _is_sequence(field) else field.annotation, typer.Option(help=field.description)
                ],
            )
            for key, field in fields.items()
        ]
        command.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + options)  # pyright: ignore[reportFunctionMemberAccess]
        command.__doc__ = function.__doc__
        return command

    return decorate


def with_chat(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of rendering in place of its parameter `chat`, which it receives as `ChatOptions`.

    What is not given is as its model was trained; where that is known and something else is given, it is said.
    """

    def options(
        *,
        chat_template: ChatTemplate = None,
        thoughts: Thoughts = None,
        merge: MergeTurns = None,
        calls: Calls = None,
        template_date: TemplateDate = None,
        template_arg: TemplateArgs = None,
    ) -> Mapping[str, Any]:
        return {
            "file": chat_template,
            "thoughts": thoughts,
            "merge": None if merge is None else tuple(word.strip() for word in merge.split(",")),
            "calls": calls,
            "date": template_date,
            "arguments": _arguments(template_arg or []),
        }

    own = list(inspect.signature(options).parameters.values())

    def command(**arguments: Any) -> None:
        given = options(**{p.name: arguments.pop(p.name) for p in own if p.name in arguments})
        model = str(arguments.get("model") or arguments.get("agent") or "")
        chat = ChatOptions.of_model(model, **given)
        ranks, other = Ranks.from_environment(), other_options(model, chat)
        if other and (ranks is None or ranks.is_first):
            say(f"warning: the model was trained with other options of its chat template ({other})")
        function(chat=chat, **arguments)

    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "chat"]
    command.__signature__ = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters] + own)  # pyright: ignore[reportFunctionMemberAccess]
    command.__doc__ = function.__doc__
    return command


def _arguments(settings: list[str]) -> dict[str, Any]:
    """Template variables: JSON where a value is that, else text."""
    arguments = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"--template-arg {setting!r}: expected key=value, for example enable_thinking=false")
        try:
            arguments[key.strip()] = json.loads(value)
        except ValueError:
            arguments[key.strip()] = value
    return arguments


def _model(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _is_sequence(field: Any) -> bool:
    return get_origin(field.annotation) is tuple


def print_json(value: Any) -> None:
    """One JSON document on stdout; what a terminal would not show as a letter is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    print(_UNUSUAL.sub(lambda found: found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1], text))


def show(values: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Prints a result as JSON or as `text`; of a launcher's processes the first alone does."""
    ranks = Ranks.from_environment()
    if ranks is None or ranks.is_first:
        print_json(values) if as_json else tell(text)


def ended(failures: float, cut_by_context: float, out_of_steps: float) -> str:
    """How many episodes did not end by themselves, as the end of a line; empty where all did."""
    ends = {"failed in the engine": failures, "ran out of context": cut_by_context, "ran out of steps": out_of_steps}
    return "".join(f", {n:.0f} {how}" for how, n in ends.items() if n)


def estimate_text(estimate: "Estimate") -> str:
    """Figures of an estimate, each with its unit and where it comes from."""
    lines = []
    for name, figure in estimate.items():
        value = figure.value
        shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if value < 1e6 else f"{value:.3e}"
        lines.append(f"{name:22s} {f'{shown} {figure.unit}'.strip():>18s}   {figure.source}")
    return "\n".join(lines)


def environment_options(data_dir: Path | None, settings: list[str] | None, flag: str = "--env-option") -> dict[str, str]:
    """An environment's options from `--data-dir` and `--env-option key=value`."""
    options = {} if data_dir is None else {"data_dir": str(data_dir)}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"{flag} {setting!r}: expected key=value, for example difficulty=tiny")
        options[key.strip().replace("-", "_")] = value.strip()
    return options
