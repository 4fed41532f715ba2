"""The whole tuned model against the whole default model, on real code."""

import numpy as np
import pytest

from calumma.artifact import Artifact
from calumma.tuner.contest import LEAST_ROUNDS, Contest
from calumma.tuner.model import prepare
from tests import onnx_models
from tests.onnx_models import Model


@pytest.fixture(scope="module")
def network() -> Model:
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 3, 12, 12), (3, 32)))
    model.output = model.op("Relu", model.conv(x, (32, 32)))
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_the_winner_is_built_and_computes_what_the_model_says(network: Model, seed: int) -> None:
    source = network.bytes(network.output)
    model = prepare(source, threads=2)
    rng = np.random.default_rng(seed)
    tuned = {key: space.decode(space.sample(rng, 1)[0]) for key, space in model.spaces.items()}
    contest = Contest(model)
    outcome = contest(tuned, seconds=0.1)
    assert outcome.rounds >= LEAST_ROUNDS
    assert min(outcome.tuned_s, outcome.default_s) > 0
    executable, lowered = contest.winner
    kept = {row["workload"]: row["config"] for row in lowered.metadata["tasks"]}
    assert kept == (tuned if outcome.tuned_wins else dict(model.defaults))
    artifact = Artifact.from_executable(executable, lowered.params, lowered.metadata)
    feeds = network.feeds()
    onnx_models.assert_close(artifact.run(feeds), onnx_models.reference(source, feeds))
