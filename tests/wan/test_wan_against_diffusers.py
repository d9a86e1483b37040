"""The transformer against diffusers' WanTransformer3DModel with the same random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from diffusers_pairs import WAN_PICTURE, WAN_TEXT_LEN, wan_inputs, wan_pair
from wan.model import WanModel


@pytest.fixture(scope="module")
def pair() -> tuple[WanModel, WanTransformer3DModel]:
    return wan_pair()


@pytest.fixture(scope="module")
def model(pair: tuple[WanModel, WanTransformer3DModel]) -> WanModel:
    return pair[0]


@pytest.mark.parametrize("timestep", [999, 500, 0])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_prediction_equals_diffusers(pair, timestep: int, batch: int) -> None:
    (model, reference), (x, text) = pair, wan_inputs(batch)
    t = torch.full((batch,), timestep, dtype=torch.int64)
    ours = torch.stack(model(list(x), t, list(text), seq_len=3 * 4 * 6))
    theirs = reference(x, t, text, return_dict=False)[0]
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("timestep", [999, 0])
@pytest.mark.parametrize(("model_type", "pictures"), [("i2v", 1), ("flf2v", 2)])
@torch.no_grad()
def test_prediction_with_pictures_equals_diffusers(
    model_type: str, pictures: int, timestep: int
) -> None:
    (model, reference), (x, text) = wan_pair(model_type), wan_inputs(2)
    t = torch.full((2,), timestep)
    features = torch.randn(2 * pictures, *WAN_PICTURE.values())
    y = torch.randn(2, 20, *x.shape[2:])
    ours = torch.stack(model(list(x), t, list(text), 3 * 4 * 6, features, list(y)))
    theirs = reference(torch.cat((x, y), dim=1), t, text, features, return_dict=False)[0]
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(("timestep", "scale"), [(999, 1.0), (0, 0.7)])
@torch.no_grad()
def test_prediction_with_hints_equals_diffusers(timestep: int, scale: float) -> None:
    (model, reference), (x, text) = wan_pair("vace"), wan_inputs(2)
    t = torch.full((2,), timestep)
    c = torch.randn(2, 96, *x.shape[2:], generator=torch.Generator().manual_seed(1))
    ours = torch.stack(model(list(x), t, list(c), list(text), 3 * 4 * 6, scale))
    scales = torch.full((len(model.vace_layers),), scale)
    hints = {"control_hidden_states": c, "control_hidden_states_scale": scales}
    theirs = reference(x, t, text, **hints, return_dict=False)[0]
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-5
    without = torch.stack(model(list(x), t, list(c), list(text), 3 * 4 * 6, 0.0))
    assert (ours - without).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"vace_context has the grids .* the latents have"):
        model(list(x), t, list(c[:, :, 1:]), list(text), 3 * 4 * 6)


@torch.no_grad()
def test_pictures_and_model_type_have_to_fit(model) -> None:
    x, text = wan_inputs(1)
    picture = {"clip_fea": torch.zeros(1, 5, 24), "y": [torch.zeros(20, *x.shape[2:])]}
    given = (list(x), torch.tensor([1]), list(text), 72)
    with pytest.raises(ValueError, match="'t2v' has no image branch"):
        model(*given, **picture)
    with pytest.raises(ValueError, match="'i2v' needs clip_fea and y"):
        wan_pair("i2v")[0](*given)


@torch.no_grad()
def test_padding_the_sequence_changes_nothing(model) -> None:
    x, text = wan_inputs(2)
    t = torch.tensor([700, 30])
    plain = model(list(x), t, list(text), seq_len=72)
    padded = model(list(x), t, list(text), seq_len=80)
    for a, b in zip(plain, padded, strict=True):
        assert (a - b).abs().max() == 0


@torch.no_grad()
def test_clips_of_different_size_share_a_batch(model) -> None:
    (large, text), (small, other) = wan_inputs(1), wan_inputs(1, (2, 4, 6))
    t = torch.tensor([600])
    both = model([large[0], small[0]], t.repeat(2), [text[0], other[0]], seq_len=72)
    for clip, one, prompt in zip(both, (large, small), (text, other), strict=True):
        alone = model([one[0]], t, [prompt[0]], seq_len=72)[0]
        assert (clip - alone).abs().max() < 1e-5


@torch.no_grad()
def test_short_prompts_are_zero_padded_and_their_padding_is_attended(model) -> None:
    x, text = wan_inputs(1)
    t = torch.tensor([600])
    short = model(list(x), t, [text[0, :9]], seq_len=72)[0]
    padded = torch.nn.functional.pad(text[0, :9], (0, 0, 0, WAN_TEXT_LEN - 9))
    assert torch.equal(short, model(list(x), t, [padded], seq_len=72)[0])
    assert not torch.equal(short, model(list(x), t, [padded + 1e-3], seq_len=72)[0])


def test_more_tokens_than_seq_len_is_refused(model) -> None:
    x, text = wan_inputs(1)
    with pytest.raises(ValueError, match="72 tokens, seq_len 71"):
        model(list(x), torch.tensor([1]), list(text), seq_len=71)
