"""The report: one page that loads nothing; text, tables and figures agree with the profile."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from made_profiles import made_profile
from profiling_core.commands.report import drawing, report_figures, write_pngs, write_report
from profiling_core.commands.report.attention import chosen_blocks, pooled
from profiling_core.commands.report.change import hold_errors
from profiling_core.commands.report.command import add_report_command
from profiling_core.commands.report.drawing import (
    HEAT,
    MAPS,
    _tiled,
    check_packages,
    files_of,
    svgs,
)
from profiling_core.commands.report.figures import Absent, Figure, Points, Scatter
from profiling_core.commands.report.frontier import check_frontier
from profiling_core.commands.report.markup import EMPTY, Markup
from profiling_core.commands.report.plan_picture import answer, block_states
from profiling_core.commands.report.tables import tables_of
from profiling_core.errors import InputError, PlanError, ProfileError
from profiling_core.plan import CachePlan
from profiling_core.plan.model_specs import MODELS
from profiling_core.plan.presets import load_preset
from profiling_core.profile.profile import Profile, Settings

WAN, HUNYUAN = "wan2.1-t2v-mini", "hunyuan-video-t2v-720p"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--"
IDS = ("attention", "maps", "l1", "direction", "drift", "hold", "sensitivity", "cost", "plan-1")
STEPS = 12


class Page(HTMLParser):
    """Tags must close in order; text, attributes and table cells are kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.open = text, []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def seen(self) -> str:
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))


def small(**more) -> Profile:
    return made_profile(WAN, steps=STEPS, **more)


def with_arrays(profile: Profile, **arrays: np.ndarray) -> Profile:
    return replace(profile, arrays={**profile.arrays, **arrays})


def small_plan(**more) -> CachePlan:
    fingerprint = MODELS[WAN].fingerprint
    fields = {
        "name": "small",
        "model": fingerprint,
        "steps": 6,
        "sigmas": [1.0, 0.9, 0.8, 0.6, 0.4, 0.2],
        "solver": "unipc",
        "shift": 5.0,
        "provenance": {"made_by": "tests", "source": "by hand"},
        "sites": [
            {
                "kind": "intervals",
                "block_list": "blocks",
                "intervals": [[1, 2], [4, 4]],
                "compute_steps": {"cond": [0, 1, 4], "uncond": [0, 1, 4]},
                "skip": "hold",
            }
        ],
    }
    return CachePlan.build(**(fields | more))


@pytest.fixture(scope="module")
def measured() -> Profile:
    profile = small()
    sensitivity = profile.arrays["sensitivity"].copy()
    sensitivity[:, [1, 6]] = [[2.0, 0.5], [3.0, 0.7]]
    return with_arrays(profile, sensitivity=sensitivity)


@pytest.fixture(scope="module")
def page(measured, tmp_path_factory) -> Page:
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(measured, path, plans=[small_plan(predicted_error=0.0123)]) == path
    return Page(path.read_text())


def figure_named(profile: Profile, name: str, *plans: CachePlan) -> Figure:
    return next(one for one in report_figures(profile, plans) if one.id == f"fig-{name}")


def labels(svg: Markup) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def written(tmp_path: Path, profile: Profile, **more) -> Page:
    return Page(write_report(profile, tmp_path / "report.html", **more).read_text())


def test_every_figure_has_its_picture_caption_and_tables(page):
    figures = {a["id"] for tag, a, _ in page.elements if tag == "figure"}
    assert figures == {f"fig-{name}" for name in IDS}
    inside = page.text.split("<figure ")
    for part in inside[1:]:
        figure = part[: part.index("</figure>")]
        assert "<svg viewBox=" in figure and "<title>" in figure and "<figcaption>" in figure
        assert "<table>" in figure and '<th scope="col">' in figure


