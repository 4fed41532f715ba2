"""The artifact file and the memory plan, without TVM."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from calumma.artifact import checksum, cpu, file_format
from calumma.artifact.plan import Lifetime, Plan, Slot, Step, align, place, tensor_bytes
from calumma.core import hardware as host
from calumma.core.errors import ArtifactError, InternalError
from calumma.core.pages import ALIGNMENT
from calumma.core.values import TensorSpec

WEIGHTS: list[np.ndarray] = [
    np.arange(5, dtype=np.float32),
    np.ones((2, 3), dtype=np.int64),
    np.zeros((), dtype=np.float32),
]
METADATA = {"model": "test", "latencies_s": [1e-3]}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "library"
    path.write_bytes(b"\x7fELF" + bytes(range(256)) * 4 + b"odd")
    return path


@pytest.fixture
def artifact(tmp_path: Path, library: Path) -> Path:
    path = tmp_path / "model.so"
    file_format.write(path, library, WEIGHTS, METADATA)
    return path


def read_all(path: Path) -> tuple[file_format.Contents, np.ndarray]:
    contents = file_format.read(path)
    with contents.file:
        contents.check_code()
        weights = np.zeros(contents.weights_bytes, dtype=np.uint8)
        contents.read_weights(weights)
    return contents, weights


@pytest.mark.parametrize("sizes", [[], [0], [5], [1, 0, 3], [1 << 16, 7, 1 << 16, 1]])
def test_the_checksum_of_a_whole_from_those_of_its_parts(sizes: list[int]) -> None:
    parts = [np.random.default_rng(len(sizes)).bytes(size) for size in sizes]
    assert checksum.join((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


def test_weights_that_several_threads_read(tmp_path: Path, library: Path) -> None:
    path, size = tmp_path / "model.so", 2 * file_format._PART_BYTES + 12345
    array = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    file_format.write(path, library, [array], METADATA)
    contents, weights = read_all(path)
    np.testing.assert_array_equal(weights[:size], array)
    with path.open("r+b") as file:
        file.seek(contents.weights_offset + size - 1)
        file.write(bytes([array[-1] ^ 1]))
    with pytest.raises(ArtifactError, match="checksum of the weights"):
        read_all(path)


def test_round_trip(artifact: Path, library: Path) -> None:
    contents, weights = read_all(artifact)
    assert contents.metadata == METADATA
    assert artifact.read_bytes()[: contents.code_bytes] == library.read_bytes()
    assert contents.weights_offset % ALIGNMENT == 0
    offset = 0
    for array in WEIGHTS:
        np.testing.assert_array_equal(
            weights[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape), array
        )
        offset += align(array.nbytes)
    assert offset == contents.weights_bytes


def test_permissions_follow_the_umask(tmp_path: Path, library: Path) -> None:
    before = os.umask(0o027)
    try:
        file_format.write(tmp_path / "model.so", library, [], {})
    finally:
        os.umask(before)
    assert (tmp_path / "model.so").stat().st_mode & 0o777 == 0o640


def test_every_damaged_byte_is_found(artifact: Path) -> None:
    intact = artifact.read_bytes()
    contents, _ = read_all(artifact)
    end_of_weights = contents.weights_offset + contents.weights_bytes
    padding = set(range(contents.code_bytes, contents.weights_offset))
    for position in [*range(0, end_of_weights, 37), *range(end_of_weights, len(intact))]:
        if position in padding:
            continue
        artifact.write_bytes(intact[:position] + bytes([intact[position] ^ 0x10]) + intact[position + 1 :])
        with pytest.raises(ArtifactError, match=r"damaged|not an artifact|format"):
            read_all(artifact)


@pytest.mark.parametrize("keep", [0, 3, 72, 1000, -1, -72])
def test_truncated(artifact: Path, keep: int) -> None:
    artifact.write_bytes(artifact.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="not an artifact, or truncated"):
        file_format.read(artifact)


def test_footer_of_another_file(artifact: Path) -> None:
    artifact.write_bytes(b"more" + artifact.read_bytes())
    with pytest.raises(ArtifactError, match=r"damaged: .* bytes, the footer tells"):
        file_format.read(artifact)


def test_newer_format_says_so(artifact: Path) -> None:
    data = artifact.read_bytes()
    artifact.write_bytes(data[:-12] + struct.pack("<I", file_format.FORMAT_VERSION + 1) + data[-8:])
    with pytest.raises(ArtifactError, match="format 3, this calumma reads up to 2"):
        file_format.read(artifact)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        file_format.read(tmp_path / "nothing.so")
    with pytest.raises(ArtifactError, match="Is a directory"):
        file_format.read(tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(artifact: Path, library: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="JSON"):
        file_format.write(artifact, library, WEIGHTS, {"latency_s": float("nan")})
    assert sorted(tmp_path.iterdir()) == before
    assert read_all(artifact)[0].metadata == METADATA


@pytest.mark.processes
def test_a_writer_killed_in_the_middle_leaves_the_old_file(artifact: Path, library: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
import numpy as np
from calumma.artifact import file_format
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
file_format.write(Path({str(artifact)!r}), Path({str(library)!r}), [np.zeros(1000)], {{"model": "new"}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert read_all(artifact)[0].metadata == METADATA


def test_blocks_alive_together_never_overlap() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first = rng.integers(0, 20, size=30)
        lives = [
            Lifetime(int(size), int(start), int(start + length))
            for size, start, length in zip(rng.integers(1, 5000, 30), first, rng.integers(0, 6, 30), strict=True)
        ]
        offsets, arena_bytes = place(lives)
        for step in range(26):
            alive = sorted(
                (o, o + life.size_bytes)
                for o, life in zip(offsets, lives, strict=True)
                if life.first_step <= step <= life.last_step
            )
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(alive))
            assert all(end <= arena_bytes for _, end in alive)
        assert all(offset % ALIGNMENT == 0 for offset in offsets)


def test_a_chain_needs_two_buffers() -> None:
    offsets, arena_bytes = place([Lifetime(1000, step, step + 1) for step in range(10)])
    assert arena_bytes == 2 * align(1000)
    assert set(offsets) == {0, align(1000)}


def test_plan_survives_json() -> None:
    spec, bounded = (TensorSpec("x", (2, 3), "float32", axes) for axes in ((), (1,)))
    slots = (Slot("arena", 0, (2, 3), "float32"), Slot("weights", 64, (3,), "bfloat16"), Slot("arena", 0, (), "int64"))
    steps = (Step("kernel", (0, 1, 0)),)
    plan = Plan((spec,), (bounded,), (0,), (0,), (1,), slots, steps, 64, 128, ((),), ((0,),), ((2,),))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plan_of_the_first_files() -> None:
    """They know neither views nor bounded axes."""
    spec = TensorSpec("x", (2, 3), "float32")
    slots = (Slot("arena", 0, (2, 3), "float32"),)
    plan = Plan((spec,), (spec,), (0,), (0,), (), slots, (Step("kernel", (0, 0)),), 64, 0, ((),), ((),), ((),))
    data = plan.to_json()
    for key in ("input_views", "output_views", "output_extents"):
        del data[key]
    del data["outputs"][0]["bounded_axes"]
    assert Plan.from_json(data) == plan


def test_sizes_of_tensors() -> None:
    assert tensor_bytes((2, 3), "float32") == 24
    assert tensor_bytes((), "bool") == 1
    assert tensor_bytes((4,), "bfloat16") == 8
    with pytest.raises(InternalError, match="int4"):
        tensor_bytes((4,), "int4")


def test_wrong_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_info", lambda: {"model name": "Old CPU", "flags": "sse4_1 avx avx2"})
    machine = os.uname().machine
    cpu.check("model.so", machine, "haswell", ["avx2"])
    with pytest.raises(ArtifactError, match=r"built for znver5, this CPU \(Old CPU\) lacks avx512_bf16, avx512f;"):
        cpu.check("model.so", machine, "znver5", ("avx2", "avx512_bf16", "avx512f"))
    with pytest.raises(ArtifactError, match="built for vax, this machine is"):
        cpu.check("model.so", "vax", "vax-11", [])
