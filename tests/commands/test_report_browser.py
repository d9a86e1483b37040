"""The report in a real browser: no errors, nothing sticks out, light and dark, the wiper."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from browser import Browser, browser_path, started_browser
from made_profiles import made_profile
from profiling_core.commands.report import write_report
from profiling_core.plan.presets import load_preset

FOUND = browser_path()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)
HOSTILE = '</script><img src=x onerror="window.taken = 1">'
RED, BLUE = (220, 20, 20), (20, 20, 220)
FRAMES, FPS = 12, 8


def video(path: Path, colour: tuple[int, int, int], frames: int) -> Path:
    clip = np.broadcast_to(np.uint8(colour), (frames, 64, 64, 3))
    imageio.imwrite(path, clip, fps=FPS, codec="libx264", macro_block_size=1)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """Two videos, two plans, and a prompt that would like to run."""
    folder = tmp_path_factory.mktemp("report")
    made = made_profile("wan2.1-t2v-mini", runs=2)
    hostile = made.runs[1].model_copy(update={"prompt": HOSTILE})
    profile = replace(made, runs=(made.runs[0], hostile))
    videos = [video(folder / "full.mp4", RED, FRAMES), video(folder / "cached.mp4", BLUE, 10)]
    plans = [load_preset("wan2.1-t2v-mini", name) for name in ("paper", "balanced")]
    return write_report(profile, folder / "report.html", plans=plans, videos=videos)


@pytest.fixture(scope="module")
def browser():
    with started_browser(FOUND) as one:
        yield one


@pytest.fixture
def page(browser: Browser, report: Path):
    browser.open(report)
    until(lambda: browser.run(f"{VIDEOS}.every((v) => v.readyState > 1 && !v.seeking)"))
    yield browser
    assert browser.problems == []


VIDEOS = "[...document.querySelectorAll('video')]"
SHOWN = "document.querySelector('#fig-videos output').textContent"


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that the browser does in its own time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not so after {seconds:g} s"
        time.sleep(0.05)


def pixel(page: Browser, tmp_path: Path, x: float, y: float) -> np.ndarray:
    shot = imageio.imread(page.screenshot(tmp_path / "shot.png"))
    return shot[int(y), int(x), :3].astype(int)


def stage_points(page: Browser, *across: float) -> list[tuple[float, float]]:
    """Points of the videos' stage in the viewport, after scrolling to it."""
    x, y, width, height = page.run(
        "(() => { const one = document.querySelector('.stage');"
        "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]; })()"
    )
    page.settle()
    return [(x + at * width, y + 0.6 * height) for at in across]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_without_errors_and_nothing_sticks_out(browser, report, tmp_path, width, dark):
    browser.open(report, width=width, dark=dark)
    assert browser.problems == [] and browser.run("window.taken === undefined")
    assert {url for url in browser.requests if url[:5] in ("file:", "http:")} == {report.as_uri()}
    assert browser.run("document.documentElement.scrollWidth") == width
    sizes = "[...document.querySelectorAll('.chart svg')].map((s) => s.getBoundingClientRect())"
    boxes = browser.run(f"{sizes}.map((box) => [box.left, box.right, box.height])")
    assert len(boxes) >= 10
    assert all(0 <= left < right <= width and height > 80 for left, right, height in boxes)
    ground = pixel(browser, tmp_path, 5, 5)
    assert ground.max() < 60 if dark else ground.min() > 240
    text = browser.run("getComputedStyle(document.querySelector('.chart svg text')).fill")
    bright = np.array([int(part) for part in text[4:-1].split(",")]).mean()
    assert bright > 140 if dark else bright < 110


def test_the_wiper_follows_the_mouse_and_the_slider(page, tmp_path):
    left, middle, right = stage_points(page, 0.1, 0.4, 0.9)

    def colour(at: tuple[float, float]) -> str:
        red, _, blue = pixel(page, tmp_path, *at)
        return "red" if red > 2 * blue else "blue" if blue > 2 * red else "neither"

    assert [colour(at) for at in (left, middle, right)] == ["red", "red", "blue"]
    half, fifth = stage_points(page, 0.5, 0.2)
    page.mouse("mousePressed", *half, button="left", buttons=1, clickCount=1)
    page.mouse("mouseMoved", *fifth, button="left", buttons=1)
    page.mouse("mouseReleased", *fifth, button="left", clickCount=1)
    page.settle()
    assert page.run("document.querySelector('[name=line]').value") == "20"
    assert colour(middle) == "blue"
    line = "document.querySelector('[name=line]')"
    page.run(f"{line}.value = 100; {line}.dispatchEvent(new Event('input'))")
    page.settle()
    assert colour(right) == "red"


def test_videos_step_and_play_together(page):
    times = f"{VIDEOS}.map((v) => v.currentTime)"
    bar = "document.querySelector('[name=frame]')"
    for frame, expected in ((3, [3.5, 3.5]), (FRAMES - 1, [11.5, 9.5])):  # the shorter one waits
        page.run(f"{bar}.value = {frame}; {bar}.dispatchEvent(new Event('input'))")
        until(lambda: page.run(f"{VIDEOS}.every((v) => !v.seeking)"))
        assert np.allclose(page.run(times), np.array(expected) / FPS, atol=0.02)
    assert page.run(SHOWN) == f"{FRAMES} of {FRAMES}"
    page.run("document.querySelector('#fig-videos button').click()")
    until(lambda: page.run(SHOWN) != f"{FRAMES} of {FRAMES}")
    until(lambda: page.run(f"{VIDEOS}.every((v) => v.paused)"))  # once through, then it stops
    assert page.run(SHOWN) == f"{FRAMES} of {FRAMES}"
