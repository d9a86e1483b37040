"""Makes a tree's miniature from a seed, stage by stage.

    torchrun --nproc_per_node 2 -m miniatures.train --tree wan vae --minutes 32
    torchrun --nproc_per_node 2 -m miniatures.train --tree wan latents --clips 2000
    torchrun --nproc_per_node 2 -m miniatures.train --tree wan dit --minutes 70 --compile
    torchrun --nproc_per_node 2 -m miniatures.train --tree wan decoder --minutes 12.5 --clips 200
    python -m miniatures.train --tree wan export

Wan's image-to-video miniature starts from the exported weights:

    python -m miniatures.train --tree wan latents --clips 768 --pictures
    python -m miniatures.train --tree wan i2v --minutes 45 --batch 8 --compile
    python -m miniatures.train --tree wan export

HunyuanVideo's has one stage more, `distil` after `dit`: guided predictions of the trained
transformer go into its guidance embedder. A stopped training goes on where it was when the same
command is given again; more --minutes make it longer. In an empty --run `vae` and `dit` with --warm
start from the checkpoint's weights, `decoder` and `latents` always do, and `export` leaves what was
not trained as it is. On a GPU, one process:
`python -m miniatures.train --tree TREE STAGE --device cuda --steps N`.
"""

import argparse
from importlib import import_module
from pathlib import Path

import torch
from loguru import logger

from profiling_core.parallel.degrees import thread_count

ROOT = Path(__file__).parents[1]
CHECKPOINTS = {
    "wan": ROOT / "Wan2.1" / "ckpts" / "Wan2.1-T2V-mini",
    "hunyuan": ROOT / "HunyuanVideo" / "ckpts" / "HYVideo-mini",
}
STAGES = ("vae", "latents", "dit", "distil", "i2v", "decoder", "export")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("stage", choices=STAGES)
    add("--tree", choices=CHECKPOINTS, required=True)
    add("--run", type=Path, help="working folder, default runs/TREE-mini")
    add("--out", type=Path, help="checkpoint folder that export writes, default the tree's")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--minutes", type=float, help="length of a training by the clock")
    add("--steps", type=int, help="length of a training in steps")
    add("--clips", type=int, default=400, help="clips drawn: vae: per process; latents: in all")
    add("--pictures", action="store_true", help="latents: also those of the clips' first frames")
    add("--batch", type=int, default=16, help="clips per training step, over all processes")
    add("--lr", type=float, help="RMS of a step of the block weights")
    add("--compile", action="store_true", help="torch.compile the blocks")
    add("--warm", action="store_true", help="vae, dit: start from the weights in --out")
    add("--threads", type=int, default=thread_count(1), help="CPU threads per process")
    args = parser.parse_args()
    if args.stage == "distil" and args.tree == "wan":
        parser.error("stage distil: Wan has two guidance branches and nothing to distil")
    if args.stage == "i2v" and args.tree != "wan":
        parser.error("stage i2v: HunyuanVideo's tree has no image to video")
    args.run = args.run or Path("runs") / f"{args.tree}-mini"
    args.out = args.out or CHECKPOINTS[args.tree]
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    logger.add(args.run / f"{args.stage}.log")
    logger.info(f"arguments: {vars(args)}")
    from miniatures import autoencoder, latents
    from miniatures.optim import Run

    def part(name: str):  # one tree's alone: the other's libraries are not loaded
        return import_module(f"miniatures.{args.tree}.{name}")

    run = Run(args.run, args.seed, args.device, args.minutes, args.steps)
    start = args.out if args.warm else None
    if args.stage == "vae":
        kind = part("vae").AUTOENCODER
        autoencoder.train(kind, run, args.clips, start)
    elif args.stage == "decoder":
        kind = part("vae").AUTOENCODER
        autoencoder.refine(kind, run, args.clips, args.out)
    elif args.stage == "latents":
        latents.encode(part("vae").AUTOENCODER, run, args.clips, args.out, args.pictures)
    elif args.stage in ("dit", "distil", "i2v"):
        train = part(args.stage).train
        rate = {} if args.lr is None else {"lr": args.lr}
        rate |= {"dit": {"checkpoint": start}, "i2v": {"checkpoint": args.out}}.get(args.stage, {})
        train(run, batch=args.batch, compiled=args.compile, **rate)
    elif args.stage == "export":
        part("export").write(args.run, args.out, args.seed)


if __name__ == "__main__":
    main()
