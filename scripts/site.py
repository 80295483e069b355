"""MkDocs hook: pages that lie beside their subject, in results/ and benchmarks/, are pages of the site as well."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are no pages: on the site their links are words.
NOT_PAGES = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:configs|examples|scripts|src|tests)/[^)]*\)")
OUTSIDE = ["results/README.md", "results/*/README.md", "results/*/tables.md", "results/*/*.svg", "benchmarks/README.md"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and their figures."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links as they are right in the repository, made right for the site, whose root is docs/."""
    return (
        NOT_PAGES.sub(r"\1", markdown)
        .replace("](../results/", "](results/")
        .replace("](../benchmarks/", "](benchmarks/")
        .replace("../docs/", "../")
    )
