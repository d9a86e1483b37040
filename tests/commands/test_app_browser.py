"""The page in a real browser: a clip beside the full one, cancel, bad size, a line of two."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from browser import Browser, browser_path, started_browser
from tree_paths import ROOT

FOUND = browser_path()
pytestmark = pytest.mark.skipif(
    FOUND is None or find_spec("gradio") is None, reason="no browser on PATH, or no gradio"
)
FRAMES = "document.querySelector('#frames textarea, #frames input')"
PATIENCE = 180.0  # seconds: the machine may be busy


@dataclass
class Server:
    """`profiling-dit app` in a process of its own."""

    url: str
    pid: int
    out: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    out = tmp_path_factory.mktemp("app") / "out"
    command = [sys.executable, "-m", "profiling_core", "app", "--port", "0", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        line = process.stderr.readline()
        (url,) = re.findall(r"open (http://127\.0\.0\.1:\d+/) in a browser", line)
        yield Server(url, process.pid, out)
    finally:
        process.terminate()
        process.wait(PATIENCE)
        process.stderr.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser(FOUND) as one:
        yield one


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Browser]:
    """The page as it opens, but for a short clip."""
    browser.open(server.url)
    until(browser, lambda: browser.run("!!document.querySelector('#go')"))
    press(browser, "#settings button")
    until(browser, lambda: browser.run(f"!!{FRAMES}"))
    enter(browser, "#frames", "5")
    yield browser
    assert browser.problems == []
    assert {url for url in browser.requests if url.startswith("http")} <= {
        url for url in browser.requests if url.startswith(server.url)
    }


def until(page: Browser, true: Callable[[], bool]) -> None:
    """Wait for something that page or server do in their own time."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, page.run("document.body.innerText")
        time.sleep(0.1)


def press(page: Browser, selector: str) -> None:
    page.run(f"document.querySelector({json.dumps(selector)}).click()")


def enter(page: Browser, field: str, text: str) -> None:
    """Type into a field, as a framework notices it."""
    page.run(
        f"(() => {{ const one = document.querySelector('{field} textarea, {field} input');"
        "one.focus();"
        "const kind = one.tagName === 'INPUT' ? HTMLInputElement : HTMLTextAreaElement;"
        "Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(one, "
        f"{json.dumps(text)}); one.dispatchEvent(new Event('input', {{bubbles: true}}));"
        "one.dispatchEvent(new Event('change', {bubbles: true})); one.blur(); })()"
    )
    page.settle()


def line(page: Browser) -> str:
    return page.run("document.querySelector('#status .message')?.innerText.trim() ?? ''")


def enabled(page: Browser, button: str) -> bool:
    return not page.run(f"document.querySelector('{button}').disabled")


def test_a_clip_appears_beside_the_full_one_with_its_figures(page: Browser, server: Server) -> None:
    enter(page, "#steps", "12")
    press(page, "#full input")
    press(page, "#go")
    until(page, lambda: line(page) == "Done.")
    until(page, lambda: enabled(page, "#go") and not enabled(page, "#stop"))
    videos = "[...document.querySelectorAll('#result video')]"
    until(page, lambda: page.run(f"{videos}.every((v) => v.readyState > 1)"))
    assert page.run(f"{videos}.map((v) => v.videoWidth)") == [128, 128]
    rows = page.run(
        "[...document.querySelectorAll('#result tbody tr')].map((r) =>"
        "[...r.children].map((c) => c.innerText))"
    )
    ours, full = rows
    assert (ours[0], full[0]) == ("balanced", "full") and full[2:4] == ["-", "-"]
    assert ours[1].endswith(" s") and ours[2].endswith("x") and ours[4] == "144 of 288"
    assert re.fullmatch(r"\d\d\.\d dB", ours[3])
    assert page.run("document.querySelectorAll('#result .plan svg').length") == 1
    assert len(list(server.out.glob("*.mp4"))) == 2
    # what serves the page holds no model
    assert "libtorch" not in Path(f"/proc/{server.pid}/maps").read_text()


def test_a_cancelled_run_ends_at_a_step_and_the_next_one_goes(page: Browser) -> None:
    enter(page, "#steps", "500")
    press(page, "#go")
    until(page, lambda: re.search(r"step \d+ of 500", line(page)) is not None)
    assert enabled(page, "#stop") and not enabled(page, "#go")
    press(page, "#stop")
    until(page, lambda: line(page) == "Cancelled.")
    until(page, lambda: enabled(page, "#go"))
    enter(page, "#steps", "2")
    press(page, "#go")
    until(page, lambda: line(page) == "Done.")


def test_a_bad_size_is_a_message(page: Browser) -> None:
    enter(page, "#size", "100*100")
    press(page, "#go")
    says = "--size 100*100 is not one of task t2v-mini: take 128*128"
    until(page, lambda: line(page) == says)
    assert page.run("document.querySelector('#status [role=alert]') !== null")
    until(page, lambda: enabled(page, "#go"))


def test_a_second_page_waits_and_runs_once_the_first_is_closed(
    page: Browser, server: Server
) -> None:
    enter(page, "#steps", "500")
    press(page, "#go")
    until(page, lambda: "step" in line(page))
    with started_browser(FOUND) as other:
        other.open(server.url, width=390)
        until(other, lambda: other.run("!!document.querySelector('#go')"))
        assert other.run("document.documentElement.scrollWidth") == 390
        press(other, "#settings button")
        until(other, lambda: other.run(f"!!{FRAMES}"))
        enter(other, "#frames", "5")
        enter(other, "#steps", "2")
        press(other, "#go")
        until(other, lambda: line(other) == "Waiting: one run is before yours.")
        page.send("Page.navigate", url="about:blank")
        until(other, lambda: line(other) == "Done.")
    page.problems.clear()  # the connection of the page that was left is broken


def test_a_picture_is_uploaded_and_its_task_runs(page: Browser) -> None:
    page.run("document.querySelector('#task input').focus()")
    options = "[...document.querySelectorAll('[role=option]')]"
    choice = f"{options}.find((one) => one.innerText.includes('i2v-mini'))"
    until(page, lambda: page.run(f"!!{choice}"))
    page.run(f"{choice}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    field = "document.querySelector('#image input[type=file]')"
    until(page, lambda: page.run(f"!!{field}"))
    found = page.send("Runtime.evaluate", expression=field)["result"]
    picture = str(ROOT / "Wan2.1" / "examples" / "first.png")
    page.send("DOM.setFileInputFiles", files=[picture], objectId=found["objectId"])
    until(page, lambda: page.run("!!document.querySelector('#image img')"))
    enter(page, "#frames", "5")
    enter(page, "#steps", "2")
    press(page, "#go")
    until(page, lambda: line(page) == "Done.")
    assert "i2v-mini" in page.run("document.querySelector('#result').innerText")
    assert set(page.problems) <= {"['Method not implemented.']"}  # gradio's, of every upload
    page.problems.clear()
