"""Pruning in one line: widths, criteria against closed forms, and every way to ask wrongly."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import EASY, fingerprint, made
from torch import Tensor, nn

from equipoise.compress import statistics
from equipoise.compress.blocks import Skip, droppable
from equipoise.compress.criteria import CRITERIA, Evidence, gather, ranking
from equipoise.compress.graph import groups
from equipoise.compress.prune import prune, rounded
from equipoise.compress.statistics import Moments
from equipoise.errors import InputError


@pytest.mark.parametrize(
    ("width", "size", "round_to", "built"),
    [
        (8, 16, 8, 8),
        (12, 16, 8, 16),
        (11, 16, 8, 8),
        (1, 16, 8, 8),
        (3, 64, 8, 8),
        (10, 12, 8, 8),
        (12, 12, 8, 12),
        (3, 6, 8, 3),
        (0, 6, 8, 1),
        (19, 20, 8, 16),
        (5, 20, 1, 5),
        (99, 20, 8, 20),
        (40, 64, 16, 48),
    ],
)
def test_widths_are_rounded_to_what_the_hardware_likes(width: int, size: int, round_to: int, built: int) -> None:
    assert rounded(width, size, round_to) == built


@pytest.mark.parametrize("name", EASY)
def test_half_the_channels_go_and_the_model_is_untouched(name: str) -> None:
    model, inputs = made(name)
    before = fingerprint(model)
    smaller = prune(model, inputs[:2], ratio=0.5, data=inputs)
    assert fingerprint(model) == before
    for group in groups(model, inputs[:2]):
        layer = smaller.get_submodule(group.name)
        width = getattr(layer, "out_channels", 0) or layer.out_features
        assert width == (rounded(group.size // 2, group.size, 8) if group.prunable else group.size)
    with torch.no_grad():
        assert smaller(inputs).shape == model(inputs).shape


def test_without_data_the_batch_norms_stay_and_nothing_else_moves() -> None:
    model, inputs = made("cnn")
    smaller = prune(model, inputs[:2], widths={"0": 8})
    assert smaller[1].num_features == 8
    torch.testing.assert_close(smaller[9].weight, model[9].weight)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_every_group_of_every_net(criterion: str) -> None:
    for name in ("cnn", "projection", "mobile"):
        model, inputs = made(name)
        chosen = [group for group in groups(model, inputs[:2]) if group.prunable and (criterion, name) != ("bn_scale", "cnn")]
        if criterion == "bn_scale":
            chosen = [group for group in chosen if group.name in ("0", "3.conv1")]
        evidence = gather(
            model,
            chosen,
            criterion=criterion,
            data=inputs,
            loss=lambda out: out.square().sum(),
            generator=torch.Generator().manual_seed(0),
        )
        for group in chosen:
            assert sorted(ranking(group, criterion, evidence)) == list(range(group.size))


def test_magnitude_criteria_agree_with_the_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data = torch.tensor([[1.0, 1, 1], [0, 0, 2.5], [4, 0, 0], [0, 0.1, 0]])
    (group, _) = groups(model, torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    assert ranking(group, "l2", Evidence(model)) == (2, 1, 0, 3)
    assert ranking(group, "l1", Evidence(model)) == (2, 0, 1, 3)


def test_taylor_is_the_change_of_the_loss_for_a_small_cut() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    generator = torch.Generator().manual_seed(1)
    data, labels = torch.randn(20, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (20,), generator=generator)

    def loss(output: Tensor) -> Tensor:
        return F.cross_entropy(output, labels)

    (group, _) = groups(model, data)
    evidence = gather(model, [group], criterion="taylor", data=data, loss=loss)
    scores = CRITERIA["taylor"](group, evidence)
    for channel in range(6):
        row = model[0].weight.data[channel].clone()
        changes = []
        for sign in (1, -1):
            model[0].weight.data[channel] = row * (1 + sign * 1e-5)
            changes.append(float(loss(model(data)).detach()))
        model[0].weight.data[channel] = row
        assert float(scores[channel]) == pytest.approx(abs(changes[0] - changes[1]) / 2e-5, rel=1e-3)


def reader_of(size: int, seed: int) -> tuple[nn.Module, Tensor]:
    """A net in which one linear layer reads `size` correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(size, size), nn.Linear(size, 3))
    model[0].weight.data = torch.randn(size, size, generator=generator)
    model[1].weight.data = torch.randn(3, size, generator=generator)
    return model, torch.randn(400, size, generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_obs_gives_up_first_the_channel_that_least_squares_misses_least(seed: int) -> None:
    model, data = reader_of(6, seed)
    (group, _) = groups(model, data[:2])
    order = ranking(group, "obs", gather(model, [group], criterion="obs", data=data))
    with torch.no_grad():
        read = model[0](data)
        answer = read @ model[1].weight.T

    def error(stay: tuple[int, ...]) -> float:
        x = torch.cat([read[:, list(stay)], torch.ones(len(read), 1)], 1)
        return float((answer - x @ torch.linalg.lstsq(x, answer).solution).square().sum())

    by_force = min(itertools.combinations(range(6), 5), key=error)
    assert set(order[:5]) == set(by_force)


def test_obs_on_independent_inputs_is_the_activation_score() -> None:
    model, data = reader_of(12, 0)
    (group, _) = groups(model, data[:2])
    powers = torch.rand(12, generator=torch.Generator().manual_seed(5)).double() + 0.1
    evidence = Evidence(model, moments={"1": Moments(torch.diag(powers), torch.zeros(12).double())})
    assert ranking(group, "obs", evidence)[1:] == ranking(group, "activation", evidence)[1:]
    shuffled = Evidence(model, moments={"1": Moments(torch.diag(powers.flip(0)), torch.zeros(12).double())})
    assert ranking(group, "obs", evidence) != ranking(group, "obs", shuffled)


def wrong(**changes: object) -> None:
    model, inputs = made("cnn")
    prune(model, inputs[:2], **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "one and not both"),
        ({"ratio": 0.5, "widths": {"0": 8}}, "one and not both"),
        ({"ratio": 1.0}, r"ratio must be a fraction of channels to remove in \[0, 1\)"),
        ({"ratio": -0.1}, "ratio must be"),
        ({"ratio": float("nan")}, "ratio must be"),
        ({"widths": {"00": 8}}, "group must be one of 0, 4, 9; got '00'"),
        ({"widths": {"11": 2}}, "left whole: it feeds the model's output"),
        ({"widths": {"0": 17}}, r"in \[1, 16\]"),
        ({"widths": {"0": 0}}, r"in \[1, 16\]"),
        ({"ratio": 0.5, "criterion": "l3"}, "criterion must be one of"),
        ({"ratio": 0.5, "criterion": "obs"}, "data must be"),
        ({"ratio": 0.5, "criterion": "random"}, "generator must be"),
        ({"ratio": 0.5, "criterion": "bn_scale"}, "has none"),
        ({"ratio": 0.5, "criterion": "taylor", "data": torch.zeros(2, 3, 8, 8)}, "loss must be"),
        ({"ratio": 0.5, "round_to": 0}, "round_to must be"),
    ],
)
def test_bad_input_gets_one_clear_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong(**changes)


