"""What the READMEs and pages say is there: links, commands, flags, parameters, targets. Nothing is run here."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML
from tests.repo.documents import (
    PAGES,
    ROOT,
    TRANSLATED,
    anchors,
    commands_of,
    inline_code,
    links,
    read_blocks,
    read_prose,
    subspacelab_words,
)

from subspacelab.cli import main
from subspacelab.commands import app

ORIGINAL = ROOT / "docs" / "original-commands.md"
SUBSPACELAB = typer.main.get_command(app)


def named(paths):
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in paths]


def read(name: str) -> dict:
    return YAML(typ="safe").load(ROOT / name)


def every_command(command=SUBSPACELAB, words=()):
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from every_command(below, (*words, name))


def find_command(words: list[str]) -> tuple[object, list[str]]:
    """The command that `words` name, and the words behind its name."""
    command, rest = SUBSPACELAB, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def parse(words: list[str]) -> None:
    """Parses a command line as the program would, and runs nothing; raises what wrong usage raises."""
    command, rest, context = SUBSPACELAB, list(words), None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, list(rest), parent=context)
        command = command.commands[rest.pop(0)]
    command.make_context(command.name, rest, parent=context)


def flags_of(command) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def settings_of(command: list[str]) -> list[str]:
    """`key=value` of each -S of a `dvc exp run` or `subspacelab sweep`."""
    if command[:3] != ["dvc", "exp", "run"] and command[:2] != ["subspacelab", "sweep"]:
        return []
    return [setting for flag, setting in pairwise(command) if flag == "-S"]


def stages_of(command: list[str]) -> list[str]:
    """The stages that a command names as its targets."""
    starts = {("dvc", "repro"): 2, ("dvc", "exp", "run"): 3, ("subspacelab", "sweep"): 2}
    start = next((n for words, n in starts.items() if tuple(command[:n]) == words), len(command))
    rest = command[start:]
    return [w for i, w in enumerate(rest) if not w.startswith("-") and (i == 0 or rest[i - 1] not in ("-S", "-n"))]


@pytest.mark.parametrize("page", named(PAGES))
def test_every_link_and_picture_of_a_page_is_there(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        found = (page.parent / name) if name else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", named(PAGES))
def test_every_command_of_a_page_parses(page):
    given = [words for command in commands_of(page) if (words := subspacelab_words(command))]
    for words in given:
        command, rest = find_command(words)
        assert not rest or rest[0].startswith("-") or not hasattr(command, "commands"), words
        if rest and rest != ["--help"]:  # a bare name is no command line
            parse(words)


def test_a_command_line_with_an_unknown_flag_or_without_a_required_one_does_not_parse():
    parse(["nullspace", "verify", "--trained_model_path", "x", "--max-activation-samples", "3"])
    wrong = (["nullspace", "verify", "--trained-model-path", "x", "--nosuch"], ["nullspace", "verify", "--seed", "1"])
    for words in wrong:
        with pytest.raises(typer.BadParameter.__mro__[1]):
            parse(list(words))


@pytest.mark.parametrize("page", named(PAGES))
def test_every_parameter_that_a_page_sets_exists(page):
    for setting in [s for command in commands_of(page) for s in settings_of(command)]:
        key, equals, value = setting.partition("=")
        assert equals, setting
        file, _, path = key.rpartition(":")
        place = read(file or "params.yaml")
        for part in path.split("."):
            assert part in place, setting
            place = place[part]
        if key == "study":
            assert (ROOT / "pipelines" / "studies" / f"{value}.yaml").is_file(), setting


@pytest.mark.parametrize("page", named(PAGES))
def test_every_stage_that_a_page_names_exists(page):
    stages = read("dvc.yaml")["stages"]
    for target in [t for command in commands_of(page) for t in stages_of(command)]:
        name, _, item = target.partition("@")
        if name.endswith("dvc.yaml"):  # a pipeline of its own
            assert read(name)["stages"], target
            continue
        assert name in stages, target
        if item:
            assert item in next(iter(stages[name]["matrix"].values())), target


@pytest.mark.parametrize("page", named(PAGES))
def test_every_make_target_of_a_page_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands_of(page):
        if command[0] == "make":
            assert command[1] in targets, command


@pytest.mark.parametrize("pages", TRANSLATED, ids=lambda pages: pages[0].name)
def test_both_languages_have_the_same_commands(pages):
    english, chinese = ([(b.language, b.demo, b.lines) for b in read_blocks(page)] for page in pages)
    assert english == chinese
    named_inline = [
        {code for code in inline_code(read_prose(page)) if re.match(r"(subspacelab|dvc|make|python|git|hf|--)", code)}
        for page in pages
    ]
    assert named_inline[0] == named_inline[1]


@pytest.mark.parametrize("pages", TRANSLATED, ids=lambda pages: pages[0].name)
def test_both_languages_show_the_same_pictures_and_figures(pages):
    english, chinese = (page.read_text() for page in pages)
    pictures = [re.findall(r"!\[[^\]]*\]\((?:\.\./)?([^)]+)\)", text) for text in (english, chinese)]
    assert pictures[0] == pictures[1]
    figures = [re.findall(r"\d+\.\d+", re.sub(r"\]\([^)]*\)", "", text)) for text in (english, chinese)]
    assert sorted(figures[0]) == sorted(figures[1])


@pytest.mark.parametrize("section", re.split(r"^## ", ORIGINAL.read_text(), flags=re.MULTILINE)[1:], ids=lambda s: s[0])
def test_every_command_and_flag_that_we_offer_for_the_original_s_exists(section):
    ours = [cell for row in re.findall(r"^\| .+$", section, re.MULTILINE)[1:] for cell in row.split(" | ")[1:]]
    codes = inline_code("\n".join(ours))
    commands = [find_command(code.split()[1:])[0] for code in codes if code.startswith("subspacelab ")]
    assert commands
    known = set().union(*map(flags_of, commands))
    for code in codes:
        flags = [word for word in code.split() if word.startswith("--")]
        assert {flag.replace("_", "-") for flag in flags} <= known, code


def test_there_is_a_table_for_each_of_the_five_original_documents():
    tables = re.split(r"^## ", ORIGINAL.read_text(), flags=re.MULTILINE)[1:]
    assert [table[0] for table in tables] == list("12345")
    assert all(len(re.findall(r"^\| ", table, re.MULTILINE)) >= 5 for table in tables)


@pytest.mark.parametrize(("words", "command"), [pytest.param(w, c, id=" ".join(w) or "-") for w, c in every_command()])
def test_help_of_every_command_renders_and_lists_its_flags(words, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as e:
        main([*words, "--help"])
    printed = capsys.readouterr().out
    assert (e.value.code or 0) == 0
    assert "Usage" in printed
    for flag in flags_of(command):
        assert flag in printed
    for name in getattr(command, "commands", {}):
        assert name in printed


def test_every_command_has_a_place_in_the_pages():
    leaves = {words for words, command in every_command() if not hasattr(command, "commands")}
    found = {tuple(w) for page in PAGES for command in commands_of(page) if (w := subspacelab_words(command))}
    assert {leaf for leaf in leaves if any(words[: len(leaf)] == leaf for words in found)} == leaves


def test_the_readmes_begin_with_the_two_commands_of_a_newcomer_and_are_short():
    for page in TRANSLATED[0]:
        made = [command[1] for command in commands_of(page) if command[0] == "make" and command[1] != "setup"]
        assert made[:2] == ["repro", "ui"], page.name
        assert "test" in made, page.name
        assert len(page.read_text().splitlines()) <= 130, page.name


@pytest.mark.parametrize("page", named(PAGES))
def test_a_page_has_no_placeholder(page):
    text = Path(page).read_text()
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX)\b|\?\?\?", text)
