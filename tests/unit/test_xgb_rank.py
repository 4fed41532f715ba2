"""AutoTVM's cost model: its measure of progress, and that it ranks and stops."""

from __future__ import annotations

import time

import numpy as np
import pytest

from calumma.cost_model import RankedTrees, RankedTreesSettings
from calumma.cost_model.xgb_rank import average_recall


def test_average_recall_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    scores, predicted = rng.random(30), rng.random(30).astype(np.float32)
    truly, likely = np.argsort(-scores), np.argsort(-predicted)
    expected = np.mean([len(set(truly[:n]) & set(likely[:n])) / n for n in range(1, 11)])
    assert average_recall(predicted, scores, 10) == pytest.approx(expected)
    assert average_recall(scores.astype(np.float32), scores, 10) == 1


@pytest.mark.parametrize("loss", ["rank", "regression"])
def test_it_ranks_and_stops_long_before_all_rounds(loss) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((192, 20), dtype=np.float32)
    scores = 1e9 * (features[:, 0] * features[:, 1] + 0.2 * features[:, 2]).astype(np.float64)
    scores[::10] = 0.0  # failures
    model = RankedTrees(0, RankedTreesSettings(loss=loss))
    begin = time.process_time()
    model.fit(features, scores)
    assert time.process_time() - begin < 30, "8000 rounds would take minutes"
    unseen = rng.random((500, 20), dtype=np.float32)
    truth = unseen[:, 0] * unseen[:, 1] + 0.2 * unseen[:, 2]
    ranks = [np.argsort(np.argsort(values)) for values in (truth, model.predict(unseen))]
    assert np.corrcoef(ranks[0], ranks[1])[0, 1] > 0.7


def test_one_row_or_equal_rows_are_no_trouble() -> None:
    for n, value in ((1, 1.0), (8, 1.0), (8, 0.0)):
        model = RankedTrees()
        model.fit(np.ones((n, 4), dtype=np.float32), np.full(n, value))
        assert np.isfinite(model.predict(np.ones((3, 4), dtype=np.float32))).all()
