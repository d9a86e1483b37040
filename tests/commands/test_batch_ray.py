"""The batch on real Ray with two workers: order, deaths, signals, shared clips, clusters."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from profiling_core.commands.batch.attempts import Sequential
from profiling_core.commands.batch.clips import Checker
from profiling_core.commands.batch.folder import Folder
from profiling_core.commands.batch.jobs import Job
from profiling_core.commands.batch.run import Batch
from profiling_core.commands.main import main
from toy_makers import ToyMaker, clip_of
from tree_paths import ROOT

pytest.importorskip("ray")

from profiling_core.commands.batch.cluster import Cluster, Size
from profiling_core.commands.batch.command import LEAVE_SECONDS
from profiling_core.errors import BatchError

pytestmark = pytest.mark.alone  # Ray has clocks of its own


def made(path: Path, clips, runner, retries: int = 1) -> tuple[Batch, int]:
    with Folder(path).opened() as folder:
        batch = Batch(clips, folder, retries)
        return batch, batch.run(runner, quiet=True)


def content(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (path / "clips").glob("*.mp4")}


def test_two_workers_a_death_and_a_poisoned_job(tmp_path, monkeypatch) -> None:
    """The clips are those of one process, each made once, and only the poison is missing."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    prompts = ["a lamp", f"die once {tmp_path / 'mark'}", "poison", "a dog", "a cat", "a lamp"]
    clips = [clip_of(prompt, number) for number, prompt in enumerate(prompts)]
    clips.append(clip_of("a dog", 3, plan="balanced"))
    clips[1] = clip_of(prompts[1], 1)
    clips[1].__dict__["job"] = clips[1].job.model_copy(update={"name": "dies once"})
    batch, failed = made(tmp_path / "ray", clips, Cluster(Size(workers=2), maker=ToyMaker))
    assert failed == 1 and set(batch.errors) == {clips[1].key, clips[2].key}
    assert "the worker died" in batch.errors[clips[1].key][0]
    assert len(batch.errors[clips[2].key]) == 2
    workers = {error.split(":")[0] for error in batch.errors[clips[2].key]}
    assert workers == {"worker 0", "worker 1"}  # tried again on the other one
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 6  # nothing lost, nothing doubled
    assert all(line.endswith(" PASSIVE") for line in log)  # how the workers' threads wait
    made(tmp_path / "alone", clips, Sequential(ToyMaker()))
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
    rows = json.loads((tmp_path / "ray" / "summary.json").read_text())
    assert rows[6]["psnr"] == pytest.approx(46, abs=0.2)
    assert not (tmp_path / "ray" / ".work").exists()


def test_processes_that_share_a_clip_are_joined(tmp_path) -> None:
    clips = [clip_of("a lamp", 1), clip_of("poison"), clip_of("a dog", 2)]
    cluster = Cluster(Size(workers=1, processes=2), maker=ToyMaker)
    batch, failed = made(tmp_path / "two", clips, cluster, retries=0)
    assert failed == 1 and len(batch.errors[clips[1].key]) == 1  # its group was made anew
    made(tmp_path / "one", clips, Sequential(ToyMaker()))
    two, one = content(tmp_path / "two"), content(tmp_path / "one")
    assert two.keys() == one.keys()
    for name in one:  # the toy adds up what its ranks have
        sums = np.frombuffer(two[name], np.float32), 2 * np.frombuffer(one[name], np.float32)
        np.testing.assert_array_equal(*sums)


def test_a_miniatures_clip_on_two_processes_is_that_of_one(tmp_path) -> None:
    """Short clips; where matrix units round bf16 by shape, halves of the tokens differ a little."""
    short = {"prompt": "blue star moving left over red checks", "frame_num": 5, "steps": 4}
    trees = {"tree": "wan", "task": "t2v-mini"}, {"tree": "hunyuan", "task": "HYVideo-mini"}
    jobs = [Job(**tree, **short, plan=plan) for tree in trees for plan in (None, "fast")]
    clips = [Checker().clip(job) for job in jobs]
    batch, failed = made(tmp_path / "two", clips, Cluster(Size(workers=1, processes=2)))
    assert failed == 0, batch.errors
    assert made(tmp_path / "one", clips, Sequential())[1] == 0
    for clip in clips:
        assert clip.is_full or batch.rows[clip.key]["psnr"] > 10
        pair = [tmp_path / n / "clips" / f"{clip.stem}.mp4" for n in ("two", "one")]
        two, one = (iio.imread(path, plugin="FFMPEG").astype(float) for path in pair)
        assert two.shape == one.shape and np.abs(two - one).mean() < 2


