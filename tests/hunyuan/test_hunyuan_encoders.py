"""The text encoders from folders in the official layout, against transformers directly."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loguru import logger
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, LlamaForCausalLM

from hunyuan_toys import tiny_clip, tiny_config, tiny_llm, write_tokenizer
from hyvideo.config import CONFIGS, TEMPLATES
from hyvideo.text_encoder import LanguageModel, PooledClip, encoder_bytes
from profiling_core.errors import InputError

PROMPT = "a red circle moving left over blue stripes"  # 8 words
FP32 = {"text_encoder_precision": "fp32", "text_encoder_precision_2": "fp32"}


def language_model(folder: Path, **changes: Any) -> LanguageModel:
    return LanguageModel(folder, tiny_config(**{**FP32, **changes}), "cpu")


@pytest.fixture(scope="module")
def encoder(hunyuan_checkpoint: Path) -> LanguageModel:
    return language_model(hunyuan_checkpoint / "text_encoder")


@pytest.fixture(scope="module")
def clip(hunyuan_checkpoint: Path) -> PooledClip:
    return PooledClip(hunyuan_checkpoint / "text_encoder_2", tiny_config(**FP32), "cpu")


def all_states(folder: Path, template: str, length: int) -> tuple[Any, torch.Tensor]:
    """transformers' own states of the prompt in its template, padded to `length`."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    text = TEMPLATES[template].text.format(PROMPT)
    tokens = tokenizer(
        text, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        out = tiny_llm()(
            tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        )
    return out.hidden_states, tokens.attention_mask


def test_templates_have_the_official_lengths() -> None:
    assert len(TEMPLATES["dit-llm-encode-video"].text) == 512
    assert {name: t.crop_start for name, t in TEMPLATES.items()} == {
        "dit-llm-encode": 36,
        "dit-llm-encode-video": 95,
    }
    for template in TEMPLATES.values():
        assert template.text == template.head + "{}<|eot_id|>"
        assert template.fill("{a} {}") == template.head + "{a} {}<|eot_id|>"


def test_states_equal_transformers_third_last_layer_cropped(
    encoder: LanguageModel, hunyuan_checkpoint: Path
) -> None:
    folder = hunyuan_checkpoint / "text_encoder"
    states, mask = encoder(PROMPT, 5)
    hidden, full_mask = all_states(folder, "dit-llm-encode-video", 12 + 95)
    assert states.shape == (1, 12, 32) and mask.shape == (1, 12)
    assert torch.equal(states, hidden[-3][:, 95:])
    assert torch.equal(mask, full_mask[:, 95:])
    assert mask.tolist() == [[1] * 9 + [0] * 3]  # 8 words and the template's end


def test_one_frame_gets_the_image_template_at_the_video_templates_length(
    encoder: LanguageModel, hunyuan_checkpoint: Path
) -> None:
    """Officially the padded length is always the video template's: 71 of 107, 315 of 351."""
    folder = hunyuan_checkpoint / "text_encoder"
    states, mask = encoder(PROMPT, 1)
    hidden, _ = all_states(folder, "dit-llm-encode", 12 + 95)
    assert states.shape == (1, 12 + 95 - 36, 32)
    assert torch.equal(states, hidden[-3][:, 36:])
    assert int(mask.sum()) == 9
    official = CONFIGS["HYVideo-T/2-cfgdistill"]
    assert (official.text_tokens(1), official.text_tokens(129)) == (315, 256)


def test_the_length_follows_another_video_template(hunyuan_checkpoint: Path) -> None:
    folder = hunyuan_checkpoint / "text_encoder"
    changed = language_model(folder, prompt_template_video="dit-llm-encode")
    states, _ = changed(PROMPT, 5)
    hidden, _ = all_states(folder, "dit-llm-encode", 12 + 36)
    assert torch.equal(states, hidden[-3][:, 36:])


@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_skip_layer_counts_from_the_end(hunyuan_checkpoint: Path, skip: int) -> None:
    folder = hunyuan_checkpoint / "text_encoder"
    hidden, _ = all_states(folder, "dit-llm-encode-video", 12 + 95)
    found, _ = language_model(folder, hidden_state_skip_layer=skip)(PROMPT, 5)
    assert torch.equal(found, hidden[-(skip + 1)][:, 95:])


def test_final_norm_is_applied_to_earlier_states_alone(hunyuan_checkpoint: Path) -> None:
    folder = hunyuan_checkpoint / "text_encoder"
    hidden, _ = all_states(folder, "dit-llm-encode-video", 12 + 95)
    with torch.no_grad():
        normed = tiny_llm().norm(hidden[-3])
    found, _ = language_model(folder, apply_final_norm=True)(PROMPT, 5)
    assert torch.equal(found, normed[:, 95:])
    last, _ = language_model(folder, apply_final_norm=True, hidden_state_skip_layer=0)(PROMPT, 5)
    assert torch.equal(last, hidden[-1][:, 95:])


def test_long_prompts_are_cut(encoder: LanguageModel, clip: PooledClip) -> None:
    states, mask = encoder("red " * 500, 5)
    assert states.shape == (1, 12, 32) and int(mask.sum()) == 12
    assert clip("red " * 500).shape == (1, 24)


def test_braces_in_a_prompt_are_text(encoder: LanguageModel) -> None:
    assert encoder("{} {0} {x} red", 5)[0].isfinite().all()


def test_clip_gives_transformers_pooled_vector(clip: PooledClip, hunyuan_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(hunyuan_checkpoint / "text_encoder_2")
    tokens = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        pooled = tiny_clip()(tokens.input_ids).pooler_output  # without a mask, as diffusers
    assert pooled.shape == (1, 24)
    torch.testing.assert_close(clip(PROMPT), pooled, atol=1e-6, rtol=0)
    assert not torch.allclose(clip("a green square"), pooled, atol=1e-2)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_results_have_the_precision_of_the_encoder(
    hunyuan_checkpoint: Path, precision: str, dtype: torch.dtype
) -> None:
    """On the CPU: computed in fp32 with rounded weights, and rounded at the end."""
    config = tiny_config(text_encoder_precision=precision, text_encoder_precision_2=precision)
    encoder = LanguageModel(hunyuan_checkpoint / "text_encoder", config, "cpu")
    pooled = PooledClip(hunyuan_checkpoint / "text_encoder_2", config, "cpu")
    for part, reference in ((encoder, tiny_llm()), (pooled, tiny_clip())):
        weights = dict(reference.named_parameters())
        for name, weight in part.model.named_parameters():
            assert torch.equal(weight, weights[name].to(dtype).float()), name
    assert encoder(PROMPT, 5)[0].dtype == pooled(PROMPT).dtype == dtype


def test_a_folder_saved_with_its_language_head_loads(
    new_hunyuan_checkpoint: Path, encoder: LanguageModel, capsys: pytest.CaptureFixture
) -> None:
    folder = new_hunyuan_checkpoint / "text_encoder"
    whole = LlamaForCausalLM(tiny_llm().config)
    whole.model.load_state_dict(tiny_llm().state_dict())
    whole.save_pretrained(folder)
    capsys.readouterr()
    assert torch.equal(language_model(folder)(PROMPT, 5)[0], encoder(PROMPT, 5)[0])
    assert not capsys.readouterr().err


def test_a_whole_clip_repository_loads(new_hunyuan_checkpoint: Path, clip: PooledClip) -> None:
    """The official folder holds both halves of CLIP; the text half is taken."""
    folder = new_hunyuan_checkpoint / "text_encoder_2"
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    both = CLIPModel(CLIPConfig(text_config=tiny_clip().config.to_dict(), vision_config=vision))
    both.text_model.load_state_dict(
        {name.removeprefix("text_model."): t for name, t in tiny_clip().state_dict().items()}
    )
    both.save_pretrained(folder)
    loaded = PooledClip(folder, tiny_config(**FP32), "cpu")
    assert torch.equal(loaded(PROMPT), clip(PROMPT))
    assert encoder_bytes(folder, torch.float16) == 2 * sum(
        p.numel() for p in tiny_clip().parameters()
    )


def test_encoder_bytes_count_the_weights(hunyuan_checkpoint: Path) -> None:
    for name, model in (("text_encoder", tiny_llm()), ("text_encoder_2", tiny_clip())):
        numbers = sum(p.numel() for p in model.parameters())
        assert encoder_bytes(hunyuan_checkpoint / name, torch.float16) == 2 * numbers
        assert encoder_bytes(hunyuan_checkpoint / name, torch.float32) == 4 * numbers


def test_a_tokenizer_whose_head_is_not_cropped_right_is_told(
    new_hunyuan_checkpoint: Path, encoder: LanguageModel
) -> None:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.record["message"]), level="WARNING")
    folder = new_hunyuan_checkpoint / "text_encoder"
    language_model(folder)
    assert not lines
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["post_processor"] = None  # no beginning
    file.write_text(json.dumps(document))
    language_model(folder)
    logger.remove(sink)
    assert len(lines) == 2
    assert "dit-llm-encode has 35 tokens, 36 are cut off" in lines[0]
    assert "dit-llm-encode-video has 94 tokens, 95 are cut off" in lines[1]


