"""The troubleshooting page quotes lines that the code really says."""

import ast
import re

import pytest
from tests.repo.documents import ROOT

TROUBLESHOOTING = (ROOT / "docs" / "troubleshooting.md").read_text()
FOREIGN = (  # what the system, pydantic, DVC, MLflow and the command line say, and our own line about a reference
    *("No space left on device", "Read-only file system", "Permission denied", "Invalid Host header"),
    *("is busy, it is being blocked by", "must be greater than", "must be less than", "pipeline:llm: not built yet"),
    *("record(s), kept in .cache/untracked", "params.yaml", "data/"),
)


def texts() -> str:
    """Every string of the package, with nothing where an f-string has a value."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "\0" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.fixture(scope="module")
def said() -> str:
    return texts()


def quoted() -> list[str]:
    """What stands in backticks in the first column of the tables."""
    rows = [line for line in TROUBLESHOOTING.splitlines() if line.startswith("| ")]
    return [code for row in rows for code in re.findall(r"`+ ?(.+?) ?`+(?!`)", row.split(" | ")[0])]


@pytest.mark.parametrize("line", [line for line in quoted() if line not in FOREIGN])
def test_a_line_of_the_troubleshooting_page_is_said_somewhere(line, said):
    for part in re.split(r"\.\.\.|\bN\b", line):
        assert part.strip() in said, part
