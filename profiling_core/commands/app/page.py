"""The page: its fields, and what its buttons do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from profiling_core.commands.app.places import confined
from profiling_core.commands.app.tasks import Task
from profiling_core.commands.app.turns import Turns
from profiling_core.commands.app.view import Shown, help_text, message, waiting
from profiling_core.commands.app.worker import Asked, Worker
from profiling_core.commands.batch.jobs import Job
from profiling_core.errors import InputError, UserError
from profiling_core.plan.schema import first_mistake

EXAMPLE = "red circle moving right over blue stripes"  # the miniatures know these words
FULL = "full"
LOOK = 1.0  # seconds between two looks at the line of runs
MOST_UPLOAD = "64mb"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# nothing is loaded from elsewhere, and no other page can frame this one
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
)
# clips that play show the same moment
TOGETHER = """<script>setInterval(() => {
  const [first, second] = document.querySelectorAll(".clips video");
  if (second && !first.paused && !second.paused
      && Math.abs(first.currentTime - second.currentTime) > 0.08)
    second.currentTime = first.currentTime;
}, 300);</script>"""
FETCHES = re.compile(r"/(proxy=|file[=/]+https?:)")  # routes of gradio


class Page:
    """The page of one server. folders: from which paths may be named; out: of the clips.

    The environment's GRADIO_TEMP_DIR is the folder of pictures that are uploaded.
    """

    def __init__(self, tasks: Sequence[Task], folders: Sequence[Path], out: Path) -> None:
        self.tasks = {task.label: task for task in tasks}
        self.folders, self.out = folders, out
        self.uploads = Path(os.path.realpath(os.environ["GRADIO_TEMP_DIR"]))
        self.turns, self.worker = Turns(), Worker(out)

    def blocks(self) -> gr.Blocks:
        """The fields and buttons."""
        first = next(iter(self.tasks.values()))
        with gr.Blocks(title="ProfilingDiT", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(
                "<h1>ProfilingDiT</h1><p>A clip with a plan of what is computed and what is "
                "reused, beside the full run.</p>"
            )
            with gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=320):
                    fields = self._fields(first)
                    with gr.Row():
                        go = gr.Button("Generate", variant="primary", min_width=120, elem_id="go")
                        stop = gr.Button("Cancel", interactive=False, min_width=120, elem_id="stop")
                with gr.Column(scale=7, min_width=320):
                    status = gr.HTML(help_text(), elem_id="status")
                    result = gr.HTML(elem_id="result")
            task, _, first_picture, last_picture, *_ = fields
            changed = [first_picture, last_picture, *fields[5:8], fields[9]]
            task.change(
                self.defaults, task, changed, show_progress="hidden", api_visibility="private"
            )
            go.click(
                self.generate,
                fields,
                [status, result, go, stop],
                show_progress="hidden",
                concurrency_limit=None,  # the line of runs is ours
                api_visibility="private",
            )
            stop.click(self.cancel, None, stop, queue=False, api_visibility="private")
        return blocks

    def _fields(self, first: Task) -> list[Any]:
        """In the order of the arguments of `generate`."""
        task = gr.Dropdown([*self.tasks], value=first.label, label="Task", elem_id="task")
        prompt = gr.Textbox(EXAMPLE, label="Prompt", lines=3, elem_id="prompt")
        pictures = [
            gr.Image(
                type="filepath",
                image_mode=None,
                label=label,
                sources=["upload", "clipboard"],
                height=220,
                visible=name in first.pictures,
                elem_id=name,
            )
            for name, label in (("image", "First picture"), ("last_image", "Last picture"))
        ]
        for picture in pictures:  # the tree reads the file, and says what is wrong with it
            picture.preprocess = _path_of  # type: ignore[method-assign]
        with gr.Row():
            plan = gr.Dropdown(
                [FULL, *first.plans],
                value="balanced",
                label="Plan, or a plan file",
                allow_custom_value=True,
                min_width=120,
                elem_id="plan",
            )
            seed = gr.Textbox("42", label="Seed", min_width=120, elem_id="seed")
        full = gr.Checkbox(label="Also the full run, to compare", elem_id="full")
        with gr.Accordion("Size, length and weights", open=False, elem_id="settings"):
            size = gr.Dropdown(
                [*first.sizes],
                value=first.sizes[0],
                label="Size, width*height",
                allow_custom_value=True,
                elem_id="size",
            )
            with gr.Row():
                frames = gr.Textbox(
                    str(first.frames), label="Frames", min_width=120, elem_id="frames"
                )
                steps = gr.Textbox(str(first.steps), label="Steps", min_width=120, elem_id="steps")
            weights = gr.Textbox(
                label="Checkpoint folder",
                info="Empty: the bundled weights, or the folder where the tree looks for them.",
                elem_id="weights",
            )
        return [task, prompt, *pictures, seed, size, frames, steps, weights, plan, full]

    def defaults(self, label: str) -> list[Any]:
        """What the fields take when another task is chosen."""
        task = self.tasks[label]
        plan = "balanced" if "balanced" in task.plans else FULL
        return [
            gr.update(visible="image" in task.pictures, value=None),
            gr.update(visible="last_image" in task.pictures, value=None),
            gr.update(choices=[*task.sizes], value=task.sizes[0]),
            str(task.frames),
            str(task.steps),
            gr.update(choices=[FULL, *task.plans], value=plan),
        ]

    def generate(
        self,
        label: str,
        prompt: str | None,
        image: str | None,
        last_image: str | None,
        seed: str | None,
        size: str | None,
        frames: str | None,
        steps: str | None,
        weights: str | None,
        plan: str | None,
        with_full: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Line, clips, and both buttons, until the run has ended."""
        page = str(request.session_hash)
        shown, last = Shown(), ""
        try:
            task = self._task(label)
            job = {
                "tree": task.tree,
                "task": task.model,
                "prompt": prompt or "",
                "image": self._picture(image, "image", task),
                "last_image": self._picture(last_image, "last_image", task),
                "seed": _number(seed, "seed"),
                "size": size or None,
                "frame_num": _number(frames, "frames") if frames else None,
                "steps": _number(steps, "steps") if steps else None,
                "plan": self._plan(plan, task),
                "ckpt_dir": self._folder(weights),
            }
            asked = Asked(_job(job), with_full)
            with self.turns.joined(page) as turn:
                while (ahead := self.turns.ahead(turn)) and not turn.cancelled:
                    yield _running(waiting(ahead))
                    self.turns.wait(LOOK)
                if turn.cancelled:
                    yield _idle(message("Cancelled."))
                    return
                yield _running(shown.line, "")
                for event in self.worker.run(asked):
                    if turn.cancelled:  # perhaps before the run had begun
                        self.worker.cancel()
                    shown.take(event)
                    html = shown.html()
                    yield _running(shown.line, None if html == last else html)
                    last = html
                yield _idle(shown.line)
        except UserError as error:
            yield _idle(message(str(error), "error"))

    def cancel(self, request: gr.Request) -> Any:
        """Cancel the run of this page, or its place in the line; the button can rest."""
        turn = self.turns.cancel(str(request.session_hash))
        if turn is not None and self.turns.ahead(turn) == 0:
            self.worker.cancel()
        return gr.update(interactive=False)

    def _task(self, label: str) -> Task:
        if label not in self.tasks:
            raise InputError(f"task {label!r}: choose one of the list")
        return self.tasks[label]

    def _picture(self, path: str | None, name: str, task: Task) -> str | None:
        """An upload; what a field holds that the task does not show is left out."""
        if path is None or name not in task.pictures:
            return None
        return confined(path, (self.uploads,), name)

    def _plan(self, value: str | None, task: Task) -> str | None:
        if not value or value == FULL:
            return None
        return value if value in task.plans else confined(value, self.folders, "plan")

    def _folder(self, value: str | None) -> str | None:
        return confined(value, self.folders, "checkpoint folder") if value else None

    def server(self, host: str) -> FastAPI:
        """The page as an application of a web server."""
        css = resources.files("profiling_core") / "commands" / "app" / "page.css"
        app = FastAPI(openapi_url=None)
        gr.mount_gradio_app(
            app,
            self.blocks(),
            path="/",
            footer_links=[],
            run_history=False,
            allowed_paths=[str(self.out)],
            show_error=False,
            max_file_size=MOST_UPLOAD,
            ssr_mode=False,
            enable_monitoring=False,
            theme=gr.themes.Base(
                primary_hue="blue",
                neutral_hue="slate",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css=css.read_text(encoding="utf-8"),
            head=TOGETHER,
        )
        app.add_middleware(_Policy)
        if host in LOOPBACK:  # another site's name cannot be pointed here
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
        return app


class _Policy:
    """Puts POLICY on every answer, and refuses gradio's routes that fetch from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message["headers"] = [*message["headers"], policy]
            await send(message)

        fetches = FETCHES.search(scope.get("path", "")) is not None
        answer = PlainTextResponse("this page fetches nothing", 403) if fetches else self.app
        await answer(scope, receive, with_policy)


def _running(line: Any, result: Any = None) -> tuple[Any, ...]:
    shown = gr.skip() if result is None else result
    return line, shown, gr.update(interactive=False), gr.update(interactive=True)


def _idle(line: Any) -> tuple[Any, ...]:
    return line, gr.skip(), gr.update(interactive=True), gr.update(interactive=False)


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _number(text: str | None, what: str) -> int:
    try:
        return int(text or "")
    except ValueError:
        raise InputError(f"{what} {(text or '')[:40]!r}: expected a whole number") from None


def _job(fields: dict[str, Any]) -> Job:
    try:
        return Job(**fields)
    except ValidationError as error:
        raise InputError(first_mistake(error)) from None
