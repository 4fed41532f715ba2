"""The whole tuned model against the whole default model, on real code."""

import numpy as np
import pytest

from calumma.artifact import Artifact, build
from calumma.pipeline import CompileOptions
from calumma.pipeline.preparation import prepare
from calumma.tuner.contest import LEAST_ROUNDS, Contest
from tests import onnx_models
from tests.onnx_models import Model


@pytest.fixture(scope="module")
def network() -> Model:
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 3, 12, 12), (3, 32)))
    model.op("Relu", model.conv(x, (32, 32)))
    return model


@pytest.mark.parametrize("seed", [0, 1])
def test_the_winner_is_built_and_computes_what_the_model_says(network: Model, seed: int) -> None:
    source = network.bytes(network.nodes[-1].output[0])
    model = prepare(source, CompileOptions(threads=2))
    rng = np.random.default_rng(seed)
    tuned = {key: space.decode(space.sample(rng, 1)[0]) for key, space in model.spaces.items()}
    contest = Contest(model)
    outcome = contest(tuned, seconds=0.1)
    assert outcome.rounds >= LEAST_ROUNDS
    assert min(outcome.tuned_s, outcome.default_s) > 0
    kept = {row["workload"]: row["config"] for row in contest.winner.lowered.metadata["tasks"]}
    assert kept == (tuned if outcome.tuned_wins else dict(model.defaults_in_model))
    feeds = network.feeds()
    onnx_models.assert_close(contest.winner.artifact.run(feeds), onnx_models.reference(source, feeds))


def test_a_weight_that_only_a_reshape_reads_survives_repacked_convolutions() -> None:
    """3x3 convolutions take transformed weights; the constant of the product is reshaped, not read by a kernel."""
    model = Model()
    x = model.op("Relu", model.conv(model.input(1, 16, 14, 14), (16, 32)))
    batched = model.op("Reshape", x, np.array([4, 56, 28], np.int64))
    product = model.op("MatMul", model.random(24, 56, scale=0.1), batched)
    source = model.bytes(product)
    prepared = prepare(source, CompileOptions(threads=2))
    spaces = {key: space for key, space in prepared.spaces.items() if "algorithm" in {k.name for k in space.knobs}}
    winograd = {}
    for key, space in spaces.items():
        rows = space.sample(np.random.default_rng(0), 32)
        winograd[key] = next(c for c in map(space.decode, rows) if c.get("algorithm") == "winograd4")
    assert winograd
    lowered = prepared.lowered(winograd)
    artifact = Artifact.from_executable(build(lowered, prepared.target, 2), lowered.params, {})
    feeds = model.feeds()
    onnx_models.assert_close(artifact.run(feeds), onnx_models.reference(source, feeds), tolerance=1e-3)
