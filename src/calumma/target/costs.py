"""What the cost models of the design spaces assume of a CPU: every fitted constant, by family of templates.

The defaults were fitted to AMD Zen 5 with vectors of 512 bits and two multiply-adds per cycle, one to two cores,
kernels timed with their weights out of the caches (docs/design-spaces.md, docs/winograd.md); where a constant names
Zen 4, to that too, with vectors of 512 and of 256 bits. Another CPU is another set of values and no other code.

Units: "multiply-adds" are vector multiply-adds that one core does meanwhile; a "penalty" p makes the estimated time
1 + p times as long, a "factor" f makes it f times as long; a "rate" is a share of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RegisterTileCosts:
    """Register tiles and memory traffic, as convolutions, matrix products and Winograd's algorithm have them."""

    typical_share: float = 0.88
    """Rate that a well scheduled register tile reaches."""
    dram_line: float = 10.0
    """Multiply-adds while one cache line comes from memory."""
    accumulators: int = 8
    """Accumulators that hide the latency of a multiply-add: 4 cycles on two units."""
    spill_rate: float = 0.4
    """Rate of a tile that needs more registers than there are. Of what was recorded on AMD Zen 5, tiles of 33 registers
    reach 0.46 to 0.79 of the best and tiles of 31 reach 0.9 to 1; with 16 registers on AMD Zen 4, 17 reach 0.57 to 0.66
    and 16 reach 1."""
    overlap: float = 0.2
    """Share of the shorter of computing and reading weights ahead that the longer does not hide."""
    free_loads: float = 0.65
    """Loads per multiply-add that cost nothing."""
    load_penalty: float = 0.4
    """Penalty per further load per multiply-add: 1 x 7 runs at 0.75 of the peak, 1 x 14 at 0.86, 2 x 4 at 0.93 and
    2 x 6 at 1 (AMD Zen 4, 16 registers)."""


@dataclass(frozen=True)
class ConvolutionCosts:
    """Direct convolutions."""

    traffic: float = 6.0
    """Flops that all cores do while a byte comes from beyond L2."""
    chunk_steps: int = 128
    """Multiply-adds per accumulator that make loading and storing it once per chunk of channels negligible."""
    most_passes: int = 4
    """Passes over the weights up to which prefetching them in each is worth while."""
    enough_pixels: int = 6
    """Pixels of a tile that use a weight vector often enough where weights come from L2."""
    pixel_penalty: float = 0.08
    """Penalty per pixel that is missing to that."""
    l2_share: float = 0.75
    """Share of L2 that one operand may fill and still be there when it is read again."""
    pad_tile_penalty: float = 0.02
    pad_parallel_penalty: float = 0.005
    """Padding per tile, and per parallel step, instead of apart."""
    unroll_penalty: float = 0.01
    """Unrolling the kernel's loops: larger code."""
    narrow_columns: int = 4
    narrow_penalty: float = 0.03
    """Tiles of several rows with fewer columns than this."""
    order_penalty: float = 0.01
    """Any reduction order but channels first."""
    lane_order_penalty: float = 0.05
    """The kernel's columns inside the lanes of input channels; in addition."""
    large_weights_share: float = 0.5
    large_weights_penalty: float = 0.04
    """Weights of a tile beyond this share of L2, read for every tile."""
    plane_penalty: float = 0.01
    """Accumulators of a plane in memory."""
    plane_share: float = 0.5
    large_plane_penalty: float = 0.1
    """The same, where they fill more than this share of the usable part of L2; in addition."""
    open_plane_penalty: float = 0.2
    """The same, where a chunk of weights does not serve all pixels of its channels; in addition."""


@dataclass(frozen=True)
class MatmulCosts:
    """Matrix products."""

    accumulators: int = 8
    """Accumulators that hide the latency of a multiply-add: 4 cycles on two units. With 256 bits 8 reach 0.93 of the
    peak and 12 all of it, with 512 bits and one unit 6 reach 0.98 (AMD Zen 4)."""
    free_loads: float = 0.3
    load_penalty: float = 0.5
    """As of register tiles, for loops over rows inside columns."""
    spill_rate: float = 0.55
    """As of register tiles: 0.62 to 0.66 of 4 x 3 with 16 registers and of 8 x 3 and 12 x 2 with 32 (AMD Zen 4); less
    where weights come from beyond L2."""
    row_reload_penalty: float = 0.04
    """Elements of the rows loaded for every tile instead of kept: 11 x 2 and 14 x 2 run at 0.94 to 0.98 of the peak
    where 8 x 2 runs at 0.99 (AMD Zen 4)."""
    weight_uses: float = 2.0
    """Rows that have to use a weight vector for L2 to bring the next one in time: half a vector comes per
    multiply-add."""
    group_l2_share: float = 0.6
    """Share of L2 that the weights of a column group may fill and be read from there for all rows."""
    matrix_l2_share: float = 0.5
    """The same for all weights, where rows are the outer loop."""
    spill_factor: float = 1.3
    """Weights that are read from beyond L2 for every tile of rows."""
    rows_l1_share: float = 0.5
    rows_penalty: float = 0.02
    """Rows of a tile beyond this share of L1."""
    other_streams: int = 3
    """Lines of a set of L1 that are left to weights, outputs and what is prefetched."""
    conflict_factor: float = 1.3
    """Rows of a tile that displace one another from a set of L1."""
    unroll_log2: int = 2
    """log2 of the steps of k that are best unrolled with one row, or where weights are prefetched; else 0."""
    unroll_penalty: float = 0.01
    """Per doubling away from that."""
    group_penalty: float = 0.001
    """Per doubling of the column group: the smaller of equals."""
    prefetch_columns: int = 2
    prefetch_unroll: int = 4
    prefetch_row_tiles: int = 4
    """Prefetches are spread enough with at most so many column blocks, at least so many steps, so many row tiles."""
    prefetch_factor: float = 0.84
    """Weights prefetched, spread enough."""
    hasty_prefetch_factor: float = 1.2
    """Weights prefetched, many lines at once."""
    rows_outside_penalty: float = 0.02
    """Tiles of rows as the outer loop."""


