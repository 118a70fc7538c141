"""Settings of the documentation."""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import lelp_sklearn

project = "lelp-sklearn"
author = "lelp-sklearn developers"
project_copyright = "2026, lelp-sklearn developers"
version = release = lelp_sklearn.__version__

# The one place that names the repository: `[project.urls]` of pyproject.toml.
pyproject = tomllib.loads(Path("../pyproject.toml").read_text("utf-8"))
source_url = pyproject["project"].get("urls", {}).get("Source")

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery"]
default_role = "literal"
templates_path = ["_templates"]

# Names of other projects are not linked: that would need the network.
nitpick_ignore_regex = [("py:.*", r"(numpy|scipy|sklearn|torch)\..*")]

autodoc_typehints = "none"
autosummary_generate = True
numpydoc_show_class_members = False

doctest_test_doctest_blocks = "default"
doctest_global_setup = """
import warnings
warnings.simplefilter("error")
"""

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "backreferences_dir": "generated/backreferences",
    "doc_module": "lelp_sklearn",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    # That page loads scripts of other hosts.
    "write_computation_times": False,
}

html_math_renderer = "mathml"

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = f"lelp-sklearn {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_context = {"source_url": source_url}
html_sidebars = {"index": [], "api": [], "design": [], "auto_gallery/index": []}
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["version"],
}
html_show_sourcelink = False


def skip_inherited_from_elsewhere(app, what, name, member, skip, options):
    """Leave the methods of other projects' base classes to their own pages."""
    module = getattr(member, "__module__", None) or ""
    return skip or (callable(member) and not module.startswith("lelp_sklearn"))


def to_mathml(formula, *, as_block=False):
    """Turn a formula into MathML, which browsers show without a script or a font."""
    if as_block and r"\\" in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    return tex2mathml(re.sub(r"\s+", " ", formula), as_block=as_block)


def visit_inline_math(writer, node):
    """Write a formula inside a line."""
    writer.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(writer, node):
    """Write a formula on a line of its own."""
    formula = to_mathml(node.astext(), as_block=True)
    writer.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def setup(app):
    """Connect the above to Sphinx."""
    app.connect("autodoc-skip-member", skip_inherited_from_elsewhere)
    app.add_html_math_renderer(
        "mathml", (visit_inline_math, None), (visit_math_block, None)
    )
