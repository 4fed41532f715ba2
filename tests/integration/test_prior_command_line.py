"""From records to a prior to an artifact, as a user does it: real processes, a small ONNX model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calumma
from calumma.database import SqlStore
from tests import prior_data
from tests.integration import command_line
from tests.integration.command_line import assert_refused
from tests.onnx_models import Model

from calumma.prior import dataset, weights  # isort: skip  (after prior_data, which sets the threads)
from calumma.prior.weights import Prior  # isort: skip
from calumma.tuner import REMEASURED  # isort: skip

pytestmark = pytest.mark.xdist_group("learnt prior")

THREADS = str(prior_data.THREADS)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's data directory with one prior in it, and the files that the tests share."""
    folder = tmp_path_factory.mktemp("home")
    with SqlStore.open(str(folder / "records.sqlite")) as store:
        store.append(prior_data.records())
    done = command_line.calumma(
        *("learn", "--db", folder / "records.sqlite", "--data", "none", "-o", "small"),
        *("--save-data", folder / "data.npz", "--json", folder / "learn.json"),
        XDG_DATA_HOME=str(folder),
    )
    assert done.returncode == 0, done.stderr
    assert "first choice" in done.stdout
    model = Model()
    x = model.op("MatMul", model.input(1, 96, 256), model.random(256, 512))
    (folder / "model.onnx").write_bytes(model.bytes(model.op("Relu", x)))
    return folder


def on_another_cpu(prior: Prior, **facts: Any) -> Prior:
    """The prior as if it had been trained on another CPU."""
    (cpu,) = prior.trained_on
    return replace(prior, trained_on=(replace(cpu, hardware=replace(cpu.hardware, **facts)),))


def result(path: Path) -> dict:
    return json.loads(path.read_text().splitlines()[-1])


def test_learn_says_what_it_learnt(home: Path) -> None:
    learnt = result(home / "learn.json")
    assert learnt["name"] == "small"
    assert Path(learnt["path"]) == home / "calumma" / "priors" / "small.safetensors"
    assert learnt["workloads"] == prior_data.WORKLOADS
    assert learnt["metrics"]["matmul"]["judged"] == prior_data.WORKLOADS
    assert weights.load(Path(learnt["path"])).data["digest"] == dataset.load(home / "data.npz").digest


def test_compile_uses_the_newest_prior(home: Path, tmp_path: Path) -> None:
    arguments = ("compile", home / "model.onnx", "--threads", THREADS, "--db", tmp_path / "empty.sqlite")
    documents = {}
    for prior in ("auto", "small", "none"):
        chosen = () if prior == "auto" else ("--prior", prior)
        out = tmp_path / f"{prior}.so"
        done = command_line.calumma(
            *arguments, *chosen, "-o", out, "--json", tmp_path / f"{prior}.json", XDG_DATA_HOME=str(home)
        )
        assert done.returncode == 0, done.stderr
        documents[prior] = result(tmp_path / f"{prior}.json")
    assert documents["auto"]["prior"] == documents["small"]["prior"] == "small"
    assert documents["none"]["prior"] is None
    assert documents["auto"]["predicted"] == documents["small"]["predicted"] <= len(documents["auto"]["tasks"])
    assert documents["none"]["predicted"] == 0
    x = np.random.default_rng(0).standard_normal((1, 96, 256)).astype(np.float32)
    outputs = [calumma.load(tmp_path / f"{prior}.so", threads=prior_data.THREADS)(x)[0] for prior in documents]
    for other in outputs[1:]:
        np.testing.assert_allclose(other, outputs[0], rtol=1e-4, atol=1e-4)