def autoencoder() -> tuple[nn.Module, Tensor]:
    """Channels that only a transposed convolution reads, between others that dense layers read."""
    generator = torch.Generator().manual_seed(0)
    layers = (nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1))
    return nn.Sequential(*layers), torch.randn(200, 1, 8, 8, generator=generator)


@pytest.mark.parametrize("criterion", ["obs", "activation"])
def test_a_group_without_a_dense_reader_is_ordered_by_its_weights_and_says_so(criterion: str) -> None:
    model, inputs = autoencoder()
    with pytest.warns(UserWarning, match=f"group '2' is ordered by criterion 'l2', not '{criterion}': no dense layer"):
        smaller = prune(model, inputs[:2], ratio=0.5, data=inputs, criterion=criterion)
    assert (smaller[0].out_channels, smaller[2].out_channels) == (8, 16)
    first, second = groups(model, inputs[:2])[:2]
    evidence = gather(model, [first, second], criterion=criterion, data=inputs)
    assert ranking(second, criterion, evidence) == ranking(second, "l2", evidence)
    assert ranking(first, criterion, evidence) != ranking(first, "l2", evidence)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 8, 3), nn.Flatten(), nn.Linear(64, 3)), (1, 4, 4, 4)),
        ((nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, padding="same"), nn.Flatten(), nn.Linear(32, 3)), (1, 4, 4)),
        ((nn.Conv1d(1, 16, 3), nn.ReLU(), nn.Conv1d(16, 8, 3, padding="valid"), nn.Flatten(), nn.Linear(32, 3)), (1, 8)),
    ],
    ids=["conv3d", "same", "valid"],
)
def test_every_dense_reader_gives_moments(layers: tuple[nn.Module, ...], shape: tuple[int, ...]) -> None:
    model = nn.Sequential(*layers)
    inputs = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    smaller = prune(model, inputs[:2], ratio=0.5, data=inputs, criterion="obs")  # a warning would be an error
    assert smaller[0].out_channels == 8
    with torch.no_grad():
        bare = prune(model, inputs[:2], ratio=0.5, criterion="l2")
        exact = model(inputs)
        assert float((smaller(inputs) - exact).square().mean()) < 0.8 * float((bare(inputs) - exact).square().mean())


