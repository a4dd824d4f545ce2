"""The page in a headless Chromium: no error, no request, controls do what they say, on a phone and on paper too."""

from collections.abc import Iterator

import pytest
from tests.browser import Tab, find_chromium, open_tab
from tests.unit.lowrank.caches import write_random_cache
from tests.unit.lowrank.trainings import train_tiny
from tests.unit.report.projects import write_project

pytest.importorskip("plotly")

from subspacelab.report.building import build_report
from subspacelab.report.config import ReportConfig
from subspacelab.report.maps import FEATURES, MODELS

pytestmark = pytest.mark.slow

IMAGES = "[...document.querySelectorAll('#lowrank-maps image')].map(i => i.href.baseVal).join()"
NUM_LINES = "document.querySelectorAll('#rotation-curves .trace').length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """The page of a small project with channel maps, open."""
    program, root = find_chromium(), write_project(tmp_path_factory.mktemp("project"))
    features = write_random_cache(root / FEATURES, count=40, dim=20, pictures=True)
    train_tiny(features, root / MODELS, "Sketch", epochs=1)
    page = root / "page.html"
    page.write_text(build_report(root, settings=ReportConfig(pictures=2, channels=4)), encoding="utf-8")
    with open_tab(program, tmp_path_factory.mktemp("profile")) as tab:
        tab.open(page)
        tab.wait_for(f"{IMAGES} !== ''")
        yield tab


def choose(tab: Tab, figure: str, name: str, value: object) -> None:
    """What a hand on the control does."""
    tab.eval(
        f"(() => {{ const input = document.querySelector('form[data-figure={figure}]').elements['{name}']; "
        f"input.value = '{value}'; input.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


@pytest.mark.parametrize(("name", "value"), [("channel", 3), ("picture", 1), ("rank", 1), ("shown", 1)])
def test_every_slider_moves_the_maps(tab: Tab, name: str, value: int) -> None:
    tab.eval(f"window.before = {IMAGES}")
    choose(tab, "lowrank-maps", name, value)
    tab.wait_for(f"{IMAGES} !== window.before")


def test_an_arrow_key_moves_the_maps_too(tab: Tab) -> None:
    tab.eval(f"window.before = {IMAGES}; document.querySelector('input[name=channel]').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowLeft", code="ArrowLeft", windowsVirtualKeyCode=37)
    tab.wait_for(f"{IMAGES} !== window.before")
    assert tab.eval("document.activeElement.getAttribute('aria-valuetext')") == "2"


def test_a_measure_and_its_controls_can_be_chosen(tab: Tab) -> None:
    choose(tab, "rotation-curves", "measure", 1)
    tab.wait_for("document.querySelector('#rotation-curves .ytitle').textContent.startsWith('mean principal angle')")
    choose(tab, "rotation-curves", "controls", 0)
    tab.wait_for(f"{NUM_LINES} === 2")
    choose(tab, "rotation-curves", "controls", 2)
    tab.wait_for(f"{NUM_LINES} === 10")  # of two groups each with four controls
    choose(tab, "rotation-curves", "group", "tall")
    tab.wait_for(f"{NUM_LINES} === 5")


def test_tables_sort_by_number_and_filter_by_words(tab: Tab) -> None:
    table = "[...document.querySelectorAll('#rotation .table')].find(t => t.textContent.includes('Every weight'))"
    first = f"{table}.querySelector('tbody tr:not([hidden]) td').textContent.trim()"
    assert tab.eval(first) == "a.weight"
    tab.eval(f"{table}.querySelectorAll('th button')[2].click()")
    assert tab.eval(first) == "b.weight"
    assert tab.eval(f"{table}.querySelectorAll('th')[2].getAttribute('aria-sort')") == "descending"


def test_a_phone_and_a_sheet_of_paper_are_wide_enough(tab: Tab) -> None:
    width = "Number(document.querySelector('#rotation-curves .main-svg').getAttribute('width'))"
    for screen, condition in ((390, "< 390"), (1280, "> 1000")):
        tab.call("Emulation.setDeviceMetricsOverride", width=screen, height=844, deviceScaleFactor=1, mobile=False)
        tab.wait_for(f"{width} {condition}")
        assert tab.eval("document.documentElement.scrollWidth <= innerWidth")
    tab.eval(f"addEventListener('beforeprint', () => window.printed = {width})")
    tab.call("Page.printToPDF")
    assert tab.eval("window.printed") < 700
    tab.wait_for(f"{width} > 1000")


def test_dark_mode_has_light_text_on_dark_paper(tab: Tab) -> None:
    def colours() -> list[int]:
        found = "getComputedStyle(document.querySelector('#rotation-curves .xtitle')).fill"
        return tab.eval(
            f"[getComputedStyle(document.body).backgroundColor, {found}].map(c => Number(c.match(/\\d+/)[0]))"
        )

    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    paper, text = colours()
    assert paper > 200 > 100 > text
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    paper, text = colours()
    assert paper < 100 < 200 < text


def test_controls_can_be_reached_and_have_names(tab: Tab) -> None:
    unnamed = "[...document.querySelectorAll('input, select')].filter(i => !i.labels.length).length"
    assert tab.eval(unnamed) == 0
    assert tab.eval("document.querySelectorAll('form[data-figure] [tabindex=\"-1\"]').length") == 0


def test_in_all_of_this_nothing_was_asked_for_and_no_error_was_logged(tab: Tab) -> None:
    asked = [event["request"]["url"] for event in tab.reported("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == 1
    assert tab.reported("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded") == []
