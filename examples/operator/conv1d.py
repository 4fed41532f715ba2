"""One-dimensional convolution: expression, design space and lowering rule.

Notation: N batch, C channels, W width, O output channels, K kernel, L lanes of one vector,
OB = ceil(O / L) blocks of output channels.
"""

import numpy as np
from tvm import te, topi

from calumma.operators import OUT_ELEMENTWISE_FUSABLE, Declined, Operator, Value, register
from calumma.space import Knob, blocks


def pack_weight(weight, lanes):
    """(O, C, K) -> (OB, C, K, L), lanes beyond O zero."""
    o, c, k = weight.shape
    full = np.zeros((-(-o // lanes) * lanes, c, k), np.float32)
    full[:o] = weight
    return np.ascontiguousarray(full.reshape(-1, lanes, c, k).transpose(0, 2, 3, 1))


def conv1d(data, weight, out_channels, stride, before, after):
    """data [N, C, W], packed weight [OB, C, K, L] -> [N, O, OW]; zeros `before` and `after` the data."""
    n, c, w = (int(d) for d in data.shape)
    ob, _, k, lanes = (int(d) for d in weight.shape)
    if before or after:
        data = topi.nn.pad(data, (0, 0, before), (0, 0, after), name="data_pad")
    width = (w + before + after - k) // stride + 1
    ic, kw = te.reduce_axis((0, c), "ic"), te.reduce_axis((0, k), "kw")

    def product(i, o, x, lane):
        return te.sum(data[i, ic, x * stride + kw] * weight[o, ic, kw, lane], axis=[ic, kw])

    blocked = te.compute((n, ob, width, lanes), product, name="conv1d", attrs={blocks.OPERATOR: "conv1d"})
    return te.compute(
        (n, out_channels, width),
        lambda i, o, x: blocked[i, o // lanes, x, o % lanes],
        name="conv1d_out",
    )


class Conv1dSpace(blocks.AnchorSpace):
    """A register tile of `o_tile` blocks of channels x `w_tile` outputs, kept for the whole reduction."""

    template = "conv1d"
    version = 1

    def _knobs(self, sch):
        extents = blocks.anchor_extents(sch)
        self.batch, self.blocks, self.width, self.lanes, self.channels, self.kernel = extents
        self.padded = blocks.has_block(sch, "data_pad")
        return (
            Knob("o_tile", blocks.divisors(self.blocks, 4)),
            Knob("w_tile", blocks.divisors(self.width, self.registers - 1)),  # one holds weights
            Knob("unroll", (False, True)),
        )

    def _valid(self, indices):
        k = self.columns(indices)
        return k["o_tile"] * k["w_tile"] + k["o_tile"] <= self.registers

    def _quantities(self, k):
        tile = k["o_tile"] * k["w_tile"]
        return {
            "accumulators": tile,
            "loads_per_fma": (k["o_tile"] + k["w_tile"]) / tile,
            "balance": blocks.balance(self.batch * self.blocks / k["o_tile"], self.threads),
            "unroll": k["unroll"],
            "log2_width": np.log2(self.width),
            "log2_steps": np.log2(self.channels * self.kernel),
        }

    def default(self):
        """Accumulators that hide a multiply-add's latency and do not spill, few loads, equal shares for the threads."""
        grid = self.grid(fixed=["unroll"])
        k, tile = self.columns(grid), self.target.costs.tile
        q = self._quantities(k)
        busy = blocks.issue_rate(q["accumulators"], k["o_tile"], self.target) * q["balance"]
        return grid[int(np.argmax(busy / (1 + tile.load_penalty * q["loads_per_fma"])))]

    def schedule(self, config):
        sch = blocks.schedule_of(self.func)
        anchor = blocks.anchor_of(sch)
        out = blocks.fuse_epilogue(sch, anchor)  # bias and activation, where the result is written
        n, o, w, lane, ic, kw = sch.get_loops(anchor)
        o_outer, o_inner = sch.split(o, [None, config["o_tile"]])
        w_outer, w_inner = sch.split(w, [None, config["w_tile"]])
        sch.reorder(n, o_outer, w_outer, ic, kw, o_inner, w_inner, lane)
        shared = sch.fuse(n, o_outer)
        sch.reverse_compute_at(out, w_outer)
        sch.parallel(shared)
        if self.padded:
            *rows, _ = sch.get_loops(sch.get_sblock("data_pad"))
            sch.parallel(sch.fuse(*rows))
        sch.set_scope(anchor, 0, "local")  # the accumulators may stay in registers
        for loop in (o_inner, w_inner, *([kw] if config["unroll"] else [])):
            sch.unroll(loop)
        sch.vectorize(lane)
        sch.decompose_reduction(anchor, ic)  # after parallel: the block is two from here on
        return sch


def lower_conv1d(lo, node):
    """Lower `nn.conv1d`; groups and dilations are left to TVM."""
    data, weight = node.args[:2]
    attrs = node.attrs
    if weight.op != "constant":
        return Declined("its weights are computed by the model")
    if (attrs.data_layout, int(attrs.groups), int(attrs.dilation[0])) != ("NCW", 1, 1):
        return Declined(f"{attrs.data_layout}, {attrs.groups} groups, dilation {attrs.dilation}: not made for that")
    before, after = (int(p) for p in attrs.padding)
    expr = lo.emit(
        lambda x, w: conv1d(x, w, node.shape[1], int(attrs.strides[0]), before, after),
        lo.plain(data).expr,
        lo.param(pack_weight(weight.value, lo.lanes), ("conv1d", weight)),
        kind=OUT_ELEMENTWISE_FUSABLE,
        name="conv1d",
    )
    return Value(expr, node.shape)


register(Operator("conv1d", rules={"nn.conv1d": lower_conv1d}, space=Conv1dSpace, templates=[Conv1dSpace]))
