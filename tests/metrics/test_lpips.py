"""LPIPS: the formula, written out place by place; its weight files; its errors."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lpips_toys import random_state
from profiling_core.errors import LpipsError
from profiling_core.lpips import SCALE, SHIFT, Lpips

SIDE = 35


def clips(frames: int = 3, side: int = SIDE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    one = torch.rand((3, frames, side, side), generator=generator) * 2 - 1
    return one, (one + 0.2 * torch.randn(one.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state()


@pytest.fixture(scope="module")
def lpips(state) -> Lpips:
    return Lpips(state)


def alexnet(state: dict[str, Tensor]) -> nn.Sequential:
    """AlexNet's features as torchvision orders them; parameters carry the file's names."""
    layers = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )
    prefix = "features."
    layers.load_state_dict(
        {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    )
    return layers.double()


def activations(layers: nn.Sequential, frame: Tensor) -> list[Tensor]:
    """What every ReLU gives, of one frame (3, H, W)."""
    x = (frame.double() - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
    x, found = x[None], []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x[0])
    return found


@torch.no_grad()
def direct(state: dict[str, Tensor], one: Tensor, other: Tensor) -> list[float]:
    """The definition in float64, one place of one layer at a time."""
    layers, distances = alexnet(state), []
    for frame in range(one.shape[1]):
        total = 0.0
        pairs = zip(
            activations(layers, one[:, frame]), activations(layers, other[:, frame]), strict=True
        )
        for number, (a, b) in enumerate(pairs):
            head = state[f"lin{number}.model.1.weight"].double().flatten()
            places = []
            for u, v in zip(a.flatten(1).T, b.flatten(1).T, strict=True):
                u, v = u / (u.norm() + 1e-10), v / (v.norm() + 1e-10)
                places.append(float((head * (u - v) ** 2).sum()))
            total += sum(places) / len(places)
        distances.append(total)
    return distances


def test_distance_is_the_definition_place_by_place(state, lpips):
    one, other = clips()
    expected = direct(state, one, other)
    assert min(expected) > 0.001
    assert lpips.frames(one, other).tolist() == pytest.approx(expected, rel=1e-5)
    assert lpips(one, other) == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_a_clip_is_at_distance_zero_from_itself_and_the_distance_is_symmetric(lpips):
    one, other = clips()
    assert lpips(one, one) == 0
    assert lpips(one, other) == lpips(other, one)


def test_chunks_change_nothing(lpips):
    one, other = clips(frames=5)
    whole = lpips.frames(one, other, chunk=5)
    for chunk in (1, 2):
        torch.testing.assert_close(lpips.frames(one, other, chunk=chunk), whole)


def test_values_outside_the_range_count_as_its_ends(lpips):
    one, other = clips()
    assert lpips(one * 3, other) == lpips((one * 3).clamp(-1, 1), other)


def features_and_heads(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    features = {name: t for name, t in state.items() if name.startswith("features")}
    return features, {name: t for name, t in state.items() if name.startswith("lin")}


def test_loads_two_files_in_any_order_one_file_or_their_folder(state, lpips, tmp_path):
    features, heads = features_and_heads(state)
    classifier = {"classifier.1.weight": torch.zeros(2, 2)}  # torchvision's file has one
    torch.save({**features, **classifier}, tmp_path / "alexnet-owt-7be5be79.pth")
    save_file(heads, tmp_path / "alex.safetensors")
    vgg = {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}
    vgg["lin1.model.1.weight"] = torch.zeros(1, 128, 1, 1)
    torch.save(vgg, tmp_path / "vgg.pth")
    (tmp_path / "README").write_text("not weights")
    files = [tmp_path / "alexnet-owt-7be5be79.pth", tmp_path / "alex.safetensors"]
    both = tmp_path / "sub" / "both.safetensors"
    both.parent.mkdir()
    save_file(state, both)
    one, other = clips()
    for paths in (files, files[::-1], [both], [tmp_path]):
        loaded = Lpips.load(*paths)
        assert loaded.sha256 == lpips.sha256 and loaded(one, other) == lpips(one, other)
    assert Lpips(random_state(1)).sha256 != lpips.sha256


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("features.3.weight", None, "is missing, it is in torchvision's"),
        ("lin4.model.1.weight", None, "is missing, it is in lpips'"),
        ("features.0.weight", torch.zeros(64, 3, 3, 3), "has shape (64, 3, 3, 3), expected"),  # VGG
        ("fc.weight", torch.zeros(1), "is no tensor of AlexNet's"),
        ("features.0.bias", torch.full((64,), math.nan), "holds numbers that are not finite"),
    ],
)
def test_wrong_weights_are_refused_by_name(state, name, tensor, says):
    wrong = {**state, name: tensor}
    if tensor is None:
        del wrong[name]
    with pytest.raises(LpipsError) as error:
        Lpips(wrong)
    assert f"{name} {says}" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files_are_one_line(state, tmp_path):
    _, heads = features_and_heads(state)
    torch.save(heads, tmp_path / "alex.pth")
    (tmp_path / "noise.pth").write_bytes(b"no weights at all")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    torch.save({k: t.to(torch.float8_e4m3fn) for k, t in heads.items()}, tmp_path / "eight.pth")
    torch.save({"state": 3}, tmp_path / "other.pth")
    torch.save({"model": Stranger()}, tmp_path / "code.pth")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        "nowhere.pth": "no such file",
        "noise.pth": "is not a complete weight file (torch.save did not write it): download it",
        "pointer.pth": "is a git-lfs pointer, not the file: run `git lfs pull` there",
        "eight.pth": "float8_e4m3fn needs scales: take fp32 weights",
        "other.pth": "expected a state dict of tensors alone",
        "code.pth": "is not a complete weight file (it holds code beside tensors)",
        "empty": "none of its 0 weight files",
    }
    for name, says in cases.items():
        with pytest.raises(LpipsError) as error:
            Lpips.load(tmp_path / name)
        assert says in str(error.value) and name in str(error.value), name
        assert "\n" not in str(error.value)
    with pytest.raises(LpipsError, match=r"lin0\.model\.1\.weight is in another file, too"):
        Lpips.load(tmp_path / "alex.pth", tmp_path / "alex.pth")


class Stranger:
    """Loading a file must not run its class."""

    def __reduce__(self):
        return RuntimeError, ("this code ran",)


def test_clips_that_cannot_be_compared_are_refused(lpips):
    one, other = clips()
    small = torch.zeros(3, 1, 30, 40)
    for a, b, says in (
        (one, other[:, :2], "cannot be compared"),
        (one[:2], other[:2], r"expected videos \(3, F, H, W\)"),
        (small, small, "needs frames of 31 x 31 pixels, found 30 x 40"),
    ):
        with pytest.raises(LpipsError, match=says):
            lpips(a, b)


def test_the_smallest_side_is_what_the_layers_need(lpips):
    one, other = clips(frames=1, side=31)
    assert lpips(one, other) > 0
