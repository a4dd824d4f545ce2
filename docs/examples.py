"""Lines of docstrings that begin with >>> are code on the API pages, as Markdown alone would not have them."""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^(?:>>>|\.\.\.) ?.*\n?)+", re.MULTILINE)


class Examples(griffe.Extension):
    """Fences the examples of every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub(fenced, obj.docstring.value)


def fenced(example: re.Match[str]) -> str:
    """The example without its prompts, between fences."""
    lines = [line[4:] for line in example[0].splitlines()]
    return "\n".join(["```python", *lines, "```", ""])
