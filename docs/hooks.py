"""What is made when the site is built: the names on the API page; pages of notebooks, CONTRIBUTING.md, CHANGELOG.md."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md")


def notebook_as_markdown(path: Path) -> str:
    """Its cells as text and code, under a link to the file; outputs are not kept in notebooks."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"


def public_names() -> str:
    """A directive of mkdocstrings for each name of `subspacelab.__all__`, and of the `__all__` of the modules in it."""
    import subspacelab as sl

    own, modules = [], []
    for name in getattr(sl, "__all__", ()):
        found = getattr(sl, name)
        if isinstance(found, ModuleType):
            inner = [
                directive(f"{name}.{part}", found.__name__, getattr(found, part))
                for part in getattr(found, "__all__", ())
            ]
            modules.append("\n".join([f"\n## {name}\n", *inner]))
        else:
            own.append(directive(name, sl.__name__, found))
    return "\n".join(["\n## subspacelab\n", *own, *modules]) if own or modules else ""


def directive(name: str, module: str, found: Any) -> str:
    """Documents an object where it is defined, under the name by which it is used."""
    place = f"{found.__module__}.{found.__qualname__}" if hasattr(found, "__qualname__") else f"{module}.{name}"
    return f"::: {place}\n    options: {{heading: sl.{name}, toc_label: {name.rpartition('.')[2]}}}\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the made pages to those that lie in docs/."""
    root = Path(config.config_file_path).parent
    pages = {name.lower(): (root / name).read_text("utf-8").replace("](docs/", "](") for name in OUTSIDE}
    for path in sorted(Path(config.docs_dir, "notebooks").glob("*.ipynb")):
        pages[f"notebooks/{path.stem}.md"] = notebook_as_markdown(path)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links lead to the made pages, not to the files of the repository that they are made from.

    The mark `demo` behind a block's language tells our tests to run it; the site's highlighter does not know it.
    """
    if page.file.src_uri == "api.md":
        markdown += public_names()
    for name in OUTSIDE:
        markdown = markdown.replace(f"../{name}", name.lower())
    markdown = re.sub(r"(\]\([\w./]*notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)
    return re.sub(r"^(```\w+) demo$", r"\1", markdown, flags=re.MULTILINE)
