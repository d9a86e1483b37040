"""The HunyuanVideo miniature's text encoders: what is in which row, and what is cut off."""

import pytest
import torch

from hyvideo.config import TEMPLATES
from miniatures.hunyuan import text

PROMPT = "red circle moving right over blue stripes"
VIDEO = TEMPLATES["dit-llm-encode-video"]


@pytest.fixture(scope="module")
def tokenizer():
    return text.build_llama_tokenizer(tuple(t.text for t in TEMPLATES.values()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_heads_are_as_long_as_with_the_official_tokenizer(tokenizer, name) -> None:
    assert len(tokenizer(TEMPLATES[name].head).input_ids) == TEMPLATES[name].crop_start


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=list(TEMPLATES))
def test_every_word_of_templates_and_prompts_is_known(tokenizer, template) -> None:
    words = " ".join(text.prompt_words())
    assert tokenizer.unk_token_id not in tokenizer(template.fill(words)).input_ids


def test_articles_marks_and_case_of_a_prompt_do_not_count(tokenizer) -> None:
    written = "A red circle, moving right over the blue Stripes!"
    assert tokenizer(VIDEO.fill(written)).input_ids == tokenizer(VIDEO.fill(PROMPT)).input_ids


@torch.no_grad()
def test_each_head_looks_its_own_number_of_words_back(tokenizer) -> None:
    model = text.build_llama(0, tokenizer).float()
    model.set_attn_implementation("eager")
    tokens = tokenizer(VIDEO.fill(PROMPT), return_tensors="pt")
    weights = model(**tokens, output_attentions=True).attentions[0][0]  # (heads, L, L)
    rows = torch.arange(10, weights.shape[1])
    for head in range(text.HEADS):
        assert weights[head, rows, rows - head - 1].min() > 0.999


@torch.no_grad()
def test_a_noun_row_depends_on_the_adjective_before_it_alone(tokenizer) -> None:
    model = text.build_llama(0, tokenizer).float()

    def noun(prompt: str) -> torch.Tensor:
        tokens = tokenizer(VIDEO.fill(prompt), return_tensors="pt")
        # as the transformer gets it: the third state from the end; row of the shape's noun
        return model(**tokens, output_hidden_states=True).hidden_states[-3][0, VIDEO.crop_start + 1]

    red, blue = noun(PROMPT), noun(PROMPT.replace("red", "green"))
    other = noun(PROMPT.replace("blue stripes", "white noise"))
    assert (red - blue).norm() > 0.2 * red.norm()
    assert torch.allclose(red, other, atol=1e-5)


@torch.no_grad()
def test_pooled_vectors_tell_prompts_apart() -> None:
    tokenizer = text.build_clip_tokenizer()
    model = text.build_clip(0, tokenizer).float()
    prompts = [PROMPT, "green star bouncing over white noise", ""]
    tokens = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")
    pooled = model(**tokens).pooler_output
    assert torch.pdist(pooled).min() > 0.2 * pooled.norm(dim=1).max()
