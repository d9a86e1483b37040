"""python -m profiling_core check: on the miniatures, on damaged copies of them, and its report."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import profiling_core.runtime.memory as memory_module
from profiling_core.commands.check import calls, environment
from profiling_core.commands.check.checkpoint import memory
from profiling_core.commands.check.report import FORMAT, Report
from profiling_core.commands.main import main
from profiling_core.engine import interval
from profiling_core.engine.delta_cache import DeltaCache
from profiling_core.trees.hunyuan import HunyuanModel
from profiling_core.trees.registry import TREES
from profiling_core.trees.tree_model import ModelRequest, TreeModel
from profiling_core.trees.wan import WanModel
from tree_paths import ROOT

STAGES = ["environment", "files", "memory", "model"]
MINIATURES = {
    "wan": ROOT / "Wan2.1/ckpts/Wan2.1-T2V-mini",
    "hunyuan": ROOT / "HunyuanVideo/ckpts/HYVideo-mini",
}
OFFICIAL = "hunyuan-video-t2v-720p"
HUNYUAN_DIT = f"{OFFICIAL}/transformers/mp_rank_00_model_states.pt"
WAN_DIT = "diffusion_pytorch_model.safetensors"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n"


@pytest.fixture(scope="module", autouse=True)
def no_driver() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "DRIVER", Path("absent"))
        yield


def command(tree: str, out: Path, *more: str) -> list[str]:
    """A check of a miniature on a short clip."""
    model = ["--model", TREES[tree].miniature, "--frame-num", "5"]
    return ["check", "--tree", tree, *model, "--out", str(out), *more]


def stages_of(out: Path) -> dict[str, dict]:
    return {stage["stage"]: stage for stage in json.loads(out.read_text())["stages"]}


@pytest.fixture(scope="module", params=list(TREES))
def checked(request, tmp_path_factory) -> tuple[str, Path, str]:
    """A whole check of each miniature: the tree, the report, what was printed."""
    out = tmp_path_factory.mktemp("check") / "report.json"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr(
            "profiling_core.commands.check.report.write_to", lambda _, text: printed.append(text)
        )
        assert main(command(request.param, out)) == 0
    return request.param, out, "".join(printed)


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a check that ends with an error; its one line."""

    def run(*words: str, code: int = 2) -> str:
        capsys.readouterr()
        assert main(list(words)) == code
        lines = [one for one in capsys.readouterr().err.splitlines() if "WARNING" not in one]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.fixture
def linked(tmp_path) -> Callable[[str], Path]:
    """A folder of links to a miniature's files, of which a test replaces some."""

    def copy(tree: str) -> Path:
        return shutil.copytree(MINIATURES[tree], tmp_path / "weights", copy_function=os.symlink)

    return copy


# -- the whole check


def test_a_check_of_a_miniature_goes_through_all_stages_and_all_presets(checked):
    tree, out, printed = checked
    stages = stages_of(out)
    assert list(stages) == STAGES
    assert all(s["outcome"] == "ok" and s["faults"] == [] for s in stages.values())
    plans = stages["model"]["plans"]
    own = {"wan": 5, "hunyuan": 8}[tree]
    assert len(plans) == own and {"paper", "balanced"} <= set(plans)
    for name in ("1. environment", "4. model", *plans):
        assert re.search(rf"^ *{name}\b", printed, flags=re.M), name


def test_clips_are_put_together_from_the_timed_calls(checked):
    tree, out, _ = checked
    paper = stages_of(out)["model"]["plans"]["paper"]
    calls = {"wan": 2, "hunyuan": 1}[tree]
    kinds = paper["kinds"]
    assert min(kinds.values()) > 0
    assert paper["full_clip_seconds"] == pytest.approx(50 * calls * kinds["run"], rel=0.01)
    # the released list: 6 steps of warm-up, 8 that are kept, and those between
    wanted = calls * (6 * kinds["run"] + 8 * kinds["keep"] + 36 * kinds["reuse"])
    assert paper["clip_seconds"] == pytest.approx(wanted, rel=0.01)
    ratio = paper["full_clip_seconds"] / paper["clip_seconds"]
    assert paper["speedup"] == pytest.approx(ratio, rel=0.01)
    assert paper["steps"] == [6, 7] and paper["anchor_bytes"] > 0


def test_computed_calls_have_the_bare_bits_and_reused_ones_nearly(checked):
    _, out, _ = checked
    model = stages_of(out)["model"]
    assert model["compared"] > 10
    assert 0 < model["plans"]["paper"]["largest_error"] < 0.02
    assert model["plans"]["balanced"]["largest_error"] == 0.0  # jumped, or a line through equals


