"""Alternating views and shifts: what each image looks like in each pass."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from equipoise.errors import InputError
from equipoise.workloads import Split, shifted
from equipoise.workloads.augment import Alternating

N = 37
IMAGES = torch.rand((N, 2, 4, 6), generator=torch.Generator().manual_seed(0))
SPLIT = Split.of((IMAGES, torch.arange(N)))


def views(passes: int, size: int = 1, seed: int = 0) -> list[dict[int, bool]]:
    """For each pass over the images, whether each was mirrored, by its number."""
    shuffle, found, data = torch.Generator().manual_seed(3), [], Alternating(SPLIT, seed)
    for _ in range(passes // 2):
        batches = list(data.batches(size, shuffle_with=shuffle))
        for half in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
            seen = {}
            for inputs, targets in half:
                for image, number in zip(inputs, targets.tolist(), strict=True):
                    mirrored = bool(torch.equal(image, IMAGES[number].flip(-1)))
                    assert mirrored or torch.equal(image, IMAGES[number])
                    seen[number] = mirrored
            found.append(seen)
    return found


def test_each_image_is_mirrored_in_every_other_pass() -> None:
    passes = views(6)
    assert all(len(seen) == N for seen in passes)
    for before, after in pairwise(passes):
        assert all(after[number] != before[number] for number in before)
    assert 5 < sum(passes[0].values()) < N - 5  # and not all of them at once
    assert views(2, seed=1)[0] != passes[0]


def test_random_flips_fail_the_same_test() -> None:
    flip, noise = shifted(0, flip=True), torch.Generator().manual_seed(0)
    first, second = flip(IMAGES, noise), flip(IMAGES, noise)
    assert any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_passes_are_shuffled_anew_and_their_batches_full() -> None:
    data, shuffle = Alternating(SPLIT), torch.Generator().manual_seed(0)
    batches = [targets for _, targets in data.batches(10, shuffle_with=shuffle)]
    assert [len(targets) for targets in batches] == [10] * 6
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))
    assert len(data) == 2 * N
    fixed = [len(targets) for _, targets in data.batches(10)]
    assert fixed == [10, 10, 10, 7] * 2


def test_a_run_that_goes_on_in_the_second_pass_sees_the_same() -> None:
    def read(skip: int) -> list[Tensor]:
        source = Alternating(SPLIT).batches(5, shuffle_with=torch.Generator().manual_seed(1))
        return [inputs for inputs, _ in islice(source, skip, None)]

    assert all(torch.equal(a, b) for a, b in zip(read(0)[9:], read(9), strict=True))


def test_what_comes_in_from_outside() -> None:
    image = torch.arange(1.0, 26).reshape(1, 1, 5, 5)
    reflected = torch.nn.functional.pad(image, (2,) * 4, mode="reflect")
    windows = [reflected[..., i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
    noise, seen = torch.Generator().manual_seed(0), set()
    for _ in range(200):
        moved = shifted(2, outside="reflect")(image, noise)
        seen.add(next(i for i, window in enumerate(windows) if torch.equal(moved, window)))
    assert len(seen) == 25
    zeros = torch.cat([shifted(2)(image, noise) for _ in range(50)])
    assert bool((zeros == 0).any())
    with pytest.raises(InputError, match="outside"):
        shifted(1, outside="wrap")  # type: ignore[arg-type]


def test_images_are_shifted_where_they_lie() -> None:
    """On a GPU that is made up: torch knows shapes and devices alone, and refuses to mix two devices."""
    made_up = FakeTensorMode(allow_non_fake_inputs=True)
    images = FakeTensor(made_up, torch.empty(4, 3, 8, 8, device="meta"), torch.device("cuda:0"))
    with made_up:
        found = shifted(2, flip=True)(images, torch.Generator().manual_seed(0))
    assert (found.device, found.shape) == (images.device, images.shape)
