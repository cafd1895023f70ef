"""The page in a real browser: a run is started from the form, seen live, stopped, resumed; and again after its server was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver on this machine: the page is not tested in a browser (test_server.py tests its server)")
    pytest.importorskip("starlette", reason="starlette is not installed (extra view)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    browser.set_window_size(1280, 800)
    yield browser
    browser.quit()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Start the real command in ``tmp_path``; each step of the demo of the plug-in takes ``pause`` seconds."""
    started = []

    def serve(pause: float) -> tuple[subprocess.Popen[str], str]:
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "cli" / "plugin")])
        command = [sys.executable, "-m", "popflow.cli.app", "view", "--no-browser", "--json"]
        environment = os.environ | {"PYTHONPATH": path, "TEMPERING_PAUSE": str(pause)}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1], json.loads(started[-1].stdout.readline())["address"]

    yield serve
    for server in started:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def test_a_run_is_started_seen_stopped_and_resumed(browser, serve, tmp_path, new_run):
    run = new_run(tmp_path / "runs" / "hostile", prompt=HOSTILE, job=HOSTILE)
    (run / "log.txt").write_text(HOSTILE)
    (run / "metrics.jsonl").write_text(json.dumps({"stage": HOSTILE, "step": 1, HOSTILE: 1.0, "ess": 2.0}) + "\n")
    folder = tmp_path / "runs" / "mine"

    def text(selector: str) -> str:
        return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(one => one.textContent).join('|')", selector)

    def until(told: Callable[[], Any]) -> None:
        end = time.monotonic() + 300
        while not told():
            assert time.monotonic() < end, text("body")
            time.sleep(0.05)

    def click(selector: str, word: str = "") -> None:
        (one,) = [one for one in browser.find_elements("css selector", selector) if word in one.text]
        one.click()

    def fill(field: str, value: str) -> None:
        browser.find_element("id", field).send_keys(value)

    server, address = serve(0.05)
    browser.get(address)
    until(lambda: "hostile" in text("#runs .name"))
    click("#runs .name", "hostile")
    until(lambda: text(".log") == HOSTILE and "prompt" in text(".settings dt"))
    assert text(".plot figcaption b") == HOSTILE
    for place in (".settings dd", ".keys", ".strip b"):
        assert HOSTILE in text(place)
    assert "This run has written no arrays of a population." in text(".population")

    click("#begin")
    until(lambda: browser.find_elements("id", "job"))
    fill("job", "demo tempering")
    until(lambda: "Tempering between" in text(".new .lead") or "Temper to" in text(".new .lead"))
    assert text("[for=field-precision]") == "--precision"
    fill("field-precision", "-1")
    fill("folder", "mine")
    click("button[type=submit]")
    until(lambda: "precision=-1.0, wanted a number > 0" in text(".new .trouble"))
    browser.find_element("id", "field-precision").clear()
    fill("field-quick", "yes")
    click("button[type=submit]")
    until(lambda: text(".head .state") in ("starting", "running"))

    until(lambda: text(".time output").startswith("step ") and text(".strip") and "log_z" in text(".plot figcaption"))
    assert text(".head .state") == "running"
    assert "popflow demo tempering --out=runs/mine --quick" in text(".log")
    assert not (folder / "report.json").exists()
    click(".acts button", "Stop")
    until(lambda: text(".head .state") == "stopped")
    assert "interrupted" in (folder / "log.txt").read_text()

    click(".acts button", "Resume")
    until(lambda: text(".head .state") == "running" and "resuming from step" in text(".log"))
    process = int(text(".head .note").removeprefix("Process ").split(".")[0])
    server.kill()
    until(lambda: "The server does not answer. Runs go on without it" in text("#trouble"))
    os.kill(process, signal.SIGKILL)

    server, address = serve(0)
    browser.get(address)
    until(lambda: "mine" in text("#runs .name"))
    click("#runs .name", "mine")
    until(lambda: text(".head .state") == "stopped")
    click(".acts button", "Resume")
    until(lambda: text(".head .state") == "done" and "Criterion met" in text(".verdict"))
    assert [row["step"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())] == list(range(41))
    click("#runs .side", "beside")
    until(lambda: text(".run .head h1").count("|") == 1 and "steps" in text(".settings .differs"))

    browser.set_window_size(500, 900)
    wide = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1]
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(one.startswith((address, "data:")) for one in asked)
    assert "taken" not in browser.title
    said = [one["message"] for one in browser.get_log("browser")]
    assert [one for one in said if "ERR_CONNECTION" not in one and "400" not in one] == []
