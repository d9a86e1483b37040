"""The layout of a checkpoint folder; nothing here reads a weight or imports torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from loguru import logger

from profiling_core.errors import InputError
from profiling_core.runtime.checkpoint_files import check_present, foreign_layout

MODEL = "hunyuan-video-t2v-720p"
DIT = "mp_rank_00_model_states"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHT_FILES = ("*.safetensors", "*.bin")
ENCODER_FILES = {  # what an encoder's folder holds: a name, or the first of several that fits
    "config.json": ("config.json",),
    "weight file (*.safetensors or *.bin)": WEIGHT_FILES,
    f"tokenizer ({', '.join(TOKENIZER_FILES)})": TOKENIZER_FILES,
}
REPOSITORY = "tencent/HunyuanVideo on Hugging Face"
MINI = "--model HYVideo-mini runs at once, its weights are bundled"
HOW_TO_GET = {
    "text_encoder": (
        "it holds the language model and the tokenizer of xtuner's "
        "llava-llama-3-8b-v1_1-transformers: load that repository with transformers' "
        "LlavaForConditionalGeneration and save its language_model, and its processor's "
        "tokenizer, into this folder"
    ),
    "text_encoder_2": "it is OpenAI's clip-vit-large-patch14, the whole repository: download it",
}


@dataclass(frozen=True)
class Files:
    """Where the parts of a model lie."""

    dit: Path
    vae: Path  # folder
    text_encoder: Path  # folder
    text_encoder_2: Path  # folder

    @property
    def vae_config(self) -> Path:
        return self.vae / "config.json"

    @property
    def vae_weights(self) -> Path:
        return self.vae / "pytorch_model.pt"

    @property
    def weights(self) -> list[Path]:
        """The files that weights and their sizes are read from."""
        folders = (self.vae, self.text_encoder, self.text_encoder_2)
        found = [path for folder in folders for path in sorted(folder.iterdir())]
        return [self.dit, *(path for path in found if path.is_file())]

    @property
    def fp8_map(self) -> Path:
        return fp8_map(self.dit)


def expected_files(root: Path, dit_weight: Path | str | None, *, use_fp8: bool) -> Files:
    """Where the parts would be; the transformer's may be the folder that holds it."""
    default = root / MODEL / "transformers" / f"{DIT}{'_fp8' if use_fp8 else ''}.pt"
    return Files(
        default if dit_weight is None else Path(dit_weight),
        root / MODEL / "vae",
        root / "text_encoder",
        root / "text_encoder_2",
    )


def find_files(root: Path, dit_weight: Path | str | None = None, *, use_fp8: bool = False) -> Files:
    """The files of a complete checkpoint; InputError names the first that is missing."""
    if not _holds(root):
        what = "does not exist:" if not root.exists() else f"has no folder {MODEL}:"
        raise InputError(
            f"checkpoint folder {root} {foreign_layout(root, '--model-base', _holds) or what} give "
            f"--model-base the folder that holds {MODEL}, text_encoder and text_encoder_2; the "
            f"weights are {REPOSITORY}, whose README names the encoders; {MINI}"
        )
    files = expected_files(root, dit_weight, use_fp8=use_fp8)
    files = replace(files, dit=find_dit(files.dit))
    if use_fp8 and not files.fp8_map.is_file():
        raise InputError(
            f"{files.fp8_map} is missing: --use-fp8 needs the scales beside the fp8 weights, give "
            f"--dit-weight {DIT}_fp8.pt and download its map as well"
        )
    for path in (files.vae_config, files.vae_weights):
        if not path.is_file():
            raise InputError(
                f"checkpoint folder {root}: {path} is missing: download it from {REPOSITORY}"
            )
        check_present(path)
    _check_encoder(files.text_encoder)
    _check_encoder(files.text_encoder_2)
    return files


def find_dit(path: Path) -> Path:
    """The transformer's file: `path` itself, or the first that fits in the folder it names."""
    if path.is_file():
        check_present(path)
        return path
    if not path.is_dir():
        raise InputError(
            f"the transformer's weights {path} do not exist: download them from {REPOSITORY}, or "
            f"give --dit-weight their file or folder; {MINI}"
        )
    found = sorted(path.glob("*_model_states.pt")) or sorted(path.glob("pytorch_model_*.pt"))
    if not found:
        what = "holds no *_model_states.pt and no pytorch_model_*.pt:"
        layout = foreign_layout(path, "--dit-weight", lambda _: False)
        raise InputError(f"--dit-weight {path}: the folder {layout or what} name the file")
    if len(found) > 1:
        logger.warning(f"{len(found)} weight files in {path}, taking {found[0].name}")
    check_present(found[0])
    return found[0]


def fp8_map(dit: Path) -> Path:
    """The file of scales that belongs to fp8 weights."""
    return dit.with_name(f"{dit.stem}_map.pt")


def _check_encoder(folder: Path) -> None:
    name = folder.name
    if not folder.is_dir():
        raise InputError(f"checkpoint folder {folder} is missing: {HOW_TO_GET[name]}")
    for what, patterns in ENCODER_FILES.items():
        found = _first_fit(folder, patterns)
        if not found:
            raise InputError(f"checkpoint folder {folder} has no {what}: {HOW_TO_GET[name]}")
        for path in (*found, *folder.glob("*.json")):
            check_present(path)


def encoder_files(folder: Path) -> tuple[Path, ...]:
    """The files of a text encoder; where one is missing, the name that it would have."""
    kinds = ENCODER_FILES.values()
    found = [_first_fit(folder, names) or [folder / names[0]] for names in kinds]
    return tuple(path for paths in found for path in paths)


def _first_fit(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return next((files for p in patterns if (files := sorted(folder.glob(p)))), [])


def _holds(root: Path) -> bool:
    return (root / MODEL).is_dir()
