"""What belongs to a task and not to its checkpoint: sizes, defaults, file names."""

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from profiling_core.errors import InputError

TREE = Path(__file__).resolve().parents[1]  # the folder of generate.py
SMALL_SIZES = ("480*832", "832*480")
VIDEO_SIZES = ("720*1280", "1280*720", *SMALL_SIZES)
SOURCES = ("src_video", "src_mask", "src_ref_images")  # of vace tasks
LATENT_FRAMES = 1024  # rows of the official table of positions, so no model saw a longer clip
MOST_LATENTS = 2 * LATENT_FRAMES  # along a side: two to a token

# Part of the model: the text that official checkpoints were tuned to be guided away from.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
I2V_NEGATIVE_PROMPT = f"镜头晃动，{NEGATIVE_PROMPT}"
CLIP_CHECKPOINT = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
EXAMPLE_PROMPT = (
    "A red fox trots along a snowy forest path at dawn, its breath visible in the cold air, "
    "the camera following at its height."
)


@dataclass(frozen=True)
class WanConfig:
    """One task: what it may be asked for and where its checkpoint keeps what."""

    task: str
    plan_model: str  # whose cache plans fit; at 720p see plan_model_of
    sizes: tuple[str, ...]  # width*height
    default_size: str
    example_prompt: str
    frame_num: int = 81
    sample_steps: int = 50
    sample_shift: float = 5.0
    small_shift: float | None = None  # of SMALL_SIZES, where it differs
    sample_guide_scale: float = 5.0
    sample_fps: int = 16
    sample_neg_prompt: str = NEGATIVE_PROMPT
    repository: str | None = None  # of the official weights, on Hugging Face
    still: bool = False  # one frame, written as an image
    model_type: str = "t2v"  # of the checkpoint
    pictures: tuple[str, ...] = ()  # options that name those it starts from
    sources: tuple[str, ...] = ()  # options that name what else it may be made from
    ckpt_dir: Path | None = None  # None: `folder_of`, where it is there
    latent_channels: int = 16
    vae_stride: tuple[int, int, int] = (4, 8, 8)  # frames, rows, columns
    patch_size: tuple[int, int, int] = (1, 2, 2)
    vae_checkpoint: str = "Wan2.1_VAE.pth"
    t5_checkpoint: str = "models_t5_umt5-xxl-enc-bf16.pth"
    t5_tokenizer: str = "google/umt5-xxl"
    clip_checkpoint: str | None = None  # where pictures are given

    def __post_init__(self) -> None:
        if self.default_size not in self.sizes:
            raise ValueError(f"{self.task}: default size {self.default_size} not in {self.sizes}")
        check_frame_num(self.frame_num, self.vae_stride[0])

    def folder_of(self, size: str) -> Path:
        """Where weights are looked for: the official repository's name, beside the script."""
        repositories = str(self.repository).split(" or ")  # the smaller size's first
        repository = repositories[0 if size in SMALL_SIZES else -1]
        return self.ckpt_dir or TREE / repository.rpartition("/")[2]

    @property
    def encodes_frames(self) -> bool:
        """Does the VAE encode frames before a clip is denoised?"""
        return bool(self.pictures or self.sources)

    @property
    def context_channels(self) -> int:
        """Of what hints are made from: two latents, and a mask with its pixels as channels."""
        _, rows, columns = self.vae_stride
        return 2 * self.latent_channels + rows * columns

    @property
    def condition_channels(self) -> int:
        """Beside the noise in the model's input: a mask, and a latent of the pictures."""
        return self.vae_stride[0] + self.latent_channels if self.pictures else 0

    @property
    def way_out(self) -> str:
        """Where weights are."""
        if self.repository is None:
            return "leave --ckpt_dir out, the weights are bundled"
        mini = "i2v-mini" if self.model_type == "i2v" else "t2v-mini"
        return (
            f"download {self.repository} from Hugging Face; --task {mini} runs at once, its "
            "weights are bundled"
        )

    def check_frames(self, frame_num: int) -> None:
        """InputError for a number of frames that the task cannot make."""
        check_frame_num(frame_num, self.vae_stride[0])
        least = self.vae_stride[0] * (len(self.pictures) - 1) + 1
        if frame_num < least:
            raise InputError(
                f"frame_num {frame_num}: task {self.task} ends with a frame of its own, take "
                f"{least} or more"
            )

    def shift_of(self, size: str) -> float:
        """The default shift."""
        small = self.small_shift is not None and size in SMALL_SIZES
        return self.small_shift if small else self.sample_shift

    def plan_model_of(self, size: str) -> str:
        """The model whose presets are made for the default shift of this size."""
        own_shift = self.small_shift is None or size in SMALL_SIZES
        return self.plan_model if own_shift else f"{self.plan_model}-720P"

    def size_for(self, size: str, picture: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) of the clip; a picture (width, height) leaves of `size` the area."""
        return parse_size(size) if picture is None else size_like(picture, MAX_AREA_CONFIGS[size])

    def latent_shape(self, size: tuple[int, int], frame_num: int) -> tuple[int, int, int, int]:
        """(channels, frames, rows, columns) of the latent of a clip of (width, height) pixels."""
        frames, rows, columns = self.vae_stride
        latent_frames = (frame_num - 1) // frames + 1
        return self.latent_channels, latent_frames, size[1] // rows, size[0] // columns

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Number of DiT tokens of one clip."""
        count = 1
        for size, patch in zip(latent_shape[1:], self.patch_size, strict=True):
            count *= size // patch
        return count


def parse_size(size: str) -> tuple[int, int]:
    """'832*480' to (832, 480): width, height."""
    width, height = size.split("*")
    return int(width), int(height)


