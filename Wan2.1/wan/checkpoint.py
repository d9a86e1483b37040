"""The layout of a checkpoint folder; nothing here reads a weight or imports torch."""

from pathlib import Path

from profiling_core.errors import InputError
from profiling_core.runtime.checkpoint_files import read_json

from .configs import WanConfig

DIT = "diffusion_pytorch_model"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")


def dit_files(folder: Path) -> dict[str, set[str] | None]:
    """The transformer's files and the tensor names that the index expects in each.

    A checkpoint of one file has no index: its names are not known beforehand (None).
    """
    index = folder / f"{DIT}.safetensors.index.json"
    if not index.exists():
        return {f"{DIT}.safetensors": None}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: download it again")
    files: dict[str, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise InputError(f"{index}: {file!r} is no file name of this folder")
        files.setdefault(file, set()).add(name)
    return files


def check_folder(folder: Path, config: WanConfig) -> None:
    """InputError naming the first thing that a complete checkpoint folder would have."""
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"checkpoint folder {folder} {what}: give --ckpt_dir a Wan2.1 checkpoint folder"
        )
    for name in ("config.json", config.t5_checkpoint, config.vae_checkpoint):
        _need(folder, name)
    tokenizer = folder / config.t5_tokenizer
    if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"checkpoint folder {folder}: {config.t5_tokenizer} has none of "
            f"{', '.join(TOKENIZER_FILES)}: download the tokenizer folder as well"
        )
    _need(folder, f"{config.t5_tokenizer}/tokenizer_config.json")
    for name in dit_files(folder):
        _need(folder, name)


def checkpoint_files(folder: Path, config: WanConfig) -> list[Path]:
    """The files that weights and their sizes are read from."""
    own = ("config.json", config.t5_checkpoint, config.vae_checkpoint)
    return [folder / name for name in (*own, *dit_files(folder))]


def _need(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise InputError(f"checkpoint folder {folder}: {name} is missing: download it as well")
