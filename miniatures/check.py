"""Measures whether the miniature draws its prompts, and prints a contact sheet.

    python -m miniatures.check --tree wan --out runs/check-wan
    python -m miniatures.check --tree wan --task i2v-mini --seeds 2 --vae_clips 0
    python -m miniatures.check --tree hunyuan
    python -m miniatures.check --tree wan --drawn     drawn clips: the measures' own ceiling

Sampling goes through the tree itself (loaders, text encoders, solver, transformer, VAE), several
clips in one batch because the tree's own loop takes one at a time.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from loguru import logger
from PIL import Image, ImageDraw
from skimage.measure import label
from skimage.morphology import dilation, disk, erosion

from miniatures import clips, samplers
from miniatures.autoencoder import to_tensor
from profiling_core.parallel.degrees import thread_count

CHANGED = 0.22  # difference to the background, in 0..1, that two shades of one colour do not reach
SMALLEST = 80  # pixels of a shape
TRAVEL = 20  # pixels that count as a movement

Clip = tuple[str, int, np.ndarray]  # prompt, seed, frames (T, H, W, 3) uint8


@dataclass(frozen=True)
class Verdict:
    """What was seen in one clip; `background_share` is its change over the foreground's."""

    prompt: str
    seed: int
    colour: str
    colour_right: bool
    motion_right: bool
    background_right: bool
    background_share: float
    first_frame_db: float | None = None  # PSNR of the first frame against the given picture


def judge(prompt: str, seed: int, frames: np.ndarray) -> Verdict:
    """Compares a clip (T, H, W, 3) uint8 with its one-shape prompt."""
    scene, video = clips.parse(prompt), frames.astype(np.float32) / 255
    still = background_of(video)
    masks = np.stack([moving_region(frame, still) for frame in video])  # (T, H, W)
    colour = colour_of(video, masks)
    return Verdict(
        prompt=prompt,
        seed=seed,
        colour=colour,
        colour_right=colour == scene.actors[0].colour,
        motion_right=moves_as(scene.actors[0].motion, centroids(masks)),
        background_right=background_colour(still) == scene.colour,
        background_share=background_share(video, masks),
    )


def psnr(shown: np.ndarray, given: np.ndarray) -> float:
    """PSNR in dB of two pictures in uint8."""
    error = np.square(shown.astype(np.float64) - given).mean()
    return float(10 * np.log10(255**2 / error))


def background_of(video: np.ndarray) -> np.ndarray:
    """Per pixel the value over time that is nearest to the picture's typical colour: (H, W, 3)."""
    typical = np.median(video.reshape(-1, 3), axis=0)
    nearest = np.abs(video - typical).max(axis=-1).argmin(axis=0)  # (H, W)
    return np.take_along_axis(video, nearest[None, ..., None], axis=0)[0]