def test_the_page_loads_nothing(page):
    for tag, attributes, _ in page.elements:
        for key in ("src", "href", "xlink:href", "action", "data", "poster"):
            inside = ("#", "data:image/png;base64,") if tag == "image" else "#"
            assert str(attributes.get(key) or "#").startswith(inside), attributes
        assert "style" not in attributes and tag != "script"
    assert page.text.count("url(") == page.text.count("url(#") and "@import" not in page.text
    assert "http://" not in page.text and "https://" not in page.text
    policy = next(a["content"] for _, a, _ in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "script-src" not in policy


def test_no_two_elements_share_an_id_and_all_references_are_kept(page):
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = re.findall(r'(?:href="|url\()#([^")]+)', page.text)
    assert named and set(named) <= set(ids)


def test_the_page_starts_with_what_the_plan_brings(page, measured):
    plan = small_plan(predicted_error=0.0123)
    text = "1.14x faster (ideal, by block FLOPs), 1.41 MiB of extra memory, predicted error 0.0123"
    assert answer(measured, plan) == text
    assert page.texts[: page.texts.index(("a", "Plans"))].count(("p", f"small: {text}")) == 1
    assert answer(measured, small_plan()).endswith("predicted error not in the plan")


def test_tables_hold_the_measured_numbers(page, measured):
    share = measured.arrays["attention_share"].astype(np.float64).mean(axis=(0, 1))  # (A, B)
    layer = figure_named(measured, "attention").layers[0]
    assert np.allclose(layer.values, share.T)
    assert layer.sides == tuple("F" if n in (1, 5, 8, 9) else "B" for n in range(12))
    assert f"{share[0, 3]:.4g}" in page.seen()
    cond = figure_named(measured, "l1").views[1].panels[0].series[0]
    l1 = measured.arrays["l1"][:, 0]
    assert np.allclose(cond.low, l1.min(axis=0)) and np.allclose(cond.high, l1.max(axis=0))
    (panel,) = figure_named(measured, "sensitivity").views[0].panels
    assert panel.x.names == ("1", "6")
    assert np.allclose(panel.series[0].middle, [np.sqrt(6.0), np.sqrt(0.35)])


def test_a_heat_map_is_drawn_with_its_means_and_letters(measured):
    share, lift = svgs(figure_named(measured, "attention"))
    assert share.count("<image ") == 2  # the cells and the scale of colours
    assert labels(share).count("F") == 4 and labels(share).count("B") == 8
    assert "R_attn" in labels(share) and "R_attn over chance" in labels(lift)
    assert share.count('fill="var(--muted)"') > lift.count("<image ")


def test_curves_and_bars_are_drawn(measured):
    relative, plain = svgs(figure_named(measured, "l1"))
    assert {"cond", "uncond", "relative L1 (1 = 100 %)"} <= set(labels(relative))
    for n in range(2):
        assert f'stroke="var(--series-{n})"' in relative and f'fill="var(--series-{n})"' in plain
    (cost,) = svgs(figure_named(measured, "cost"))
    bars = re.findall(r'<path [^>]*fill="var\(--series-0\)"', cost)
    assert len(bars) == 2 * 12  # time and FLOPs of every block


def test_maps_are_drawn_by_block_and_step(measured):
    figure = figure_named(measured, "maps")
    (drawn,) = svgs(figure)
    blocks = [f"{name}, {side}" for name, side in zip(figure.blocks.names, "FFFBBB", strict=True)]
    assert {*blocks, *figure.steps.names} <= set(labels(drawn)) and drawn.count("<image ") == 2
    tiles = _tiled(figure.maps, 2)
    block, step, height, width = figure.maps.shape
    assert tiles.shape == (block * (height + 2) - 2, step * (width + 2) - 2)
    assert np.array_equal(tiles[-height:, -width:], figure.maps[-1, -1])
    assert np.isnan(tiles[height]).all() and np.isnan(tiles[:, width]).all()


def test_a_plan_is_drawn_with_the_states_that_it_has(measured):
    (reused,) = svgs(figure_named(measured, "plan-1", small_plan()))
    assert {"computed and kept", "computed", "reused"} <= set(labels(reused))
    assert "stepped over by the solver" not in labels(reused)
    (jumped,) = svgs(figure_named(measured, "plan-1", load_preset(WAN, "balanced")))
    assert "stepped over by the solver" in labels(jumped) and "<pattern " in jumped


def test_points_are_drawn_as_lines_or_as_clouds():
    sets = (Points("one", (1.0, 2.0, 3.0), (0.1, 0.2, 0.5)), Points("$x_\a$", (2.0,), (0.3,)))
    (line,) = svgs(Scatter("s", "Lines", "x", "y", sets, log_y=True, ring=(2.0, 0.3)))
    assert {"one", "$x_?$", "chosen", "0.2", "0.5"} <= set(labels(line))
    cloud = Points("_two", (1.0, 2.0), (30.0, 40.0), middle=(1.5, 35.0))
    (drawn,) = svgs(Scatter("s", "Clouds", "x", "y", (cloud,), line_at=1.0))
    assert {"full run", " _two"} <= set(labels(drawn))
    marks = re.findall(r'<use [^>]*fill="var\(--series-0\)"', drawn)
    assert len(marks) == 2 + 1 + 1  # clips, their mean, and the legend's


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_are_equal_bytes(measured, kind):
    figure = figure_named(measured, "plan-1", small_plan())
    assert files_of(figure, kind) == files_of(figure, kind)
    assert svgs(figure) == svgs(figure)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch, measured):
    check_packages("matplotlib", "skimage")
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    message = r'^matplotlib is not installed: pip install "profiling-dit\[report\]"$'
    with pytest.raises(PlanError, match=message):
        svgs(figure_named(measured, "l1"))
    with pytest.raises(PlanError, match=message):
        command("--profile", "gone", "-o", "gone/report.html")
    with pytest.raises(PlanError, match=message):
        check_frontier(Path("frontier.svg"))
    with pytest.raises(PlanError, match=r"^matplotlib and scikit-image are not"):
        check_packages("matplotlib", "skimage")


