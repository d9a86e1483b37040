"""The report in a real browser: hover, keys, touch, switches, sliders, wiper, sizes, colours."""

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
from profiling_core.presets import load_preset
from profiling_core.profile import Profile
from profiling_core.report import write_report
from profiling_core.report.palette import HEAT, channels

FOUND = browser_path()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="no chromium, chromium-browser or google-chrome on PATH"
)
WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-720p"
HOSTILE = '</script><img src=x onerror="window.taken = 1">'
RED, BLUE = (220, 20, 20), (20, 20, 220)
FRAMES, FPS = 12, 8
ALL = "[...document.querySelectorAll"


def video(path: Path, colour: tuple[int, int, int], frames: int) -> Path:
    clip = np.broadcast_to(np.uint8(colour), (frames, 64, 64, 3))
    imageio.imwrite(path, clip, fps=FPS, codec="libx264", macro_block_size=1)
    return path


@pytest.fixture(scope="module")
def profile() -> Profile:
    made = made_profile(WAN, runs=2)
    sensitivity = made.arrays["sensitivity"].copy()
    sensitivity[:, [1, 6, 20]] = [2.0, 1.5, 0.7]
    hostile = made.runs[1].model_copy(update={"prompt": HOSTILE})
    arrays = {**made.arrays, "sensitivity": sensitivity}
    return replace(made, arrays=arrays, runs=(made.runs[0], hostile))