def test_tune_tries_the_prior_s_choices_first(home: Path, tmp_path: Path) -> None:
    database = tmp_path / "tuned.sqlite"
    done = command_line.calumma(
        *("tune", home / "model.onnx", "--threads", THREADS, "--db", database, "--trials", 3, "-o", tmp_path / "m.so"),
        *("--prior", "small"),
        XDG_DATA_HOME=str(home),
    )
    assert done.returncode == 0, done.stderr
    with SqlStore.open(str(database)) as store:
        strategies = [record.strategy for record in store.records() if record.strategy != REMEASURED]
        assert store.sessions()[0].options["prior"] == "small"
    # Where the default already is at the roofline, nothing else is tried.
    assert strategies in (["default"], ["default", "prior", "prior"])


def test_list_show_and_verify(home: Path, tmp_path: Path) -> None:
    here = {"XDG_DATA_HOME": str(home)}
    done = command_line.calumma("prior", "list", "--json", tmp_path / "list.json", **here)
    assert done.returncode == 0, done.stderr
    first = result(tmp_path / "list.json")["priors"][0]
    assert (first["name"], first["origin"], first["threads"]) == ("small", "own", [prior_data.THREADS])
    assert first["fits"] == f"with {THREADS} threads"
    shown = command_line.calumma("prior", "show", "small", **here)
    assert shown.returncode == 0
    assert dataset.load(home / "data.npz").digest in shown.stdout
    verified = command_line.calumma("prior", "verify", "small", **here)
    assert verified.returncode == 0
    assert "is sound" in verified.stdout


def test_damaged_and_foreign_priors_are_refused(home: Path, tmp_path: Path) -> None:
    whole = home / "calumma" / "priors" / "small.safetensors"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(whole.read_bytes()[:-8])
    prior = weights.load(whole)
    foreign = tmp_path / "foreign.safetensors"
    weights.save(on_another_cpu(prior, cpu_model="another"), foreign)
    stale = tmp_path / "stale.safetensors"
    family = prior.families["matmul"]
    weights.save(replace(prior, families={"matmul": replace(family, version=99)}), stale)

    compile_ = ("compile", home / "model.onnx", "--threads", THREADS, "-o", tmp_path / "m.so", "--prior")
    assert_refused(command_line.calumma(*compile_, damaged), "damaged.safetensors", "cannot be used")
    assert_refused(command_line.calumma(*compile_, foreign), "another", "choose another one, or none")
    assert_refused(command_line.calumma(*compile_, "nobody"), "no such prior")
    assert_refused(command_line.calumma("prior", "verify", damaged), "cannot be used")
    assert_refused(command_line.calumma("prior", "verify", stale), "out of date")
    assert_refused(command_line.calumma("prior", "show", tmp_path / "nothing.safetensors"), "no such prior")
    assert not (tmp_path / "m.so").exists()


def test_a_number_of_threads_without_a_prior_is_told_so(home: Path, tmp_path: Path) -> None:
    """Whatever is shipped: the prior of this machine comes before those of others."""
    arguments = ("compile", home / "model.onnx", "--threads", "1", "-o", tmp_path / "m.so", "--db", tmp_path / "db")
    done = command_line.calumma(*arguments, XDG_DATA_HOME=str(home))
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stderr.splitlines() if "prior" in line]
    assert len(notes) == 1
    assert "prior small: it was trained with" in notes[0] and "threads, not with 1" in notes[0]
    assert "calumma tune" in notes[0] and "calumma learn" in notes[0]


