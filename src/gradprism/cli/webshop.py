"""`gradprism webshop`: what only WebShop needs."""

from pathlib import Path
from typing import Annotated

import typer

from gradprism.cli.help import Command, new_app
from gradprism.cli.options import DataDir, EnvOptions, environment_options
from gradprism.environments.registry import make_environment
from gradprism.environments.webshop.generated import generate_catalogue
from gradprism.runtime.files import write_json
from gradprism.runtime.folders import claim_output_folder
from gradprism.runtime.progress import tell

app = new_app()


@app.callback()
def group() -> None:
    """Commands that only WebShop needs."""


@app.command("serve", cls=Command)
def serve_command(
    data_dir: DataDir = None,
    env_option: EnvOptions = None,
    split: Annotated[str, typer.Option(help="Split of the goals.")] = "test",
    index: Annotated[int, typer.Option(min=0, help="Place of the first goal in its split.")] = 0,
    host: Annotated[str, typer.Option(help="A loopback address: 127.0.0.1 or ::1.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8700,
) -> None:
    """Play a goal in a browser, beside what the agent sees. Reachable from this machine only."""
    options = environment_options(data_dir, env_option)
    environment = make_environment("webshop", **options)
    from gradprism.environments.webshop.server import make_server  # needs the extra `webshop`, which the line above asks for

    server = make_server(environment, split, index, host, port)  # pyright: ignore[reportArgumentType]
    print(f"WebShop at {server.address} (stop with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


@app.command("generate", cls=Command)
def generate_command(
    out: Annotated[Path, typer.Option(help="Folder for items_shuffle.json and items_ins_v2.json.")],
    products: Annotated[int, typer.Option(min=1, help="Number of products.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed; with the number it fixes every byte.")] = 0,
) -> None:
    """Write a generated catalogue in the official file formats."""
    items, instructions = generate_catalogue(products, seed)
    claim_output_folder(out)
    write_json(out / "items_shuffle.json", items)
    write_json(out / "items_ins_v2.json", instructions)
    asked = sum("instruction" in about for about in instructions.values())
    tell(f"{out}: {len(items)} products, {asked} of them with an instruction")
