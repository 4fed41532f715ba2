"""The benchmark of CPUs that a prior has not seen, on a small data set of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from calumma.core.errors import InputError
from tests import prior_data

from benchmarks import prior_cross_device  # isort: skip  (after prior_data, which sets the threads)
from calumma.prior import learning  # isort: skip


def test_neither_the_cpu_nor_the_layers_that_are_judged_were_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "LEAST_GROUPS", 4)  # of half of the layers, on one CPU
    data = prior_data.of_both_cpus()
    priors = prior_cross_device.left_out(data, lambda line: None, prior_cross_device.QUICK)
    assert len(priors) == 4
    for without in priors:
        cpu = without.machine.hardware.fingerprint
        assert {example.cpu for example in without.asked} == {cpu}
        assert cpu not in {machine.hardware.fingerprint for machine in without.base.trained_on}
        known = {group.workload for group in data.groups} & set(without.base.data["workloads"])
        assert known and not known & {example.group.workload for example in without.asked}
        assert without.moved.moved_to and not without.base.moved_to
    metrics, rows = prior_cross_device.on_the_data(priors)
    judged = sum(len(without.asked) for without in priors)
    assert metrics["zero_shot_tasks_data"] == metrics["adapted_tasks_data"] == judged > prior_data.WORKLOADS
    for kind in ("zero_shot", "adapted"):
        shares = [metrics[f"{kind}_top1_data{end}"] for end in ("_low", "", "_high")]
        assert shares == sorted(shares) and shares[1] >= metrics["default_top1_data"] > 0.3
    assert len([name for name in metrics if name.startswith("cross_device_correlation_")]) == len(rows) == 4
    assert prior_cross_device.measurement_ratios(priors, tmp_path, lambda line: None, quick=True) == {}


def test_data_of_one_cpu_say_nothing_of_others() -> None:
    with pytest.raises(InputError, match=r"of one CPU .*\(calumma collect --mcpu\)"):
        prior_cross_device.left_out(prior_data.small_dataset(), lambda line: None)