def test_a_machine_without_a_prior_is_told_so(home: Path, tmp_path: Path) -> None:
    """One prior is there, learnt on another machine, and none that is shipped is for code of this level."""
    prior = weights.load(home / "calumma" / "priors" / "small.safetensors")
    folder = tmp_path / "calumma" / "priors"
    folder.mkdir(parents=True)
    foreign = on_another_cpu(prior, cpu_model="Other CPU", mcpu="other")
    weights.save(foreign, folder / "foreign.safetensors")
    arguments = ("compile", home / "model.onnx", "--threads", THREADS, "-o", tmp_path / "m.so", "--db", tmp_path / "db")
    done = command_line.calumma(*arguments, "--mcpu", "x86-64-v2", XDG_DATA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (note,) = (line for line in done.stderr.splitlines() if "prior" in line)
    assert "prior foreign: it was trained on Other CPU (other, " in note and "this is x86-64-v2 (x86-64-v2, " in note
    assert "calumma tune" in note and "calumma learn" in note


def test_a_minute_moves_a_prior_to_this_cpu(home: Path, tmp_path: Path) -> None:
    foreign = on_another_cpu(weights.load(home / "calumma" / "priors" / "small.safetensors"), cpu_model="Other CPU")
    weights.save(foreign, tmp_path / "foreign.safetensors")
    here = {"XDG_DATA_HOME": str(tmp_path)}
    moving = ("prior", "adapt", home / "model.onnx", "--budget", "60s", "--threads", THREADS, "--db", tmp_path / "db")
    done = command_line.calumma(*moving, "--prior", tmp_path / "foreign.safetensors", "--json", tmp_path / "a", **here)
    assert done.returncode == 0, done.stderr
    moved = result(tmp_path / "a")
    assert moved["base"] == "small" and moved["rows"] > 1 and moved["trusted"] == []
    assert "only guides calumma tune" in done.stdout
    found = weights.load(Path(moved["path"]))
    assert found.trained_on == foreign.trained_on and found.moved_rows == moved["rows"]

    listed = command_line.calumma("prior", "list", "--json", tmp_path / "list", **here)
    assert listed.returncode == 0, listed.stderr
    first = result(tmp_path / "list")["priors"][0]
    assert (first["name"], first["origin"], first["fits"]) == (moved["name"], "moved", f"with {THREADS} threads")
    compiling = ("compile", home / "model.onnx", "--threads", THREADS, "-o", tmp_path / "m.so", "--db", tmp_path / "no")
    done = command_line.calumma(*compiling, "--json", tmp_path / "c", **here)
    assert done.returncode == 0, done.stderr
    assert (result(tmp_path / "c")["prior"], result(tmp_path / "c")["note"]) == (moved["name"], "")
    assert_refused(command_line.calumma(*moving, "--prior", moved["path"], **here), "has been moved before")
    known = home / "calumma" / "priors" / "small.safetensors"
    assert_refused(command_line.calumma(*moving, "--prior", known, **here), "was trained on this CPU", "calumma learn")


def test_learn_refuses_what_it_cannot_use(home: Path, tmp_path: Path) -> None:
    SqlStore.open(str(tmp_path / "empty.sqlite")).close()
    empty = ("learn", "--db", tmp_path / "empty.sqlite", "--data", "none")
    assert_refused(command_line.calumma("learn", "--db", tmp_path / "not" / "there.db"), "no such database")
    assert not (tmp_path / "not").exists()
    assert_refused(command_line.calumma(*empty), "nothing to learn from")
    assert_refused(command_line.calumma(*empty, "-o", "a/b"), "cannot be called")
    (tmp_path / "bad.npz").write_bytes(b"not a data set")
    assert_refused(command_line.calumma("learn", "--data", tmp_path / "bad.npz"), "bad.npz cannot be read")
    (tmp_path / "bad.json").write_text("[1, 2]")
    assert_refused(command_line.calumma(*empty, "--exclude", tmp_path / "bad.json"), "bad.json")


def test_what_is_excluded_is_not_learnt(home: Path, tmp_path: Path) -> None:
    hashes = [workload.task.workload.hash for workload in prior_data.workloads()]
    (tmp_path / "out.json").write_text(json.dumps({"a network": hashes[:2]}))
    SqlStore.open(str(tmp_path / "empty.sqlite")).close()
    done = command_line.calumma(
        *("learn", "--db", tmp_path / "empty.sqlite", "--data", home / "data.npz", "-o", tmp_path / "p.safetensors"),
        *("--exclude", tmp_path / "out.json"),
    )
    assert done.returncode == 0, done.stderr
    learnt = weights.load(tmp_path / "p.safetensors").data["workloads"]
    assert sorted(learnt) == sorted(hashes[2:])
