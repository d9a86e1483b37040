"""Synthetic clips and their prompts: coloured shapes that move over a textured background.

    python -m miniatures.clips "red circle moving right over blue stripes" first.png

writes the first frame of such a clip.
"""

import argparse
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.92, 0.10, 0.12),
    "green": (0.10, 0.78, 0.18),
    "blue": (0.12, 0.25, 0.95),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.62, 0.15, 0.85),
    "cyan": (0.10, 0.88, 0.92),
    "orange": (1.00, 0.50, 0.05),
    "white": (1.00, 1.00, 1.00),
    "gray": (0.55, 0.55, 0.55),
}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = (
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "orbiting",
)
BACKGROUNDS = ("stripes", "checks", "gradient", "noise")

FRAMES = 33
SIZE = 128
SHAPE_COUNT_ODDS = (0.88, 0.09, 0.03)  # one, two, three shapes
PAN_ODDS = 0.15
HELD_OUT_SHARE = 10  # one shape description in ten never occurs in training clips

# Backgrounds are two darker shades of one colour, so that a red shape stays visible over red.
SHADES = (0.60, 0.42)
WHITE_SHADES = (0.80, 0.64)
OUTLINE = 0.06  # grey level of the dark rim around every shape
OUTLINE_WIDTH = 2.5  # pixels


@dataclass(frozen=True)
class Actor:
    """One moving shape: its colour, kind and motion."""

    colour: str
    shape: str
    motion: str

    def __post_init__(self) -> None:
        _expect("colour", self.colour, tuple(COLOURS))
        _expect("shape", self.shape, SHAPES)
        _expect("motion", self.motion, MOTIONS)

    def __str__(self) -> str:
        return f"{self.colour} {self.shape} {self.motion}"


@dataclass(frozen=True)
class Scene:
    """The content of a prompt: one to three actors over one background."""

    actors: tuple[Actor, ...]
    colour: str
    background: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.actors) <= 3:
            raise ValueError(f"{len(self.actors)} shapes in a scene, expected one to three")
        _expect("colour", self.colour, tuple(COLOURS))
        _expect("background", self.background, BACKGROUNDS)

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.actors))} over {self.colour} {self.background}"


@dataclass(frozen=True)
class Clip:
    """A drawn clip: frames (T, H, W, 3) uint8, the centres of its actors (actors, T, 2) as x, y."""

    scene: Scene
    frames: np.ndarray
    centres: np.ndarray

    @property
    def prompt(self) -> str:
        return str(self.scene)


def parse(prompt: str) -> Scene:
    """Reads `<colour> <shape> <motion> [and <colour> ...] over <colour> <background>`."""
    actors, over, background = prompt.partition(" over ")
    colour, _, kind = background.partition(" ")
    if not over:
        raise ValueError(f"prompt {prompt!r} has no ' over <colour> <background>'")
    return Scene(tuple(map(_parse_actor, actors.split(" and "))), colour, kind)


def _parse_actor(text: str) -> Actor:
    words = text.split(" ", 2)
    if len(words) != 3:
        raise ValueError(f"shape {text!r}, expected '<colour> <shape> <motion>'")
    return Actor(*words)


def _expect(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r}, expected one of {', '.join(known)}")


def is_held_out(scene: Scene) -> bool:
    """True if the scene holds a (colour, shape, motion) that no training clip shows."""
    return any(zlib.crc32(str(actor).encode()) % HELD_OUT_SHARE == 0 for actor in scene.actors)


def random_scene(
    rng: np.random.Generator, held_out: bool = False, actors: int | None = None
) -> Scene:
    """Draws a scene of the training split, or of the held-out one."""
    while True:
        count = actors or 1 + int(rng.choice(3, p=SHAPE_COUNT_ODDS))
        scene = Scene(
            tuple(_random_actor(rng) for _ in range(count)),
            str(rng.choice(list(COLOURS))),
            str(rng.choice(BACKGROUNDS)),
        )
        if is_held_out(scene) == held_out:
            return scene


