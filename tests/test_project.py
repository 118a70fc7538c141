"""Versions that stand in more than one file of the project are the same in all."""

import re
from pathlib import Path

import lelp_sklearn

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text("utf-8")


def test_hooks_have_the_versions_that_nox_installs():
    pinned = dict(re.findall(r"(?m)^([\w-]+)==(.+)$", read("constraints.txt")))
    configured = read(".pre-commit-config.yaml")
    hooks = dict(re.findall(r"repo: .*/([\w-]+)\n\s+rev: v?(\S+)", configured))
    assert hooks["ruff-pre-commit"] == pinned["ruff"]
    assert hooks["codespell"] == pinned["codespell"]
    assert hooks["import-linter"] == pinned["import-linter"]
    assert hooks["cookie"].replace(".0", ".") == pinned["sp-repo-review"]


def test_changelog_and_citation_have_the_version():
    version = lelp_sklearn.__version__
    assert f"\n## [{version}]" in read("CHANGELOG.md")
    assert f"\nversion: {version}\n" in read("CITATION.cff")
