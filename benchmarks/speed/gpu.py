"""Ten minutes on one GPU: what calls, plans and policies cost on full-size models.

    python -m benchmarks.speed.gpu               # all that fits --seconds, the most valuable first
    python -m benchmarks.speed.gpu --models hunyuan-video-720p --parts call
    python -m benchmarks.speed.gpu --toy         # every part at toy size, on the CPU

The timetable is printed first; without a GPU that is all. Each row is appended to gpu.jsonl as soon
as it is measured, and a second call measures what the first had no time for. Weights are random:
time and memory only, no quality. Needs torch, NumPy and pydantic alone.

call       one bare call and one that reuses; the loops of all plans put together from these two
attention  one attention call on every kernel at hand
plan       every kind of call that a shipped plan is made of, bytes, peak memory, its loop
attached   a call with a plan attached that computes everything, beside a bare one
policy     the same for the policies of the comparison at equal compute, the decision alone
compile    a call with compiled blocks
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.baselines import PEERS
from benchmarks.lib.command_line import at_least, log
from benchmarks.lib.rows import RESULTS, Row, append_row, environment, load_rows, table
from benchmarks.lib.subjects import SEED
from benchmarks.lib.timing import Subject, timed
from benchmarks.speed.full_models import MODELS, TOYS, FullModel
from benchmarks.speed.policies import POLICIES, PRESETS, Attached, Policy, policies, shipped
from benchmarks.speed.single_calls import AttentionKernels, BareAndReuse, CompiledBlocks
from profiling_core.files import first_line

NAME = "gpu"  # of the file of rows
SECONDS = 540  # leaves a minute of ten for the start and the last call
ASSUMED_FLOPS = 400e12  # a second, of an H200; estimates until a call was timed
OPENING = 8.0  # seconds to draw a model's weights
SAMPLED, MOST_ROUNDS = 4.0, 3  # seconds of full calls that make a row's rounds
WAN, WAN_SMALL, HUNYUAN, HUNYUAN_LARGE = (
    "wan2.1-t2v-14B",
    "wan2.1-t2v-1.3B",
    "hunyuan-video-540p",
    "hunyuan-video-720p",
)
PAPER_AND_OURS, PEER_NAMES = PRESETS[:2], [peer.name for peer in PEERS]
WORTH = (  # part, model and names of rows, the most valuable first
    ("call", WAN),
    ("attention", WAN),
    ("call", HUNYUAN),
    ("attention", HUNYUAN),
    ("call", WAN_SMALL),
    ("plan", WAN),
    ("plan", WAN_SMALL),
    ("call", HUNYUAN_LARGE),
    ("attention", HUNYUAN_LARGE),
    ("plan", HUNYUAN, PAPER_AND_OURS),
    ("attached", WAN_SMALL),
    ("policy", WAN, PEER_NAMES),
    ("policy", HUNYUAN, PEER_NAMES),
    ("plan", HUNYUAN),
    ("policy", WAN),
    ("policy", HUNYUAN),
    ("attached", HUNYUAN),
    ("attached", WAN),
    ("compile", WAN_SMALL),
    ("attention", WAN_SMALL),
    ("policy", WAN_SMALL),
    ("plan", HUNYUAN_LARGE),
)
ORDER = (WAN, HUNYUAN, HUNYUAN_LARGE, WAN_SMALL)  # each model's weights are made once
PARTS = ("call", "attention", "plan", "attached", "policy", "compile")
ONE_ROW = {"call": BareAndReuse, "attention": AttentionKernels, "compile": CompiledBlocks}
ONE_ROW["attached"] = Attached
Measurement = BareAndReuse | AttentionKernels | Policy | CompiledBlocks
CPU = torch.device("cpu")


class OutOfTime(Exception):
    """The budget is spent."""


@dataclass(frozen=True)
class Item:
    """A row to measure; calls: what it takes in so many rounds, in full calls of its model."""

    part: str
    model: str
    name: str
    calls: Callable[[int], float] = field(compare=False)
    extra: float = field(default=0.0, compare=False)  # seconds beside the calls

    def seconds(self, full_call: float) -> float:
        return self.calls(rounds_of(full_call)) * full_call + self.extra


def rounds_of(full_call: float) -> int:
    """As many rounds as there are full calls in SAMPLED seconds, but 1 to MOST_ROUNDS."""
    return max(1, min(MOST_ROUNDS, int(SAMPLED / full_call)))


def measurements(subject: Subject, part: str) -> Iterable[Measurement]:
    """All rows of one part on a model, the most valuable first."""
    if part == "policy":
        return policies(subject)
    if part == "plan":
        return shipped(subject)
    return (ONE_ROW[part](subject),)


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    models = TOYS if args.toy else MODELS
    on_gpu = torch.cuda.is_available() and not args.toy
    device = torch.device("cuda") if on_gpu else CPU
    about = environment(device) | ({"commit": args.commit} if args.commit else {})
    folder = args.results or (Path("out", "gpu") if args.toy else RESULTS)
    session = Session(models, wanted(models, args), args.seconds, folder, about, device)
    log(session.timetable())
    if not on_gpu and not args.toy:
        log(f"torch {torch.__version__} sees no GPU: this is what it would do on an H200")
        return 0
    return session.run()


def wanted(models: dict[str, FullModel], args: argparse.Namespace) -> list[Item]:
    """The rows that the command line asks for, the most valuable first."""
    subjects = {name: models[name].subject(name, torch.device("meta")) for name in args.models}
    asked = {"plan": args.presets, "policy": args.policies}
    found: dict[Item, None] = {}
    for part, name, *names in WORTH:
        if part in args.parts and name in subjects:
            for each in measurements(subjects[name], part):
                if all(each.name in known for known in (asked.get(part, [each.name]), *names)):
                    extra = getattr(each, "extra_seconds", 0.0)
                    found.setdefault(Item(part, name, each.name, cache(each.calls), extra))
    return list(found)


class Session:
    """Measures items within a budget of seconds; a row that is there already counts as done."""

    def __init__(
        self,
        models: dict[str, FullModel],
        items: list[Item],
        seconds: float,
        folder: Path,
        about: Row,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models, self.folder, self.about, self.device = models, folder, about, device
        self.clock, self.begun, self.budget = clock, clock(), seconds
        self.subject: Subject | None = None  # the open model, warmed up
        self.full_calls: dict[str, float] = {}  # measured seconds
        self.rate = ASSUMED_FLOPS
        self.closed: set[str] = set()
        self.rows = [row for row in load_rows(NAME, folder) if self._is_done(row)]
        done = {(row["part"], row["model"], row["name"]) for row in self.rows}
        self.items = [item for item in items if (item.part, item.model, item.name) not in done]
        self.done = len(items) - len(self.items)

    def _is_done(self, row: Row) -> bool:
        same = all(row[name] == self.about[name] for name in ("commit", "device"))
        return same and "error" not in row and row["commit"] != "unknown"

    # -- the timetable

    def full_call(self, model: str) -> float:
        """Seconds of a bare call: measured, else from its FLOPs."""
        return self.full_calls.get(model) or self.models[model].flops() / self.rate

    @property
    def left(self) -> float:
        return self.begun + self.budget - self.clock()

    def fitting(self) -> tuple[list[tuple[Item, float]], list[tuple[Item, float]]]:
        """Items with their seconds: what fits the time that is left, and what does not."""
        left, chosen, out = self.left, [], []
        opened = {self.subject.name} if self.subject else set()
        for item in self.items:
            full = self.full_call(item.model)
            seconds = item.seconds(full)
            if item.model not in opened:
                seconds += OPENING + full
            if item.model in self.closed or seconds > left:
                out.append((item, seconds))
                continue
            left -= seconds
            opened.add(item.model)
            chosen.append((item, seconds))
        return chosen, out

    def timetable(self) -> str:
        """What would be measured now, in the order of the run, and what is left out."""
        if not self.items:
            return f"all {self.done} rows are there already"
        chosen, out = self.fitting()
        chosen.sort(key=lambda pair: ORDER.index(pair[0].model))
        names = dict.fromkeys(item.model for item in self.items)
        calls = ", ".join(f"{name} {self.full_call(name):.1f} s" for name in names)
        total = sum(seconds for _, seconds in chosen)
        lines = [*grouped(chosen), ["in all", "", f"of {self.budget:.0f} s", f"{total:.0f} s"]]
        return "\n".join(
            [
                f"estimated, a full call: {calls}",
                table(["model", "part", "rows", "seconds"], lines),
                *left_out(out),
                f"rows that are there already: {self.done}",
            ]
        )

    # -- the run

    def run(self) -> int:
        """0, or 1 where a row failed."""
        failed = False
        while chosen := self.fitting()[0]:
            here = self.subject.name if self.subject else ""
            item = min(
                (item for item, _ in chosen),
                key=lambda item: (item.model != here, ORDER.index(item.model)),
            )
            started = self.clock()
            try:
                if item.model != here:
                    self.open(item.model)  # its first call changes what fits
                    continue
                row = self.measure(item)
            except OutOfTime:
                break
            except Exception as error:  # the rows after it may still be had
                row = {"error": f"{type(error).__name__}: {first_line(error)}"}
                failed = True
                if item.model != here:
                    self.close(item.model)
            self.items.remove(item)
            self.append(item, row | {"row_seconds": round(self.clock() - started, 2)})
            self.free()
        for line in left_out(self.fitting()[1]):
            log(line)
        log(f"{self.clock() - self.begun:.0f} s; rows are in {self.folder / NAME}.jsonl")
        sys.stdout.write(loops_table(self.rows) + "\n")
        return int(failed)

    def open(self, name: str) -> None:
        """Build the model, or take the open one where it has the same weights; warm it up."""
        model, before = None, self.subject
        if before is not None:
            same = self.models[before.name].weights == self.models[name].weights
            model = before.model if same else None
            self.close(before.name)
        del before
        self.free()
        subject = self.models[name].subject(name, self.device, model)
        self.subject = replace(subject, call=self.guarded(subject.call))
        self.note_full_call(timed(self.subject.call, self.device))

    def close(self, name: str) -> None:
        self.subject = None
        self.closed.add(name)

    def guarded(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call, refused once the time is up."""

        def in_time() -> object:
            if self.left <= 0:
                raise OutOfTime
            return call()

        return in_time

    def note_full_call(self, seconds: float) -> None:
        name = self.subject.name
        self.full_calls[name] = seconds
        self.rate = self.models[name].flops() / seconds

    def measure(self, item: Item) -> Row:
        rounds = rounds_of(self.full_call(item.model))
        found = {each.name: each for each in measurements(self.subject, item.part)}
        row = {"rounds": rounds, **found[item.name].row(rounds, self.device)}
        if item.part != "attention" and "seconds" in row:
            self.note_full_call(row["seconds"]["run"])
        return row

    def append(self, item: Item, row: Row) -> None:
        """Write a row with all that it was measured on."""
        spec, full = self.models[item.model], self.full_calls.get(item.model)
        flops = spec.flops()
        facts = {
            "weights": str(spec.dtype).removeprefix("torch."),
            "autocast": "bfloat16",
            "tokens": self.subject and self.subject.planned.clip.tokens,
            "latent": spec.latent,
            "kernel": self.subject and self.subject.kernel,
            "weights_seed": 0,
            "inputs_seed": SEED,
            "full_call_flops": flops,
            "full_call_tflops_per_second": full and round(flops / full / 1e12, 1),
        }
        found = {"part": item.part, "model": item.model, "name": item.name, **row}
        self.rows.append(found)
        append_row(NAME, found | facts | self.about, self.folder)
        rate = f"{(full or 0):.3f} s a full call"
        log(f"{item.model} {item.part} {item.name}: {row.get('error', rate)}")

    def free(self) -> None:
        """Give a GPU's memory back that nothing holds any more; a lost device ends the run here."""
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()


