"""`--use_prompt_extend`: a local language model extends the prompt; mistakes are one line."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM

import generate
from profiling_core.errors import InputError
from profiling_core.runtime import memory
from profiling_core.runtime.terminal import printable
from tree_cases import TreeCase, official_setting, wan_case
from wan import prompt_extend, text2video
from wan.prompt_extend import SYSTEM_PROMPTS, extend
from wan_toys import write_language_model

PROMPT, SEED = "a red circle", 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model that no test may change."""
    return write_language_model(tmp_path_factory.mktemp("Qwen2-tiny"))


@pytest.fixture
def tree(checkpoint: Path) -> Any:
    with official_setting():
        yield wan_case(checkpoint)


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_extend, "NEW_TOKENS", 24)


def transformers_answer(folder: Path, language: str, seed: int) -> tuple[str, str]:
    """The conversation as the template writes it, and what transformers itself answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = (
        f"<|im_start|>system\n{SYSTEM_PROMPTS[language]}<|im_end|>\n"
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(chat, return_tensors="pt").input_ids
    torch.manual_seed(seed)
    every = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24)
    return chat, tokenizer.decode(every[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("language", SYSTEM_PROMPTS)
def test_the_model_gets_the_rules_of_the_language_and_the_prompt(
    qwen: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    asked, answer = [], Qwen2ForCausalLM.generate

    def noting(self: Any, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        asked.append(AutoTokenizer.from_pretrained(qwen).decode(input_ids[0]))
        return answer(self, input_ids, **kwargs)

    chat, expected = transformers_answer(qwen, language, SEED)
    monkeypatch.setattr(Qwen2ForCausalLM, "generate", noting)
    assert extend(PROMPT, qwen, language, SEED, CPU) == expected
    assert asked == [chat]


def test_the_seed_decides_and_the_generator_of_the_run_stays(qwen: Path) -> None:
    before = torch.random.get_rng_state()
    texts = [extend(PROMPT, qwen, "en", seed, CPU) for seed in (SEED, SEED, generate.LARGEST_SEED)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_samples_with_the_extended_prompt_and_the_model_is_gone_before(
    tree: TreeCase,
    qwen: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    prompts, models = [], []
    load, encode, sample = (
        AutoModelForCausalLM.from_pretrained,
        text2video.TextEncoder.__init__,
        text2video.WanT2V.generate,
    )

    def loading(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        models.append(weakref.ref(loaded[0]))
        return loaded

    def encoder(self: Any, *args: Any, **kwargs: Any) -> None:
        assert [model() for model in models] == [None], "the language model is still there"
        encode(self, *args, **kwargs)

    def sampling(self: Any, prompt: str, *args: Any, **kwargs: Any) -> Any:
        prompts.append(prompt)
        return sample(self, prompt, *args, **kwargs)

    _, expected = transformers_answer(qwen, "zh", SEED)
    capsys.readouterr()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loading)
    monkeypatch.setattr(text2video.TextEncoder, "__init__", encoder)
    monkeypatch.setattr(text2video.WanT2V, "generate", sampling)
    gc.disable()  # what is freed is freed by the run
    try:
        options = ("--use_prompt_extend", "--prompt_extend_model", str(qwen))
        target = tmp_path / "clip.mp4"
        argv = tree.argv(prompt=PROMPT, seed=SEED, target=target, frames=5)
        assert generate.main([*argv, *options]) == 0
    finally:
        gc.enable()
    assert target.stat().st_size and prompts == [expected]
    out, err = capsys.readouterr()
    assert f"prompt: {PROMPT}\n" in out and f"extended prompt: {printable(expected)}\n" in out
    assert not [line for line in err.splitlines() if line and "step/s" not in line]


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def cut(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
UNFIT = {  # found before torch is needed
    "does not exist, and nothing is fetched here: download Qwen/Qwen2.5-14B": shutil.rmtree,
    "has no config.json: download": lambda f: without(f, "config.json"),
    "config.json": lambda f: cut(f, "config.json"),
    "has no weight file (model*.safetensors or": lambda f: without(f, "model.safetensors"),
    "git-lfs": lambda f: (f / "model.safetensors").write_text(POINTER),
    "is a vision model (qwen2_5_vl), and prompts are extended from text alone": lambda f: config(
        f, model_type="qwen2_5_vl"
    ),
    "is a vision model (gemma3)": lambda f: config(f, model_type="gemma3", vision_config={}),
}
DAMAGED = {  # found by loading it
    "cannot be used (SafetensorError": lambda f: cut(f, "model.safetensors"),
    "1 tensors are missing, the first is model.norm.weight: download it again": lambda f: weights(
        f, lambda state: state.pop("model.norm.weight")
    ),
    "cannot be used (RuntimeError: probability tensor contains": lambda f: weights(
        f, lambda state: state["model.norm.weight"].fill_(torch.nan)
    ),
    "has no chat template: take a model with Instruct in its name": lambda f: without(
        f, "chat_template.jinja"
    ),
    "cannot be used (": lambda f: cut(f, "tokenizer.json"),
    "cannot be used (ValueError": lambda f: config(f, model_type="qwen9"),
    "hidden_size": lambda f: config(f, hidden_size="wide"),
}


@pytest.mark.parametrize("says", [*UNFIT, *DAMAGED])
def test_an_unfit_folder_is_one_line_before_the_video_model_loads(
    tree: TreeCase,
    outcome: Callable[..., str],
    nothing_loads: None,
    qwen: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
) -> None:
    folder = shutil.copytree(qwen, tmp_path / "qwen")
    (UNFIT | DAMAGED)[says](folder)
    if says in UNFIT:
        monkeypatch.setattr(generate, "run", None)
    line = outcome(*tree.argv(), "--use_prompt_extend", "--prompt_extend_model", str(folder))
    assert str(folder) in line and says in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("", "--use_prompt_extend needs a folder in --prompt_extend_model: download Qwen/Qwen2.5"),
        ("--prompt_extend_model Qwen2.5_14B", "Qwen2.5_14B does not exist, and nothing is fetched"),
        ("--prompt_extend_model /etc/passwd", "--prompt_extend_model /etc/passwd is no folder"),
        ("--prompt_extend_method dashscope", "dashscope would send the prompt to a remote service"),
        ("--prompt_extend_target_lang fr", "argument --prompt_extend_target_lang: invalid choice"),
    ],
)
def test_a_wrong_option_of_the_extension_is_one_line(
    tree: TreeCase, outcome: Callable[..., str], nothing_loads: None, options: str, says: str
) -> None:
    assert says in outcome(*tree.argv(), "--use_prompt_extend", *options.split())


def test_without_transformers_the_line_says_what_to_install(
    tree: TreeCase, outcome: Callable[..., str], monkeypatch: pytest.MonkeyPatch, qwen: Path
) -> None:
    monkeypatch.setattr(prompt_extend, "find_spec", lambda name: None)
    options = ("--use_prompt_extend", "--prompt_extend_model", str(qwen))
    assert "needs transformers: pip install -r" in outcome(*tree.argv(), *options)


def test_memory_that_does_not_suffice_and_an_empty_answer_are_one_line(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB")

    with monkeypatch.context() as patch:
        patch.setattr(memory, "available_bytes", lambda device: 10)
        with pytest.raises(InputError, match=r"on cpu, 0\.0 GB are free: take a smaller model"):
            extend(PROMPT, qwen, "en", SEED, CPU)
        patch.setattr(memory, "available_bytes", lambda device: None)
        patch.setattr(Qwen2ForCausalLM, "generate", full)
        with pytest.raises(InputError, match="not enough memory on cpu for --prompt_extend_model"):
            extend(PROMPT, qwen, "en", SEED, CPU)
    monkeypatch.setattr(prompt_extend, "_answer", lambda *args: "")
    with pytest.raises(InputError, match="answered with an empty prompt: take another --base_seed"):
        extend(PROMPT, qwen, "en", SEED, CPU)
