"""Clips are pure functions of seed and index, and show their prompts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniatures import clips
from miniatures.clips import Actor, Scene
from tree_paths import ROOT


def one_shape(motion: str, background: str = "checks") -> Scene:
    return Scene((Actor("red", "circle", motion),), "blue", background)


def test_a_clip_depends_on_seed_and_index_alone() -> None:
    first, again = clips.clip(3, 7), clips.clip(3, 7)
    assert first.prompt == again.prompt
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, clips.clip(3, 8).frames)
    assert not np.array_equal(first.frames, clips.clip(4, 7).frames)


def test_clips_of_a_range_equal_clips_by_index() -> None:
    together = [clip.frames for clip in clips.clips(0, 4, 6)]
    assert all(np.array_equal(a, clips.clip(0, 4 + i).frames) for i, a in enumerate(together))


def test_the_prompt_is_known_without_drawing() -> None:
    for held_out in (False, True):
        assert clips.prompt_of(0, 5, held_out) == clips.clip(0, 5, held_out).prompt


def test_a_clip_has_the_size_that_the_model_expects() -> None:
    clip = clips.clip(0, 0)
    assert clip.frames.shape == (33, 128, 128, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.centres.shape == (len(clip.scene.actors), 33, 2)


@pytest.mark.parametrize("held_out", [False, True])
def test_prompts_survive_parsing_and_printing(held_out: bool) -> None:
    for index in range(200):
        prompt = clips.prompt_of(1, index, held_out)
        assert str(clips.parse(prompt)) == prompt


def test_a_prompt_of_two_shapes_is_read() -> None:
    scene = clips.parse("red circle moving right and gray star bouncing over blue stripes")
    assert scene.actors == (
        Actor("red", "circle", "moving right"),
        Actor("gray", "star", "bouncing"),
    )
    assert (scene.colour, scene.background) == ("blue", "stripes")


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("red circle moving right", "over"),
        ("red circle over blue stripes", "red circle"),
        ("pink circle bouncing over blue stripes", "pink"),
        ("red blob bouncing over blue stripes", "blob"),
        ("red circle flying over blue stripes", "flying"),
        ("red circle bouncing over blue dots", "dots"),
    ],
)
def test_a_prompt_outside_the_grammar_is_refused_with_its_word(prompt: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        clips.parse(prompt)


def test_a_scene_without_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="0 shapes"):
        Scene((), "blue", "checks")


def test_no_training_clip_shows_a_held_out_shape() -> None:
    train = {a for i in range(1500) for a in clips.parse(clips.prompt_of(0, i)).actors}
    held_out = [clips.parse(clips.prompt_of(0, i, held_out=True)) for i in range(300)]
    assert all(any(actor not in train for actor in scene.actors) for scene in held_out)


def test_the_check_prompts_are_held_out_and_show_every_motion() -> None:
    prompts = clips.held_out_prompts(24)
    scenes = [clips.parse(prompt) for prompt in prompts]
    assert len(set(prompts)) == 24
    assert all(map(clips.is_held_out, scenes))
    assert [s.actors[0].motion for s in scenes] == list(clips.MOTIONS) * 4


@pytest.mark.parametrize(
    ("motion", "axis", "sign"),
    [("moving left", 0, -1), ("moving right", 0, 1), ("moving up", 1, -1), ("moving down", 1, 1)],
)
@pytest.mark.parametrize("seed", range(5))
def test_shapes_move_in_the_direction_of_the_prompt(
    motion: str, axis: int, sign: int, seed: int
) -> None:
    path = clips.draw(one_shape(motion), np.random.default_rng(seed)).centres[0]
    travel = path[-1] - path[0]
    assert sign * travel[axis] > 35
    assert travel[1 - axis] == 0


@pytest.mark.parametrize("seed", range(5))
def test_bouncing_turns_round_and_orbiting_comes_back(seed: int) -> None:
    bounce = clips.draw(one_shape("bouncing"), np.random.default_rng(seed)).centres[0]
    assert np.ptp(bounce[:, 0]) == 0 and np.ptp(bounce[:, 1]) > 30
    assert np.count_nonzero(np.diff(np.sign(np.diff(bounce[:, 1])))) >= 2
    orbit = clips.draw(one_shape("orbiting"), np.random.default_rng(seed)).centres[0]
    assert np.linalg.norm(orbit[-1] - orbit[0]) < 2
    assert np.ptp(orbit, axis=0).min() > 35


@pytest.mark.parametrize("background", clips.BACKGROUNDS)
@pytest.mark.parametrize("shape", clips.SHAPES)
def test_the_shape_is_drawn_at_its_centre_in_its_colour(background: str, shape: str) -> None:
    scene = Scene((Actor("yellow", shape, "moving right"),), "blue", background)
    clip = clips.draw(scene, np.random.default_rng(2))
    for frame, (x, y) in zip(clip.frames, clip.centres[0], strict=True):
        expected = np.array(clips.COLOURS["yellow"]) * 255
        assert np.abs(frame[int(y), int(x)] - expected).max() <= 1


def test_only_the_shape_changes_over_a_static_background() -> None:
    clip = clips.draw(one_shape("moving right"), np.random.default_rng(0))
    far = np.abs(np.arange(128) - clip.centres[0][0, 1]) > 40  # rows that the shape never meets
    assert np.array_equal(clip.frames[0][far], clip.frames[-1][far])


def test_the_example_picture_is_the_first_frame_of_the_demos_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "first.png"
    prompt = "red circle moving right over blue stripes"
    monkeypatch.setattr("sys.argv", ["clips", prompt, str(made)])
    clips.main()
    shipped = ROOT / "Wan2.1" / "examples" / "first.png"
    pictures = [np.asarray(Image.open(path)).astype(int) for path in (made, shipped)]
    assert pictures[0].shape == (clips.SIZE, clips.SIZE, 3)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
