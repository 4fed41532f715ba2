"""ONNX operators that are layers of networks, in the forms that few models have: each against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calumma.core.errors import ModelError
from calumma.frontend.importer import import_model
from tests import isas
from tests.integration.test_import_onnx import Zoo

IMAGES = ((9,), (9, 8), (6, 7, 5))
"""Sizes of images with one to three axes."""


def test_convolutions_of_one_to_three_axes() -> None:
    zoo = Zoo(22)
    for sizes in IMAGES:
        rank = len(sizes)
        kernel, x = [3, 2, 3][:rank], zoo.feed(zoo.random(2, 4, *sizes))
        grouped, transposed = zoo.random(6, 2, *kernel), zoo.random(4, 3, *kernel)
        uneven: dict[str, Any] = {"pads": [1, 0, 2][:rank] + [2, 1, 0][:rank], "strides": [2, 1, 3][:rank]}
        zoo.add("Conv", x, grouped, zoo.random(6), group=2, dilations=[2, 1, 2][:rank], **uneven)
        zoo.add("Conv", x, zoo.feed(grouped), None, group=2, **uneven)  # weights that a model computes
        zoo.add("Conv", x, zoo.random(6, 4, *kernel), zoo.random(6), auto_pad="SAME_LOWER", strides=[2] * rank)
        strides = [2, 3, 2][:rank]
        zoo.add("ConvTranspose", x, transposed, zoo.random(6), group=2, strides=strides, dilations=[1, 2, 1][:rank])
        zoo.add("ConvTranspose", x, transposed, None, strides=strides, output_padding=[1, 2, 1][:rank])
        zoo.add("ConvTranspose", x, transposed, None, strides=strides, auto_pad="SAME_LOWER")
        zoo.add("ConvTranspose", x, transposed, None, strides=[2] * rank, output_shape=[2 * s + 1 for s in sizes])
        zoo.add("ConvTranspose", x, transposed, None, strides=strides, pads=[3] * 2 * rank)
        padded = zoo.add(
            "ConvTranspose", x, transposed, None, strides=strides, auto_pad="SAME_UPPER", output_padding=[1] * rank
        )
        zoo.add("Relu", padded)  # ONNX infers another size for both
    zoo.check(isas.NATIVE)


def test_pooling_of_one_to_three_axes() -> None:
    zoo = Zoo(22)
    for sizes in IMAGES:  # opset 22: before, ONNX infers other sizes of the second form than ONNX Runtime computes
        rank = len(sizes)
        x = zoo.feed(zoo.random(2, 3, *sizes))
        # The second has windows that would start in the padding, along some axes.
        for window in (
            {"kernel_shape": [3] * rank, "strides": [2, 3, 2][:rank], "dilations": [2, 1, 2][:rank]},
            {"kernel_shape": [2] * rank, "strides": [3] * rank, "ceil_mode": 1},
        ):
            window["pads"] = [1] * 2 * rank
            zoo.add("MaxPool", x, outputs=2, storage_order=1, **window)
            zoo.add("AveragePool", x, count_include_pad=1, **window)
            zoo.add("AveragePool", x, **window)
            zoo.add("LpPool", x, p=3, **window)
        zoo.add("GlobalAveragePool", x)
    for values in (
        zoo.rng.integers(-128, 127, (1, 2, 9, 8), np.int8),
        zoo.rng.integers(0, 255, (1, 2, 9, 8), np.uint8),
    ):
        zoo.add("MaxPool", zoo.feed(values), outputs=2, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2], ceil_mode=1)
    zoo.check(isas.NATIVE)


def test_normalisations_over_any_axes() -> None:
    zoo = Zoo(21)
    for shape in ((2, 3, 4, 5), (3, 7), (6,)):
        x = zoo.feed(zoo.random(*shape))
        for axis in (0, -1, len(shape) - 1):
            scale = zoo.random(*shape[axis:])
            zoo.add("LayerNormalization", x, scale, scale + 1, axis=axis, outputs=3, epsilon=0.1)
        zoo.add("LayerNormalization", x, zoo.feed(zoo.random(*shape)), axis=-1)  # a scale that varies along all axes
        zoo.add("LpNormalization", x, axis=0, p=1)
    x = zoo.feed(zoo.random(2, 6, 4, 5))
    zoo.add("GroupNormalization", x, zoo.random(6), zoo.random(6), num_groups=3, epsilon=0.01)
    zoo.add("InstanceNormalization", x, zoo.feed(zoo.random(6)), zoo.random(6))
    zoo.add("BatchNormalization", x, zoo.feed(zoo.random(6)), *(np.abs(zoo.random(6)) for _ in range(3)))
    zoo.add("BatchNormalization", x, *(np.abs(zoo.random(6)) for _ in range(4)), outputs=3, training_mode=1)
    zoo.add("GlobalLpPool", x, p=3)
    zoo.add("MeanVarianceNormalization", x, axes=[0, -1])
    zoo.add("LRN", zoo.feed(zoo.random(1, 6, 3, 2)), size=3, alpha=0.5, beta=0.6, bias=2.0)
    zoo.add("LpNormalization", zoo.feed(np.zeros((2, 3), np.float32)))
    zoo.check(isas.NATIVE)


RESIZES: tuple[dict[str, Any], ...] = (
    {"mode": "nearest", "nearest_mode": "ceil"},
    {"mode": "nearest", "nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel", "cubic_coeff_a": -0.5},
    {"mode": "cubic", "exclude_outside": 1},
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
)


def test_resizes_by_any_scale() -> None:
    zoo = Zoo(19)
    x = zoo.feed(zoo.random(1, 2, 5, 7))
    for scales in ([1, 1, 2, 1.7], [1, 1, 0.6, 0.45]):  # 1.7 * 7 and 0.45 * 7 are no whole sizes
        for form in RESIZES:
            zoo.add("Resize", x, None, np.array(scales, np.float32), **form)
        region = np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3], np.float32)
        crop: dict[str, Any] = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.5}
        zoo.add("Resize", x, region, np.array(scales, np.float32), mode="linear", **crop)
    for policy in ("stretch", "not_larger", "not_smaller"):
        kept: dict[str, Any] = {"axes": [3, 2], "keep_aspect_ratio_policy": policy}
        zoo.add("Resize", x, None, None, np.array([9, 8]), mode="linear", **kept)
    zoo.add("Resize", zoo.feed(zoo.random(2, 3, 4, 5, 3)), None, np.array([1, 1, 1.5, 2, 3], np.float32), mode="linear")
    pixels = zoo.feed(zoo.rng.integers(0, 255, (1, 2, 5, 7), np.uint8))
    for antialias in (0, 1):
        zoo.add("Resize", pixels, None, np.array([1, 1, 0.6, 0.45], np.float32), mode="linear", antialias=antialias)
    zoo.check(isas.NATIVE)


def test_resizes_by_scales_that_a_model_computes() -> None:
    zoo = Zoo(19)
    x = zoo.feed(zoo.random(1, 2, 5, 7))
    for values in ([1, 1, 2, 1.7], [1, 1, 0.6, 0.45]):
        scales = np.array(values, np.float32)
        given, shape = zoo.feed(scales), tuple(int(s * n) for s, n in zip(scales, (1, 2, 5, 7), strict=True))
        for form in RESIZES[1::2]:
            zoo.shapes[zoo.add("Resize", x, None, given, **form)] = shape
        region = zoo.feed(np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3], np.float32))
        crop: dict[str, Any] = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 3.5}
        zoo.shapes[zoo.add("Resize", x, region, given, mode="linear", **crop)] = shape
    zoo.check(isas.NATIVE)


def test_aligned_corners_of_a_length_that_is_no_whole_number() -> None:
    """ONNX's standard counts by the length that a scale gives, ONNX Runtime by the size that is left of it."""
    zoo = Zoo(19)
    x = zoo.feed(zoo.random(1, 2, 5, 7))
    for mode in ("linear", "cubic"):
        form: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
        for values in ([1, 1, 2, 1.7], [1, 1, 0.6, 0.45], [1, 1, 1 / 5, 3]):  # the last one's lengths are whole
            scales = np.array(values, np.float32)
            zoo.add("Resize", x, None, scales, **form)
            shape = tuple(int(s * n) for s, n in zip(scales, (1, 2, 5, 7), strict=True))
            zoo.shapes[zoo.add("Resize", x, None, zoo.feed(scales), **form)] = shape
    for policy, shape in (("not_larger", (1, 2, 6, 8)), ("not_smaller", (1, 2, 11, 15))):
        for form in ({"mode": "nearest"}, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}):
            kept: dict[str, Any] = {"axes": [3, 2], "keep_aspect_ratio_policy": policy, **form}
            zoo.add("Resize", x, None, None, np.array([8, 11]), **kept)
            zoo.shapes[zoo.add("Resize", x, None, None, zoo.feed(np.array([8, 11])), **kept)] = shape
    zoo.check(isas.NATIVE, by_standard=True)


