"""No leakage: a shipped prior has learnt nothing of a network that it is judged on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from benchmarks import held_out, suite
from tests import prior_data  # noqa: F401  (sets the threads before TVM is loaded)

from calumma.prior import dataset, places, weights  # isort: skip

QUICK = ("squeezenet", "shufflenet", "mobilenet_v2", "bert", "resnet18", "minilm")
"""Networks whose workloads are found again here, to see that the list is today's."""


def seen(workloads: Collection[str]) -> list[str]:
    """Networks some of whose workloads are among these."""
    return [name for name, members in held_out.known().items() if set(members) & set(workloads)]


def test_every_network_of_the_suite_is_held_out() -> None:
    assert set(held_out.known()) == set(suite.names())
    assert all(held_out.known().values())
    assert set(suite.names()) - set(held_out.published()) == {"minilm", "whisper_encoder"}
    assert "whisper_tiny" in held_out.published()


@pytest.mark.parametrize("name", QUICK)
def test_the_list_is_today_s(name: str) -> None:
    assert held_out.workloads(name) == held_out.known()[name]


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.npz")), ids=lambda path: path.name)
def test_no_held_out_workload_is_in_the_data(path: Path) -> None:
    found = dataset.load(path)
    assert found.groups
    assert not seen(found.workloads)


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.safetensors")), ids=lambda path: path.name)
def test_no_held_out_workload_is_behind_the_weights(path: Path) -> None:
    prior = weights.load(path)
    assert prior.data["workloads"]
    assert not seen(prior.data["workloads"])
    data = dataset.load(path.with_suffix(".npz"))
    assert (prior.data["digest"], set(prior.data["workloads"])) == (data.digest, data.workloads)
