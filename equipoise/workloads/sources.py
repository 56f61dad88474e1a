"""Where labelled samples lie: whole in memory, or read one by one; and what may stand in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from equipoise.batch import Inputs, is_array, joined, leaves, positional, size, take
from equipoise.errors import InputError, must_be

KEEP_BYTES = 1_000_000_000
"""Items of a map-style dataset are kept in memory after the first read as far as they fit in this many bytes."""

LABEL_KEYS = ("labels", "label", "targets", "target", "y")
"""Under these a batch that is a mapping holds its targets; the other entries are the inputs."""

T = TypeVar("T")


class Source(Protocol):
    """Numbered samples."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def fetch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return the samples at `indices` (int64, one dimension) as one batch of inputs and targets."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A source that reads ahead while others work, and may change samples at random as it does.

    Attributes:
        labels: Targets of all samples, (N, ...), known without reading them.
        about: Tells it from other data, without where it lies.
    """

    @property
    def labels(self) -> Tensor:
        """Return the targets of all samples."""
        ...

    @property
    def about(self) -> tuple[Any, ...]:
        """Return what tells it from other data."""
        ...

    def stream(self, batches: Sequence[Tensor], seed: int) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield the samples of each batch of indices in turn; the changes are drawn from `seed`."""
        ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Samples that lie in memory.

    Attributes:
        inputs: (N, ...) in any dtype (images stay uint8), or several such by name.
        targets: (N, ...).
        dataset: The user's dataset that holds them, by which splits of one dataset are known; None where there is none.
    """

    inputs: Inputs
    targets: Tensor
    dataset: Any = None

    def __len__(self) -> int:
        return size(self.inputs)

    def fetch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return the rows at `indices`."""
        return take(self.inputs, indices), self.targets[indices]


@dataclass(eq=False)
class Kept:
    """Items that were read, and how many bytes of memory they take."""

    items: dict[int, Any] = field(default_factory=dict)
    held: int = 0


@dataclass(frozen=True, eq=False)
class Items:
    """Samples read one by one from a map-style dataset.

    Attributes:
        keep: Remember what was read first, up to `KEEP_BYTES`. Off for training data, whose dataset may augment at random.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any] = default_collate
    keep: bool = False
    name: str = "data"
    _seen: Kept = field(default_factory=Kept, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Tensor) -> tuple[Inputs, Tensor]:
        """Return the items at `indices`, put together by the loader's own collate function."""
        return self.together([self._item(int(i)) for i in indices])

    def together(self, items: list[Any]) -> tuple[Inputs, Tensor]:
        """Return items as one batch of inputs and targets."""
        try:
            plain = self.collate is default_collate
            batch = tupled(self.collate([_rows(item) for item in items])) if plain else self.collate(items)
        except InputError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {_brief(error)}"
            remedy = "Give items of one shape, or a DataLoader with a collate_fn; a list of batches is passed as iter(batches)."
            raise must_be(self.name, "items that stack into one batch", found, remedy) from error
        return pair(batch, self.name)

    def _item(self, index: int) -> Any:
        if index in self._seen.items:
            return self._seen.items[index]
        remedy = "Mend the dataset, or leave this sample out of it."
        item = attempt(f"{self.name} sample {index}", lambda: self.dataset[index], remedy)
        if self.keep and self._seen.held + (more := bytes_of(item)) <= KEEP_BYTES:
            self._seen.items[index] = item
            self._seen.held += more
        return item


def attempt(what: str, call: Callable[[], T], remedy: str) -> T:
    """Return ``call()``; whatever the user's own code raises becomes an `InputError` that shows it."""
    try:
        return call()
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's code may raise anything, SystemExit too
        raise InputError(f"{what} must run; it raised {type(error).__name__}: {_brief(error)}. {remedy}") from error


def _brief(error: BaseException) -> str:
    """What an error says, on one line that can be read."""
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 400 else text[:400] + " ..."


def arrays(inputs: Any, targets: Any, name: str, *, dataset: Any = None) -> Arrays:
    """Return a source of what lies in memory, inputs and targets of one length."""
    source = Arrays(*pair((inputs, targets), name), dataset)
    lengths = [*(len(value) for value in leaves(source.inputs)), len(source.targets)]
    if len(set(lengths)) > 1:
        raise must_be(name, "as many targets as inputs", tuple(lengths), "Check how they were made.")
    return source


def pair(batch: Any, name: str) -> tuple[Inputs, Tensor]:
    """Return the inputs of a batch and its target tensor, in dtypes that models and losses take."""
    if isinstance(batch, Mapping):
        batch = _of_mapping(batch, name)
    if not isinstance(batch, Sequence) or isinstance(batch, (str, bytes)) or len(batch) != 2:
        several = isinstance(batch, Sequence) and not isinstance(batch, (str, bytes))
        got = f"{len(batch)} parts" if several else type(batch).__name__
        raise must_be(name, "batches of (inputs, targets)", got, "Give a collate_fn that returns these two tensors.")
    targets = tensor(batch[1], f"{name} targets")
    return inputs_of(batch[0], f"{name} inputs", targets.shape[:1].numel()), targets


