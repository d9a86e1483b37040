"""The profile file: loading, adding runs, refusals."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from made_profiles import made_profile
from profiling_core.errors import ProfileError
from profiling_core.profile.packing import packed
from profiling_core.profile.profile import Profile, Settings, add_runs


def test_a_saved_profile_is_the_same_again(tmp_path: Path) -> None:
    profile = made_profile()
    profile.save(tmp_path / "a.profile")
    again = Profile.load(tmp_path / "a.profile")
    assert again.settings == profile.settings
    assert again.subject == profile.subject
    assert again.runs == profile.runs
    assert again.sha256() == profile.sha256()
    assert again.arrays.keys() == profile.arrays.keys()
    written = packed(profile.arrays)
    assert all(np.array_equal(a, written[n], True) for n, a in packed(again.arrays).items())
    assert [path.name for path in tmp_path.iterdir()] == ["a.profile"]


def test_settings_alone_are_a_profile(tmp_path: Path) -> None:
    settings = Settings(mask="motion", attention_every=10, sensitivity=(1, 6))
    Profile(settings).save(tmp_path / "a.profile")
    again = Profile.load(tmp_path / "a.profile")
    assert (again.settings, again.subject, again.runs) == (settings, None, ())
    with pytest.raises(ProfileError, match="no run yet: record one"):
        _ = again.recorded


def test_runs_are_added_in_order(tmp_path: Path) -> None:
    first, second = made_profile(runs=2), made_profile(runs=1, seed=5)
    path = tmp_path / "a.profile"
    add_runs(path, first)
    whole = add_runs(path, second)
    assert whole.sha256() == Profile.load(path).sha256()
    assert whole.runs == first.runs + second.runs
    assert np.array_equal(whole.arrays["gram"][2], second.arrays["gram"][0])
    mean = (2 * first.arrays["delta_gram.blocks"] + second.arrays["delta_gram.blocks"]) / 3
    assert np.allclose(whole.arrays["delta_gram.blocks"], mean, atol=1e-3 * np.abs(mean).max())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "hunyuan-video-t2v-mini"}, "model wan2.1-t2v-mini, this run hunyuan-video"),
        ({"steps": 40}, "has steps 50, this run 40"),
        ({"settings": Settings(attention_every=2)}, "has settings mask='pca'"),
    ],
)
def test_runs_that_do_not_fit_leave_the_file_alone(
    tmp_path: Path, other: dict, message: str
) -> None:
    path = tmp_path / "a.profile"
    made_profile().save(path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match=message):
        add_runs(path, made_profile(**other))
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.profile"]


def test_other_noise_levels_are_named(tmp_path: Path) -> None:
    profile = made_profile()
    sigmas = (*profile.subject.sigmas[:7], 0.5, *profile.subject.sigmas[8:])
    other = profile.subject.model_copy(update={"sigmas": sigmas})
    with pytest.raises(ProfileError, match=r"sigma of step 7 0\.96\d*, this run 0\.5"):
        profile.check_subject(other)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.profile"
    made_profile().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProfileError, match=r"a\.profile: not a whole safetensors file"):
        Profile.load(path)
    path.write_bytes(b"{}")
    with pytest.raises(ProfileError, match="not a whole safetensors file"):
        Profile.load(path)
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(ProfileError, match="not of a profile"):
        Profile.load(path)
    with pytest.raises(ProfileError, match=r"b\.profile: no such file"):
        Profile.load(tmp_path / "b.profile")


def test_arrays_have_to_fit_the_header(tmp_path: Path) -> None:
    profile = made_profile()
    profile.arrays["drift"] = profile.arrays["drift"][:, :, 1:]
    profile.save(tmp_path / "a.profile")
    with pytest.raises(ProfileError, match=r"array drift is of shape \(2, 2, 48, 12\), expected"):
        Profile.load(tmp_path / "a.profile")
    del profile.arrays["drift"]
    profile.save(tmp_path / "a.profile")
    with pytest.raises(ProfileError, match="array drift is missing"):
        Profile.load(tmp_path / "a.profile")


@pytest.mark.parametrize(
    ("name", "value"), [("gram", np.nan), ("drift", np.inf), ("sensitivity", np.inf)]
)
def test_a_number_that_is_not_finite_is_named_with_its_array(
    tmp_path: Path, name: str, value: float
) -> None:
    profile = made_profile()
    profile.arrays[name] = profile.arrays[name].copy()
    profile.arrays[name].flat[-1] = value
    profile.save(tmp_path / "a.profile")
    message = rf"a\.profile: array {name} holds {value} at \(.*\), expected finite numbers"
    with pytest.raises(ProfileError, match=message):
        Profile.load(tmp_path / "a.profile")


@pytest.mark.parametrize("part", ["arrays", "header"])
def test_numbers_that_were_changed_are_found_by_the_checksum(tmp_path: Path, part: str) -> None:
    path = tmp_path / "a.profile"
    profile = made_profile()
    profile.save(path)
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    if part == "arrays":
        content[size + 8 + profile.arrays["attention_maps"].nbytes // 2] ^= 1
    else:
        place = content.index(b'"seed') + content[content.index(b'"seed') :].index(b":") + 1
        content[place] = ord("7")
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"a\.profile: its numbers are not those that were wr"):
        Profile.load(path)


def test_a_profile_without_a_checksum_loads(tmp_path: Path) -> None:
    profile = made_profile()
    header = profile._header().model_dump_json(exclude={"sha256"})
    arrays = {n: np.ascontiguousarray(a) for n, a in packed(profile.arrays).items()}
    save_file(arrays, tmp_path / "old.profile", {"profile": header})
    assert Profile.load(tmp_path / "old.profile").sha256() == profile.sha256()


def _add(path: Path, seed: int) -> None:
    for number in range(3):
        add_runs(path, made_profile(runs=1, steps=10, seed=10 * seed + number))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.profile"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add, args=(path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    prompts = sorted(run.prompt for run in Profile.load(path).runs)
    assert prompts == [f"prompt 0 of {seed}" for seed in (10, 11, 12, 20, 21, 22)]