def test_a_layer_too_wide_for_second_moments_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "WIDEST", 20)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3))
    inputs = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="group '0' is ordered by criterion 'l2', not 'obs'"):
        smaller = prune(model, inputs[:2], ratio=0.5, data=inputs, criterion="obs")
    assert smaller[0].out_features == 16


def read_by_one(inputs: Tensor, *, seed: int = 3) -> tuple[nn.Module, Tensor]:
    """A net whose second layer reads the inputs as they are."""
    wide = inputs.shape[1]
    model = nn.Sequential(nn.Linear(wide, wide), nn.Linear(wide, 3))
    model[0].weight.data, model[0].bias.data = torch.eye(wide), torch.zeros(wide)
    model[1].weight.data = torch.randn(3, wide, generator=torch.Generator().manual_seed(seed))
    return model, inputs


def order_of(inputs: Tensor, criterion: str = "obs") -> tuple[int, ...]:
    model, data = read_by_one(inputs)
    (group, _) = groups(model, torch.randn(2, inputs.shape[1], generator=torch.Generator().manual_seed(0)))
    return ranking(group, criterion, gather(model, [group], criterion=criterion, data=data))


def test_an_offset_does_not_change_the_order() -> None:
    inputs = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    assert order_of(inputs + 1e4) == order_of(inputs)
    assert sorted(order_of(inputs + 1e6)) == list(range(10))


def test_what_is_constant_or_said_twice_goes_first() -> None:
    inputs = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    inputs[:, 4], inputs[:, 7], inputs[:, 9] = 1e6, 0.0, inputs[:, 2]
    order = order_of(inputs)
    assert set(order[-2:]) == {4, 7}
    assert order[-3] in (2, 9)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_fewer_samples_than_channels_still_give_an_order(rows: int) -> None:
    inputs = torch.randn(rows, 24, generator=torch.Generator().manual_seed(0))
    assert sorted(order_of(inputs)) == list(range(24))
    assert sorted(order_of(inputs * torch.logspace(-6, 6, 24))) == list(range(24))


def test_the_scale_of_a_column_does_not_decide() -> None:
    """A column of large numbers with small weights is worth what the same column is in other units."""
    inputs = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    plain, data = read_by_one(inputs)
    (group, _) = groups(plain, data[:2])
    before = ranking(group, "obs", gather(plain, [group], criterion="obs", data=data))
    units = torch.logspace(-2, 2, 8)
    plain[0].weight.data *= units[:, None]
    plain[1].weight.data /= units
    assert ranking(group, "obs", gather(plain, [group], criterion="obs", data=data)) == before


def test_what_is_not_finite_is_left_to_the_weights() -> None:
    model, data = read_by_one(torch.randn(300, 8, generator=torch.Generator().manual_seed(0)))
    (group, _) = groups(model, data[:2])
    data[5, 3] = float("inf")
    with pytest.warns(UserWarning, match="what 1 reads is not finite|could not be repaired"):
        prune(model, torch.zeros(2, 8), widths={"0": 4}, data=data, criterion="obs", round_to=1)
    evidence = gather(model, [group], criterion="obs", data=data)
    assert ranking(group, "obs", evidence) == ranking(group, "l2", evidence)


