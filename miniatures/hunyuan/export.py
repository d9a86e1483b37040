"""Writes the trained parts as a model base in the official HunyuanVideo layout."""

import json
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from miniatures import flow, optim
from miniatures.autoencoder import trained
from miniatures.hunyuan import dit, vae

CHECKPOINT = Path("hunyuan-video-t2v-720p")
DIT = CHECKPOINT / "transformers" / "mp_rank_00_model_states.pt"


def write(run: Path, out: Path, seed: int) -> None:
    """Exports what `run` holds; the transformer's averaged weights, or untrained ones."""
    out.mkdir(parents=True, exist_ok=True)
    write_vae(run, out / CHECKPOINT / "vae")
    dit.write_text_encoders(out, seed)
    write_transformer(run, out / DIT, seed)
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        logger.info(f"{path.stat().st_size:>10} {path.relative_to(out)}")


def write_vae(run: Path, folder: Path) -> None:
    """`pytorch_model.pt` in fp16 and `config.json` under the official names."""
    folder.mkdir(parents=True, exist_ok=True)
    model = trained(vae.AUTOENCODER, run)
    vae.fold_statistics(model, *flow.statistics(run))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    optim.save(folder / "pytorch_model.pt", {"state_dict": state})
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
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")


def write_transformer(run: Path, path: Path, seed: int) -> None:
    """The weights in bf16 under the key `module`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stages = [run / f"{stage}.pt" for stage in ("distil", "dit")]
    found = next((file for file in stages if file.exists()), None)
    if found is not None:
        model, step = dit.load(found)
        logger.info(f"transformer of {found.name}, step {step}")
    else:
        torch.manual_seed(seed)
        model = dit.build()
        logger.warning("the transformer is untrained")
    state: dict[str, Tensor] = {k: v.bfloat16() for k, v in model.state_dict().items()}
    optim.save(path, {"module": state})
