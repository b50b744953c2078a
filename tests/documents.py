"""The documents of the repository, page by page: their text, their blocks of code, their tables, their links."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

PAGES = (
    "README.md",
    "docs/families.md",
    "docs/bundle.md",
    "docs/generation.md",
    "docs/serving.md",
    "docs/edge.md",
    "docs/cluster.md",
    "docs/accuracy.md",
    "docs/encoder-pruning.md",
    "docs/precision.md",
    "docs/tensorrt.md",
    "docs/benchmark.md",
    "docs/architecture.md",
)
"""Whose commands run, in this order: those of a later page may need what an earlier one made."""

OTHERS = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/cpp/README.md",
    "export/demo/accuracy/README.md",
    "export/demo/checkpoint/README.md",
    "export/demo/vqa/checkpoint/README.md",
    "export/demo/vqa/dense/README.md",
    "export/demo/vqa/images/README.md",
)
"""Whose links resolve all the same."""

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page that are in this language."""
    return [block for found, block in _FENCED.findall(text_of(page)) if found == language]


def table(page: str, heading: str) -> list[list[str]]:
    """The table of a page whose heading begins so: the cells of its rows, without the heading."""
    text = text_of(page)
    lines = text[text.index(f"\n| {heading} |") + 1 :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def links(page: str) -> list[str]:
    """Targets of the links and pictures of a page, but for those to other sites."""
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", _FENCED.sub("", text_of(page)))
    return [target for target in found if "://" not in target]


def anchors(page: str) -> set[str]:
    """What a link to a heading of the page may end in, as GitHub forms it."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