def moving_region(frame: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Largest connected region that differs from the background: (H, W) bool."""
    regions = label(np.abs(frame - still).max(axis=-1) > CHANGED)
    sizes = np.bincount(regions.ravel())[1:]
    if sizes.size == 0 or sizes.max() < SMALLEST:
        return np.zeros(regions.shape, bool)
    return regions == 1 + sizes.argmax()


def colour_of(video: np.ndarray, masks: np.ndarray) -> str:
    """The palette colour that most pixels inside the moving regions are nearest to."""
    inside = np.stack([erosion(mask, disk(3)) for mask in masks])
    if not inside.any():
        return "none"
    palette = np.array(list(clips.COLOURS.values()), np.float32)
    distance = np.square(video[inside][:, None] - palette).sum(axis=-1)
    return list(clips.COLOURS)[np.bincount(distance.argmin(axis=-1)).argmax()]


def background_colour(still: np.ndarray) -> str:
    """The colour whose background shades lie nearest to the median of the background."""
    typical = np.median(still.reshape(-1, 3), axis=0)
    names = list(clips.COLOURS)
    shades = [np.array(clips.COLOURS[n]) * np.mean(clips.shades_of(n)) for n in names]
    return names[np.square(np.stack(shades) - typical).sum(axis=-1).argmin()]


def centroids(masks: np.ndarray) -> np.ndarray:
    """Centre x, y of every frame's region, frames without one left out: (<= T, 2)."""
    return np.array([np.argwhere(m).mean(axis=0)[::-1] for m in masks if m.any()]).reshape(-1, 2)


def moves_as(motion: str, path: np.ndarray) -> bool:
    """True if the path of centres (frames, 2) is the named motion."""
    if len(path) < 0.75 * clips.FRAMES:
        return False
    width, height = np.ptp(path, axis=0)
    if motion == "orbiting":
        return bool(min(width, height) > TRAVEL and max(width, height) < 2 * min(width, height))
    if motion == "bouncing":
        turns = np.count_nonzero(np.diff(np.sign(np.diff(path[::3, 1]))))
        return bool(height > TRAVEL and height > 2 * width and turns >= 1)
    x, y = path[-3:].mean(axis=0) - path[:3].mean(axis=0)
    along = {"left": -x, "right": x, "up": -y, "down": y}[motion.split()[1]]
    across = y if motion in ("moving left", "moving right") else x
    return bool(along > TRAVEL and along > 2 * abs(across))


def background_share(video: np.ndarray, masks: np.ndarray) -> float:
    """Mean change between frames outside the moving region over that inside it."""
    change = np.abs(np.diff(video, axis=0)).mean(axis=-1)  # (T - 1, H, W)
    either = masks[1:] | masks[:-1]
    outside = ~np.stack([dilation(m, disk(4)) for m in either])
    if not either.any():
        return float("inf")
    return float(change[outside].mean() / change[either].mean())


def generated(sampler: samplers.Sampler, args: argparse.Namespace) -> Iterator[Clip]:
    """Prompt, seed and frames of every clip of the check."""
    prompts = clips.held_out_prompts(args.prompts)
    jobs = [(prompt, seed) for seed in range(args.seeds) for prompt in prompts]
    jobs = jobs[args.part :: args.parts]
    for first in range(0, len(jobs), args.batch):
        batch = jobs[first : first + args.batch]
        videos = sampler.sample(batch, args.steps, args.shift, args.guidance)
        for (prompt, seed), frames in zip(batch, videos, strict=True):
            yield prompt, seed, frames


def drawn(args: argparse.Namespace) -> Iterator[Clip]:
    """The same prompts as drawn clips, in place of sampled ones."""
    for seed in range(args.seeds):
        for i, prompt in enumerate(clips.held_out_prompts(args.prompts)):
            rng = np.random.default_rng([9, seed, i])
            yield prompt, seed, clips.draw(clips.parse(prompt), rng).frames


def reconstruction(sampler: samplers.Sampler, count: int) -> list[float]:
    """PSNR in dB of held-out clips through the VAE, per clip, in 0..1."""
    scores = []
    for clip in clips.clips(0, 0, count, held_out=True):
        video = to_tensor(clip.frames)
        error = (sampler.reconstruct(video) - video).square().mean()
        scores.append(10 * np.log10(4 / error.item()))
    return scores


def contact_sheet(rows: list[tuple[str, np.ndarray]], columns: int = 6) -> np.ndarray:
    """One row per clip: its prompt above, `columns` of its frames side by side."""
    picked = np.linspace(0, len(rows[0][1]) - 1, columns).round().astype(int)
    height, width = rows[0][1].shape[1:3]
    sheet = Image.new("RGB", (columns * (width + 4), len(rows) * (height + 18)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (prompt, frames) in enumerate(rows):
        top = i * (height + 18)
        pen.text((2, top + 2), prompt, fill="black")
        for j, frame in enumerate(frames[picked]):
            sheet.paste(Image.fromarray(frame), (j * (width + 4), top + 16))
    return np.asarray(sheet)


def summary(verdicts: list[Verdict]) -> dict[str, float]:
    shares = [v.background_share for v in verdicts]
    scores = [v.first_frame_db for v in verdicts if v.first_frame_db is not None]
    first = {}
    if scores:
        first = {"first frame dB": float(np.mean(scores)), "worst first frame dB": min(scores)}
    return first | {
        "clips": len(verdicts),
        "colour right": float(np.mean([v.colour_right for v in verdicts])),
        "motion right": float(np.mean([v.motion_right for v in verdicts])),
        "background colour right": float(np.mean([v.background_right for v in verdicts])),
        "background change below a quarter": float(np.mean([s < 0.25 for s in shares])),
        "background change, median": float(np.median(shares)),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tree", choices=samplers.SAMPLERS, required=True)
    add("--task", choices=("t2v-mini", "i2v-mini"), help="of Wan; default t2v-mini")
    add("--ckpt_dir", type=Path, help="checkpoint folder, default the bundled one")
    add("--out", type=Path, help="default runs/check-TREE")
    add("--drawn", action="store_true", help="judge drawn clips in place of sampled ones")
    add("--prompts", type=int, default=24)
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=50)
    add("--shift", type=float, help="default the miniature's own")
    add("--guidance", type=float, help="default the miniature's own")
    add("--batch", type=int, default=12)
    add("--part", type=int, default=0, help="number of this process, for several at a time")
    add("--parts", type=int, default=1)
    add("--vae_clips", type=int, default=24, help="held-out clips for the reconstruction")
    add("--threads", type=int, default=thread_count(2))
    args = parser.parse_args()
    if args.task and args.tree != "wan":
        parser.error(f"--task {args.task}: HunyuanVideo has one miniature, leave it out")
    args.out = args.out or Path("runs") / f"check-{args.task or args.tree}"
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    task = {"task": args.task} if args.task else {}
    sampler = samplers.SAMPLERS[args.tree](args.ckpt_dir, **task)
    verdicts, rows = [], []
    for prompt, seed, frames in drawn(args) if args.drawn else generated(sampler, args):
        verdict = judge(prompt, seed, frames)
        if args.task == "i2v-mini" and not args.drawn:
            score = psnr(frames[0], clips.first_frame(prompt))
            verdict = replace(verdict, first_frame_db=score)
        verdicts.append(verdict)
        rows.append((f"{prompt}  (seed {seed})", frames))
    for verdict in verdicts:
        logger.info(verdict)
    result = summary(verdicts)
    if args.vae_clips:
        scores = reconstruction(sampler, args.vae_clips)
        result |= {"reconstruction dB": float(np.mean(scores)), "worst dB": float(min(scores))}
    name = f"check-{args.part}"
    (args.out / f"{name}.json").write_text(
        json.dumps({"summary": result, "clips": [asdict(v) for v in verdicts]}, indent=2) + "\n"
    )
    iio.imwrite(args.out / f"{name}.png", contact_sheet(rows[:12]))
    logger.info(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