def test_files_are_named_with_sizes_and_stored_types(checked):
    tree, out, _ = checked
    files = stages_of(out)["files"]["parts"]
    dit = files["transformer"][-1]
    folder = MINIATURES[tree]
    name = {"wan": WAN_DIT, "hunyuan": HUNYUAN_DIT}[tree]
    kind = {"wan": "BF16", "hunyuan": "bfloat16"}[tree]
    assert dit["name"] == name and dit["bytes"] == (folder / name).stat().st_size
    assert list(dit["tensors"]) == [kind] and dit["tensors"][kind] > 100
    assert {"text encoder", "VAE"} < set(files)


def test_a_report_names_no_path_user_or_host(checked):
    _, out, _ = checked
    text = out.read_text()
    assert str(ROOT) not in text and str(out.parent) not in text and str(Path.home()) not in text
    assert not re.search(r'[ "\'(]/[\w.]+/', text)
    document = json.loads(text)
    assert document["format"] == FORMAT
    assert {document["settings"].get(name) for name in ("ckpt_dir", "model_base")} >= {"CKPT"}
    assert any("attention on cpu" in line for line in document["log"])


# -- what is wrong


def shaped(path: Path) -> None:
    """One tensor of the file with a row more."""
    plain = path.suffix == ".safetensors"
    state = load_file(path) if plain else torch.load(path, weights_only=True)
    inner = state.get("module", state.get("state_dict", state))
    name = next(name for name, tensor in inner.items() if tensor.ndim > 1)
    inner[name] = torch.cat((inner[name], inner[name][:1]))
    path.unlink()
    save_file(state, path, metadata={"format": "pt"}) if plain else torch.save(state, path)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def pointer(path: Path) -> None:
    path.unlink()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


DAMAGES = {
    "wan cut": ("wan", WAN_DIT, cut, "transformer: .* is not a complete safetensors file"),
    "wan shape": ("wan", WAN_DIT, shaped, "transformer: .* has shape .* the model"),
    "wan pointer": ("wan", T5, pointer, f"{T5} is a git-lfs pointer"),
    "wan t5": ("wan", T5, shaped, "text encoder: .* has shape"),
    "wan vae": ("wan", "Wan2.1_VAE.pth", shaped, "VAE: .* has shape"),
    "dit": ("hunyuan", HUNYUAN_DIT, shaped, "transformer: .* has shape"),
    "dit cut": ("hunyuan", HUNYUAN_DIT, cut, "transformer: .* is not a complete weight file"),
    "vae": ("hunyuan", f"{OFFICIAL}/vae/pytorch_model.pt", shaped, "VAE: .* has shape"),
    "llm": ("hunyuan", "text_encoder/model.safetensors", shaped, "text encoder: .*mismatched"),
    "clip": ("hunyuan", "text_encoder_2/model.safetensors", cut, "second text encoder: .*complete"),
}


@pytest.mark.parametrize(("tree", "file", "damage", "fault"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_and_the_report_has_it(
    linked, refused, tmp_path, tree, file, damage, fault
):
    folder, out = linked(tree), tmp_path / "report.json"
    damage(folder / file)
    line = refused(*command(tree, out, "--ckpt-dir", str(folder)))
    assert re.search(fault, line) and str(folder / file) not in out.read_text()
    stages = stages_of(out)
    assert list(stages) == STAGES[:2] and stages["files"]["outcome"] == "failed"
    assert any(re.search(fault, one) for one in stages["files"]["faults"])
    assert len(stages["files"]["faults"]) == 1, stages["files"]["faults"]


@pytest.mark.parametrize(
    ("tree", "gone", "named"),
    [
        ("wan", ("config.json", T5, "Wan2.1_VAE.pth"), ("config.json", T5, "Wan2.1_VAE.pth")),
        (
            "hunyuan",
            (HUNYUAN_DIT, "text_encoder_2/model.safetensors", f"{OFFICIAL}/vae/pytorch_model.pt"),
            ("mp_rank_00_model_states.pt do not exist", "text_encoder_2/*.safet", "pytorch_model"),
        ),
    ],
)
def test_all_missing_files_are_named_at_once(linked, refused, tmp_path, tree, gone, named):
    folder, out = linked(tree), tmp_path / "report.json"
    for name in gone:
        (folder / name).unlink()
    assert "3 faults found" in refused(*command(tree, out, "--ckpt_dir", str(folder)))
    faults = stages_of(out)["files"]["faults"]
    assert all(name in fault for name, fault in zip(named, faults, strict=True))


@pytest.mark.parametrize(
    ("tree", "folder", "fault", "count"),
    [
        ("wan", "nowhere", " does not exist", 1),
        ("hunyuan", "nowhere", " does not exist: give --ckpt-dir the folder", 1),
        ("wan", str(MINIATURES["hunyuan"]), "config.json is missing", 5),
        ("hunyuan", str(MINIATURES["wan"]), f"has no folder {OFFICIAL}", 1),
    ],
)
def test_a_folder_of_no_or_another_model_is_named(refused, tmp_path, tree, folder, fault, count):
    out = tmp_path / "report.json"
    assert fault in refused(*command(tree, out, "--ckpt-dir", folder))
    faults = stages_of(out)["files"]["faults"]
    assert fault in faults[0] and len(faults) == count


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "t2v-14b"], "invalid choice: 't2v-14b'"),
        (["--plans", "papr"], "did you mean paper"),
        (["--size", "100*100"], "100*100"),
        (["--frame-num", "6"], "frame_num 6 is not 4n+1"),
        (["--tree-options=--delta_cache"], "--tree-options"),
    ],
)
def test_a_wrong_option_ends_before_a_report_is_begun(refused, tmp_path, more, message):
    out = tmp_path / "report.json"
    assert message in refused(*command("wan", out), *more)
    assert not out.exists()