@pytest.fixture(scope="module")
def report(profile, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    videos = [video(folder / "full.mp4", RED, FRAMES), video(folder / "cached.mp4", BLUE, 10)]
    plans = [load_preset(WAN, name) for name in ("paper", "balanced")]
    return write_report(profile, folder / "report.html", plans=plans, videos=videos)


@pytest.fixture(scope="module")
def browser():
    with started_browser(FOUND) as one:
        yield one


@pytest.fixture
def page(browser: Browser, report: Path):
    browser.open(report)
    yield browser
    assert browser.problems == []


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that the browser does in its own time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"still not so after {seconds:g} s"
        time.sleep(0.05)


def box(page: Browser, selector: str) -> dict[str, float]:
    """Place of an element in the viewport, after scrolling to it."""
    found = page.run(
        f"(() => {{ const one = document.querySelector({selector!r});"
        "one.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const {x, y, width, height} = one.getBoundingClientRect();"
        "return {x, y, width, height}; })()"
    )
    page.settle()
    return found


def inside(frame: dict[str, float], across: float, down: float) -> tuple[float, float]:
    return frame["x"] + across * frame["width"], frame["y"] + down * frame["height"]


def cell(page: Browser, figure: str, at: tuple[int, int], of: tuple[int, int]):
    """The middle of a cell (column, row) of a heat map or plan of so many columns and rows."""
    frame = box(page, f"#{figure} .frame")
    return inside(frame, (at[0] + 0.5) / of[0], (at[1] + 0.5) / of[1])


def tip(page: Browser) -> str:
    return page.run("tip.hidden ? '' : [...tip.children].map((n) => n.textContent).join('|')")


def press(page: Browser, figure: str, name: str) -> None:
    page.run(
        f"{ALL}('#{figure} .controls button')].find((one) => one.textContent === {name!r}).click()"
    )
    page.settle()


def pixel(page: Browser, tmp_path: Path, x: float, y: float) -> np.ndarray:
    shot = imageio.imread(page.screenshot(tmp_path / "shot.png"))
    return shot[int(y), int(x), :3].astype(int)


def close(found: np.ndarray, colour: tuple[int, ...], most: int = 40) -> bool:
    return bool(np.abs(found - np.array(colour)).max() <= most)


def test_it_opens_without_errors_and_loads_nothing(page, report):
    assert {url for url in page.requests if not url.startswith("blob:")} == {report.as_uri()}
    drawn = page.run(f"{ALL}('figure')].every((f) => f.querySelector('svg, video'))")
    assert drawn
    assert page.run("document.images.length") == 0 and page.run("window.taken === undefined")
    cells = page.run(f"{ALL}('.runs td')].map((one) => one.textContent)")
    assert HOSTILE in cells


def test_hover_shows_the_number_of_the_cell(page, profile):
    share = profile.arrays["attention_share"].astype(np.float64).mean(axis=(0, 1))  # (A, B)
    page.mouse("mouseMoved", *cell(page, "fig-attention", (3, 5), (10, 12)))
    assert tip(page).startswith(f"blocks 5, step 15 · F, foreground|R_attn {share[3, 5]:.4g}|")
    drift = profile.arrays["drift"].astype(np.float64).mean(axis=(0, 1))
    page.mouse("mouseMoved", *cell(page, "fig-drift", (7, 2), (49, 12)))
    assert tip(page).startswith(f"blocks 2, step 8|relative drift {drift[7, 2]:.4g}|")
    page.mouse("mouseMoved", 2, 2)
    assert tip(page) == ""


def test_the_switch_shows_lift(page, profile):
    press(page, "fig-attention", "R_attn over chance")
    share, chance = (
        profile.arrays[name].astype(np.float64).mean(axis=(0, 1))[4, 8]
        for name in ("attention_share", "attention_chance")
    )
    page.mouse("mouseMoved", *cell(page, "fig-attention", (4, 8), (10, 12)))
    assert f"R_attn over chance {share / chance:.4g}" in tip(page)


def test_curves_and_plans_answer_too(page, profile):
    frame = box(page, "#fig-l1 svg")
    page.mouse("mouseMoved", frame["x"] + frame["width"] - 12, frame["y"] + 80)
    values = profile.arrays["l1_relative"][:, 0, -1].astype(np.float64)
    expected = f"cond {values.mean():.4g} ({values.min():.4g} to {values.max():.4g})"
    assert tip(page).startswith("step 49 · sigma") and expected in tip(page)
    page.mouse("mouseMoved", *cell(page, "fig-plan-1", (6, 0), (50, 12)))
    assert tip(page).startswith("blocks 0, step 6|computed and kept|")
    page.mouse("mouseMoved", *cell(page, "fig-plan-2", (10, 3), (50, 12)))
    assert tip(page).startswith("blocks 3, step 10|stepped over by the solver|")
    page.mouse("mouseMoved", *cell(page, "fig-hold", (1, 40), (49, 49)))
    assert "there is no step so early" in tip(page)


def test_keys_move_through_the_values(page):
    page.run("document.querySelector('#fig-attention svg').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        page.key(key)
    assert tip(page).startswith("blocks 2, step 5 ")
    page.key("End")
    assert tip(page).startswith("blocks 2, mean · B, background|R_attn ")
    page.key("Escape")
    assert tip(page) == ""


def test_the_number_asked_for_by_key_follows_the_scroll(page):
    """Focus scrolls to the figure, and the page hears of the scroll after the tip is shown."""
    page.run("scrollTo({top: 0, behavior: 'instant'})")
    page.settle()
    page.run("document.querySelector('#fig-attention svg').focus()")
    page.key("Home")
    shown = tip(page)
    distance = "tip.getBoundingClientRect().y - document.activeElement.getBoundingClientRect().y"
    before = page.run(distance)
    page.run("scrollBy({top: 40, behavior: 'instant'})")
    page.settle()
    assert tip(page) == shown != ""
    assert page.run(distance) == pytest.approx(before, abs=1)


def test_touch_shows_the_number(page, report):
    page.open(report, width=390, height=800, touch=True)
    page.touch(*cell(page, "fig-attention", (2, 1), (10, 12)))
    assert tip(page).startswith("blocks 1, step 10 ")


def test_the_frame_slider_and_the_run_change_the_maps(page, profile):
    read = f"{ALL}('#fig-maps svg path.crisp')].map((p) => p.outerHTML).join()"
    seen = {page.run(read)}
    box(page, "#fig-maps input[type=range]")
    page.run("document.querySelector('#fig-maps input[type=range]').focus()")
    page.key("ArrowRight")
    page.settle()
    assert page.run("document.querySelector('#fig-maps output').textContent") == "6 of 9"
    seen.add(page.run(read))
    select = "document.querySelector('#fig-maps select')"
    page.run(f"{select}.value = 1; {select}.dispatchEvent(new Event('change'))")
    seen.add(page.run(read))
    press(page, "fig-maps", "each map its own")
    seen.add(page.run(read))
    assert len(seen) == 4
    assert page.run(f"{select}.options[1].textContent") == f"2: {HOSTILE}"


def test_the_map_number_is_the_recorded_one(page, profile):
    page.run("document.querySelector('#fig-maps svg').focus()")
    page.key("Home")
    page.settle()
    name = tip(page).split(",")[0]
    block = int(name.split()[1])
    value = float(profile.arrays["attention_maps"][0, 0, block, 4, 0, 0])
    shown = float(tip(page).split("|")[1].split()[0])
    assert abs(shown - value) < 0.02


def test_the_wiper_follows_the_mouse_and_the_keys(page, tmp_path):
    until(lambda: page.run(f"{ALL}('video')].every((v) => v.readyState > 1)"))
    stage = box(page, "#fig-videos .stage")
    left, middle, right = (inside(stage, at, 0.6) for at in (0.1, 0.4, 0.9))
    assert close(pixel(page, tmp_path, *left), RED) and close(pixel(page, tmp_path, *right), BLUE)
    assert close(pixel(page, tmp_path, *middle), RED)
    page.mouse("mousePressed", *inside(stage, 0.5, 0.5), button="left", buttons=1, clickCount=1)
    page.mouse("mouseMoved", *inside(stage, 0.2, 0.5), button="left", buttons=1)
    page.mouse("mouseReleased", *inside(stage, 0.2, 0.5), button="left", clickCount=1)
    page.settle()
    line = f"{ALL}('#fig-videos .field')].find((f) => f.textContent.startsWith('Line'))"
    assert page.run(f"{line}.querySelector('output').textContent") == "20 %"
    assert close(pixel(page, tmp_path, *middle), BLUE)
    page.run(f"{line}.querySelector('input').focus()")
    page.key("End")
    page.settle()
    assert close(pixel(page, tmp_path, *right), RED)


def test_videos_step_and_play_together(page):
    until(lambda: page.run(f"{ALL}('video')].every((v) => v.readyState > 1)"))
    times = f"{ALL}('video')].map((v) => v.currentTime)"
    for _ in range(3):
        press(page, "fig-videos", "Forward")
    until(lambda: page.run(f"!{ALL}('video')].some((v) => v.seeking)"))
    assert np.allclose(page.run(times), 3.5 / FPS, atol=0.02)
    shown = "document.querySelector('#fig-videos output').textContent"
    assert page.run(shown) == f"4 of {FRAMES}"
    press(page, "fig-videos", "Play")
    until(lambda: page.run(shown) != f"4 of {FRAMES}")
    press(page, "fig-videos", "Pause")
    assert page.run(f"{ALL}('video')].every((v) => v.paused)")
    slider = "document.querySelector('#fig-videos input')"
    page.run(f"{slider}.value = {FRAMES - 1}; {slider}.dispatchEvent(new Event('input'))")
    until(lambda: page.run(f"!{ALL}('video')].some((v) => v.seeking)"))
    assert np.allclose(page.run(times), [11.5 / FPS, 9.5 / FPS], atol=0.02)  # the shorter one waits


def test_dark_follows_the_system_and_the_button(page, report, tmp_path):
    assert pixel(page, tmp_path, 5, 5).min() > 240
    page.open(report, dark=True)
    assert pixel(page, tmp_path, 5, 5).max() < 60
    page.run("document.getElementById('theme').click()")
    page.settle()
    assert pixel(page, tmp_path, 5, 5).min() > 240


def test_a_cell_has_its_colour(page, profile, tmp_path):
    share = profile.arrays["attention_share"].astype(np.float64).mean(axis=(0, 1))
    for value, ends in ((share.max(), HEAT[-1]), (share.min(), HEAT[0])):
        step, block = np.argwhere(share == value)[0]
        at = cell(page, "fig-attention", (step, block), (10, 12))
        assert close(pixel(page, tmp_path, *at), channels(ends), most=4)


def test_nothing_sticks_out_on_a_phone(browser, report, tmp_path):
    wide = made_profile(HUNYUAN, runs=1)
    plans = [load_preset(HUNYUAN, "paper")]
    large = write_report(wide, tmp_path / "large.html", plans=plans)
    for path in (report, large):
        browser.open(path, width=390, height=800, touch=True)
        assert browser.run("document.documentElement.scrollWidth") <= 390
        assert browser.problems == []


def test_no_figure_scrolls_on_a_desktop(browser, report):
    wider = f"{ALL}('.chart')].filter((c) => c.scrollWidth > c.clientWidth).length"
    for width in (1100, 1101, 1280, 1333):  # rounding of the cells' width once added a pixel
        browser.open(report, width=width)
        assert browser.run(wider) == 0


def test_print_is_light_and_without_controls(page, report):
    page.open(report, dark=True)
    page.send("Emulation.setEmulatedMedia", media="print")
    page.settle()
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.run(ground) == "rgb(255, 255, 255)"
    shown = "getComputedStyle(document.querySelector('.controls')).display"
    assert page.run(shown) == "none"
    page.send("Emulation.setEmulatedMedia", media="")
