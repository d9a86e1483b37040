"""The batch in one process: jobs files, resuming, failures, pairs, what is left behind."""

import csv
import errno
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from profiling_core.commands.batch.attempts import Sequential
from profiling_core.commands.batch.clips import Checker
from profiling_core.commands.batch.folder import Folder, check_names
from profiling_core.commands.batch.jobs import Job, read_jobs
from profiling_core.commands.batch.run import Batch
from profiling_core.commands.main import main
from profiling_core.errors import BatchError
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
    assert "PSNR 46.0 dB" in (tmp_path / "index.html").read_text()
    assert batch.rows[pair[1].key]["psnr"] == rows[1]["psnr"]


def test_a_pair_whose_halves_come_in_two_runs_is_compared(tmp_path, monkeypatch) -> None:
    pair = [clip_of("a lamp"), clip_of("a lamp", plan="balanced")]
    plain = ToyMaker.make
    broken = [pair[1].key]

    def make(self, clip, write, say):
        if clip.key in broken:
            raise KeyboardInterrupt
        return plain(self, clip, write, say)

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
    (tmp_path / "clips" / f"{clip.stem}.mp4").unlink()
    with Folder(tmp_path).opened() as folder:
        assert folder.done(clip) is None


def test_a_full_disk_fails_its_clip_and_leaves_the_others(tmp_path, monkeypatch) -> None:
    clips = [clip_of("a lamp"), clip_of("a dog"), clip_of("a cat")]

    def save(self, video: torch.Tensor, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    run(tmp_path, clips[:1])
    monkeypatch.setattr(Writer, "save", save)
    batch, failed = run(tmp_path, clips)
    assert failed == 2 and "No space left on device" in batch.errors[clips[1].key][0]
    assert sorted(p.suffix for p in (tmp_path / "clips").iterdir()) == [".jpg", ".json", ".mp4"]
    assert not (tmp_path / ".work").exists()


def test_a_disk_that_is_really_full(tmp_path) -> None:
    """A tmpfs of one megabyte: clips of 6 KiB until it is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        clips = [clip_of("a lamp", number) for number in range(60)]
        try:
            batch, failed = run(disk / "out", clips, retries=0)
        except OSError as error:  # the summary did not fit either
            assert error.errno == errno.ENOSPC
        else:
            assert 0 < failed < 60 and any("No space" in e[0] for e in batch.errors.values())
        kept = [p for p in (disk / "out" / "clips").glob("*.json") if p.stat().st_size]
        assert kept
        for row in kept:
            assert row.with_suffix(".mp4").stat().st_size == 3 * 2 * 16 * 16 * 4
            assert json.loads(row.read_text())["plan"] == "full"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
    path = jobs_file(tmp_path, short, {**short, "plan": "fast"}, "{")
    arguments = ["batch", str(path), "--out", str(tmp_path / "out"), "--no-ray"]
    assert main(arguments) == 2
    assert main([*arguments, "--skip-bad"]) == 0
    output = capsys.readouterr()
    assert "2 of 2 clips in" in output.out and "skipped: line 3: not JSON" in output.err
    assert "without Ray, clip by clip in this process" in output.err
    finished = [line for line in output.err.splitlines() if line.startswith("clip ")]
    assert [line.split(":")[0] for line in finished] == ["clip 1 of 2", "clip 2 of 2"]
    assert "\r" not in output.err  # no bar: nobody looks
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert rows[1]["psnr"] > 10 and rows[0]["block_runs"] == 2 * 4 * 12
    assert main([*arguments, "--skip-bad"]) == 0
    assert "2 of 2 clips are done" in capsys.readouterr().err
    assert main([*arguments, "--skip-bad", "--quiet"]) == 0
    output = capsys.readouterr()
    assert output.err == "" and output.out.startswith("wrote ") and output.out.count("\n") == 1


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
