"""The READMEs and pages as the tests read them: blocks of code, commands, links, headings."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES = (*READMES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
STUDIES = tuple(ROOT / "docs" / f"{name}.md" for name in ("rotation", "lowrank", "nullspace", "norms"))
NOTEBOOKS = tuple(sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")))
TRANSLATED = (READMES, *((page, page.parent / "zh" / page.name) for page in STUDIES))
"""Each English page with its Chinese one."""
DEMO = "demo"
"""Word behind a block's language: its commands need only what `make repro` made, and are run on the smoke study."""

_BLOCK = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    """First word of its info string."""
    demo: bool
    """Whether it is marked to be run on the smoke study."""
    body: str
    """What stands in it."""

    @property
    def lines(self) -> list[str]:
        """Its lines without comments."""
        stripped = (re.sub(r"(^|\s+)#.*", "", line) for line in self.body.splitlines())
        return [line for line in stripped if line]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; continued lines are joined, comments left out."""
        commands: list[list[str]] = []
        for line in self.body.replace("\\\n", " ").splitlines():
            command: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    command.append(word)
                elif command:
                    commands.append(command)
                    command = []
        return commands


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    blocks = []
    for match in _BLOCK.finditer(page.read_text()):
        language, *marks = match["info"].split() or [""]
        blocks.append(Block(language, DEMO in marks, match["body"]))
    return blocks


def read_prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text())


def inline_code(text: str) -> list[str]:
    """What stands between single backticks."""
    return _INLINE.findall(text)


def commands_of(page: Path) -> list[list[str]]:
    """Every command line of a page, in blocks of bash and between backticks, as words."""
    blocks = [command for block in read_blocks(page) if block.language == "bash" for command in block.commands]
    inline = [shlex.split(code) for code in inline_code(read_prose(page)) if re.match(r"(subspacelab|dvc|make) ", code)]
    return blocks + inline


def subspacelab_words(command: list[str]) -> list[str] | None:
    """What follows `subspacelab` in a command, `accelerate launch -m subspacelab` included; None in another one."""
    if command[0] == "subspacelab":
        return command[1:]
    if command[:2] == ["accelerate", "launch"] and "subspacelab" in command:
        return command[command.index("subspacelab") + 1 :]
    return None


def links(page: Path) -> list[str]:
    """Targets of links and pictures that lie in the repository."""
    return [target for target in _LINK.findall(read_prose(page)) if "://" not in target]


def anchors(page: Path) -> set[str]:
    """What a link may name behind the `#`, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