def size_like(picture: tuple[int, int], max_area: int) -> tuple[int, int]:
    """Width and height of the picture's aspect, multiples of 16 with at most this area.

    InputError for a picture that is too narrow.
    """
    width, height = picture
    aspect = height / width
    columns, rows = (
        int(sqrt(area) // 8 // 2) * 2 for area in (max_area / aspect, max_area * aspect)
    )
    if not 2 <= min(columns, rows) <= max(columns, rows) <= MOST_LATENTS:
        raise InputError(
            f"a picture of {width}x{height} pixels is too narrow: crop it to a more usual aspect"
        )
    return columns * 8, rows * 8


def check_frame_num(frame_num: int, stride: int = 4) -> None:
    """A clip has stride * n + 1 frames; InputError names the two nearest valid numbers."""
    most = stride * (LATENT_FRAMES - 1) + 1
    if frame_num > most:
        raise InputError(f"frame_num {frame_num} is too large: take at most {most}")
    if frame_num >= 1 and frame_num % stride == 1:
        return
    below = max(0, (frame_num - 1) // stride) * stride + 1
    nearest = f"{below} or {below + stride}" if frame_num > 1 else "1"
    raise InputError(f"frame_num {frame_num} is not {stride}n+1: take {nearest}")


WAN_CONFIGS = {
    config.task: config
    for config in (
        WanConfig(
            "t2v-14B",
            "wan2.1-t2v-14B",
            VIDEO_SIZES,
            "1280*720",
            EXAMPLE_PROMPT,
            repository="Wan-AI/Wan2.1-T2V-14B",
        ),
        WanConfig(
            "t2v-1.3B",
            "wan2.1-t2v-1.3B",
            SMALL_SIZES,
            "832*480",
            EXAMPLE_PROMPT,
            repository="Wan-AI/Wan2.1-T2V-1.3B",
        ),
        WanConfig(
            "t2i-14B",
            "wan2.1-t2v-14B",
            (*VIDEO_SIZES, "1024*1024"),
            "1280*720",
            "A portrait of an old fisherman in soft window light",
            frame_num=1,
            repository="Wan-AI/Wan2.1-T2V-14B",
            still=True,
        ),
        WanConfig(
            "i2v-14B",
            "wan2.1-i2v-14B",
            VIDEO_SIZES,
            "1280*720",
            "The camera stays still while the scene of the picture comes to life, moving slowly "
            "and naturally in soft light.",
            sample_steps=40,
            small_shift=3.0,
            sample_neg_prompt=I2V_NEGATIVE_PROMPT,
            repository="Wan-AI/Wan2.1-I2V-14B-480P or Wan-AI/Wan2.1-I2V-14B-720P",
            model_type="i2v",
            pictures=("image",),
            clip_checkpoint=CLIP_CHECKPOINT,
        ),
        WanConfig(
            "flf2v-14B",
            "wan2.1-flf2v-14B",
            VIDEO_SIZES,
            "1280*720",
            "The scene changes smoothly from the first picture to the last in one shot.",
            sample_shift=16.0,
            sample_neg_prompt=f"镜头切换，{I2V_NEGATIVE_PROMPT}",
            repository="Wan-AI/Wan2.1-FLF2V-14B-720P",
            model_type="flf2v",
            pictures=("first_frame", "last_frame"),
            clip_checkpoint=CLIP_CHECKPOINT,
        ),
        WanConfig(
            "vace-14B",
            "wan2.1-vace-14B",
            VIDEO_SIZES,
            "1280*720",
            EXAMPLE_PROMPT,
            sample_shift=16.0,
            repository="Wan-AI/Wan2.1-VACE-14B",
            model_type="vace",
            sources=SOURCES,
        ),
        WanConfig(
            "vace-1.3B",
            "wan2.1-vace-1.3B",
            SMALL_SIZES,
            "832*480",
            EXAMPLE_PROMPT,
            sample_shift=16.0,
            repository="Wan-AI/Wan2.1-VACE-1.3B",
            model_type="vace",
            sources=SOURCES,
        ),
        # bundled; its small text encoder knows the words of its own grammar and no Chinese
        WanConfig(
            "t2v-mini",
            "wan2.1-t2v-mini",
            ("128*128",),
            "128*128",
            "red circle moving right over blue stripes",
            frame_num=33,
            sample_guide_scale=3.0,
            sample_neg_prompt="",
            ckpt_dir=TREE / "ckpts" / "Wan2.1-T2V-mini",
        ),
        # the same, with a picture; VAE and text encoder are t2v-mini's, where they lie
        WanConfig(
            "i2v-mini",
            "wan2.1-i2v-mini",
            ("128*128",),
            "128*128",
            "red circle moving right over blue stripes",
            frame_num=33,
            sample_guide_scale=2.0,
            sample_neg_prompt="",
            ckpt_dir=TREE / "ckpts" / "Wan2.1-I2V-mini",
            model_type="i2v",
            pictures=("image",),
            vae_checkpoint="../Wan2.1-T2V-mini/Wan2.1_VAE.pth",
            t5_checkpoint="../Wan2.1-T2V-mini/models_t5_umt5-xxl-enc-bf16.pth",
            t5_tokenizer="../Wan2.1-T2V-mini/google/umt5-xxl",
            clip_checkpoint=CLIP_CHECKPOINT,
        ),
    )
}

# the other official tables: sizes by their names, and the names that a task takes
SIZE_CONFIGS = {size: parse_size(size) for size in (*VIDEO_SIZES, "1024*1024", "128*128")}
MAX_AREA_CONFIGS = {size: width * height for size, (width, height) in SIZE_CONFIGS.items()}
SUPPORTED_SIZES = {task: config.sizes for task, config in WAN_CONFIGS.items()}