def _random_actor(rng: np.random.Generator) -> Actor:
    colour, shape, motion = (str(rng.choice(words)) for words in (list(COLOURS), SHAPES, MOTIONS))
    return Actor(colour, shape, motion)


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` different held-out prompts with one shape each, every motion equally often."""
    rng = np.random.default_rng([seed, 1])
    prompts: list[str] = []
    while len(prompts) < count:
        scene = random_scene(rng, held_out=True, actors=1)
        wanted = MOTIONS[len(prompts) % len(MOTIONS)]
        visible = scene.actors[0].colour != scene.colour
        if scene.actors[0].motion == wanted and visible and str(scene) not in prompts:
            prompts.append(str(scene))
    return prompts


def clip(seed: int, index: int, held_out: bool = False) -> Clip:
    """Clip `index` of a data set: a pure function of its arguments."""
    rng = np.random.default_rng([seed, index, int(held_out)])
    return draw(random_scene(rng, held_out), rng)


def prompt_of(seed: int, index: int, held_out: bool = False) -> str:
    """The prompt of that clip, without drawing it."""
    return str(random_scene(np.random.default_rng([seed, index, int(held_out)]), held_out))


def clips(seed: int, start: int, stop: int, held_out: bool = False) -> Iterator[Clip]:
    """Clips `start` to `stop - 1` of a data set."""
    return map(partial(clip, seed, held_out=held_out), range(start, stop))


def first_frame(prompt: str, seed: int = 0) -> np.ndarray:
    """The first frame (H, W, 3) uint8 of a clip of this prompt."""
    rng = np.random.default_rng([seed, zlib.crc32(prompt.encode())])
    return draw(parse(prompt), rng).frames[0]


def draw(scene: Scene, rng: np.random.Generator, frames: int = FRAMES, size: int = SIZE) -> Clip:
    """Draws one clip of the scene; what the prompt leaves open is taken from `rng`."""
    video = _background(scene, rng, frames, size)  # (T, H, W, 3)
    centres = []
    for actor, centre, radius in _placed(scene, rng, frames, size):
        _paint(video, actor, centre, radius)
        centres.append(centre)
    return Clip(scene, np.round(video * 255).astype(np.uint8), np.stack(centres))


def _placed(
    scene: Scene, rng: np.random.Generator, frames: int, size: int
) -> Iterator[tuple[Actor, np.ndarray, float]]:
    """Every actor with its path (T, 2) and radius in pixels."""
    for actor in scene.actors:
        radius = size * rng.uniform(0.125, 0.185)
        yield actor, _path(actor.motion, rng, frames, size, radius), radius


def _paint(video: np.ndarray, actor: Actor, centre: np.ndarray, radius: float) -> None:
    distance = _signed_distance(actor.shape, centre, radius, video.shape[1])  # (T, H, W)
    body = _coverage(distance)[..., None]
    fill = _coverage(distance + OUTLINE_WIDTH)[..., None]
    ink = OUTLINE + (np.array(COLOURS[actor.colour], np.float32) - OUTLINE) * fill
    video += (ink - video) * body


def _coverage(distance: np.ndarray) -> np.ndarray:
    return np.clip(0.5 - distance / 1.5, 0, 1)  # an edge 1.5 pixels wide: anti-aliased


def _signed_distance(shape: str, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Distance of every pixel to the outline, negative inside; polygons from their half-planes."""
    grid = np.arange(size, dtype=np.float32) + 0.5
    x = grid[None, None, :] - centre[:, 0, None, None].astype(np.float32)
    y = grid[None, :, None] - centre[:, 1, None, None].astype(np.float32)
    if shape == "circle":
        return np.hypot(x, y) - radius
    sides, inner, phase = {
        "square": (4, 0.85 * radius, 0.0),
        "triangle": (3, 0.62 * radius, np.pi / 2),
        "star": (5, 0.46 * radius, np.pi / 2),
    }[shape]
    angles = phase + 2 * np.pi * np.arange(sides) / sides
    planes = np.stack([np.cos(a) * x + np.sin(a) * y for a in angles]) - np.float32(inner)
    if shape == "star":  # a pentagram: inside at least four of its five lines
        return np.partition(planes, 3, axis=0)[3]
    return planes.max(axis=0)


def _path(
    motion: str, rng: np.random.Generator, frames: int, size: int, radius: float
) -> np.ndarray:
    """Centre of a shape in every frame, as x, y in pixels, y downwards: (T, 2)."""
    time = np.linspace(0, 1, frames)
    low, high = radius + 2, size - radius - 2
    if motion == "bouncing":
        return _bounce(rng, time, low, high)
    if motion == "orbiting":
        return _orbit(rng, time, low, high)
    travel = (high - low) * rng.uniform(0.6, 0.9)
    start = rng.uniform(low, high - travel)
    along, across = start + travel * time, np.full(frames, rng.uniform(low, high))
    if motion in ("moving left", "moving up"):
        along = along[::-1]
    horizontal = motion in ("moving left", "moving right")
    return np.stack([along, across] if horizontal else [across, along], axis=1)


def _bounce(rng: np.random.Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    floor = rng.uniform(low + 0.85 * (high - low), high)
    height = (floor - low) * rng.uniform(0.6, 0.9)
    phase = (2 * time + rng.uniform()) % 1  # two bounces in a clip
    y = floor - height * 4 * phase * (1 - phase)
    return np.stack([np.full(len(time), rng.uniform(low, high)), y], axis=1)


def _orbit(rng: np.random.Generator, time: np.ndarray, low: float, high: float) -> np.ndarray:
    middle = (low + high) / 2 + rng.uniform(-0.08, 0.08, 2) * (high - low)
    ring = rng.uniform(0.32, 0.42) * (high - low)
    angle = 2 * np.pi * (time + rng.uniform())  # one turn, clockwise in the picture
    return middle + ring * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def shades_of(colour: str) -> tuple[float, float]:
    """Light and dark factor of a background's colour."""
    return WHITE_SHADES if colour == "white" else SHADES


def _background(scene: Scene, rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """A texture in two shades of one colour, sometimes slowly panning: (T, H, W, 3) in 0..1."""
    turn = rng.uniform(0, 2 * np.pi)
    speed = rng.uniform(0.2, 0.4) if rng.uniform() < PAN_ODDS else 0.0
    shift = speed * np.array([np.cos(turn), np.sin(turn)])
    shown = frames if speed else 1
    grid = np.arange(size, dtype=np.float32) + 0.5
    steps = np.arange(shown, dtype=np.float32)[:, None, None]
    x = np.broadcast_to(grid[None, None, :] + steps * shift[0], (shown, size, size))
    y = np.broadcast_to(grid[None, :, None] + steps * shift[1], (shown, size, size))
    amount = TEXTURES[scene.background](rng, x, y, size)[..., None]  # (1 or T, H, W, 1)
    light, dark = shades_of(scene.colour)
    shade = dark + (light - dark) * amount
    video = np.float32(shade) * np.array(COLOURS[scene.colour], np.float32)
    return np.repeat(video, frames, axis=0) if shown == 1 else video


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    angle = rng.choice([0.0, 0.25, 0.5, 0.75]) * np.pi
    along = np.cos(angle) * x + np.sin(angle) * y
    return _wave(along, size * rng.uniform(0.13, 0.19), rng.uniform())


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    width = size * rng.uniform(0.14, 0.20)
    across, down = _wave(x, width, rng.uniform()), _wave(y, width, rng.uniform())
    return across + down - 2 * across * down


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    angle = rng.integers(8) * np.pi / 4
    along = (np.cos(angle) * (x - size / 2) + np.sin(angle) * (y - size / 2)) / size
    return 1.6 * np.clip(0.5 + 0.9 * along, 0, 1) - 0.3  # a wider span than two shades


def _noise(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Value noise: random values on a coarse lattice, smoothly interpolated."""
    cell = size / 8
    lattice = rng.uniform(-0.15, 1.15, (16, 16)).astype(np.float32)
    column, row = np.floor(x / cell).astype(int), np.floor(y / cell).astype(int)
    u, v = _smooth(x / cell - column), _smooth(y / cell - row)
    corner = [lattice[(row + j) % 16, (column + i) % 16] for j in (0, 1) for i in (0, 1)]
    top, bottom = corner[0] + (corner[1] - corner[0]) * u, corner[2] + (corner[3] - corner[2]) * u
    return top + (bottom - top) * v


def _wave(position: np.ndarray, width: float, phase: float) -> np.ndarray:
    """A square wave in 0..1 of bands `width` pixels wide, its edges three pixels soft."""
    inside = (position / width + 2 * phase) % 2  # a band from 0 to 1
    edge = np.minimum(np.abs(inside - 1), np.minimum(inside, 2 - inside)) * width / 1.5
    sign = np.where(inside < 1, 1, -1)
    return 0.5 + 0.5 * sign * np.clip(edge, 0, 1)


def _smooth(t: np.ndarray) -> np.ndarray:
    return t * t * (3 - 2 * t)


TEXTURES = {"stripes": _stripes, "checks": _checks, "gradient": _gradient, "noise": _noise}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes the first frame of a prompt's clip.")
    parser.add_argument("prompt")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Image.fromarray(first_frame(args.prompt, args.seed)).save(args.file)


if __name__ == "__main__":
    main()
