"""Writes the trained parts as a model base in the official HunyuanVideo layout."""

import json
from pathlib import Path

from loguru import logger
from torch import Tensor

from miniatures import flow, optim
from miniatures.autoencoder import file_of, trained
from miniatures.hunyuan import dit, vae


def write(run: Path, out: Path, seed: int) -> None:
    """Exports what `run` holds, averaged weights; what it does not hold stays as it is in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    if file_of(run) is not None:
        write_vae(run, out / vae.FILE)
    dit.write_text_encoders(out, seed)
    trained_stages = [run / f"{stage}.pt" for stage in ("distil", "dit")]
    newest = next((file for file in trained_stages if file.exists()), None)
    if newest is not None:
        write_transformer(newest, out / dit.FILE)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        logger.info(f"{path.stat().st_size:>10} {path.relative_to(out)}")


def write_vae(run: Path, path: Path) -> None:
    """`pytorch_model.pt` in fp16 and `config.json` under the official names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model = trained(vae.AUTOENCODER, run)
    if (run / "vae.pt").exists():  # else it came from a checkpoint, where they are folded in
        vae.fold_statistics(model, *flow.statistics(run))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    optim.save(path, {"state_dict": state})
    document = {
        "_class_name": "AutoencoderKLCausal3D",
        "in_channels": 3,
        "out_channels": 3,
        **vae.CONFIG,
        "sample_size": 256,
        "sample_tsize": 64,
        "time_compression_ratio": 4,
        "scaling_factor": 1.0,  # the statistics are in the weights
    }
    path.with_name("config.json").write_text(json.dumps(document, indent=2) + "\n")


def write_transformer(trained_file: Path, path: Path) -> None:
    """The weights in bf16 under the key `module`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, step = dit.load(trained_file)
    logger.info(f"transformer of {trained_file.name}, step {step}")
    state: dict[str, Tensor] = {k: v.bfloat16() for k, v in model.state_dict().items()}
    optim.save(path, {"module": state})
