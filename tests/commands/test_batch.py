"""The batch in one process: jobs files, resuming, failures, pairs, what is left behind."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from forked import Forked
from profiling_core.commands.batch.attempts import Sequential
from profiling_core.commands.batch.clips import Checker, TreeMaker
from profiling_core.commands.batch.folder import Folder, check_names
from profiling_core.commands.batch.jobs import Job, read_jobs
from profiling_core.commands.batch.run import Batch
from profiling_core.commands.main import main
from profiling_core.errors import BatchError
from profiling_core.plan.presets import load_preset
from toy_makers import ToyMaker, Writer, clip_of
from tree_paths import ROOT

MINI = {"tree": "wan", "task": "t2v-mini", "prompt": "red circle moving right over blue stripes"}


def jobs_file(folder: Path, *lines: dict | str) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def run(path: Path, clips, retries: int = 1) -> tuple[Batch, int]:
    with Folder(path).opened() as folder:
        batch = Batch(clips, folder, retries)
        return batch, batch.run(Sequential(ToyMaker()), quiet=True)


def test_clips_are_made_once_and_listed_in_the_order_of_the_jobs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    clips = [clip_of("a lamp"), clip_of("a cat", model="n"), clip_of("a dog")]
    _, failed = run(tmp_path / "out", clips[:2])
    assert failed == 0
    _, failed = run(tmp_path / "out", clips)
    made = [line.split(" ")[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert failed == 0 and made == ["lamp", "cat", "dog"]
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open()))
    assert [row["prompt"] for row in rows] == ["a lamp", "a cat", "a dog"]
    assert {row["state"] for row in rows} == {"done"}
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<video") == 3 and "a cat" in page
    assert not (tmp_path / "out" / ".work").exists()


def test_a_poisoned_job_fails_alone_after_its_retries(tmp_path) -> None:
    clips = [clip_of("a lamp"), clip_of("poison"), clip_of("a dog")]
    batch, failed = run(tmp_path, clips, retries=2)
    assert failed == 1 and len(batch.errors[clips[1].key]) == 3
    text = (tmp_path / "failed" / f"{clips[1].stem}.txt").read_text()
    assert text.count("this prompt is poison") == 3
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["state"] for row in rows] == ["done", "failed", "done"]
    assert "poison" in (tmp_path / "index.html").read_text()
    assert run(tmp_path, [clips[0], clips[2]])[1] == 0


def test_psnr_stands_where_the_full_run_was_asked_for_too(tmp_path) -> None:
    pair = [clip_of("a lamp"), clip_of("a lamp", plan="balanced")]
    batch, _ = run(tmp_path, [*pair, clip_of("alone", plan="fast")])
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert rows[1]["psnr"] == pytest.approx(46, abs=0.2)  # 20 log10(2 / 0.01), fp16 between
    assert "psnr" not in rows[0] and "psnr" not in rows[2]
    assert not list((tmp_path / "pairs").iterdir())
    assert rows[1]["speedup"] == 1 and "speedup" not in rows[0]
    page = (tmp_path / "index.html").read_text()
    assert "1.00x as fast, 2.00x by its blocks · PSNR 46.0 dB" in page
    assert "2.00x by its blocks · PSNR unknown without a full run" in page
    assert batch.rows[pair[1].key]["psnr"] == rows[1]["psnr"]


def test_a_pair_whose_halves_come_in_two_runs_is_compared(tmp_path, monkeypatch) -> None:
    pair = [clip_of("a lamp"), clip_of("a lamp", plan="balanced")]
    plain = ToyMaker.make
    broken = [pair[1].key]

    def make(self, clip, write):
        if clip.key in broken:
            raise KeyboardInterrupt
        return plain(self, clip, write)

    monkeypatch.setattr(ToyMaker, "make", make)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, pair)
    assert len(list((tmp_path / "pairs").iterdir())) == 1
    assert json.loads((tmp_path / "summary.json").read_text())[1]["state"] == "not made"
    broken.clear()
    batch, failed = run(tmp_path, pair)
    assert failed == 0 and batch.rows[pair[1].key]["psnr"] > 40
    assert not list((tmp_path / "pairs").iterdir())


def test_an_unfinished_clip_is_not_taken_for_one(tmp_path) -> None:
    clip = clip_of("a lamp")
    run(tmp_path, [clip])
    row = tmp_path / "clips" / f"{clip.stem}.json"
    row.write_text("{")
    with Folder(tmp_path).opened() as folder:
        assert folder.done(clip) is None
    assert run(tmp_path, [clip])[1] == 0 and json.loads(row.read_text())["key"] == clip.key
    video = tmp_path / "clips" / f"{clip.stem}.mp4"
    for content in (b"", video.read_bytes()[:-1], None):
        video.unlink() if content is None else video.write_bytes(content)
        with Folder(tmp_path).opened() as folder:
            assert folder.done(clip) is None


def test_a_clip_without_content_fails(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Writer, "save", lambda self, video, path: path.touch())
    batch, failed = run(tmp_path, [clip_of("a lamp")], retries=0)
    assert failed == 1 and not list((tmp_path / "clips").iterdir())
    assert "the clip's file is empty" in next(iter(batch.errors.values()))[0]


@pytest.mark.parametrize("words", [os.strerror(errno.ENOSPC), "os error 28: quota", None])
def test_a_full_disk_ends_the_batch_and_leaves_what_was_made(tmp_path, monkeypatch, words) -> None:
    """Errors of other libraries keep the words alone; ffmpeg's say nothing, but the room does."""
    clips = [clip_of("a lamp"), clip_of("a dog"), clip_of("a cat")]
    tried: list[Path] = []

    def save(self, video: torch.Tensor, path: Path) -> None:
        tried.append(path)
        path.write_bytes(b"half")
        raise BatchError("writing failed") from (RuntimeError(words) if words else None)

    run(tmp_path, clips[:1])
    monkeypatch.setattr(Writer, "save", save)
    if words is None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    elif "quota" in words:
        monkeypatch.setattr(os, "strerror", lambda number: "quota")
    batch, missing = run(tmp_path, clips, retries=2)
    assert batch.disk_full and missing == 2 and len(tried) == 1
    assert len(list((tmp_path / "clips").iterdir())) == 3 and not (tmp_path / ".work").exists()
    rows = json.loads((tmp_path / "summary.json").read_text())
    assert [row["state"] for row in rows] == ["done", "failed", "not made"]


