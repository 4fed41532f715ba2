"""No leakage: nothing that the shipped prior has learnt from belongs to a network that it is judged on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import held_out, suite
from tests import prior_data  # noqa: F401  (sets the threads before TVM is loaded)

from calumma.prior import dataset, places, weights  # isort: skip

QUICK = ("squeezenet", "shufflenet", "mobilenet_v2", "bert", "resnet18")
"""Networks whose workloads are found again here, to see that the list is today's."""


def hashes() -> set[str]:
    return {workload for members in held_out.known().values() for workload in members}


def test_every_network_of_the_suite_is_held_out() -> None:
    assert set(held_out.known()) == set(suite.names())
    assert all(held_out.known().values())


@pytest.mark.parametrize("name", QUICK)
def test_the_list_is_today_s(name: str) -> None:
    assert held_out.workloads(name) == held_out.known()[name]


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.npz")), ids=lambda path: path.name)
def test_no_held_out_workload_is_in_the_data(path: Path) -> None:
    found = dataset.load(path)
    assert found.groups
    assert not found.workloads & hashes()


@pytest.mark.parametrize("path", sorted(places.SHIPPED.glob("*.safetensors")), ids=lambda path: path.name)
def test_no_held_out_workload_is_behind_the_weights(path: Path) -> None:
    prior = weights.load(path)
    assert prior.data["workloads"]
    assert not set(prior.data["workloads"]) & hashes()
    data = dataset.load(path.with_suffix(".npz"))
    assert (prior.data["digest"], set(prior.data["workloads"])) == (data.digest, data.workloads)
