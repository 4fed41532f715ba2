"""Matrix products as sample layers: dense layers, and the two products of attention."""

from __future__ import annotations

from calumma.families.samples import Layer, LayerModel


def write_dense(m: LayerModel, layer: Layer) -> str:
    """A dense layer of attributes form, rows, inputs, outputs, epilogue."""
    rows, inputs, outputs = (layer.number(name) for name in ("rows", "inputs", "outputs"))
    batch = () if layer["form"] == "vector" else (1,)
    result = m.op("MatMul", m.input(*batch, rows, inputs), m.weight(inputs, outputs))
    m.output(m.epilogue(result, layer.text("epilogue"), (outputs,), (*batch, rows, outputs)))
    return "dense"


def write_attention(m: LayerModel, layer: Layer) -> str:
    """A product of two activations that a reshape and a transpose have split into heads.

    Attributes: form ("scores" or what they are multiplied with), heads, rows, columns, inputs.
    """
    heads, rows, columns, inputs = (layer.number(name) for name in ("heads", "rows", "columns", "inputs"))

    def split(tokens: int, width: int, *axes: int) -> str:
        shape = m.constant([1, tokens, heads, width], "int64")
        return m.op("Transpose", m.op("Reshape", m.input(1, tokens, heads * width), shape), perm=list(axes))

    if layer["form"] == "scores":
        product = m.op("MatMul", split(rows, inputs, 0, 2, 1, 3), split(columns, inputs, 0, 2, 3, 1))
        m.output(m.op("Div", product, m.constant(inputs**0.5)))
    else:
        product = m.op("MatMul", m.input(1, heads, rows, inputs), split(inputs, columns, 0, 2, 1, 3))
        joined = m.constant([1, rows, heads * columns], "int64")
        m.output(m.op("Reshape", m.op("Transpose", product, perm=[0, 2, 1, 3]), joined))
    return "batch_matmul"
