"""Result files, each written beside its place and moved there once complete."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import sklearn
import torch

import lelp_sklearn

RESULTS = Path(__file__).parent / "results"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file takes the place of `path` at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    yield unfinished
    os.replace(unfinished, path)


def write_json(path: Path, results: dict) -> None:
    """Write results as JSON."""
    with replacing(path) as unfinished:
        text = json.dumps(results, indent=1, ensure_ascii=False)
        unfinished.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, made_with: dict) -> dict:
    """Return the results of an earlier run, or none if it had another configuration."""
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["made_with"] == made_with:
            return results
    return {"made_with": made_with, "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = (lelp_sklearn, sklearn, torch, np)
    return {package.__name__: package.__version__ for package in packages}


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