def test_a_weight_that_a_hook_computes_is_no_obstacle() -> None:
    """The old form of weight_norm, which Python's own copy refuses; its layer stays, the rest is cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = nn.utils.weight_norm(nn.Linear(6, 16))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    smaller = prune(model, inputs[:2], ratio=0.5)
    assert (smaller[0].out_features, smaller[2].out_features) == (16, 16)
    with torch.no_grad():
        torch.testing.assert_close(prune(model, inputs[:2], ratio=0.0)(inputs), model(inputs))


def test_steps_train_in_between_and_end_where_one_step_does() -> None:
    model, inputs = made("cnn")
    widths: list[int] = []

    def learn(small: nn.Module) -> None:
        widths.append(small[0].out_channels)
        for weight in small.parameters():
            weight.data.mul_(1.01)

    at_once = prune(model, inputs[:2], ratio=0.5, round_to=1)
    small = prune(model, inputs[:2], ratio=0.5, round_to=1, steps=3, train=learn)
    first, last = model[0].out_channels, at_once[0].out_channels
    assert [tuple(p.shape) for p in small.parameters()] == [tuple(p.shape) for p in at_once.parameters()]
    assert widths == pytest.approx([first - (first - last) * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)], abs=0.51)
    assert not torch.equal(small[0].weight, at_once[0].weight)
    for options, message in (({"steps": 2}, "train must be given"), ({"steps": 0, "train": learn}, "steps must be")):
        with pytest.raises(InputError, match=message):
            prune(model, inputs[:2], ratio=0.5, **options)
    with pytest.raises(InputError, match="train must be a function that returns the model"):
        prune(model, inputs[:2], ratio=0.5, train=lambda small: nn.Linear(2, 2))


def test_blocks_are_dropped_by_name_or_by_what_is_least_needed() -> None:
    model, inputs = made("option_a")
    able = list(droppable(model, inputs[:2]))
    with torch.no_grad():
        model.get_submodule(able[-1]).bn2.weight.mul_(1e-3)  # it hardly adds anything
        model.get_submodule(able[-1]).bn2.bias.mul_(1e-3)
    small = prune(model, inputs[:2], blocks=1, data=inputs, repair=False)
    assert isinstance(small.get_submodule(able[-1]), Skip)
    both = prune(model, inputs[:2], blocks=[able[0]], ratio=0.5, data=inputs)
    assert isinstance(both.get_submodule(able[0]), Skip)
    assert sum(p.numel() for p in both.parameters()) < sum(p.numel() for p in small.parameters())
    with torch.no_grad():
        made_of = [prune(model, inputs[:2], blocks=[able[0]], data=inputs, repair=repair) for repair in (False, True)]
        off = [float((shorter(inputs) - model(inputs)).std()) for shorter in made_of]
    assert off[1] < off[0]
    for blocks, message in ((len(able) + 1, "blocks must be from 1"), (["conv1"], "block"), (0, "blocks must be")):
        with pytest.raises(InputError, match=message):
            prune(model, inputs[:2], blocks=blocks, data=inputs)


@pytest.mark.parametrize(("ratio", "steps", "left"), [(0.6, 4, 24), (0.1, 2, 56), (0.97, 3, 8)])
def test_steps_that_are_rounded_below_the_goal_end_where_one_cut_does(ratio: float, steps: int, left: int) -> None:
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    made = [prune(net, torch.randn(2, 4), ratio=ratio, steps=n, train=lambda model: model) for n in (1, steps)]
    assert [small[0].out_features for small in made] == [left, left]  # type: ignore[index, union-attr]


@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_a_small_group_keeps_one_at_any_ratio(ratio: float) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert prune(net, torch.randn(2, 4), ratio=ratio, round_to=1)[0].out_features == 1  # type: ignore[index, union-attr]


def test_scales_that_were_folded_are_told_from_scales_that_never_were() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)), torch.randn(4, 3, 9, 9)
    with pytest.raises(InputError, match="folded for the repair, which repair=False leaves out"):
        prune(net, x, ratio=0.5, criterion="bn_scale", data=x)
    assert prune(net, x, ratio=0.5, criterion="bn_scale", data=x, repair=False)[0].out_channels == 8  # type: ignore[index, union-attr]


class Named(nn.Module):
    """Calls its layers by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(input=torch.relu(self.a(input=x)))  # type: ignore[no-any-return]


def test_layers_called_by_keyword_are_cut_like_others() -> None:
    net, x = Named().eval(), torch.randn(40, 6)
    (group,) = [group for group in groups(net, x[:2]) if group.prunable]
    assert group.size == 16
    assert prune(net, x[:2], ratio=0.5, data=x).a.out_features == 8  # type: ignore[union-attr]


class Tied(nn.Module):
    """A layer that idles shares the weight of one that works."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.words, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)
        self.words.weight = self.idle.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.words(x)))  # type: ignore[no-any-return]


def test_a_shared_weight_has_one_slope_under_each_name() -> None:
    net, x = Tied().eval(), torch.randn(20, 6)
    made = prune(net, x[:2], ratio=0.5, criterion="taylor", data=x, repair=False, loss=lambda out: out.square().mean())
    assert made.words.out_features in (8, 16)  # type: ignore[union-attr]
    evidence = gather(net, groups(net, x[:2]), criterion="taylor", data=x, loss=lambda out: out.square().mean())
    assert bool(evidence.gradients[id(net.words.weight)].any())
