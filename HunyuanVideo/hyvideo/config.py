"""What belongs to a model and to a run of it: sizes, defaults, precision, templates; no torch."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from profiling_core.errors import InputError

TREE = Path(__file__).resolve().parents[1]  # the folder of sample_video.py
PRECISIONS = ("fp32", "fp16", "bf16")
LATENT_FRAMES = 1024
LARGEST_SIDE = 16384  # pixels; far past what fits any memory, small enough to be counted

# Part of the model: the text that it is guided away from where --cfg-scale asks for that.
NEGATIVE_PROMPT = (
    "Aerial view, aerial view, overexposed, low quality, deformation, a poor composition, "
    "bad hands, bad teeth, bad eyes, bad limbs, distortion"
)


@dataclass(frozen=True)
class Template:
    """What surrounds a prompt for the language model, and how many of its tokens are cut off."""

    text: str
    crop_start: int

    @property
    def head(self) -> str:
        """The part before the prompt: crop_start tokens of the official tokenizer."""
        return self.text.partition("{}")[0]

    @property
    def tail(self) -> str:
        """The part behind the prompt."""
        return self.text.partition("{}")[2]

    def fill(self, prompt: str) -> str:
        return self.text.replace("{}", prompt)


def _template(system: str, crop_start: int) -> Template:
    text = (
        f"<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    )
    return Template(text, crop_start)


# Part of the model: its language model saw every prompt in one of these.
TEMPLATES = {
    "dit-llm-encode": _template(
        "Describe the image by detailing the color, shape, size, texture, quantity, text, "
        "spatial relationships of the objects and background:",
        crop_start=36,
    ),
    "dit-llm-encode-video": _template(
        "Describe the video by detailing the following aspects: "
        "1. The main content and theme of the video."
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the "
        "objects."
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
        "objects."
        "4. background environment, light, style and atmosphere."
        "5. camera angles, movements, and transitions used in the video:",
        crop_start=95,
    ),
}


@dataclass(frozen=True)
class HunyuanConfig:
    """One model: the transformer's arguments, what a run takes by default, how parts are loaded."""

    model: str
    plan_model: str  # whose cache plans fit
    transformer: dict[str, Any]  # arguments of HYVideoDiffusionTransformer
    model_base: Path = Path("ckpts")
    video_size: tuple[int, int] = (720, 1280)  # height, width
    video_length: int = 129
    infer_steps: int = 50
    flow_shift: float = 7.0
    embedded_cfg_scale: float = 6.0
    text_len: int = 256
    text_len_2: int = 77
    rope_theta: int = 256
    precision: str = "bf16"
    vae_precision: str = "fp16"
    text_encoder_precision: str = "fp16"
    text_encoder_precision_2: str = "fp16"
    prompt_template: str = "dit-llm-encode"
    prompt_template_video: str = "dit-llm-encode-video"
    hidden_state_skip_layer: int = 2
    apply_final_norm: bool = False
    load_key: str = "module"
    use_fp8: bool = False
    disable_autocast: bool = False
    sample_fps: int = 24
    latent_channels: int = 16
    vae_stride: tuple[int, int, int] = (4, 8, 8)  # frames, rows, columns
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        check_video_length(self.video_length, self.vae_stride[0])

    @property
    def text_states_dim(self) -> int:
        return self.transformer["text_states_dim"]

    @property
    def text_states_dim_2(self) -> int:
        return self.transformer["text_states_dim_2"]

    def latent_shape(self, size: tuple[int, int], length: int) -> tuple[int, int, int, int]:
        """(channels, frames, rows, columns) of the latent of a clip of (height, width) pixels."""
        frames, rows, columns = self.vae_stride
        latent_frames = (length - 1) // frames + 1
        return self.latent_channels, latent_frames, size[0] // rows, size[1] // columns

    def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Image tokens along frames, rows and columns of a latent (..., frames, rows, columns)."""
        frames, rows, columns = (
            size // patch for size, patch in zip(latent_shape[-3:], self.patch_size, strict=True)
        )
        return frames, rows, columns

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Number of image tokens of one clip."""
        return prod(self.grid(latent_shape))

    def template(self, length: int) -> Template:
        """One frame is described as an image, more as a video."""
        return TEMPLATES[self.prompt_template if length == 1 else self.prompt_template_video]

    def text_tokens(self, length: int) -> int:
        """Text tokens of a prompt with its padding.

        Officially the padded length always follows the video template, so that a single frame,
        whose template is shorter, has more of them.
        """
        padded = self.text_len + TEMPLATES[self.prompt_template_video].crop_start
        return padded - self.template(length).crop_start


def round_size(size: tuple[int, int], multiple: int = 16) -> tuple[int, int]:
    """(height, width), each rounded up to what latents and patches divide."""
    for side in size:
        if side < 1:
            raise InputError(f"video-size {size[0]} {size[1]}: both have to be positive")
        if side > LARGEST_SIDE:
            raise InputError(
                f"video-size {size[0]} {size[1]} is too large: take at most {LARGEST_SIDE}"
            )
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def check_video_length(length: int, stride: int = 4) -> None:
    """A clip has stride * n + 1 frames; InputError names the two nearest valid numbers."""
    most = stride * (LATENT_FRAMES - 1) + 1
    if length > most:
        raise InputError(f"video-length {length} is too large: take at most {most}")
    if length >= 1 and length % stride == 1:
        return
    below = max(0, (length - 1) // stride) * stride + 1
    nearest = f"{below} or {below + stride}" if length > 1 else "1"
    raise InputError(f"video-length {length} is not {stride}n+1: take {nearest}")


OFFICIAL_TRANSFORMER = {
    "hidden_size": 3072,
    "heads_num": 24,
    "mm_double_blocks_depth": 20,
    "mm_single_blocks_depth": 40,
    "rope_dim_list": (16, 56, 56),
    "text_states_dim": 4096,
    "text_states_dim_2": 768,
}

CONFIGS = {
    config.model: config
    for config in (
        HunyuanConfig(
            "HYVideo-T/2",
            "hunyuan-video-t2v-720p",
            {**OFFICIAL_TRANSFORMER, "guidance_embed": False},
        ),
        HunyuanConfig(
            "HYVideo-T/2-cfgdistill",
            "hunyuan-video-t2v-720p",
            {**OFFICIAL_TRANSFORMER, "guidance_embed": True},
        ),
        # bundled; its small text encoders know the words of their own grammar
        HunyuanConfig(
            "HYVideo-mini",
            "hunyuan-video-t2v-mini",
            {
                "hidden_size": 128,
                "heads_num": 2,
                "mm_double_blocks_depth": 4,
                "mm_single_blocks_depth": 10,
                "rope_dim_list": (16, 24, 24),
                "text_states_dim": 256,
                "text_states_dim_2": 64,
                "guidance_embed": True,
            },
            model_base=TREE / "ckpts" / "HYVideo-mini",
            video_size=(128, 128),
            video_length=33,
            text_len=32,
        ),
    )
}
DEFAULT_MODEL = "HYVideo-T/2-cfgdistill"
