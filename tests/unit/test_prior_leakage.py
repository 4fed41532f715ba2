"""No leakage: a shipped prior has learnt nothing of a network that it is judged on, but for what is stated."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from benchmarks import held_out, suite
from tests import prior_data  # noqa: F401  (sets the threads before TVM is loaded)

from calumma.prior import dataset, places, weights  # isort: skip

QUICK = ("squeezenet", "shufflenet", "mobilenet_v2", "bert", "resnet18", "minilm")
"""Networks whose workloads are found again here, to see that the list is today's."""


def seen(workloads: Collection[str]) -> dict[str, int]:
    """Network -> how many of its workloads are among these; without the networks that have none."""
    counts = {name: len(set(members) & set(workloads)) for name, members in held_out.known().items()}
    return {name: count for name, count in counts.items() if count}


def test_every_network_of_the_suite_is_held_out() -> None:
    assert set(held_out.known()) == set(suite.names())
    assert all(held_out.known().values())
    assert set(suite.names()) - set(held_out.published()) == {"minilm", "whisper_encoder"}
    assert "whisper_tiny" in held_out.published()


@pytest.mark.parametrize("name", QUICK)
def test_the_list_is_today_s(name: str) -> None:
    assert held_out.workloads(name) == held_out.known()[name]


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.npz")), ids=lambda path: path.name)
def test_held_out_workloads_in_the_data(path: Path) -> None:
    found = dataset.load(path)
    assert found.groups
    assert seen(found.workloads) == held_out.SEEN.get(path.stem, {})


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.safetensors")), ids=lambda path: path.name)
def test_held_out_workloads_behind_the_weights(path: Path) -> None:
    prior = weights.load(path)
    assert prior.data["workloads"]
    assert seen(prior.data["workloads"]) == held_out.SEEN.get(path.stem, {})
    data = dataset.load(path.with_suffix(".npz"))
    assert (prior.data["digest"], set(prior.data["workloads"])) == (data.digest, data.workloads)
