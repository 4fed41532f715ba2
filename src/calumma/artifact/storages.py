"""Which tensors of a model share bytes, and how long these must be kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from calumma.artifact.plan import Lifetime, Section, Slot, align, place, tensor_bytes
from calumma.core.errors import InternalError

ENTRY = -1
"""The step before the first kernel call, where inputs are written."""


@dataclass
class _Storage:
    """Bytes that one or more tensors share."""

    section: Section
    size_bytes: int
    first_step: int
    last_step: int
    parent: int | None = None
    """The storage this one is a part of: that of a concatenation it was written into."""
    offset: int = 0
    """Bytes from the start of the parent."""
    gone: bool = False
    """Whether its tensors were moved to another one."""


class Storages:
    """The tensors of a model as they are found, each an index, and the storages behind them.

    Steps are the kernel calls as they are written, numbered from 0.
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[int, tuple[int, ...], str]] = []  # storage, shape, dtype
        self._storages: list[_Storage] = []

    def new(self, shape: tuple[int, ...], dtype: str, section: Section = "arena", step: int = ENTRY) -> int:
        """A tensor with bytes of its own, written in `step`."""
        self._storages.append(_Storage(section, tensor_bytes(shape, dtype), step, step))
        self._tensors.append((len(self._storages) - 1, shape, dtype))
        return len(self._tensors) - 1

    def view(self, tensor: int, shape: tuple[int, ...]) -> int:
        """The same bytes in another shape."""
        storage, _, dtype = self._tensors[tensor]
        self._tensors.append((storage, shape, dtype))
        return len(self._tensors) - 1

    def joined(self, parts: Sequence[int], shape: tuple[int, ...], dtype: str) -> int:
        """The parts side by side: each becomes a range of one storage."""
        result = self.new(shape, dtype)
        parent, offset = len(self._storages) - 1, 0
        for part in parts:
            index, part_shape, part_dtype = self._tensors[part]
            storage = self._storages[index]
            if not self._is_free(storage):
                raise InternalError(
                    f"part {part_shape} of a concatenation cannot be placed: an input, a weight or placed twice"
                )
            storage.parent, storage.offset = parent, offset
            offset += tensor_bytes(part_shape, part_dtype)
        self._storages[parent].first_step = min(self._of(part).first_step for part in parts)
        return result

    def unite(self, first: int, second: int) -> None:
        """Let two tensors of one size, both results of kernels, lie on the same bytes."""
        low, high = sorted((self._tensors[first][0], self._tensors[second][0]))  # a parent comes after its parts
        if low == high:
            return
        left, right = self._storages[low], self._storages[high]
        if not (self._is_free(left) and self._is_free(right)) or left.size_bytes != right.size_bytes:
            raise InternalError(f"tensors {self._tensors[first]} and {self._tensors[second]} cannot share their bytes")
        right.first_step = min(left.first_step, right.first_step)
        right.last_step = max(left.last_step, right.last_step)
        left.gone = True
        for storage in self._storages:
            if storage.parent == low:
                storage.parent = high
        self._tensors = [(high if index == low else index, shape, dtype) for index, shape, dtype in self._tensors]

    def same(self, first: int, second: int) -> bool:
        """Whether two tensors share their bytes."""
        return self._tensors[first][0] == self._tensors[second][0]

    def use(self, tensor: int, step: int) -> None:
        """Keep a tensor up to and including a step."""
        storage = self._of(tensor)
        storage.last_step = max(storage.last_step, step)

    def stretch(self, tensor: int, first: int, last: int) -> None:
        """Keep a tensor's bytes from one step to another."""
        storage = self._of(tensor)
        storage.first_step = min(storage.first_step, first)
        storage.last_step = max(storage.last_step, last)

    def keep_through(self, first: int, last: int) -> None:
        """Keep what was there before step `first` and is used from there on up to step `last`: these steps repeat."""
        for storage in self._storages:
            if storage.first_step < first <= storage.last_step:
                storage.last_step = max(storage.last_step, last)

    def replaceable(self, old: int, new: int, since: int) -> bool:
        """Whether `new`, first written in step `since` or later, may be written over `old` at once."""
        source = self._of(new)
        return self._is_free(source) and source.first_step >= since and self._of(old).last_step < source.first_step

    def views(self, slots: Sequence[int], others: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For each tensor of `slots` all tensors in its storage; none if that is tied to its place.

        It is where it is a part of a concatenation, or also that of one of `others`, or of two of `slots`.
        """
        ends = Counter(self._tensors[slot][0] for slot in (*slots, *others))
        parents = {storage.parent for storage in self._storages}
        shown: dict[int, list[int]] = {}
        for index, (storage, _, _) in enumerate(self._tensors):
            shown.setdefault(storage, []).append(index)

        def of(storage: int) -> tuple[int, ...]:
            is_tied = storage in parents or self._storages[storage].parent is not None or ends[storage] > 1
            return () if is_tied else tuple(shown[storage])

        return tuple(of(self._tensors[slot][0]) for slot in slots)

    def placed(self) -> tuple[tuple[Slot, ...], int, int]:
        """Every tensor with its address; the sizes of arena and weights in bytes."""
        for storage in self._storages:  # a parent comes after its parts
            if storage.parent is not None:
                whole = self._storages[storage.parent]
                whole.first_step = min(whole.first_step, storage.first_step)
                whole.last_step = max(whole.last_step, storage.last_step)
        roots = [i for i, s in enumerate(self._storages) if s.section == "arena" and s.parent is None and not s.gone]
        lives = [Lifetime(s.size_bytes, s.first_step, s.last_step) for s in map(self._storages.__getitem__, roots)]
        offsets, arena_bytes = place(lives)
        starts = dict(zip(roots, offsets, strict=True))
        weights_bytes = 0
        for index, storage in enumerate(self._storages):
            if storage.section == "weights":
                starts[index] = weights_bytes
                weights_bytes += align(storage.size_bytes)
        for index in reversed(range(len(self._storages))):
            storage = self._storages[index]
            if storage.parent is not None:
                starts[index] = starts[storage.parent] + storage.offset
        slots = tuple(Slot(self._storages[s].section, starts[s], shape, dtype) for s, shape, dtype in self._tensors)
        return slots, arena_bytes, weights_bytes

    def _of(self, tensor: int) -> _Storage:
        return self._storages[self._tensors[tensor][0]]

    @staticmethod
    def _is_free(storage: _Storage) -> bool:
        """Whether kernels write it, and nothing has decided where it lies."""
        return storage.section == "arena" and storage.parent is None and storage.first_step > ENTRY
