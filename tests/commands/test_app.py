"""The page without a browser: which files it reads, the line of runs, the runs, bad input."""

from __future__ import annotations

import os
import socket
import sys
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiling_core.commands.app.places import chosen_folders, confined
from profiling_core.commands.app.tasks import Task, find_tasks
from profiling_core.commands.app.turns import Turns
from profiling_core.commands.app.worker import (
    Asked,
    At,
    Ended,
    Event,
    Finished,
    Planned,
    Runs,
    Worker,
)
from profiling_core.commands.batch.jobs import Job
from profiling_core.commands.main import main
from profiling_core.errors import InputError
from profiling_core.plan.presets import load_preset
from wan_toys import write_checkpoint

PROMPT = "red circle moving right over blue stripes"
MINIATURES = {"wan": "t2v-mini", "hunyuan": "HYVideo-mini"}
SHORT = {"frame_num": 5, "steps": 12}


class Wire:
    """The worker's end of its pipe; the page cancels once so many events were sent."""

    def __init__(self, cancel_after: int | None = None) -> None:
        self.events: list[Event] = []
        self.left = cancel_after

    def send(self, event: Event) -> None:
        self.events.append(event)

    def poll(self) -> bool:
        return self.left is not None and len(self.events) >= self.left

    def recv(self) -> None:
        self.left = None


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return find_tasks()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(Wire(), tmp_path)


def job(tree: str, **fields: Any) -> Job:
    one = {"tree": tree, "task": MINIATURES[tree], "prompt": PROMPT, "seed": 1, "plan": "balanced"}
    return Job(**one | SHORT | fields)