def test_a_disk_that_is_really_full(tmp_path, monkeypatch) -> None:
    """A tmpfs of 512 KiB: clips of 6 KiB until it is full, and room for the summary is left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    try:
        clips = [clip_of("a lamp", number) for number in range(60)]
        batch, missing = run(disk / "out", clips)
        assert batch.disk_full and 0 < missing < 60
        rows = json.loads((disk / "out" / "summary.json").read_text())
        made = [row for row in rows if row["state"] == "done"]
        assert len(made) == 60 - missing == len((tmp_path / "log").read_text().splitlines())
        assert (disk / "out" / "index.html").read_text().count("<video") == len(made)
        for row in made:
            video = disk / "out" / "clips" / f"{row['name']}.mp4"
            assert video.stat().st_size == 3 * 2 * 16 * 16 * 4
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("number", "hang", "code"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
        (signal.SIGTERM, True, 143),
    ],
)
def test_a_signal_leaves_a_summary_and_nothing_unfinished(
    tmp_path, monkeypatch, number, hang, code
) -> None:
    """Also where the way out hangs."""
    jobs = [{**MINI, "prompt": f"seconds={n} a lamp"} for n in (0, 600)]
    out = tmp_path / "out"
    command = ["batch", str(jobs_file(tmp_path, *jobs)), "--out", str(out), "--no-ray"]
    monkeypatch.setattr("profiling_core.commands.batch.attempts.TreeMaker", ToyMaker)
    if hang:
        monkeypatch.setattr("profiling_core.commands.batch.command.LEAVE_SECONDS", 1)
        monkeypatch.setattr(Sequential, "close", lambda self: time.sleep(600))
    process = Forked(lambda: sys.exit(main(command)))
    while "clip 1 of 2" not in process.err:
        time.sleep(0.02)
    process.send(number)
    assert process.wait(60) == code and "Traceback" not in process.err
    assert hang or "1 of 2 clips are done; go on with the same command" in process.err
    rows = json.loads((out / "summary.json").read_text())
    assert [row["state"] for row in rows] == ["done", "not made"]
    assert (out / "index.html").is_file() and not (out / ".work").exists()


def test_plans_and_whole_paths_travel_with_a_clip(tmp_path, monkeypatch) -> None:
    """A worker may run in another folder, or find another file there."""
    shutil.copytree(ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini", tmp_path / "weights")
    plan = load_preset("wan2.1-t2v-mini", "fast")
    plan.save(tmp_path / "plan.json")
    monkeypatch.chdir(tmp_path)
    clip = Checker().clip(Job(**MINI, ckpt_dir="weights", plan="./plan.json"))
    assert clip.job.ckpt_dir == str(tmp_path / "weights") and clip.plan == plan
    default = Checker().clip(Job(**MINI))
    assert default.job.ckpt_dir == str(ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini")


def test_two_batches_in_one_folder_and_foreign_folders_are_refused(tmp_path) -> None:
    with Folder(tmp_path / "out").opened(), pytest.raises(ValueError, match="another process"):
        run(tmp_path / "out", [clip_of("a lamp")])
    (tmp_path / "mine.txt").touch()
    with pytest.raises(BatchError, match=r"holds mine\.txt, which is of no batch"):
        Folder(tmp_path).check()
    with pytest.raises(BatchError, match="this is a file"):
        Folder(tmp_path / "mine.txt").check()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ({**MINI, "colour": "red"}, "line 2: colour: unknown key"),
        ({"tree": "wan"}, "line 2: prompt: missing"),
        ({**MINI, "tree": "sora"}, "line 2: tree"),
        ({**MINI, "seed": -1}, "line 2: seed"),
        ({**MINI, "prompt": "  "}, "line 2: prompt: the prompt is empty"),
        ('{"tree": "wan", "prompt": "a \\ud800 lamp"}', "line 2: "),
        ({**MINI, "name": "../x"}, "line 2: name: '../x' is no name of a file"),
        ({**MINI, "name": "电" * 100}, "line 2: name: .* has 300 bytes of UTF-8, expected at most"),
        ({**MINI, "k" * 10_000: 1}, "line 2: k{300}[.]{3};"),
        ({**MINI, "ckpt_dir": "x" * 5000}, "line 2: .*File name too long"),
        ({**MINI, "plan": "a\0b"}, "line 2: plan: "),
        ("[" * 100_000, "line 2: nested too deeply"),
        ('{"tree": "wan", "tree": "wan"}', "line 2: not JSON: key 'tree' twice"),
        (MINI, "line 2: this is the job of line 1 once more"),
        ({**MINI, "size": "5*5"}, "line 2: .*5"),
        ({**MINI, "plan": "fastest"}, "line 2: no preset 'fastest'"),
        ({**MINI, "plan": "absent.json"}, "line 2: .*absent.json"),
        ({**MINI, "task": "t2v-99B"}, "line 2: .*t2v-99B"),
    ],
)
def test_a_bad_line_is_named_and_nothing_starts(tmp_path, capsys, line, said) -> None:
    path = jobs_file(tmp_path, MINI, line)
    code = main(["batch", str(path), "--out", str(tmp_path / "out"), "--no-ray"])
    error = capsys.readouterr().err
    assert code == 2 and "nothing was started" in error and not (tmp_path / "out").exists()
    assert error.count("\n") == 1
    assert re.search(said, error)


def test_names_that_meet_are_refused(tmp_path) -> None:
    lines = [{**MINI, "name": "x"}, {**MINI, "seed": 1, "name": "X"}]
    _, mistakes = read_jobs(jobs_file(tmp_path, *lines))
    assert mistakes == ["line 2: the name 'X' is that of line 1, too"]
    other = clip_of("a lamp", 1)
    assert check_names([(1, other), (4, other)]) == ["line 4: this is the clip of line 1 once more"]


def test_names_are_in_any_script_up_to_the_bytes_that_a_file_name_takes(tmp_path) -> None:
    names = ["电" * 66, "हिन्दी क्षेत्र", "می\u200cخواهم", "a" * 200, "e\u0301te\u0301"]
    lines, mistakes = read_jobs(
        jobs_file(tmp_path, *({**MINI, "seed": i, "name": n} for i, n in enumerate(names)))
    )
    assert not mistakes and lines[-1].job.name == "\xe9t\xe9"
    clips = [replace(clip_of("a lamp", line.number), job=line.job) for line in lines]
    assert run(tmp_path / "out", clips)[1] == 0
    assert {path.stem for path in (tmp_path / "out" / "clips").glob("*.mp4")} == {
        line.job.name for line in lines
    }


def test_files_that_hold_no_jobs_are_refused(tmp_path) -> None:
    with pytest.raises(BatchError, match="no such file"):
        read_jobs(tmp_path / "absent.jsonl")
    with pytest.raises(BatchError, match="no job in it"):
        read_jobs(jobs_file(tmp_path, "# nothing", ""))
    (tmp_path / "jobs.jsonl").write_bytes(b"# ok\n\xff\n")
    with pytest.raises(BatchError, match="line 2 is not UTF-8"):
        read_jobs(tmp_path / "jobs.jsonl")


def test_the_key_follows_all_that_shapes_a_clip_and_nothing_else() -> None:
    checker = Checker()

    def key(**changes):
        return checker.clip(Job.model_validate({**MINI, **changes})).key

    plain = key()
    assert plain == key(name="x", ckpt_dir=str(ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini"), steps=50)
    changed = [key(seed=1), key(plan="balanced"), key(steps=20), key(guidance=2.0)]
    changed += [key(prompt="a lamp"), key(solver="dpm++"), key(frame_num=5)]
    assert len({plain, *changed}) == 8
    clips = [checker.clip(Job.model_validate({**MINI, "plan": p})) for p in (None, "balanced")]
    assert clips[0].pair == clips[1].pair and clips[0].is_full


def test_the_example_runs_through_the_command_on_a_real_miniature(tmp_path, capsys) -> None:
    """Five frames, four steps; the bad line is skipped."""
    short = {**MINI, "frame_num": 5, "steps": 4, "seed": 3}
    path = jobs_file(
        tmp_path, short, *({**short, "plan": "fast", "seed": seed} for seed in (3, 4)), "{"
    )
    arguments = ["batch", str(path), "--out", str(tmp_path / "out"), "--no-ray"]
    assert main(arguments) == 2
    assert main([*arguments, "--skip-bad"]) == 0
    output = capsys.readouterr()
    assert "3 of 3 clips in" in output.out and "skipped: line 4: not JSON" in output.err
    assert "without Ray, clip by clip in this process" in output.err
    finished = [line for line in output.err.splitlines() if line.startswith("clip ")]
    assert [line.split(":")[0] for line in finished] == [f"clip {n} of 3" for n in (1, 2, 3)]
    warned = [line for line in output.err.splitlines() if line.startswith("WARNING")]
    assert len(warned) == len(set(warned)) > 0  # not for every clip
    assert "\r" not in output.err  # no bar: nobody looks
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert rows[1]["psnr"] > 10 and rows[0]["block_runs"] == 2 * 4 * 12
    assert main([*arguments, "--skip-bad"]) == 0
    assert "3 of 3 clips are done" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad", "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.startswith("wrote ") and output.out.count("\n") == 1


def test_a_clip_that_needs_more_room_loads_the_weights_anew(monkeypatch) -> None:
    """Memory was checked for the clip that they were loaded for; a smaller one takes them over."""
    maker, clip = TreeMaker(), SimpleNamespace(model="weights")

    def loads(clip_bytes: int, plan: str | None = None) -> bool:
        plan = None if plan is None else load_preset("wan2.1-t2v-mini", plan)
        model = SimpleNamespace(clip_bytes=clip_bytes, largest_plan=plan, pipeline=None)
        size = maker._take_over(clip, model)
        anew = model.pipeline is None
        maker._loaded = clip.model, size, model.pipeline or object()
        return anew

    assert [loads(200), loads(100), loads(200), loads(300)] == [True, False, False, True]
    assert [loads(100, "paper"), loads(100, "balanced"), loads(100)] == [True, False, False]
    clip.model = "other weights"
    assert loads(50)


def test_the_committed_example_is_real() -> None:
    lines, mistakes = read_jobs(ROOT / "examples" / "jobs.jsonl")
    assert len(lines) == 12 and not mistakes
    checker = Checker()
    clips = [(line.number, checker.clip(line.job)) for line in lines]
    assert not check_names(clips)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--retries", "-1"], "--retries: found -1, expected at least 0"),
        (["--workers", "0"], "--workers: found 0, expected at least 1"),
        (["--no-ray", "--workers", "2"], "--workers 2 needs Ray"),
        (["--no-ray", "--address", "auto"], "--address auto needs Ray"),
    ],
)
def test_options_that_do_not_fit_are_said(tmp_path, capsys, options, said) -> None:
    path = jobs_file(tmp_path, MINI)
    code = main(["batch", str(path), "--out", str(tmp_path / "out"), *options])
    assert code == 2 and said in capsys.readouterr().err