def test_missing_and_misshapen_weights_are_named(new_hunyuan_checkpoint: Path) -> None:
    folder = new_hunyuan_checkpoint / "text_encoder"
    file = folder / "model.safetensors"
    state = load_file(file)
    lost = {k: v for k, v in state.items() if k != "norm.weight"}
    save_file(lost, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing, the first is norm\.weight: it"):
        language_model(folder)
    save_file({**state, "norm.weight": torch.ones(7)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"text_encoder: ") as error:
        language_model(folder)
    assert "\n" not in str(error.value)
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete saf") as error:
        language_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", "{}", "the tokenizer cannot be used"),
        ("tokenizer_config.json", "{}", "tokenizer"),
        ("config.json", "{}", "the configuration cannot be used"),
        ("config.json", '{"model_type": "resnet"}', "holds a 'resnet' model, no"),
    ],
)
def test_unusable_folders_are_named(
    new_hunyuan_checkpoint: Path, name: str, file: str, content: str, says: str
) -> None:
    folder = new_hunyuan_checkpoint / name
    (folder / file).write_text(content)
    kind = LanguageModel if name == "text_encoder" else PooledClip
    with pytest.raises(InputError, match=rf"folder {folder}.*({says})") as error:
        kind(folder, tiny_config(**FP32), "cpu")
    assert "\n" not in str(error.value)


def test_code_in_a_folder_is_not_run(new_hunyuan_checkpoint: Path, tmp_path: Path) -> None:
    folder = new_hunyuan_checkpoint / "text_encoder"
    mark = tmp_path / "run"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the configuration cannot be used"):
        language_model(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_state_skip_layer": 5}, "skip-layer 5: the text encoder has 4 layers"),
        ({"hidden_state_skip_layer": -1}, "hidden-state-skip-layer -1: .*take 0 to 4"),
        ({"text_len": 200}, "295 tokens with template and padding are more than its 256 positions"),
    ],
)
def test_impossible_settings_are_told(hunyuan_checkpoint: Path, changes: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        language_model(hunyuan_checkpoint / "text_encoder", **changes)


def test_a_tokenizer_of_another_model_is_told(new_hunyuan_checkpoint: Path) -> None:
    folder = new_hunyuan_checkpoint / "text_encoder"
    write_tokenizer(folder)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["vocab"] |= {f"word{i}": 300 + i for i in range(300)}
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"its tokenizer has \d+ tokens, its model 256"):
        language_model(folder)