@pytest.mark.parametrize("place", ["folder", "below a file", "someone else's"])
def test_an_out_that_cannot_be_written_ends_before_anything_runs(
    refused, tmp_path, monkeypatch, place
):
    monkeypatch.setattr(WanModel, "__init__", None)
    mine = tmp_path / "mine.json"
    mine.write_text('{"format": 1}')
    out = {"folder": tmp_path, "below a file": mine / "a.json", "someone else's": mine}[place]
    assert f"--out {out}" in refused(*command("wan", out))
    assert mine.read_text() == '{"format": 1}'


def test_a_gpu_that_torch_does_not_see_is_a_fault_unless_it_is_hidden(
    refused, tmp_path, monkeypatch
):
    """As with a driver that is older than torch's CUDA; without a word all would run on the CPU."""
    monkeypatch.setattr(environment, "DRIVER", driver := tmp_path / "version")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver.write_text(DRIVER)
    monkeypatch.setattr(WanModel, "device", torch.device("cpu"))
    line = refused(*command("wan", out := tmp_path / "report.json"))
    assert "sees no GPU, though the driver 550.54.15 is there" in line
    assert list(stages_of(out)) == STAGES[:1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(command("wan", out, "--files-only")) == 0


def test_too_little_memory_is_a_fault_before_weights_are_read(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module, "available_bytes", lambda device: 10**6)
    monkeypatch.setattr(WanModel, "load", None)
    out = tmp_path / "report.json"
    assert "not enough memory on cpu" in refused(*command("wan", out))
    stages = stages_of(out)
    assert list(stages) == STAGES[:3]
    assert stages["memory"]["needed_bytes"]["denoising"]["transformer"] > 10**7
    assert stages["memory"]["settings"]["as given"].startswith("not enough memory")


def test_files_only_loads_no_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(HunyuanModel, "load", None)
    out = tmp_path / "report.json"
    assert main(quiet := command("hunyuan", out, "--files-only", "--quiet")) == 0
    assert capsys.readouterr().out == f"wrote {out}: all is well\n"
    assert list(stages_of(out)) == STAGES[:3]
    assert main(quiet) == 0  # replaces its own


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    return fail


def test_a_card_that_runs_out_of_memory_is_a_fault_with_the_way_out(refused, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    monkeypatch.setattr(HunyuanModel, "load", failing(torch.OutOfMemoryError("tried to allocate")))
    assert "take a smaller clip" in refused(*command("hunyuan", out))
    assert stages_of(out)["model"]["outcome"] == "failed"


def test_an_unforeseen_error_is_in_the_report_with_its_place(refused, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    error = RuntimeError("CUDA error: no kernel image in /home/ann/lib.so")
    monkeypatch.setattr(HunyuanModel, "load", failing(error))
    assert "RuntimeError: CUDA error" in refused(*command("hunyuan", out))
    found = stages_of(out)["model"]
    assert found["faults"] == ["RuntimeError: CUDA error: no kernel image in .../lib.so"]
    assert "in fail" in "".join(found["traceback"]) and "/home" not in out.read_text()


def test_an_interrupt_leaves_the_report_so_far(capsys, tmp_path, monkeypatch):
    out = tmp_path / "report.json"
    monkeypatch.setattr(calls, "one_plan", failing(KeyboardInterrupt()))
    assert main(command("hunyuan", out)) == 130
    assert f"wrote {out}, as far as the check came" in capsys.readouterr().out
    stages = stages_of(out)
    assert [stage["outcome"] for stage in stages.values()] == ["ok", "ok", "ok", "interrupted"]
    assert stages["model"]["loop_seconds"] > 0


def test_a_stage_is_in_the_report_while_it_runs(tmp_path):
    report = Report(tmp_path / "report.json", {}, {}, quiet=True)
    with report.stage("model") as found:
        assert stages_of(report.path)["model"]["outcome"] == "running"
        found["fact"] = 1
        report.note("so far")
        assert stages_of(report.path)["model"]["fact"] == 1


# -- what the calls give


def with_paper(out: Path) -> list[str]:
    return command("hunyuan", out, "--plans", "paper")


def test_a_delta_that_is_added_twice_is_found(refused, tmp_path, monkeypatch):
    plain = interval.forecast_delta

    def twice(label, hidden, needed, index):
        return plain(label, plain(label, hidden, needed, index), needed, index)

    monkeypatch.setattr(interval, "forecast_delta", twice)
    out = tmp_path / "report.json"
    assert "though nothing changed" in refused(*with_paper(out))
    faults = stages_of(out)["model"]["faults"]
    assert all("plan paper, step 7, cond (reuse)" in fault for fault in faults)


def test_a_reuse_step_that_computes_is_found(refused, tmp_path, monkeypatch):
    begin = DeltaCache.begin
    monkeypatch.setattr(DeltaCache, "begin", lambda self, step, branch: begin(self, 6, branch))
    assert "blocks ran, the plan has" in refused(*with_paper(tmp_path / "report.json"))


def test_a_model_that_a_plan_leaves_changed_is_found(refused, tmp_path, monkeypatch):
    detach = DeltaCache.detach

    def changing(self):
        model = self._model
        detach(self)
        if model is not None and self.plan.steps == 50:
            model.final_layer.linear.bias.data += 0.5

    monkeypatch.setattr(DeltaCache, "detach", changing)
    line = refused(*with_paper(tmp_path / "report.json"))
    assert "a full call after plan paper was detached, cond: other bits" in line


def test_results_that_are_not_finite_are_found(refused, tmp_path, monkeypatch):
    decode = HunyuanModel.decode
    monkeypatch.setattr(HunyuanModel, "decode", lambda self, x: decode(self, x) / 0.0)
    assert "decoded frames" in refused(*with_paper(tmp_path / "report.json"))


# -- what only a GPU has, with stand-ins


def test_the_peak_of_denoising_is_named_beside_the_estimate(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calls, "peak_of", lambda device: 3 * 2**30)
    assert main(with_paper(tmp_path / "report.json")) == 0
    assert re.search(r"denoising took 3 GiB of the GPU, [\d.]+ MiB est", capsys.readouterr().out)


@pytest.fixture
def on_a_card(monkeypatch) -> Callable[..., TreeModel]:
    """A miniature on a card of so many free bytes."""

    def model(tree: type[TreeModel], free: int, *options: str) -> TreeModel:
        properties = SimpleNamespace(major=9, minor=0, total_memory=2 * free)
        for name, value in {
            "mem_get_info": (free, 2 * free),
            "get_device_properties": properties,
            "get_device_name": "NVIDIA H200",
            "device_count": 1,
            "max_memory_allocated": 7,
            "reset_peak_memory_stats": None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
        monkeypatch.setattr(tree, "device", torch.device("cuda"))
        monkeypatch.setattr(tree, "attention_kernel", lambda self: "torch SDPA, cuDNN first")
        return tree(ModelRequest(model=tree.miniature, tree_options=options), "a red circle")

    return model


def test_memory_names_the_settings_that_fit_the_card(on_a_card):
    # 94.4 MB while decoding, of which the text encoder has 1.9 and the transformer in fp32 21.1
    model = on_a_card(WanModel, 93_000_000, "--offload_model=false")
    found = {"faults": []}
    lines = memory(model, found)
    assert found["settings"]["as given"].startswith("not enough memory on cuda")
    assert found["settings"]["--t5_cpu"] == "fits"
    assert found["settings"]["--convert_model_dtype"] == "fits"
    assert "--t5_cpu: fits" in lines and "as given: does not fit" in lines
    assert len(found["faults"]) == 1


def test_environment_names_the_card_its_memory_and_its_kernel(on_a_card, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "DRIVER", driver := tmp_path / "version")
    driver.write_text(DRIVER)
    found = {}
    lines = environment.environment(on_a_card(HunyuanModel, 10**9), found)
    facts = {"driver": "550.54.15", "device": "NVIDIA H200", "capability": "9.0"}
    assert {name: found[name] for name in facts} == facts
    assert found["free_bytes"]["cuda"] == 10**9 and found["device_bytes"] == 2 * 10**9
    assert lines[-1] == "attention in bf16: torch SDPA, cuDNN first"
    assert calls.peak_of(torch.device("cuda")) == 7 and calls.peak_of(torch.device("cpu")) is None
