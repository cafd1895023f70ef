"""The report: one page that loads nothing and runs nothing, whatever text it was given, and the same content as data."""

import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from popflow.core import CheckpointError
from popflow.runs import Figure, Measured, Report, Run, Table, Verdict, read_report, rerender
from popflow.runs.figures import image_grid

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"><svg onload=\"document.title='taken'\">"
PIXELS = image_grid({"noise": torch.zeros(2, 1, 2, 2)})


def hostile_run(path, passed=False):
    report = Report(
        title=f"Title {HOSTILE}",
        summary=f"First {HOSTILE}\n\nSecond.",
        verdict=Verdict(passed, f"Statement {HOSTILE}", f"Criterion {HOSTILE}"),
        figure=Figure(PIXELS, f"Caption {HOSTILE}", f'" onload="document.title=1 {HOSTILE}'),
        comparison=(
            Table(f"Table {HOSTILE}", ("name", f"share {HOSTILE}"), ((HOSTILE, Measured(-0.5, 0.01)), ("truth", None)), HOSTILE, (0,)),
        ),
        diagnostics=(Figure(PIXELS, "Effective sample size."), Table("Steps", ("step", "ess"), (("first", 3), ("last", 0.25)))),
        results={f"log Z {HOSTILE}": Measured(-12.3456, 0.02)},
        files={f"samples {HOSTILE}.safetensors": HOSTILE},
        next=(f"popflow sample --label '{HOSTILE}'",),
    )
    with Run.open(path, {"prompt": HOSTILE, "seed": 1}, job="demo fkc", cite=[HOSTILE], command=f"popflow demo '{HOSTILE}'") as run:
        run.finish(report)
    return path


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *one) for one in attrs]

    def handle_data(self, data):
        self.text += data


def test_nothing_hostile_becomes_a_tag_and_nothing_is_loaded(tmp_path):
    text = (hostile_run(tmp_path) / "report.html").read_text()
    page = Page(text)
    assert not {"script", "svg", "link", "iframe", "object", "form"} & set(page.tags)
    assert page.tags.count("img") == 2
    assert not [one for one in page.attributes if one[1].startswith("on")]
    for _, name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import", text)
    assert "default-src 'none'" in text
    assert page.text.count("<script>document.title='taken'</script>") >= 12


def test_a_browser_runs_nothing_and_asks_for_nothing(tmp_path):
    """In a real browser: the title stays, no script runs, nothing is requested, the page is as wide as a telephone."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra dev): the parser test above covers the escaping")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if chromium is None or driver_path is None:
        pytest.skip("no chromium with chromedriver on this machine: the parser test above covers the escaping")
    assert selenium is not None
    from selenium import webdriver
    from selenium.webdriver.common.by import By

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    folder = hostile_run(tmp_path / HOSTILE.replace("/", "∕")[:60])
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver_path))
    try:
        browser.set_window_size(500, 900)
        browser.get((folder / "report.html").resolve().as_uri())
        assert browser.title == f"Title {HOSTILE} · popflow"
        assert browser.find_element(By.TAG_NAME, "h1").text.startswith("Title <script>document.title='taken'</script>")
        assert browser.find_elements(By.TAG_NAME, "script") == []
        images = browser.find_elements(By.TAG_NAME, "img")
        assert [image.get_property("naturalWidth") > 0 for image in images] == [True, True]
        asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [name for name in asked if not name.startswith("data:")] == []
        wide = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1]
        assert "Criterion not met" in browser.find_element(By.CLASS_NAME, "verdict").text
    finally:
        browser.quit()


def test_the_data_are_the_content_of_the_page(tmp_path):
    hostile_run(tmp_path)
    content = read_report(tmp_path)
    assert content["report"]["verdict"]["passed"] is False
    assert content["report"]["comparison"][0]["rows"][0][1] == {"value": -0.5, "error": 0.01}
    assert content["run"]["config"] == {"prompt": HOSTILE, "seed": 1}
    text = Page((tmp_path / "report.html").read_text()).text
    assert "−0.500 ± 0.010" in text
    assert "−12.346 ± 0.020" in text
    assert "seed 1" in text


def test_it_is_rendered_anew_from_its_data(tmp_path):
    hostile_run(tmp_path)
    before = (tmp_path / "report.html").read_bytes()
    os.remove(tmp_path / "report.html")
    assert rerender(tmp_path).read_bytes() == before


def test_a_verdict_says_what_it_is(tmp_path):
    for passed, words in ((True, "Criterion met"), (False, "Criterion not met"), (None, "No criterion to meet")):
        assert words in (hostile_run(tmp_path / str(passed), passed) / "report.html").read_text()


def test_a_damaged_report_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"report\.json: No such file.*finished run"):
        rerender(tmp_path)
    hostile_run(tmp_path)
    for damage in ("", "{}", "[]", '{"run": {}, "report": {}}'):
        (tmp_path / "report.json").write_text(damage)
        with pytest.raises(CheckpointError, match=r"report\.json is damaged"):
            rerender(tmp_path)


def test_an_image_from_elsewhere_is_not_shown(tmp_path):
    with pytest.raises(ValueError, match="wanted a base64 data URI"):
        Figure("https://example.org/x.png", "caption")
    hostile_run(tmp_path)
    content = json.loads((tmp_path / "report.json").read_text())
    content["report"]["figure"]["image"] = "https://example.org/x.png"
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert "example.org" not in rerender(tmp_path).read_text()


def test_rows_fit_their_columns():
    with pytest.raises(ValueError, match="row 1 of table 'T' has 1 cells, wanted 2"):
        Table("T", ("a", "b"), (("x", 1), ("y",)))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.81234, 0.0041, "0.8123 ± 0.0041"),
        (-1.0, 0.25, "-1.00 ± 0.25"),
        (1234.5, 25.0, "1234 ± 25"),
        (0.0, 0.1, "0.00 ± 0.10"),
        (3.0, 0.0, "3 ± 0"),
        (float("nan"), 0.1, "nan ± 0.1"),
        (2.5e7, 1e5, "(2.500 ± 0.010)e+07"),
        (float("inf"), None, "inf"),
    ],
)
def test_numbers_carry_the_digits_that_their_error_allows(value, error, text):
    assert str(Measured(value, error)) == text
