"""The page of a report, as a person meets it: in a real browser, where one is installed; and what is in its text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NAMES, Tab, browsing, find_browser

from lorica.files import write_json
from lorica.report.document import Report, to_text
from lorica.report.html import to_html
from lorica.results import Confusion, Result, read_result

MakeRun = Callable[..., Result]

needs_browser = pytest.mark.skipif(
    find_browser() is None, reason=f"no browser is installed (any of {', '.join(NAMES)})"
)
EVIL = "</script><script>document.title='broken into'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browsing(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def report(make_run: MakeRun, tmp_path: Path) -> Report:
    """Two methods with seeds 0 and 1, one of them with everything there is; and a run that has not come to its end."""

    def saved(name: str, run: Result) -> Result:
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "metrics.json", run.metrics.model_dump())
        return read_result(folder)

    recipe = {"method": {"name": "sd_lora", "note": EVIL}, "data": {"source": EVIL}, "stream": {"seed": 1993}}
    of_data = {"data": recipe["data"], "stream": recipe["stream"]}
    gates = {"gates": [[1.0], [0.25, 0.75]], "kept": [[0], [0, 1]], "temperature": [1.0, 0.5], "note": ["a", "b"]}
    runs = [
        saved(
            "a", make_run([[1.0], [0.5, 0.75]], classes=EVIL, recipe=recipe, magnitudes=[[1.0], [1.2, 0.8]], **gates)
        ),
        saved("b", make_run([[1.0], [0.75, 0.75]], seed=1, classes=EVIL, recipe=recipe)),
        saved("c", make_run([[0.5], [0.25, 0.5]], "o_lora", classes=EVIL, recipe=of_data)),
        saved("d", make_run([[0.5], [0.0, 0.5]], "o_lora", seed=1, classes=EVIL, recipe=of_data)),
        saved("e", make_run([[0.25]], "lora", tasks=2, classes=EVIL, recipe=of_data)),
    ]
    row = {"stage": 0, "learning_rate": 0.01}
    looks = [
        {
            **row,
            "task": task,
            "epoch": epoch,
            "step": step,
            "terms": {"cross_entropy": 2 - epoch - step / 2, "pull": -0.5},
        }
        for task in (0, 1)
        for epoch in (0, 1)
        for step in (0, 1)
    ]
    (tmp_path / "a" / "history.jsonl").write_text("".join(f"{json.dumps(look)}\n" for look in looks))
    # 2 of 4 right in the first task, 3 of 4 in the second; two of the second class are taken for the fourth
    counts = [(0, 0, 2), (1, 3, 2), (2, 2, 2), (3, 0, 1), (3, 3, 1)]
    confusion = Confusion(classes=[f"{EVIL} {place}" for place in range(4)], counts=counts)
    (tmp_path / "a" / "confusion.json").write_text(confusion.model_dump_json())
    (tmp_path / "d" / "history.jsonl").write_text('{"task": "one"}\n')
    return Report.of(runs, columns={"Elsewhere": lambda row: f"{EVIL} {row.method}"})


def data_of(page: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def test_the_page_is_one_file_that_asks_for_nothing(report: Report) -> None:
    page = to_html(report, title="Table <1>")
    assert page.count("<script") == 2  # data, and the page's own
    assert "<title>Table &lt;1&gt;</title>" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page == to_html(report, title="Table <1>")  # nothing in it but the runs


def test_numbers_of_the_page(report: Report) -> None:
    data = data_of(to_html(report))
    (benchmark,) = data["benchmarks"]
    sd_lora, o_lora = benchmark["rows"]
    # Acc (0.625, 0.75): mean 0.6875, deviation 0.125 / sqrt 2, error 0.0625, half an interval 12.7062 errors
    assert sd_lora["spreads"]["acc"] == pytest.approx([0.6875, 0.0883883, 0.0625, 0.794138], abs=1e-5)
    assert sd_lora["chance"] == [[0, 1993], [1, 1993]]
    assert o_lora["curve"] == [[1, 0.5, 0], [2, 0.3125, pytest.approx(0.0883883)]]
    (difference,) = benchmark["differences"]
    # 0.625 - 0.375, 0.75 - 0.25
    assert (difference["pairs"], difference["spreads"]["acc"][0]) == (2, 0.375)
    first, *_, last = benchmark["runs"]
    details = first["details"]
    assert details["matrix"] == [[1.0], [0.5, 0.75]]
    assert details["terms"] == {
        "names": ["cross_entropy", "pull"],
        "epochs": 1,
        "rows": [[task, 0, epoch, 0.01, 1.75 - epoch, -0.5] for task in (0, 1) for epoch in (0, 1)],
    }
    assert sorted(details["diagnostics"]) == ["gates", "kept", "magnitudes", "temperature"]
    assert (last["label"], last["learned"], last["tasks"]) == ("lora", 1, 2)
    assert [line for line in data["leftOut"] if "line 1: task is 'one'" in line]  # and the rest of that run is there


def test_what_has_no_room_is_named(report: Report) -> None:
    whole = data_of(to_html(report))["benchmarks"][0]["runs"]
    data = data_of(to_html(report, limit=len(json.dumps(whole[0]["details"])) - 1))
    runs = data["benchmarks"][0]["runs"]
    assert ["details" in run for run in runs][:2] == [False, True]
    without = [f"All but its measures: {run['name']}, seed {run['seed']}." for run in runs if "details" not in run]
    assert [line for line in data["leftOut"] if line.startswith("All but")] == without
    assert len(data["benchmarks"][0]["rows"]) == 2


def test_long_histories_are_thinned(make_run: MakeRun, tmp_path: Path) -> None:
    write_json(tmp_path / "metrics.json", make_run([[1.0]]).metrics.model_dump())
    look = {"task": 0, "stage": 0, "step": 0, "learning_rate": 1}
    lines = [json.dumps({**look, "epoch": epoch, "terms": {"loss": epoch}}) for epoch in range(1200)]
    (tmp_path / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    terms = data_of(to_html(Report.of([read_result(tmp_path)])))["benchmarks"][0]["runs"][0]["details"]["terms"]
    assert (terms["epochs"], len(terms["rows"])) == (3, 400)
    assert terms["rows"][1] == [0, 0, 3, 1.0, 4.0]  # the mean of 3, 4 and 5


# ---- in the browser


@pytest.fixture
def tab(browser: Tab, report: Report, tmp_path: Path) -> Iterator[Tab]:
    browser.addresses.clear()
    browser.complaints.clear()
    file = tmp_path / "report.html"
    file.write_text(to_html(report), encoding="utf-8")
    browser.open(file.as_uri())
    yield browser
    assert browser.complaints == []
    assert set(browser.addresses) <= {file.as_uri(), "data:,"}


def cells(tab: Tab, table: str, column: int) -> list[str]:
    return tab.evaluate(
        f"[...document.querySelectorAll('table[aria-label^={json.dumps(table)}] tbody tr')].map(row => "
        f"row.children[{column}].innerText)"
    )


def press(tab: Tab, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        tab(
            "Input.dispatchKeyEvent",
            type=kind,
            key=key,
            code=key,
            text="\r" if key == "Enter" else "",
            windowsVirtualKeyCode=13,
        )


@needs_browser
def test_tables_are_sorted_with_the_keyboard(tab: Tab) -> None:
    assert cells(tab, "Summary", 0) == ["sd_lora", "o_lora"]
    assert cells(tab, "Summary", 2) == ["68.8 ± 8.8", "31.3 ± 8.8"]
    tab.evaluate("document.querySelector('table[aria-label^=Summary] thead th:nth-child(3) button').focus()")
    press(tab, "Enter")
    sorts = "[...document.querySelectorAll('table[aria-label^=Summary] th[aria-sort]')].map(each => each.ariaSort)"
    assert tab.evaluate(sorts)[:4] == ["none", "none", "descending", "none"]
    assert cells(tab, "Summary", 0) == ["sd_lora", "o_lora"]
    press(tab, "Enter")
    assert tab.evaluate(sorts)[:4] == ["none", "none", "ascending", "none"]
    assert cells(tab, "Summary", 0) == ["o_lora", "sd_lora"]
    tab.evaluate("document.querySelector('table[aria-label^=Summary] thead th:nth-child(1) button').click()")
    assert cells(tab, "Summary", 0) == ["o_lora", "sd_lora"]
    assert tab.evaluate(sorts)[:4] == ["ascending", "none", "none", "none"]


@needs_browser
def test_half_total_error_rates_have_a_column(browser: Tab, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run([[0.8 - seed / 10]], seed=seed, error_rates=[[[0.1 + seed / 5, 0.3]]]) for seed in (0, 1)]
    report = Report.of([*runs, make_run([[0.7]], "lora", error_rates=[[[0.2, 0.4]]])])
    assert re.search(r",sd_lora,,hter,2,0\.2[59]*\d*,0\.0707", to_text(report, "csv"))
    (tmp_path / "report.html").write_text(to_html(report), encoding="utf-8")
    browser.open((tmp_path / "report.html").as_uri())
    headings = (
        "[...document.querySelectorAll('table[aria-label^=Summary] thead th')].map(each => each.innerText.trim())"
    )
    place = [each.split()[0] for each in browser.evaluate(headings)].index("HTER")
    assert cells(browser, "Summary", place) == ["25.0 ± 7.1", "30.0"]


@needs_browser
def test_spreads_and_rivals_are_chosen(tab: Tab) -> None:
    choose = (
        "(select => {{ select.value = '{}'; select.dispatchEvent(new Event('change')); "
        "}})(document.querySelectorAll('select')[{}])"
    )
    tab.evaluate(choose.format(3, 0))
    assert cells(tab, "Summary", 2) == ["68.8 ± 79.4", "31.3 ± 79.4"]
    # the best row is the one to compare with, until another is chosen; (-0.25, -0.5): error 0.125
    assert cells(tab, "Differences from sd_lora", 2) == ["−37.5\n[−196.3, 121.3]"]
    tab.evaluate(choose.format(1, 1))
    assert cells(tab, "Differences from o_lora", 2) == ["+37.5\n[−121.3, 196.3]"]


@needs_browser
def test_a_run_has_all_that_is_known_of_it(tab: Tab) -> None:
    run = "document.querySelector('.run')"
    tab.until(f"{run}.open && {run}.querySelector('pre') !== null")
    text = tab.evaluate(f"{run}.innerText")
    for heading in (
        "Accuracy matrix",
        "Confusion after the last task",
        "Terms of the loss",
        "Magnitudes",
        "Gates",
        "Recipe",
    ):
        assert heading in text
    drawn = tab.evaluate(f"[...{run}.querySelectorAll('svg[role=img]')].map(each => each.ariaLabel)")
    assert drawn[0] == "Accuracy on each task after each task, in percent. After the last one: 50.0, 75.0."
    assert all(drawn)
    assert "Learning rate 0.01 throughout." in text
    tab.evaluate(f"{run}.querySelectorAll('details').forEach(each => {{ each.open = true; }})")
    tab.until("document.querySelectorAll('table[aria-label=\"Most frequent mistakes\"]').length === 1")
    assert cells(tab, "Most frequent mistakes", 2) == ["2", "1"]
    assert cells(tab, "Accuracy of each class", 1) == ["100.0", "0.0", "100.0", "50.0"]
    recipe = tab.evaluate(f"{run}.querySelector('pre').textContent")
    assert recipe.startswith("method:\n  name: sd_lora\n")
    tab("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.evaluate(f"{run}.querySelector('.copy').click()")
    tab.until(f"/copied|selected/.test({run}.querySelector('[role=status]').textContent)")


@needs_browser
def test_a_partial_run_has_a_badge(tab: Tab) -> None:
    assert tab.evaluate("[...document.querySelectorAll('.badge')].map(each => each.innerText)") == ["1 of 2 tasks"]
    (line,) = tab.evaluate(
        "[...document.querySelectorAll('.run')].filter(each => each.querySelector('.badge')).map(each => "
        "each.innerText)"
    )
    assert "Acc 25.0 % so far" in line


@needs_browser
def test_names_are_shown_and_never_obeyed(tab: Tab) -> None:
    assert tab.evaluate("document.title") == "lorica report"
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    assert tab.evaluate("document.querySelector('h2').innerText").startswith(f"{EVIL}: 4 classes in 2 tasks")
    assert cells(tab, "Summary", 8)[0] == f"{EVIL} sd_lora"


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out(dark: bool, tab: Tab) -> None:
    tab.open(tab.evaluate("location.href"), dark=dark)
    tab.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    tab.until("document.querySelectorAll('.numbers table').length > 3")
    weak = tab.evaluate(
        """(() => {
          const parts = colour => colour.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => {
            const [x, y, z] = [r, g, b].map(v => v / 255)
              .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * x + 0.7152 * y + 0.0722 * z;
          };
          const ground = node => {
            for (; node; node = node.parentElement) {
              const [r, g, b, a = 1] = parts(getComputedStyle(node).backgroundColor);
              if (a === 1) return [r, g, b];
            }
          };
          return [...document.querySelectorAll('body *')].filter(each => each.checkVisibility()
            && !each.closest('figure svg, .legend')
              && [...each.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())).flatMap(each => {
            const [one, other] = [light(parts(getComputedStyle(each).color)), light(ground(each))];
            const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
            return ratio < 4.5 ? [`${each.tagName} ${each.className} ${ratio.toFixed(2)}`] : [];
          });
        })()"""
    )
    assert weak == []


@needs_browser
def test_a_telephone_shows_it_without_scrolling_sideways(tab: Tab) -> None:
    tab.open(tab.evaluate("location.href"), width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("document.querySelectorAll('.scroll[tabindex]').length") > 0  # wide tables scroll on their own


def test_where_data_and_weights_were_is_not_in_the_page(make_run: MakeRun) -> None:
    recipe = {
        "method": {"name": "sd_lora"},
        "data": {"source": "image_folder", "root": "/secret/place/birds"},
        "backbone": {"name": "vit", "weights": "/secret/place/weights"},
    }
    page = to_html(Report.of([make_run([[0.9], [0.5, 0.7]], recipe=recipe)]))
    assert "secret" not in page
    assert "source: image_folder" in page
    assert recipe["data"]["root"] == "/secret/place/birds"  # the run keeps its own