SCRIPT = """
import sys
from functools import partial
from profiling_core.commands.batch import attempts, cluster
from profiling_core.commands.main import main
from toy_makers import ToyMaker

attempts.TreeMaker = ToyMaker
cluster.Cluster = partial(cluster.Cluster, maker=ToyMaker)
sys.exit(main(sys.argv[1:]))
"""


def started(folder: Path, prompts: list[str], *options: str, **environment: str):
    """The command with toys for models, in a process of its own whose home folder is `folder`."""
    job = {"tree": "wan", "task": "t2v-mini"}
    jobs = folder / "jobs.jsonl"
    jobs.write_text("\n".join(json.dumps({**job, "prompt": prompt}) for prompt in prompts))
    path = os.pathsep.join([str(ROOT / "tests" / "lib"), str(ROOT)])
    own = {"PYTHONPATH": path, "HOME": str(folder), "TOY_LOG": str(folder / "log")}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "batch", str(jobs), "--out", str(folder / "out"), *options],
        env={**os.environ, **own, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_signal_ends_in_seconds_and_the_next_run_goes_on(tmp_path) -> None:
    """Ray is our own, whatever surrounds the process, and leaves nothing in the home folder."""
    prompts = ["seconds=0 a lamp", "seconds=600 a dog", "seconds=600 a cat"]
    process = started(tmp_path, prompts, "--workers", "2", RAY_ADDRESS="127.0.0.1:1")
    assert process.stderr is not None
    said = ""
    while not said.startswith("clip 1 of 3"):
        said = process.stderr.readline()
        assert said, process.wait()
    before = content(tmp_path / "out")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=LEAVE_SECONDS + 10)
    assert process.returncode == 143
    assert error == "interrupted: 1 of 3 clips are done; go on with the same command\n"
    assert len(before) == 1 and content(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".work").exists() and not (tmp_path / ".ray").exists()
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["state"] for row in rows] == ["done", "not made", "not made"]
    done = started(tmp_path, [prompts[0], "a dog", "a cat"], "--no-ray")
    assert done.communicate()[1] and done.returncode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 3  # the first was not made again


def test_a_cluster_is_joined_with_its_token_alone_and_the_reason_is_said(tmp_path) -> None:
    """A head that was started elsewhere, in another folder."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    home, token = tmp_path / "head", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "7" * 64}
    home.mkdir()
    options = ["--head", f"--port={address[10:]}", "--num-cpus=1", "--include-dashboard=false"]
    options += ["--block", "--disable-usage-stats"]
    path = os.pathsep.join([str(ROOT / "tests" / "lib"), str(ROOT)])
    head = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", *options],
        env={**os.environ, **token, "PYTHONPATH": path, "TOY_LOG": str(tmp_path / "log")},
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while started(tmp_path, ["a lamp"], "--address", address, **token).wait() != 0:
            assert head.poll() is None
        start = time.perf_counter()
        process = started(tmp_path, ["a dog"], "--address", address)
        _, error = process.communicate()
        assert time.perf_counter() - start < 30  # ten seconds on a quiet machine
        assert process.returncode == 2
        assert "does not let us in, its token is missing" in error and "_start" not in error
    finally:
        head.terminate()
        head.wait()


def test_what_the_cluster_lacks_is_said(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for address, said in (
        ("127.0.0.1:1", "nobody answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "nobody answers at ray://127.0.0.1:1"),
        ("auto", "nobody answers at 127.0.0.1:1"),
        ("somewhere", "expected host:port"),
    ):
        with pytest.raises(BatchError, match=said):
            Cluster(Size(), address, maker=ToyMaker)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("profiling_core.commands.batch.cluster.CONNECT_SECONDS", 2.0)
    with pytest.raises(BatchError, match="no cluster was started here"):
        Cluster(Size(), "auto", maker=ToyMaker)
    mute = socket.create_server(("127.0.0.1", 0))
    web = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    for server in (mute, web.socket):
        place = f"127.0.0.1:{server.getsockname()[1]}"
        with server, pytest.raises(BatchError, match="answers, but not as a Ray cluster does"):
            Cluster(Size(), place, maker=ToyMaker)
    web.shutdown()
    monkeypatch.delenv("RAY_TMPDIR")
    with pytest.raises(BatchError, match=r"a worker does not start \(ValueError: invalid literal"):
        Cluster(Size(workers=1), maker=partial(int, "no maker"))
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"tree": "wan", "task": "t2v-mini", "prompt": "red circle"}\n')
    code = main(["batch", str(jobs), "--out", str(tmp_path / "out"), "--gpus-per-clip", "2"])
    error = capsys.readouterr().err
    assert code == 2 and "--gpus-per-clip 2: the cluster has 0 GPUs" in error