def test_groups_of_channels_with_a_scale_each() -> None:
    zoo = Zoo(18)
    x = zoo.feed(zoo.random(2, 6, 4, 5))
    zoo.add("GroupNormalization", x, zoo.random(3), zoo.feed(zoo.random(3)), num_groups=3, epsilon=0.01)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize("opset", [9, 10])
def test_nearest_before_it_had_a_rounding(opset: int) -> None:
    zoo = Zoo(opset)
    x = zoo.feed(zoo.random(1, 2, 5, 7))
    for mode in ("nearest", "linear"):
        zoo.add("Upsample" if opset == 9 else "Resize", x, np.array([1, 1, 2, 1.7], np.float32), mode=mode)
    if opset == 10:
        zoo.add("Resize", x, np.array([1, 1, 0.6, 0.45], np.float32), mode="nearest")
    zoo.check(isas.NATIVE)


def test_samples_between_pixels() -> None:
    zoo = Zoo(21)
    for sizes, outputs in (((5, 6), (4, 3)), ((3, 4, 5), (2, 3, 2))):
        x = zoo.feed(zoo.random(2, 3, *sizes))
        grid = zoo.feed(1.2 * zoo.random(2, *outputs, len(sizes)))
        for mode in ("nearest", "linear", "cubic")[: 4 - len(outputs) + 1]:
            for padding in ("zeros", "border", "reflection"):
                zoo.add("GridSample", x, grid, mode=mode, padding_mode=padding, align_corners=len(padding) % 2)
    x = zoo.feed(zoo.random(2, 4, 9, 8))
    corners = zoo.rng.uniform(-2, 20, (6, 2, 2)).astype(np.float32)
    corners.sort(axis=1)
    regions, images = zoo.feed(corners.reshape(6, 4)), zoo.feed(zoo.rng.integers(0, 2, 6))
    bins: dict[str, Any] = {"output_height": 3, "output_width": 2, "spatial_scale": 0.5}
    zoo.add("RoiAlign", x, regions, images, **bins)
    zoo.add("RoiAlign", x, regions, images, sampling_ratio=2, mode="max", **bins)
    zoo.add("RoiAlign", x, regions, images, coordinate_transformation_mode="output_half_pixel", **bins)
    rows = np.concatenate([zoo.rng.integers(0, 2, (6, 1)), np.round(corners.reshape(6, 4))], 1).astype(np.float32)
    zoo.add("MaxRoiPool", x, zoo.feed(rows), pooled_shape=[3, 2], spatial_scale=0.5)
    offsets, mask = zoo.feed(1.5 * zoo.random(2, 36, 5, 8)), zoo.feed(zoo.random(2, 18, 5, 8))
    form: dict[str, Any] = {"pads": [1] * 4, "strides": [2, 1], "group": 2, "offset_group": 2}
    zoo.add("DeformConv", x, zoo.random(4, 2, 3, 3), offsets, zoo.random(4), mask, **form)
    places = zoo.rng.permutation(2 * 4 * 18 * 16)[: 2 * 4 * 9 * 8].reshape(2, 4, 9, 8)
    zoo.add("MaxUnpool", x, zoo.feed(places), kernel_shape=[2, 2], strides=[2, 2])
    zoo.check(isas.NATIVE)


