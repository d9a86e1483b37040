"""The layout of a checkpoint folder; nothing here reads a weight or imports torch."""

from pathlib import Path

from profiling_core.errors import InputError
from profiling_core.runtime.checkpoint_files import check_present, foreign_layout, read_json

from .configs import WanConfig

DIT = "diffusion_pytorch_model"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model")


def dit_files(folder: Path) -> dict[str, set[str] | None]:
    """The transformer's files and the tensor names that the index expects in each.

    A checkpoint of one file has no index: its names are not known beforehand (None). The file may
    have a name of its own, as ComfyUI's have, where it is the folder's only one.
    """
    index = folder / f"{DIT}.safetensors.index.json"
    if not index.exists():
        found = [path.name for path in folder.glob("*.safetensors")]
        return {found[0] if len(found) == 1 else f"{DIT}.safetensors": None}
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

    def holds(path: Path) -> bool:
        return (path / config.t5_checkpoint).is_file()

    absent = _first_absent(folder, config)
    if absent is None:
        return
    layout = None if holds(folder) else foreign_layout(folder, "--ckpt_dir", holds)
    raise InputError(
        f"checkpoint folder {folder}{f' {layout}' if layout else absent} {config.way_out}"
    )


def checkpoint_files(folder: Path, config: WanConfig) -> list[Path]:
    """The files that weights and their sizes are read from."""
    return [folder / name for name in (*_parts(config), *dit_files(folder))]


def _parts(config: WanConfig) -> tuple[str, ...]:
    """The files of fixed names."""
    clip = () if config.clip_checkpoint is None else (config.clip_checkpoint,)
    return ("config.json", config.t5_checkpoint, config.vae_checkpoint, *clip)


def _first_absent(folder: Path, config: WanConfig) -> str | None:
    if not folder.is_dir():
        return " is not a folder:" if folder.exists() else " does not exist:"
    tokenizer = config.t5_tokenizer
    own = (folder / tokenizer / name for name in TOKENIZER_FILES)
    found = [str(path.relative_to(folder)) for path in own if path.is_file()]
    parts = _parts(config)
    if (folder / "config.json").is_file():
        kind = read_json(folder / "config.json").get("model_type", "t2v")
        if kind != config.model_type:
            needs = f"task {config.task} needs {config.model_type!r}"
            return f": config.json says model_type {kind!r}, {needs}:"
    if not found and all((folder / name).is_file() for name in parts):
        return f": {tokenizer} has none of {', '.join(TOKENIZER_FILES)}:"
    for name in (*parts, *found, f"{tokenizer}/tokenizer_config.json", *dit_files(folder)):
        if not (folder / name).is_file():
            quantised = name.startswith(DIT) and any(folder.glob("*.gguf"))
            return f": {name} is missing{' and GGUF files are not read here' * quantised}:"
        check_present(folder / name)
    return None