def grouped(items: Iterable[tuple[Item, float]]) -> list[list[str]]:
    """A line for every model and part: its rows and their seconds."""
    found: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for item, seconds in items:
        found.setdefault((item.model, item.part), []).append((item.name, seconds))
    return [
        [*of, ", ".join(f"{n} {s:.0f}" for n, s in rows), f"{sum(s for _, s in rows):.0f} s"]
        for of, rows in found.items()
    ]


def left_out(items: Iterable[tuple[Item, float]]) -> list[str]:
    return [f"left out: {model} {part}: {rows}" for model, part, rows, _ in grouped(items)]


def loops_table(rows: Sequence[Row]) -> str:
    """A line for every loop."""
    lines = [
        [
            row["model"],
            row["part"],
            loop.get("plan", row["name"]),
            f"{loop['budget']:g}x" if loop.get("budget") else "own",
            f"{loop['full_seconds']:.1f}",
            f"{loop['loop_seconds']:.1f}",
            f"{loop['ideal']:.2f}x",
            f"{loop['achieved']:.2f}x",
            f"{loop['achieved_over_ideal']:.3f}",
        ]
        for row in rows
        for loop in row.get("loops", ())
    ]
    header = ["model", "part", "plan or policy", "budget", "s full", "s loop"]
    return table([*header, "ideal", "achieved", "achieved/ideal"], lines)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=at_least(1), default=SECONDS, help=f"of the whole run; {SECONDS}")
    add("--results", type=Path, metavar="DIR", help="for gpu.jsonl; benchmarks/results")
    add("--models", nargs="+", choices=ORDER, default=list(ORDER))
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--presets", nargs="+", choices=PRESETS, default=list(PRESETS), help="of plan")
    add("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    add("--commit", help="of this code, where it is no git checkout")
    add("--toy", action="store_true", help="toy sizes on the CPU; rows go to out/gpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
