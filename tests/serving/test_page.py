"""The page, as a person meets it: in a real browser, where one is installed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import NAMES, Tab, browsing, find_browser
from colour_model import ColourModel, FakeAnswer, FakeVersion, picture
from listening import listening

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"no browser is installed (any of {', '.join(NAMES)})")


@pytest.fixture(scope="module")
def only_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def browser(only_browser: Tab) -> Tab:
    """The module's one browser, without what the page of an earlier test asked for or complained of."""
    only_browser.open("about:blank")
    only_browser.addresses.clear()
    only_browser.complaints.clear()
    return only_browser


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(ColourModel(), max_bytes=3_000_000, max_images=5) as url:
        yield url


@pytest.fixture
def tab(browser: Tab, url: str) -> Iterator[Tab]:
    browser.open(url)
    # The page asks for the model, its classes and its history at once, and any may come last.
    browser.until("document.querySelector('h1').innerText === 'colours'")
    browser.until("document.querySelectorAll('#classes li').length === 3")
    browser.until("document.querySelectorAll('.version').length === 3")
    yield browser
    assert browser.complaints == []
    assert {address for address in browser.addresses if not address.startswith((url, f"blob:{url}"))} == set()


def rows(tab: Tab) -> list[str]:
    """The text of each result, from above."""
    return tab.evaluate(
        "[...document.querySelectorAll('.result')].map(each => each.innerText.replace(/\\s+/g, ' ').trim())"
    )