def test_runs_settings_and_subject_are_listed(page, measured):
    seen = page.seen()
    for text in ("prompt 0 of 0", "prompt 1 of 0", "foreground mask: pca", "16 x 9 x 16 x 16"):
        assert text in seen
    assert measured.sha256() in seen


def test_untrusted_text_stays_text(tmp_path):
    profile = small()
    runs = tuple(run.model_copy(update={"prompt": HOSTILE}) for run in profile.runs)
    plan = small_plan(name=HOSTILE)
    page = written(tmp_path, replace(profile, runs=runs), title=HOSTILE, plans=[plan])
    assert not [tag for tag, _, _ in page.elements if tag == "img"]
    assert ("title", HOSTILE) in page.texts and ("td", HOSTILE) in page.texts
    assert not [tag for tag, _, _ in page.elements if tag == "script"]


def test_the_largest_model_stays_under_three_megabytes(tmp_path):
    profile = made_profile(HUNYUAN, runs=8)
    arrays = profile.arrays
    grid = (9, 16, 16)
    fine = {
        name: arrays[name].repeat(2, axis=-1).repeat(2, axis=-2)
        for name in ("attention_maps", "mask")
    }
    profile = replace(
        with_arrays(profile, **fine), subject=profile.subject.model_copy(update={"grid": grid})
    )
    plans = [load_preset(HUNYUAN, name) for name in ("paper", "release", "balanced")]
    path = write_report(profile, tmp_path / "report.html", plans=plans)
    assert path.stat().st_size < 3 * 2**20


def test_a_plan_picture_has_a_state_for_every_step(page, measured):
    plan = small_plan()
    reused, always = "+#..#.", "++++++"
    states = block_states(plan, "cond")
    assert states == (always, reused, reused, always, reused, *[always] * 7)
    assert figure_named(measured, "plan-1", plan).branches == (("cond and uncond", states),)
    for text in ("126 of 144", "0.0123", "1.14x", "4 x tokens x 160 + 0 x latent"):
        assert text in page.seen()


def test_a_skipped_prediction_skips_all_blocks():
    site = {
        "kind": "prediction",
        "compute_steps": {"cond": [0, 2, 4, 5], "uncond": [0, 1, 4, 5]},
        "skip": "hold",
    }
    plan = small_plan(sites=[site])
    assert block_states(plan, "cond") == ("#.#.++",) * 12
    assert block_states(plan, "uncond") == ("+#..++",) * 12
    alike = {branch: [0, 1, 4, 5] for branch in ("cond", "uncond")}
    jump = small_plan(sites=[{**site, "skip": "jump", "compute_steps": alike}])
    assert block_states(jump, "cond") == ("++>>++",) * 12


def test_a_plan_of_another_model_is_refused(tmp_path):
    plan = load_preset("wan2.1-t2v-14B", "paper")
    with pytest.raises(ProfileError, match=r"'paper' is for wan2.1-t2v-14B.*wan2.1-t2v-mini"):
        write_report(small(), tmp_path / "report.html", plans=[plan])


def test_hold_errors_are_those_of_the_vectors():
    profile, rng = small(runs=1), np.random.default_rng(3)
    vectors = rng.normal(size=(2 * STEPS + STEPS + 1, 7))
    errors = hold_errors(with_arrays(profile, gram=(vectors @ vectors.T / 7)[None]))
    for step, gap in ((1, 1), (5, 3), (11, 11)):
        difference = vectors[step] - vectors[step - gap]
        expected = np.linalg.norm(difference) / np.linalg.norm(vectors[step])
        assert np.isclose(errors[gap - 1, step - 1], expected)
    assert np.isnan(errors[3, 2])


def test_masks_are_pooled_as_the_recorder_pools_maps():
    mask = np.random.default_rng(0).random((11, 7, 5)).astype(np.float32)
    expected = F.adaptive_avg_pool3d(torch.tensor(mask)[None, None], (9, 4, 5))[0, 0]
    assert np.allclose(pooled(mask, (9, 4, 5)), expected.numpy(), atol=1e-6)


def test_the_outermost_blocks_are_chosen_for_the_maps():
    chosen, sides = chosen_blocks(small())
    assert sides == ("F", "F", "F", "B", "B", "B") and set(chosen[:3]) <= {1, 5, 8, 9}
    chosen, _ = chosen_blocks(made_profile("hunyuan-video-t2v-mini", steps=STEPS))
    assert 1 in chosen  # a double block: F and B part the blocks of all lists


