"""What both miniatures' word-level tokenizers share."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from miniatures import clips

PAD, UNKNOWN = "<pad>", "<unk>"


def prompt_words() -> list[str]:
    words = " ".join((*clips.COLOURS, *clips.SHAPES, *clips.MOTIONS, *clips.BACKGROUNDS))
    return list(dict.fromkeys([*words.split(), "over", "and"]))


def prompt_tokenizer(special: list[str], kept: str, around: str) -> Tokenizer:
    """Lower-case words of prompts; what is outside a-z and `kept` parts them, articles are dropped.

    special: tokens before the words; around: a template of them and of $A.
    """
    words = {word: i for i, word in enumerate([*special, *prompt_words()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(f"[^a-z{kept}]+"), " "),
            normalizers.Replace(Regex(r"\b(a|an|the)\b"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    used = [(token, words[token]) for token in special if token in around.split()]
    tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=used)
    return tokenizer
