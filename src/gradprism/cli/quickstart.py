"""`gradprism quickstart`."""

import gradprism as gp
from gradprism.cli.options import AsJson, DryRun, Fresh, Overrides
from gradprism.cli.run import run_and_print


def command(set_: Overrides = None, fresh: Fresh = False, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Nothing is downloaded. The results and report.html are in runs/quickstart; run again, it reuses finished stages."""
    run_and_print(gp.shipped("quickstart.toml"), set_, dry_run, as_json, fresh)