def test_without_attention_the_page_says_so(tmp_path):
    profile = small(settings=Settings(attention_every=0))
    gone = ("attention_share", "attention_chance", "attention_maps", "mask")
    arrays = {name: array for name, array in profile.arrays.items() if name not in gone}
    subject = profile.subject.model_copy(update={"attention_steps": (), "map_steps": ()})
    page = written(tmp_path, replace(profile, arrays=arrays, subject=subject))
    assert page.seen().count("Not shown: no attention was recorded") == 2
    assert page.text.count("<svg ") == 7


@pytest.mark.parametrize("whole", [True, False])
def test_missing_values_leave_gaps(whole):
    profile = small()
    arrays = {name: profile.arrays[name].copy() for name in ("attention_share", "l1", "drift")}
    arrays["attention_share"][:, :, slice(None) if whole else 0] = np.nan
    arrays["l1"][:, 0, 3] = np.nan
    arrays["drift"][:, :, slice(None) if whole else 2] = np.nan
    gaps = with_arrays(profile, **arrays)
    for name in ("attention", "drift"):
        figure = figure_named(gaps, name)
        assert isinstance(figure, Absent) == whole and bool(svgs(figure)) != whole
    change = figure_named(gaps, "l1")
    assert np.isnan(change.views[1].panels[0].series[0].middle[3]) and len(svgs(change)) == 2
    if whole:
        assert figure_named(gaps, "attention").reason.startswith("no mask of the profile has any")


def test_one_run_has_no_range():
    figure = figure_named(small(runs=1), "l1")
    assert "One run, so no range over runs." in figure.caption
    text = "".join(tables_of(figure))
    assert ">cond, mean</th>" in text and ">smallest</th>" not in text


def test_a_profile_without_runs_is_refused(tmp_path):
    with pytest.raises(ProfileError, match="no run yet"):
        write_report(Profile(), tmp_path / "report.html")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.mp4", None, "no such file"),
        ("text.mp4", b"not a video at all", "neither mp4 nor webm"),
        ("cut.mp4", b"\0\0\0\x18ftypisom" + bytes(40), "cannot be read"),
    ],
    ids=["gone", "text", "cut"],
)
def test_a_bad_video_is_named_and_the_old_page_stays(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises(ProfileError, match=f"{name}: .*{message}"):
        write_report(small(), old, videos=[tmp_path / name])
    assert old.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} <= {name, "report.html"}


def test_a_place_that_cannot_be_written_to_is_named():
    with pytest.raises(InputError, match="cannot write into /proc"):
        write_report(small(), "/proc/gone/report.html")


@pytest.mark.parametrize("colours", [HEAT, MAPS])
def test_scales_rise_in_lightness(colours):
    parts = np.array([[int(c[n : n + 2], 16) for n in (1, 3, 5)] for c in colours]) / 255
    lightness = parts**2.2 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() and lightness[-1] > 10 * lightness[0]


def test_the_same_figures_are_written_as_png(tmp_path, measured):
    plans = [small_plan()]
    paths = write_pngs(measured, tmp_path / "png", plans=plans)
    assert {path.name for path in paths} >= {"attention-r-attn.png", "maps.png", "plan-1.png"}
    drawn = [one for one in report_figures(measured, plans) if not isinstance(one, Absent)]
    for figure in drawn:
        assert any(path.name.startswith(figure.id.removeprefix("fig-")) for path in paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert len(list((tmp_path / "png").iterdir())) == len(paths)


def command(*arguments: object) -> list[str]:
    parser = argparse.ArgumentParser()
    add_report_command(parser.add_subparsers())
    args = parser.parse_args(["report", *map(str, arguments)])
    return args.run(args)


def test_the_command_writes_the_page(tmp_path, measured):
    source, plan, out = (tmp_path / name for name in ("p.profile", "plan.json", "report.html"))
    measured.save(source)
    small_plan().save(plan)
    lines = command("--profile", source, "--plan", plan, "--plan", "balanced", "-o", out)
    assert lines[0].startswith(f"wrote {out} (")
    page = Page(out.read_text())
    ids = [a["id"] for tag, a, _ in page.elements if tag == "figure"]
    assert ids[:2] == ["fig-plan-1", "fig-plan-2"]


def test_the_command_never_replaces_what_it_reads(tmp_path, measured):
    source, plan = tmp_path / "p.profile", tmp_path / "plan.json"
    measured.save(source)
    small_plan().save(plan)
    for out in (source, plan):
        with pytest.raises(ProfileError, match="would replace"):
            command("--profile", source, "--plan", plan, "-o", out)
    with pytest.raises(InputError, match="a folder"):
        command("--profile", source, "-o", tmp_path)
