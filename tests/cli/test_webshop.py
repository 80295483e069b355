"""WebShop's own commands, where its extra is not installed."""

import subprocess
import sys

WITHOUT_THE_EXTRA = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rapidfuzz", "snowballstemmer"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Missing())
from gradprism.cli.main import main
main()
"""


def gradprism(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_THE_EXTRA, *arguments], capture_output=True, text=True)


def test_help_needs_no_extra_and_serving_names_it():
    shown = gradprism("webshop", "--help")
    assert shown.returncode == 0 and "serve" in shown.stdout and "generate" in shown.stdout
    refused = gradprism("webshop", "serve")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: environment 'webshop': No module named 'rapidfuzz'; pip install 'gradprism[webshop]'"
    ]
