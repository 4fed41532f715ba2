"""Real layers, layers drawn from their distribution, and the functions that both become."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from calumma.core.errors import InputError
from calumma.families.samples import Layer, LayerWindow
from calumma.operators import design_space
from calumma.prior.networks import networks
from calumma.prior.sampling import SHARES, LayerSampler, feasible, in_turn
from calumma.prior.workloads import drawn_workloads, model_workloads, realise
from calumma.tvm_compat import target_for
from tests.onnx_models import Model

TARGET = target_for("x86-64-v4")


def macs(name: str) -> float:
    """Multiply-adds of a network's convolutions and dense layers, in 1e9."""
    total = 0.0
    for layer, count in networks()[name].items():
        if layer.family == "dense":
            total += count * layer.number("rows") * layer.number("inputs") * layer.number("outputs")
        elif layer.family in ("conv", "pointwise", "first", "grouped", "depthwise"):
            window = LayerWindow.parse(layer.text("window"))
            high, wide = window.results(layer.number("size"))
            channels = 1 if layer.family == "depthwise" else layer.number("outputs")
            groups = layer.number("groups") if layer.family == "grouped" else 1
            taps = window.kernel[0] * window.kernel[1]
            total += count * taps * layer.number("inputs") * channels / groups * high * wide
    return total / 1e9


@pytest.mark.parametrize(
    ("network", "published"),
    [
        ("vgg19", 19.6),
        ("resnet18", 1.81),
        ("resnext50", 4.23),
        ("wide_resnet50", 11.4),
        ("densenet121", 2.83),
        ("densenet161", 7.73),
        ("mobilenet_v1", 0.57),
        ("mobilenet_v2", 0.30),
        ("mobilenet_v3", 0.217),
        ("mnasnet", 0.314),
        ("efficientnet_b0", 0.386),
        ("regnet_x_400mf", 0.41),
        ("regnet_y_1_6gf", 1.61),
        ("convnext_tiny", 4.46),
    ],
)
def test_networks_do_the_work_that_is_published(network: str, published: float) -> None:
    assert macs(network) == pytest.approx(published, rel=0.02)


def test_every_layer_of_every_network_has_its_familys_attributes() -> None:
    attributes: dict[str, set[tuple[str, ...]]] = {}
    for layers in networks().values():
        assert layers
        for layer in layers:
            attributes.setdefault(layer.family, set()).add(tuple(name for name, _ in layer.values))
    assert set(attributes) == set(SHARES)
    assert all(len(forms) == 1 for forms in attributes.values())


@pytest.mark.parametrize(
    "window", [LayerWindow((3, 3), 2, 1, (1, 1)), LayerWindow((1, 7), 1, 1, (0, 3)), LayerWindow((3, 3), 1, 6, (6, 6))]
)
def test_a_window_is_read_as_it_is_written(window: LayerWindow) -> None:
    assert LayerWindow.parse(str(window)) == window


def drawn(sampler: LayerSampler, family: str, n: int) -> list[Layer]:
    return [sampler.draw(family, i) for i in range(n)]


def test_layers_depend_on_seed_family_and_number_alone() -> None:
    layers = drawn(LayerSampler(3), "conv", 20)
    assert drawn(LayerSampler(3), "conv", 20) == layers
    assert LayerSampler(3).draw("conv", 13) == layers[13]
    assert drawn(LayerSampler(4), "conv", 20) != layers


@pytest.mark.parametrize("family", list(SHARES))
def test_drawn_layers_are_feasible_and_many_are_new(family: str) -> None:
    layers = drawn(LayerSampler(), family, 200)
    real = {layer for known in networks().values() for layer in known}
    assert all(feasible(layer) for layer in layers)
    assert len(set(layers)) > 80
    assert sum(layer not in real for layer in layers) > 80


def test_attributes_are_drawn_given_those_before() -> None:
    """Large planes have few channels, as in real networks; drawn apart they would have as many as small ones."""
    layers = drawn(LayerSampler(), "conv", 1000)
    wide = [layer.number("inputs") for layer in layers if layer.number("size") >= 112]
    narrow = [layer.number("inputs") for layer in layers if layer.number("size") <= 14]
    assert min(len(wide), len(narrow)) > 30
    assert sorted(wide)[len(wide) // 2] < sorted(narrow)[len(narrow) // 2] / 2


def test_values_come_out_that_no_network_has() -> None:
    layers = drawn(LayerSampler(), "conv", 500)
    for attribute in ("size", "inputs", "outputs"):
        known = {layer[attribute] for layers in networks().values() for layer in layers if layer.family == "conv"}
        assert sum(layer[attribute] not in known for layer in layers) > 20


def test_layers_of_held_out_networks_are_not_drawn() -> None:
    held_out = set(networks()["resnet50"]) | set(networks()["resnet18"])
    free = LayerSampler(0)
    kept = LayerSampler(0, ["resnet50", "resnet18"])
    families = ("conv", "pointwise")
    assert any(layer in held_out for family in families for layer in drawn(free, family, 500))
    assert not any(layer in held_out for family in families for layer in drawn(kept, family, 500))


def test_a_network_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"'resnet51'.*resnet50"):
        LayerSampler(0, ["resnet51"])
    with pytest.raises(InputError, match="no layer of family"):
        LayerSampler(0, list(networks()))