def test_attention_of_few_heads_to_many() -> None:
    zoo = Zoo(23)
    q, k, v = (zoo.feed(zoo.random(2, length, heads * 8)) for length, heads in ((3, 4), (5, 2), (5, 2)))
    heads: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2}
    zoo.add("Attention", q, k, v, **heads)
    zoo.add("Attention", q, k, v, zoo.feed(zoo.random(3, 5)), scale=0.3, softcap=2.0, **heads)
    zoo.add("Attention", q, k, v, zoo.feed(zoo.rng.integers(0, 2, (2, 1, 3, 5)) > 0), **heads)
    past = zoo.feed(zoo.random(2, 2, 4, 8)), zoo.feed(zoo.random(2, 2, 4, 8))
    zoo.add("Attention", q, k, v, None, *past, is_causal=1, outputs=3, **heads)
    caches = zoo.random(20, 4), zoo.random(20, 4)
    zoo.add("RotaryEmbedding", q, *caches, zoo.feed(zoo.rng.integers(0, 20, (2, 3))), num_heads=4)
    zoo.add("RotaryEmbedding", q, *caches, np.array([[0, 1, 2], [3, 4, 5]]), num_heads=4, interleaved=1)
    zoo.check(isas.NATIVE)


@pytest.mark.parametrize(
    ("opset", "node", "message"),
    [
        (11, ("BatchNormalization", {"outputs": 5}), "output 1 .* is not supported"),
        (11, ("MaxUnpool", {"kernel_shape": [2, 2]}), "instead of"),
    ],
)
def test_what_is_not_supported_is_said(opset: int, node: tuple[str, dict[str, Any]], message: str) -> None:
    zoo = Zoo(opset)
    x, (operator, attributes) = zoo.feed(zoo.random(1, 2, 4, 4)), node
    operands = (
        [np.ones(2, np.float32)] * 4
        if operator == "BatchNormalization"
        else [zoo.feed(np.zeros((1, 2, 4, 4), np.int64))]
    )
    extra = [] if operator == "BatchNormalization" else [np.array([1, 2, 9, 9])]
    zoo.add(operator, x, *operands, *extra, **attributes)
    with pytest.raises(ModelError, match=message):
        import_model(zoo.proto().SerializeToString())
