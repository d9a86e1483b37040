"""Makes the Wan miniature from a seed, in five stages.

    torchrun --nproc_per_node 2 -m miniatures.train vae --minutes 32
    torchrun --nproc_per_node 2 -m miniatures.train latents --clips 2000
    torchrun --nproc_per_node 2 -m miniatures.train dit --minutes 70 --compile
    torchrun --nproc_per_node 2 -m miniatures.train decoder --minutes 12.5 --clips 200
    python -m miniatures.train export

A stopped training goes on where it was when the same command is given again; more --minutes make
it longer. On a GPU, one process: `python -m miniatures.train STAGE --device cuda --steps N`.
"""

import argparse
from pathlib import Path

import torch
from loguru import logger

CHECKPOINT = Path(__file__).parents[1] / "Wan2.1" / "ckpts" / "Wan2.1-T2V-mini"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("stage", choices=("vae", "latents", "dit", "decoder", "export"))
    add("--run", type=Path, default=Path("runs/wan-mini"), help="working folder")
    add("--out", type=Path, default=CHECKPOINT, help="checkpoint folder that export writes")
    add("--seed", type=int, default=0)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--minutes", type=float, help="length of a training by the clock")
    add("--steps", type=int, help="length of a training in steps")
    add("--clips", type=int, default=400, help="clips drawn: vae: per process; latents: in all")
    add("--batch", type=int, default=16, help="dit: clips per step, over all processes")
    add("--lr", type=float, default=1.5e-3, help="dit: RMS of a step of the block weights")
    add("--compile", action="store_true", help="dit: torch.compile the blocks")
    add("--threads", type=int, default=1, help="CPU threads per process")
    return parser.parse_args()


def main() -> None:
    from miniatures import dit, export, latents, vae

    args = arguments()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    logger.add(args.run / f"{args.stage}.log")
    logger.info(f"arguments: {vars(args)}")
    length = {"minutes": args.minutes, "steps": args.steps}
    if args.stage == "vae":
        vae.train(args.run, args.seed, args.device, pool=args.clips, **length)
    elif args.stage == "decoder":
        vae.refine(args.run, args.seed, args.device, pool=args.clips, **length)
    elif args.stage == "latents":
        latents.encode(args.run, args.seed, args.device, args.clips)
    elif args.stage == "dit":
        dit.train(
            args.run,
            args.seed,
            args.device,
            batch=args.batch,
            lr=args.lr,
            compiled=args.compile,
            **length,
        )
    elif args.stage == "export":
        export.write(args.run, args.out, args.seed)


if __name__ == "__main__":
    main()
