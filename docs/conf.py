"""Settings of the documentation."""

import lelp_sklearn

project = "lelp-sklearn"
author = "lelp-sklearn developers"
project_copyright = "2026, lelp-sklearn developers"
version = release = lelp_sklearn.__version__

extensions = [
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
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

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = f"lelp-sklearn {version}"
html_sidebars = {"index": [], "api": [], "design": []}
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_show_sourcelink = False


def skip_inherited_from_elsewhere(app, what, name, member, skip, options):
    """Leave the methods of other projects' base classes to their own pages."""
    module = getattr(member, "__module__", None) or ""
    return skip or (callable(member) and not module.startswith("lelp_sklearn"))


def setup(app):
    """Connect the above to autodoc."""
    app.connect("autodoc-skip-member", skip_inherited_from_elsewhere)
