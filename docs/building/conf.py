"""How Sphinx builds the site. Nothing that it writes fetches anything from elsewhere."""

import re

from sphinx.application import Sphinx

from hiermim_zoo import __version__

project = "hiermim_zoo"
author = "the hiermim_zoo authors"
release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4  # headings have the anchors that code hosts give them
nb_execution_mode = "off"  # the notebooks hold their outputs; tests execute them
nb_merge_streams = True
smartquotes = False  # two dashes of an option are no long one
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
add_module_names = False
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
html_theme = "furo"
html_title = "hiermim_zoo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d6f5c", "color-brand-content": "#1d6f5c"},
    "dark_css_variables": {"color-brand-primary": "#6fd3b5", "color-brand-content": "#6fd3b5"},
}
templates_path: list[str] = []


def plain_stars(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Single stars in docstrings are those of wildcards and of Python, not emphasis."""
    lines[:] = [re.sub(r"(?<![*`])\*(?!\*)", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", plain_stars, priority=100)  # before napoleon
