"""examples/vbench.py: jobs from VBench's lists, clips in its layout."""

import importlib.util
import json

import pytest

from profiling_core.commands.batch.jobs import read_jobs
from tree_paths import ROOT


@pytest.fixture(scope="module")
def vbench():
    spec = importlib.util.spec_from_file_location("vbench", ROOT / "examples" / "vbench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_every_prompt_gets_five_seeds_and_every_plan(vbench, tmp_path, kind) -> None:
    prompts = ["a person's face, 'close up'", "a cat: two dogs", "a cat: two dogs"]
    path = tmp_path / f"list.{kind}"
    entries = [{"prompt_en": prompt, "dimension": ["x"]} for prompt in prompts]
    path.write_text(json.dumps(entries) if kind == "json" else "\n".join(prompts) + "\n\n")
    out = tmp_path / "jobs.jsonl"
    given = ["--tree", "wan", "--task", "t2v-mini", "--plans", "full", "balanced"]
    assert vbench.main(["jobs", str(path), "-o", str(out), *given]) == 0
    lines, mistakes = read_jobs(out)
    assert not mistakes and len(lines) == 2 * 2 * 5
    assert {line.job.plan for line in lines} == {None, "balanced"}
    assert [line.job.seed for line in lines[:5]] == [0, 1, 2, 3, 4]


def test_finished_clips_are_laid_out_by_their_prompts(vbench, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    (out / "clips").mkdir(parents=True)
    rows = [
        {"name": "a", "prompt": "a cat: two dogs", "seed": 0, "plan": "full", "state": "done"},
        {"name": "b", "prompt": "a cat: two dogs", "seed": 1, "plan": "full", "state": "failed"},
        {"name": "c", "prompt": "a cat/ two dogs", "seed": 0, "plan": "fast", "state": "done"},
    ]
    for row in rows:
        (out / "clips" / f"{row['name']}.mp4").write_text(row["name"])
    (out / "summary.json").write_text(json.dumps(rows))
    for _ in range(2):  # again does no harm
        assert vbench.main(["layout", str(out)]) == 0
    files = sorted(p.relative_to(tmp_path / "out-vbench") for p in tmp_path.rglob("*-0.mp4"))
    assert list(map(str, files)) == ["fast/a cat two dogs (2)-0.mp4", "full/a cat two dogs-0.mp4"]
    named = json.loads((tmp_path / "out-vbench" / "full.json").read_text())
    assert named == {"a cat two dogs-0.mp4": "a cat: two dogs"}
    assert capsys.readouterr().out.count("vbench evaluate --videos_path") == 4


def test_other_files_are_refused(vbench, tmp_path, capsys) -> None:
    for name, text in (("a.json", "{}"), ("b.json", '[{"prompt": "x"}]'), ("c.txt", "\n")):
        (tmp_path / name).write_text(text)
        arguments = ["jobs", str(tmp_path / name), "-o", str(tmp_path / "o"), "--tree", "wan"]
        assert vbench.main(arguments) == 2
    assert vbench.main(["layout", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("error: ") == 4 and not (tmp_path / "o").exists()