def _of_mapping(batch: Mapping[Any, Any], name: str) -> tuple[Any, Any]:
    labels = [key for key in batch if key in LABEL_KEYS]
    rest = {key: value for key, value in batch.items() if key not in LABEL_KEYS}
    if len(labels) != 1 or not rest:
        keys = ", ".join(map(str, batch))
        remedy = "Give a collate_fn that returns (inputs, targets); the inputs may be a mapping of several tensors."
        raise must_be(name, f"batches of (inputs, targets), or with one of {', '.join(LABEL_KEYS)}", f"entries {keys}", remedy)
    return rest if len(rest) > 1 else next(iter(rest.values())), batch[labels[0]]


def inputs_of(value: Any, name: str, count: int) -> Inputs:
    """Return the inputs of `count` samples: one tensor, or a batch of several by name or by position.

    What has no row for each sample (a flag, a number, None) stays as it is, in place of a tensor of no dimension its number.
    """
    if several(value, count):
        value = positional(value)
    if not isinstance(value, Mapping):
        return tensor(value, name)
    found = {str(key): _input(part, f"{name} {key!r}") for key, part in value.items()}
    if not any(map(is_array, found.values())):
        raise must_be(name, "with a tensor among them", ", ".join(found), "Give the tensors that the model takes.")
    return found


def several(value: Any, count: int) -> bool:
    """Whether a tuple or list holds several inputs of `count` samples, rather than the samples of one."""
    if not isinstance(value, (tuple, list)) or len(value) < 2:
        return False
    lengths = {len(part) for part in value if is_array(part)}
    loose = [part for part in value if not is_array(part)]
    if lengths != {count} or not all(part is None or isinstance(part, (bool, int, float, str, Tensor)) for part in loose):
        return False
    return isinstance(value, tuple) or len(value) != count


def _input(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not is_array(value) and hasattr(value, "item"):
        return value.item()
    return tensor(value, name)


def concatenated(batches: Sequence[Inputs]) -> Inputs:
    """Return batches one after the other."""
    found: Inputs = joined(batches, torch.cat)
    return found


def tensor(value: Any, name: str) -> Tensor:
    """Return numbers in any usual form as a tensor on the CPU: floats as float32, whole-number targets as int64."""
    value = _numbers(value, name)
    if not isinstance(value, Tensor) or value.is_complex() or value.is_meta:
        kind = f"array of {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
        raise must_be(name, "a tensor or an array of numbers", kind, "Convert it before, or leave it out of the batch.")
    found: Tensor = value.detach().cpu()
    if found.layout != torch.strided:
        found = found.to_dense()
    if found.is_floating_point() and found.dtype != torch.float32:
        return found.float()
    if name.endswith("targets") and not found.is_floating_point():
        return found.long()
    return found


def _numbers(value: Any, name: str) -> Any:
    """Return lists, arrays and tables as tensors where they hold numbers."""
    if hasattr(value, "to_numpy"):  # a table's columns
        value = value.to_numpy()
    if isinstance(value, (list, tuple)) and value:
        try:
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise must_be(name, "rows of one length", type(value).__name__, "Pad or crop them to one shape.") from error
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object:
        value = _unpacked(value)
    if value.dtype.kind not in "fiub":
        return value
    if value.dtype.kind == "u" and value.dtype.itemsize > 1:
        value = value.astype(np.int64)
    elif value.dtype.kind == "f" and value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(value) if value.flags.writeable else value.copy())


def _unpacked(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of Python objects as one of numbers, where that is what they are."""
    try:
        if value.ndim == 1 and len(value) and hasattr(value[0], "shape"):
            return np.stack([np.asarray(row) for row in value])
        return np.asarray(value.tolist())
    except (ValueError, TypeError):
        return value


def _rows(item: Any) -> Any:
    """Return a sample with its lists of numbers as arrays; torch's own collate function would take them apart by columns."""
    if isinstance(item, Mapping):
        return {key: _row(value) for key, value in item.items()}
    return tuple(map(_row, item)) if isinstance(item, (tuple, list)) and len(item) == 2 else item


def _row(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _row(part) for key, part in value.items()}
    if not isinstance(value, (list, tuple)) or not value or isinstance(value[0], (Tensor, str, bytes, Mapping)):
        return value
    if isinstance(value, tuple) and len(value) > 1 and any(map(is_array, value)):  # several inputs of one sample
        return value
    found = np.asarray(value)
    return found if found.dtype.kind in "fiub" else value


def tupled(batch: Any) -> Any:
    """Return a batch of torch's own collate function with several inputs as a tuple again, of which it makes a list.

    A list of as many tensors as there are samples may also be one of rows (`several`); from there it never is.
    """
    if isinstance(batch, Mapping):
        return {key: tuple(value) if isinstance(value, list) else value for key, value in batch.items()}
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], list):
        return tuple(batch[0]), batch[1]
    return batch


def bytes_of(item: Any) -> int:
    """Memory of one item, roughly."""
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, np.ndarray):
        return item.nbytes
    if isinstance(item, Mapping):
        return sum(bytes_of(part) for part in item.values())
    if isinstance(item, (tuple, list)):
        return sum(bytes_of(part) for part in item)
    if hasattr(item, "getbands"):  # a photograph, whose pixels are read when they are used
        return int(item.size[0] * item.size[1] * len(item.getbands()))
    return 64