@dataclass(frozen=True)
class WinogradCosts:
    """Winograd's algorithm."""

    l2_share: float = 0.8
    """Share of L2 that the scratch of a block of tiles may fill."""
    scratch_vector: float = 5.0
    far_scratch_vector: float = 10.0
    """Multiply-adds per vector of scratch written and read, within L2 and beyond it."""
    reread_line: float = 4.0
    """Multiply-adds per cache line of weights that a further block of tiles reads again."""
    stream_penalty: float = 0.1
    """Penalty on reading weights from memory per further stream: one is best."""
    staged_start: float = 30_000.0
    blocked_start: float = 10_000.0
    """Multiply-adds that waking the threads takes: for three stages, and for one loop over blocks."""


@dataclass(frozen=True)
class DepthwiseCosts:
    """Depthwise convolutions."""

    tile_start: float = 0.6
    """What a tile costs beside its accumulators, in accumulators: one alone runs at 0.6 to 0.9 of the best, four at
    0.87 to 1, seven and fourteen are level (AMD Zen 4)."""
    spill_rate: float = 0.55
    """Rate of a tile whose accumulators and inputs are more than the registers: 0.47 to 0.6 of 2 x 7 with 16 of them,
    windows of 3 x 3 to 7 x 7 (AMD Zen 4)."""
    row_penalty: float = 0.01
    """Per row of a tile."""
    padding_penalty: float = 0.5
    """A padded copy, written and read again for nine multiply-adds per element."""
    pad_tile_penalty: float = 0.05
    """A copy per tile; in addition."""
    rolled_border_penalty: float = 0.8
    """The kernel's loops not unrolled, with the conditions of a border inside: 1 x 19 over 38 x 38 took 2.5 times as
    long as small unrolled tiles (AMD Zen 4); in addition."""
    rolled_penalty: float = 0.1
    """The kernel's loops not unrolled."""
    width_penalty: float = 0.02
    """Only the loop over its columns unrolled."""


@dataclass(frozen=True)
class RecurrentCosts:
    """Recurrent layers. Fitted on AMD Zen 4, one multiply-add of 512 bits per cycle."""

    accumulators: int = 12
    """Accumulators that hide the latency of a multiply-add between loads from L2."""
    load_penalty: float = 0.2
    """As of register tiles."""
    meeting: float = 6_000.0
    """Multiply-adds while threads that are awake meet and part again: 0.8 to 1.7 microseconds."""
    near_line: float = 2.0
    far_line: float = 2.5
    """Multiply-adds while one cache line comes from L2, and from beyond."""
    l2_share: float = 0.75
    """Share of L2 that weights may fill and be there in the next step."""
    unit: float = 150.0
    """Multiply-adds that the gates of one vector of hidden units take beside their products."""
    turned: float = 0.97
    """Factor on reading weights from beyond L2 where every other step walks backwards."""
    split_penalty: float = 0.01
    unroll_penalty: float = 0.005
    """Per doubling of partial sums, and of unrolled steps: the simpler of equals."""


@dataclass(frozen=True)
class LoopCosts:
    """Elementwise functions, reductions, functions over rows, and whatever has no template of its own."""

    serial_bytes: int = 1 << 16
    serial_flops: int = 1 << 16
    """Bytes of arguments, and operations, below which waking the other threads (two microseconds) does not pay."""
    flat_vectors: int = 4
    """Vectors per step of one contiguous loop."""
    transpose_tile: int = 16
    """Elements of the other axis per tile of a transpose."""
    reduction_tile: int = 4
    """Neighbouring outputs as independent accumulators."""
    unrolled_taps: int = 32
    """Taps of a tile that the default of a reduction unrolls."""
    partial_steps: int = 16
    """Steps per partial result that pay for more of them than one vector."""
    generated_accumulators: int = 8
    generated_steps: int = 4
    generated_unrolled: int = 64
    """Register tile of a generated space's default: accumulators, reduction steps of one loop, and of all together;
    with the accumulators the last fill the largest unroll limit of the rules."""


@dataclass(frozen=True)
class CostConstants:
    """All of them, by family of templates."""

    tile: RegisterTileCosts = RegisterTileCosts()
    convolution: ConvolutionCosts = ConvolutionCosts()
    matmul: MatmulCosts = MatmulCosts()
    winograd: WinogradCosts = WinogradCosts()
    depthwise: DepthwiseCosts = DepthwiseCosts()
    recurrent: RecurrentCosts = RecurrentCosts()
    loops: LoopCosts = LoopCosts()
