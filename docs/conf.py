"""How Sphinx builds the documentation: `sphinx-build -W docs docs/_build`."""

import inspect
import re
import runpy
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

import kdiff_jax

project = "kdiff_jax"
author = "the authors of kdiff_jax"
version = release = kdiff_jax.__version__
repository = "https://github.com/kdiff-jax/kdiff_jax"

extensions = ["myst_nb", "sphinx.ext.autodoc"]
nb_execution_mode = "off"  # pages_of_notebooks runs them
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"kdiff_jax {release}"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_theme_options = {
    "source_repository": repository,
    "source_branch": "main",
    "source_directory": "docs/",
}
myst_heading_anchors = 3
smartquotes = False  # a name in quotes is what is to be typed
default_role = "code"  # docstrings write code in single backticks
# Every name in a signature or as code leads to its entry; those of other libraries have none here.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(jax|np|os)\..*|Axes|ModuleType|Path")]
maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signature_as_written puts them in, one signature for all overloads


def pages_of_notebooks(app):
    """The notebooks, run anew, as pages; what one of them warns of is an error of the build."""
    script = Path(app.srcdir).parent / "examples" / "notebooks" / "run.py"
    runpy.run_path(str(script))["run_all"](out=Path(app.srcdir) / "notebooks")


def links_to_files(app, docname, source):
    """Links to files outside of docs/, which serve readers of the repository, lead there."""
    if docname.startswith("notebooks/"):  # they name pages by the repository, for Colab
        for folder, here in (("docs/", "../"), ("examples/notebooks/", "")):
            source[0] = source[0].replace(f"{repository}/blob/main/{folder}", here)
    else:
        source[0] = re.sub(r"(?<!!)(\[[^]]*\])\(\.\./", rf"\1({repository}/blob/main/", source[0])


def source_of_notebooks(app, pagename, templatename, context, doctree):
    """The page's links to its source lead to the notebook, and not to the copy in docs/."""
    if pagename.startswith("notebooks/"):
        context["theme_source_directory"] = "examples/"


class AsWritten(str):
    """An annotation that prints as it stands in the source, without quotes."""

    __repr__ = str.__str__


def signature_as_written(app, what, name, obj, options, signature, return_annotation):
    """Types by the names that the source gives them, not as the unions these stand for."""
    if what not in ("function", "method", "class"):
        return None
    shown = inspect.signature(obj)
    parameters = [
        p.replace(annotation=AsWritten(p.annotation)) if isinstance(p.annotation, str) else p
        for p in shown.parameters.values()
        if p.name != "self"
    ]
    returns = shown.return_annotation if isinstance(shown.return_annotation, str) else None
    empty = inspect.Signature.empty
    texts = str(shown.replace(parameters=parameters, return_annotation=empty)), returns
    return tuple(text and re.sub(r"\bkd\.", "kdiff_jax.", text) for text in texts)


def sections_as_rst(app, what, name, obj, options, lines):
    """The sections of a docstring as lists and paragraphs; what is indented is code."""
    text = "\n".join(lines)
    if what == "module":  # a paragraph with an indented line is code, or a list in columns
        parts = text.split("\n\n")
        for i, part in enumerate(parts):
            if "\n " in f"\n{part}":
                begin = "::" if part.startswith(" ") else ".. code-block:: text"
                parts[i] = f"{begin}\n\n" + textwrap.indent(part, "    ")
        lines[:] = "\n\n".join(parts).split("\n")
        return
    first, *parts = re.split(r"^(Args|Attributes|Returns|Raises|Example):\n", text, flags=re.M)
    out = [re.sub(r"(?<=\S)\n\n(?=    +\S)", "\n\n::\n\n", first)]
    for title, part in zip(parts[::2], parts[1::2], strict=True):
        body, *after = re.split(r"^(?=\S)", part, maxsplit=1, flags=re.M)
        body = textwrap.dedent(body)
        if title in ("Args", "Attributes"):
            body = re.sub(r"^(\w[\w, ]*): ", r"* ``\1``: ", body, flags=re.M)
        elif title == "Raises":
            body = re.sub(r"^(\w+): ", r"* ``\1``: ", body, flags=re.M)
        elif title != "Example":
            body = re.sub(r"^ +", "", body, flags=re.M)
        out += [f"**{title}**\n\n{body}", *after]
    lines[:] = "\n".join(out).split("\n")


def names_as_links(app, doctree):
    """`kd.dpm2(levels)` in a text leads to the entry of kd.dpm2."""
    modules = {"kd": "kdiff_jax", "K": "kdiff_jax.adapters.k_diffusion"}
    for node in list(doctree.findall(nodes.literal)):
        found = re.match(rf"({'|'.join(modules)})\.([a-zA-Z]\w*(?:\.\w+)?)", node.astext())
        if found is None or isinstance(node.parent, (nodes.reference, nodes.title)):
            continue
        target = f"{modules[found[1]]}.{found[2]}"
        link = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=target)
        node.replace_self(link)
        link += node


def setup(app):
    app.connect("builder-inited", pages_of_notebooks)
    app.connect("source-read", links_to_files)
    app.connect("html-page-context", source_of_notebooks)
    app.connect("autodoc-process-signature", signature_as_written)
    app.connect("autodoc-process-docstring", sections_as_rst)
    app.connect("doctree-read", names_as_links)