def test_families_take_turns_by_their_shares() -> None:
    order = list(itertools.islice(in_turn(list(SHARES)), 100))
    counts = Counter(family for family, _ in order)
    assert counts == Counter(SHARES)
    assert [number for family, number in order if family == "conv"] == list(range(counts["conv"]))
    assert {family for family, _ in order[:30]} >= {"conv", "pointwise", "dense", "depthwise", "pool", "attention"}


@pytest.mark.parametrize(
    ("family", "template"),
    [
        ("conv", "conv2d"),
        ("pointwise", "conv2d"),
        ("first", "conv2d"),
        ("grouped", "conv2d"),
        ("depthwise", "depthwise_conv2d"),
        ("dense", "matmul"),
        ("attention", "matmul"),
        ("elementwise", "injective"),
        ("rows", "rows"),
        ("transposed", "conv2d"),
    ],
)
def test_a_layer_becomes_a_function_of_its_template(family: str, template: str) -> None:
    sampler = LayerSampler()
    for number in range(3):
        workload = realise(sampler.draw(family, number), TARGET)
        assert design_space(workload.function, target_for(), 2).template == template
        assert (workload.family, workload.task.weight) == (family, 1)


@pytest.mark.parametrize("form", ["max 3x3/2d1p1", "average 3x3/1d1p1", "mean", "lrn"])
def test_pooling_reads_blocked_data(form: str) -> None:
    layer = Layer("pool", (("form", form), ("size", 14), ("inputs", 64)))
    shape, _ = realise(layer, TARGET).task.arguments[0]
    assert shape == (1, 4, 14, 14, TARGET.lanes)


def test_layers_have_the_workloads_of_a_real_model(tmp_path: Path) -> None:
    m = Model()
    x = m.input(1, 3, 32, 32)
    x = m.op("Relu", m.conv(x, (3, 32), 3, strides=[2, 2]))
    x = m.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    y = m.op("Relu", m.conv(x, (32, 32)))
    y = m.op("Relu", m.op("Add", m.conv(y, (32, 32)), x))
    z = m.op("Relu", m.conv(y, (32, 96), 1))
    z = m.op("Relu", m.conv(z, (96, 96), 3, groups=96, strides=[2, 2]))
    z = m.op("Flatten", m.op("GlobalAveragePool", z))
    out = m.linear(z, (96, 10))
    model = tmp_path / "model.onnx"
    model.write_bytes(m.bytes(out))
    real = {workload.task.workload.hash for workload in model_workloads([model], TARGET)}

    def layer(family: str, **values: int | str) -> Layer:
        return Layer(family, tuple(values.items()))

    relu, plane = "bias,relu", "3x3/1d1p1"
    layers = [
        layer("first", window="3x3/2d1p1", size=32, inputs=3, outputs=32, epilogue=relu),
        layer("pool", form="max 3x3/2d1p1", size=16, inputs=32),
        layer("conv", window=plane, size=8, inputs=32, outputs=32, epilogue=relu),
        layer("conv", window=plane, size=8, inputs=32, outputs=32, epilogue="bias,add,relu"),
        layer("pointwise", window="1x1/1d1p0", size=8, inputs=32, outputs=96, epilogue=relu),
        layer("depthwise", window="3x3/2d1p1", size=8, inputs=96, epilogue=relu),
        layer("pool", form="mean", size=4, inputs=96),
        layer("dense", form="vector", rows=1, inputs=96, outputs=10, epilogue="bias"),
    ]
    for one in layers:
        assert realise(one, TARGET).task.workload.hash in real, one
    assert len(layers) == len(real)


def test_workloads_are_distinct_and_the_same_every_time() -> None:
    def hashes(n: int, **options: object) -> list[str]:
        stream = drawn_workloads(TARGET, families=("rows", "pool"), **options)  # type: ignore[arg-type]
        return [workload.task.workload.hash for workload in itertools.islice(stream, n)]

    first = hashes(12)
    assert hashes(12) == first
    assert len(set(first)) == 12
    assert hashes(12, seed=1) != first
    held_out = first[:3]
    assert hashes(9, exclude_hashes=held_out) == first[3:]


def test_unknown_families_are_refused() -> None:
    with pytest.raises(InputError, match=r"'convolution'.*conv, pointwise"):
        drawn_workloads(TARGET, families=("convolution",))


def test_models_take_turns(tmp_path: Path) -> None:
    paths = []
    for name, width in (("one", 32), ("two", 64)):
        m = Model()
        x = m.linear(m.op("Relu", m.linear(m.input(1, width), (width, 48))), (48, 8))
        paths.append(tmp_path / f"{name}.onnx")
        paths[-1].write_bytes(m.bytes(x))
    workloads = list(model_workloads(paths, TARGET))
    assert [workload.family for workload in workloads] == ["one", "two", "one"]  # the last layers are one workload
    hashes = [workload.task.workload.hash for workload in workloads]
    again = model_workloads(paths, TARGET, exclude_hashes=hashes[:1])
    assert {workload.task.workload.hash for workload in again} == set(hashes[1:])
