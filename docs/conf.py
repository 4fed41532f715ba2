"""The documentation site: MyST pages, and a reference from docstrings. `make docs` builds it; nothing is fetched."""

from __future__ import annotations

import re

from calumma._version import __version__

project = "calumma"
author = "The calumma authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"calumma {version}"
html_copy_source = False
html_show_sphinx = False

myst_heading_anchors = 3
highlight_language = "text"

# Docstrings are Markdown in spirit: `name` is code, and * and | are operators, never markup.
default_role = "code"
autodoc_default_options = {"members": True, "undoc-members": True}
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_type_aliases = {name: name for name in ("Indices", "NDArray", "Score", "Features", "Scores", "Listener")}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False


def _as_rest(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escape what reStructuredText would take for markup outside of `code`."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
        parts[::2] = [re.sub(r"(?<!\\)([*|])|(?<=\w)_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")  # or Napoleon takes what stands before a colon for the type


def _captions(app: object, docname: str, source: list[str]) -> None:
    """Show above a code block which file it belongs to, or why the tests do not run it."""
    text = re.sub(r"^```(\w+) file=(\S+)$", r"`\2`\n\n```\1", source[0], flags=re.MULTILINE)
    source[0] = re.sub(r"^```(\w+) not-run: (.+)$", r"*Not run by the tests: \2.*\n\n```\1", text, flags=re.MULTILINE)


def setup(app: object) -> None:
    """Connect the hooks."""
    app.connect("autodoc-process-docstring", _as_rest, priority=100)  # type: ignore[attr-defined]
    app.connect("source-read", _captions)  # type: ignore[attr-defined]
