"""What is made when the site is built: the names on the API page; pages of notebooks, CONTRIBUTING.md, CHANGELOG.md."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md")


def notebook_as_markdown(path: Path) -> str:
    """Its cells as text and code, under a link to the file; outputs are not kept in notebooks."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name})", *rest]) + "\n"


def public_names() -> dict[str, str]:
    """Of `subspacelab`, and of each module in its `__all__`, a directive of mkdocstrings for each name of `__all__`."""
    import subspacelab as sl

    found = {name: getattr(sl, name) for name in sl.__all__}
    modules = {name: module for name, module in found.items() if isinstance(module, ModuleType)}
    pages = {"": [directive(name, sl.__name__, each) for name, each in found.items() if name not in modules]}
    for name, module in modules.items():
        parts = getattr(module, "__all__", ())
        pages[name] = [directive(f"{name}.{part}", module.__name__, getattr(module, part)) for part in parts]
    return {name: "\n".join(directives) for name, directives in pages.items()}


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
    own, *modules = public_names().items()
    links = ", ".join(f"[sl.{name}](api/{name}.md)" for name, _ in modules)
    pages["api.md"] = f"{Path(config.docs_dir, 'api.md').read_text('utf-8')}\nModules: {links}.\n\n{own[1]}"
    pages |= {f"api/{name}.md": f"# API: {name}\n\n{directives}" for name, directives in modules}
    for name, text in pages.items():
        if (standing := files.get_file_from_path(name)) is not None:
            files.remove(standing)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links lead to the made pages, not to the files of the repository that they are made from.

    The mark `demo` behind a block's language tells our tests to run it; the site's highlighter does not know it.
    """
    for name in OUTSIDE:
        markdown = markdown.replace(f"../{name}", name.lower())
    markdown = re.sub(r"(\]\([\w./]*notebooks/\w+)\.ipynb\)", r"\1.md)", markdown)
    return re.sub(r"^(```\w+) demo$", r"\1", markdown, flags=re.MULTILINE)