def until_answered(tab: Tab, number: int) -> None:
    tab.until(f"document.querySelectorAll('.result:not([aria-busy])').length === {number}")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A red, a blue and a grey image, and a text."""
    found = {name: tmp_path / f"{name}.png" for name in ("red", "blue", "grey", "text")}
    found["red"].write_bytes(picture((220, 20, 20)))
    found["blue"].write_bytes(picture((20, 20, 220)))
    found["grey"].write_bytes(picture((120, 120, 120)))
    found["text"].write_text("hello")
    return found


def test_images_that_are_dropped_have_their_classes(tab: Tab, files: dict[str, Path]) -> None:
    tab.drag([files["red"], files["blue"]], "#drop", drop=False)
    assert tab.evaluate("document.querySelector('#drop').classList.contains('over')")
    tab.drag([files["red"], files["blue"], files["grey"], files["text"]], "#drop")
    until_answered(tab, 4)
    assert not tab.evaluate("document.querySelector('#drop').classList.contains('over')")
    red, blue, grey, text = rows(tab)
    assert red.startswith("red red.png")
    assert red.endswith("%")
    assert blue.startswith("blue <b> blue.png")
    assert grey.startswith("unknown most like ")
    assert text == "not an image text.png"
    assert tab.evaluate("document.querySelector('#tally').innerText") == "4 images · 1 unknown · 1 failed"
    assert tab.evaluate("document.querySelector('.result img').naturalWidth") == 40


def test_the_probability_is_drawn_and_written(tab: Tab, files: dict[str, Path]) -> None:
    tab.drag([files["grey"]], "#drop")
    until_answered(tab, 1)
    written = float(tab.evaluate("document.querySelector('.result .number').innerText").removesuffix("%"))
    drawn = float(tab.evaluate("document.querySelector('.result .gauge').style.getPropertyValue('--share')")[:-1])
    assert written == pytest.approx(drawn, abs=0.051)
    assert 33 < drawn < 50


def test_a_drop_beside_the_field_counts_and_does_not_leave_the_page(tab: Tab, url: str, files: dict[str, Path]) -> None:
    tab.evaluate("addEventListener('drop', event => document.body.dataset.prevented = event.defaultPrevented)")
    tab.drag([files["red"]], "h1")
    until_answered(tab, 1)
    assert tab.evaluate("location.href") == f"{url}/"
    assert (
        tab.evaluate("document.body.dataset.prevented") == "true"
    )  # headless or not, a file would be opened otherwise


def test_a_folder_that_is_dropped_is_gone_through(tab: Tab, tmp_path: Path) -> None:
    for name in ("pets/1.png", "pets/2.png", "pets/more/10.png", "pets/.hidden.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(picture())
    tab.drag([tmp_path / "pets"], "#drop")
    until_answered(tab, 3)
    assert [row.split()[1] for row in rows(tab)] == ["1.png", "2.png", "10.png"]


def test_files_that_are_chosen_again_are_classified_again(tab: Tab, files: dict[str, Path]) -> None:
    tab.choose([files["red"]], "#choose")
    until_answered(tab, 1)
    tab.choose([files["red"]], "#choose")
    until_answered(tab, 2)
    tab.evaluate("document.querySelector('#clear').click()")
    assert rows(tab) == []
    assert tab.evaluate("document.querySelector('#bar').hidden")


def test_more_images_than_a_request_may_hold_go_in_several(tab: Tab, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        path.write_bytes(picture())
    tab.choose(paths, "#choose")
    until_answered(tab, 12)
    assert [row.split()[:2] for row in rows(tab)] == [["red", path.name] for path in paths]
    assert sum(address.endswith("/predict") for address in tab.addresses) == 3


def test_a_file_above_the_limit_is_not_sent(tab: Tab, tmp_path: Path, files: dict[str, Path]) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(3_000_000))
    tab.choose([large, files["red"]], "#choose")
    until_answered(tab, 2)
    assert rows(tab)[0] == "larger than the 3 MB that a request may hold large.png"
    assert rows(tab)[1].startswith("red red.png")


def test_limits_that_arrive_late_still_hold(browser: Tab, tmp_path: Path, files: dict[str, Path]) -> None:
    class Slow(ColourModel):
        @property
        def class_names(self) -> tuple[str, ...]:
            if armed.is_set():
                late.wait(timeout=30)
            return ("red",)

        @class_names.setter
        def class_names(self, names: tuple[str, ...]) -> None:
            pass

    armed, late = threading.Event(), threading.Event()
    model = Slow()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(1_100_000))
    with listening(model, max_bytes=10**6, max_images=5) as url:
        armed.set()
        browser.open(url)
        browser.choose([large, files["red"]], "#choose")
        browser.until("document.querySelectorAll('.result[aria-busy]').length === 2")
        late.set()
        until_answered(browser, 2)
    assert rows(browser)[0].startswith("larger than the 1 MB")
    assert rows(browser)[1].startswith("red red.png")


def test_names_are_text(tab: Tab, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=document.title='taken'>.png"
    file.write_bytes(picture((20, 20, 220)))
    tab.choose([file], "#choose")
    until_answered(tab, 1)
    assert rows(tab)[0].startswith(f"blue <b> {file.name}")
    assert tab.evaluate("document.querySelectorAll('.result b, .answer img, .version b').length") == 0
    assert tab.evaluate("document.title") == "colours – lorica"


def test_history_and_classes_are_shown(tab: Tab) -> None:
    versions = tab.evaluate(
        "[...document.querySelectorAll('.version')].map(each => each.innerText.replace(/\\s+/g, ' '))"
    )
    assert versions[0].startswith("Rolled back version 3 · ")
    assert versions[1].startswith("Learned version 2 · 17 May 2026 · 60 images blue <b> ")
    assert "120 images red green accuracy then 97.5% accuracy now 95.0%" in versions[2]
    assert tab.evaluate("document.querySelector('h1').innerText") == "colours"
    assert tab.evaluate("document.querySelector('#subtitle').innerText") == "knows 3 classes"
    assert tab.evaluate("[...document.querySelectorAll('#classes li')].map(each => each.innerText)") == [
        "red",
        "green",
        "blue <b>",
    ]


@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window(tab: Tab, url: str, tmp_path: Path, width: int, dark: bool) -> None:
    tab.open(url, width=width, dark=dark)
    file = tmp_path / f"{'long' * 40}.png"
    file.write_bytes(picture())
    tab.choose([file], "#choose")
    until_answered(tab, 1)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == dark


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(tab: Tab, files: dict[str, Path]) -> None:
    tab.choose([files["red"]], "#choose")
    until_answered(tab, 1)
    tab.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            tab("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.append(tab.evaluate("document.activeElement.id"))
    assert reached == ["choose", "clear"]
    tree = tab("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in tree if node.get("role", {}).get("value") in ("button", "searchbox", "textbox")]
    assert len(controls) >= 2
    assert all(node["name"]["value"] for node in controls)


def test_a_server_that_has_gone_is_said(browser: Tab, files: dict[str, Path]) -> None:
    with listening(ColourModel(), max_bytes=10**6, max_images=5) as url:
        browser.open(url)
        browser.until("document.querySelector('h1').innerText === 'colours'")
    browser.choose([files["red"]], "#choose")
    until_answered(browser, 1)
    assert rows(browser) == ["The server does not answer. Is lorica serve still running? red.png"]


class Shouting:
    """A model of texts that knows capitals."""

    class_names = ("loud", "quiet")

    def classify(self, images: list[str], *, batch_size: int = 256) -> list[FakeAnswer]:
        return [FakeAnswer("loud" if each.isupper() else "quiet", 0.75, False) for each in images]

    def history(self) -> list[FakeVersion]:
        return [FakeVersion(1, "2026-03-02T09:30:00+01:00", "learned", ("loud", "quiet"), 2, None, None)]


def test_texts_are_written_and_answered(browser: Tab) -> None:
    with listening(Shouting(), max_bytes=10**6, max_images=5, title="shouting", reads="texts") as url:
        browser.open(url)
        browser.until("!document.getElementById('write').hidden && document.getElementById('drop').hidden")
        browser.until("document.querySelector('.version')?.innerText.includes('2 texts')")
        browser.evaluate("document.getElementById('texts').value = 'HELP <B>\\n\\nthank you'")
        browser.evaluate("document.querySelector('#write button').click()")
        until_answered(browser, 2)
        assert rows(browser) == ["loud HELP <B> 75.0%", "quiet thank you 75.0%"]
        assert browser.evaluate("document.getElementById('tally').innerText") == "2 texts"
        assert browser.complaints == []
