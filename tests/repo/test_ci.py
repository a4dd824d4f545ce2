"""The workflow for users and `make ci` run the same steps."""

import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_workflow_runs_the_steps_of_make_ci_in_their_order():
    steps = YAML(typ="safe").load(WORKFLOW)["jobs"]["ci"]["steps"]
    ran = [re.match(r"make (?:--silent )?([\w-]+)", step["run"]) for step in steps if "make" in step.get("run", "")]
    targets = [match[1] for match in ran if match]
    makefile = (ROOT / "Makefile").read_text()
    local = re.search(r"^ci: (.*?)  ##", makefile, re.MULTILINE)
    assert local
    assert targets == ["setup", *local[1].split()]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_workflow_needs_no_secret_and_may_not_write():
    text = WORKFLOW.read_text()
    assert "secrets." not in text
    assert YAML(typ="safe").load(text)["permissions"] == {"contents": "read"}


def test_actions_of_others_are_pinned_by_commit():
    used = re.findall(r"uses: (\S+)", WORKFLOW.read_text())
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)] == []