def test_only_files_of_the_chosen_folders_are_read(tmp_path: Path, monkeypatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        (folder / "weights").mkdir(parents=True)
        (folder / "plan.json").write_text("{}")
    (inside / "out.json").symlink_to(outside / "plan.json")
    (inside / "same.json").symlink_to(inside / "plan.json")
    (inside / "weights" / "circle").symlink_to(inside / "weights")
    monkeypatch.chdir(tmp_path)
    folders = chosen_folders(["inside"])
    plan = str(inside / "plan.json")
    assert [confined(n, folders, "plan") for n in ("plan.json", "inside/plan.json", plan)] == [
        plan
    ] * 3
    assert confined("same.json", folders, "plan") == plan
    assert confined("inside/weights", folders, "folder") == str(inside / "weights")
    leading_out = (
        "../outside/plan.json",
        "inside/../outside/plan.json",
        "out.json",
        "..",
        "/",
        "~",
    )
    for name in (*leading_out, str(outside / "plan.json"), "/etc/passwd", "absent.json", "a\0b"):
        with pytest.raises(InputError, match="no such file in the folders of this page"):
            confined(name, folders, "plan")
        with pytest.raises(InputError, match="start it with --files FOLDER"):
            confined(name, (), "plan")
    (inside / "weights" / "dit.safetensors").symlink_to(outside / "plan.json")
    with pytest.raises(InputError, match=r"dit\.safetensors in it is a link to a place outside"):
        confined("weights", folders, "checkpoint folder")


def test_the_page_offers_both_trees_tasks_and_what_runs_at_once_first(tasks: list[Task]) -> None:
    ready = [task.ready for task in tasks]
    assert ready == sorted(ready, reverse=True)
    by_name = {task.model: task for task in tasks}
    assert {"t2v-mini", "HYVideo-mini", "t2v-14B", "HYVideo-T/2-cfgdistill"} <= set(by_name)
    assert "t2i-14B" not in by_name  # it makes no clip
    assert by_name["t2v-mini"].ready and by_name["HYVideo-mini"].ready
    i2v = by_name["i2v-14B"]
    assert (i2v.frames, i2v.steps, i2v.pictures) == (81, 40, ("image",))
    assert i2v.sizes[0] == "1280*720" and "832*480" in i2v.sizes


def test_runs_come_one_at_a_time_in_their_order() -> None:
    turns = Turns()
    with turns.joined("a") as first, turns.joined("b") as second:
        assert (turns.ahead(first), turns.ahead(second)) == (0, 1)
        with pytest.raises(InputError, match="is under way"), turns.joined("b"):
            pass
        assert turns.cancel("c") is None
        assert turns.cancel("b") is second and second.cancelled and not first.cancelled
    with turns.joined("b") as again:
        assert turns.ahead(again) == 0 and not again.cancelled


@pytest.mark.parametrize("tree", ["wan", "hunyuan"])
def test_a_run_gives_the_planned_clip_then_the_full_one_and_its_psnr(tree: str, runs: Runs) -> None:
    assert runs.run(Asked(job(tree), with_full=True)) == Ended()
    events = runs._pipe.events
    (planned,) = [event for event in events if isinstance(event, Planned)]
    ours, full = [event for event in events if isinstance(event, Finished)]
    assert planned.picture[0].startswith("<svg") and planned.ideal > 1
    assert (ours.label, ours.psnr, full.label) == ("balanced", None, "full")
    assert 20 < full.psnr < 100 and ours.made.block_runs < full.made.block_runs
    assert ours.path != full.path and ours.path.stat().st_size > 500 < full.path.stat().st_size
    steps = [event for event in events if isinstance(event, At) and event.label == "full"]
    assert [step.done for step in steps if step.total] == list(range(1, 13))
    # the full clip is kept for the next plan
    runs._pipe.events.clear()
    assert runs.run(Asked(job(tree, plan="fast"), with_full=True)) == Ended()
    labels = {event.label for event in runs._pipe.events if isinstance(event, At)}
    assert labels == {"", "fast"} and runs._pipe.events[-1].path == full.path
    # the plan is shown as it runs: 12 steps, not its file's 50
    planned, *_, fast, _ = (e for e in runs._pipe.events if not isinstance(e, At))
    assert planned.ideal == fast.made.block_runs_full / fast.made.block_runs == 3


def test_a_cancelled_run_stops_at_its_step_and_the_model_stays(runs: Runs, tmp_path: Path) -> None:
    runs._pipe.left = 8
    assert runs.run(Asked(job("wan", plan=None))) == Ended(cancelled=True)
    assert runs._pipe.events[-1] == At("full", "sampling", 5, 12)
    assert not list(tmp_path.rglob("*.mp4"))
    pipeline = runs._maker._loaded[2]
    assert runs.run(Asked(job("wan", plan=None))) == Ended()
    assert runs._maker._loaded[2] is pipeline and len(list(tmp_path.rglob("*.mp4"))) == 1


def test_a_process_that_dies_is_a_message_and_the_next_run_starts_another(tmp_path: Path) -> None:
    started = []

    class Dying(Worker):
        def _start(self) -> None:
            started.append(self)
            self._pipe = SimpleNamespace(send=lambda asked: None, recv=deque().pop, poll=None)
            self._pipe.recv = self._eof
            self._process = SimpleNamespace(
                kill=lambda: None, join=lambda: None, is_alive=lambda: False, exitcode=-9
            )

        def _eof(self) -> None:
            raise EOFError

    worker = Dying(tmp_path)
    for _ in range(2):
        (ended,) = worker.run(Asked(job("wan")))
        assert "has ended (exit code -9)" in ended.error
    assert len(started) == 2


# -- the page itself


@pytest.fixture
def page(tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> Any:
    """With runs in this process, and files from tmp_path/files."""
    pytest.importorskip("gradio")
    for name in ("files", "uploads", "out"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    from profiling_core.commands.app.page import Page

    one = Page(tasks, chosen_folders([str(tmp_path / "files")]), tmp_path / "out")

    def run(asked: Asked) -> Any:
        wire = Wire()
        return [*wire.events, Runs(wire, one.out).run(asked)]

    one.worker = SimpleNamespace(run=run)
    return one


def generate(page: Any, **changes: Any) -> list[tuple[Any, ...]]:
    fields = {
        "label": "Wan2.1 t2v-mini",
        "prompt": PROMPT,
        "image": None,
        "last_image": None,
        "seed": "1",
        "size": "128*128",
        "frames": "5",
        "steps": "2",
        "weights": "",
        "plan": "full",
        "with_full": False,
    }
    return list(page.generate(**fields | changes, request=SimpleNamespace(session_hash="a")))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "  "}, "prompt: the prompt is empty"),
        ({"prompt": None}, "prompt: "),
        ({"seed": "x"}, "seed &#x27;x&#x27;: expected a whole number"),
        ({"seed": "-1"}, "seed: Input should be greater than or equal to 0"),
        ({"seed": str(2**63)}, "seed: Input should be less than or equal to"),
        ({"steps": "many"}, "steps &#x27;many&#x27;: expected a whole number"),
        ({"steps": "0"}, "steps: "),
        ({"frames": "6"}, "frame_num 6 is not 4n+1: take 5 or 9"),
        ({"size": "100*100"}, "--size 100*100 is not one of task t2v-mini: take 128*128"),
        ({"size": "wide"}, "--size wide: expected width*height in pixels"),
        ({"plan": "../plan.json"}, "plan &#x27;../plan.json&#x27;: no such file in the folders"),
        ({"plan": "broken.json"}, "broken.json"),
        ({"plan": "other.json"}, "has 40 blocks, this model 12"),
        ({"weights": "/etc"}, "checkpoint folder &#x27;/etc&#x27;: no such file in the folders"),
        ({"weights": "."}, "--ckpt-dir"),
        ({"label": "Wan2.1 t2v-14B", "size": None, "frames": ""}, "--ckpt-dir is missing"),
        ({"label": "<b>no task</b>"}, "task &#x27;&lt;b&gt;no task&lt;/b&gt;&#x27;"),
    ],
)
def test_bad_input_is_a_message_of_one_line(page, tmp_path, changes, says) -> None:
    (tmp_path / "files" / "broken.json").write_text('{"version": ')
    load_preset("wan2.1-t2v-14B", "paper").save(tmp_path / "files" / "other.json")
    line, _, go, stop = generate(page, **changes)[-1]
    assert says in line and 'class="message error" role="alert"' in line and "\n" not in line
    assert (go["interactive"], stop["interactive"]) == (True, False)
    assert page.turns.of("a") is None and not list(page.out.iterdir())


