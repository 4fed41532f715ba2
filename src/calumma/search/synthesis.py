"""Sample synthesis (Ahn et al., ICLR 2020): configurations made of what candidates have in common.

Notation: M members (M, D) of a cluster; f_d(v) is the share of members whose knob d has value v. The mode takes the
most frequent value of every knob. Where the mode is invalid or known, the most probable of some configurations drawn
from the product of the f_d stand in.
"""

from __future__ import annotations

import numpy as np

from calumma.core.protocols import Indices
from calumma.search.history import History


def synthesise(members: Indices, history: History, rng: np.random.Generator, n: int, draws: int = 64) -> Indices:
    """Return up to `n` distinct valid configurations that were neither asked nor told before, most typical first.

    Args:
        members: configurations (M, D), M >= 1; they need not be fresh.
        history: what was asked and told, and the space.
        rng: source of the draws.
        n: how many are wanted.
        draws: how many are drawn when the mode alone does not do; a bound on the effort, whatever comes out.
    """
    counts = [len(knob.values) for knob in history.space.knobs]
    columns = zip(members.T, counts, strict=True)
    shares = [np.bincount(column, minlength=count) / len(members) for column, count in columns]
    mode = np.array([share.argmax() for share in shares], dtype=np.int32)[None, :]
    fresh = _usable(mode, history)
    if len(fresh) >= n:
        return fresh[:n]
    drawn = np.stack([rng.choice(len(share), size=draws, p=share) for share in shares], axis=1).astype(np.int32)
    likelihood = sum(np.log(share[drawn[:, d]]) for d, share in enumerate(shares))
    ranked = drawn[np.argsort(-np.asarray(likelihood), kind="stable")]
    return _usable(np.concatenate([mode, ranked]), history)[:n]


def _usable(indices: Indices, history: History) -> Indices:
    canonical = history.space.canonical(indices)
    return history.fresh(canonical[history.space.valid(canonical)])