def test_a_picture_is_an_upload_that_the_task_needs_and_can_read(page, tmp_path) -> None:
    write_checkpoint(tmp_path / "files" / "i2v", model_type="i2v", text_len=512)
    upload = tmp_path / "uploads" / "a.png"
    upload.write_text("no picture")
    (tmp_path / "outside.png").write_text("no picture")
    asked = {"label": "Wan2.1 i2v-14B", "size": "832*480", "weights": "i2v"}
    for path, says in (
        (None, "image is missing: wan2.1-i2v-14B takes image beside the prompt"),
        (str(upload), "a.png cannot be read as a picture"),
        (str(tmp_path / "outside.png"), "outside.png&#x27;: no such file in the folders"),
    ):
        line = generate(page, **asked, image=path)[-1][0]
        assert says in line and 'class="message error"' in line
    *_, (line, _, _, _) = generate(page, image=str(upload))  # of a task that was chosen before
    assert "Done." in line


def test_a_run_of_the_page_ends_with_both_buttons_as_before(page) -> None:
    *_, (line, _, go, stop) = generate(page)
    assert "Done." in line and (go["interactive"], stop["interactive"]) == (True, False)
    assert len(list(page.out.iterdir())) == 1


def test_a_waiting_page_sees_it_and_can_leave_the_line(page) -> None:
    with page.turns.joined("another"):
        run = page.generate(
            *("Wan2.1 t2v-mini", PROMPT, None, None, "1", None, "", "2", "", "full", False),
            SimpleNamespace(session_hash="a"),
        )
        assert "Waiting: one run is before yours." in next(run)[0]
        page.cancel(SimpleNamespace(session_hash="a"))
        assert "Cancelled." in next(run)[0] and next(run, None) is None


def test_the_server_gives_the_clips_alone_and_only_to_its_own_name(page, tmp_path) -> None:
    from fastapi.testclient import TestClient

    (tmp_path / "files" / "plan.json").write_text("{}")
    (page.out / "clip.mp4").write_bytes(b"clip")
    client = TestClient(page.server("127.0.0.1"), base_url="http://127.0.0.1")
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    files = {page.out / "clip.mp4": 200, tmp_path / "files" / "plan.json": 403}
    files |= dict.fromkeys((Path("/etc/passwd"), Path(__file__), Path("README.md")), 403)
    files[page.out / ".." / "files" / "plan.json"] = 403
    elsewhere = (
        "file=http://example.org/",
        "file/https://example.org/",
        "proxy=http://example.org/",
    )
    for route in elsewhere:
        assert client.get(f"/gradio_api/{route}").text == "this page fetches nothing"
    found = {path: client.get(f"/gradio_api/file={path}").status_code for path in files}
    assert found == files


@pytest.mark.parametrize("missing", ["gradio", "matplotlib"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    missing: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    for name in [name for name in sys.modules if name.endswith("commands.app.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["app", "--port", "0", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {missing} is not installed: pip install") and "dit[" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_listened_on_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    out = ["--out", str(tmp_path / "out")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port, *out]) == 2
    assert f"--port {port}: cannot listen there (Address already in use)" in capsys.readouterr().err
    for argv, says in (
        (["--port", "70000"], "--port 70000: take at most 65535"),
        (["--host", "999.0.0.1"], "--host 999.0.0.1"),
        (["--files", str(tmp_path / "absent")], "absent does not exist"),
        (["--files", str(tmp_path / "file")], "file is no folder"),
    ):
        assert main(["app", *argv, *out]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path) == ["file"]
