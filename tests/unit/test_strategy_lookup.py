"""Strategies by name, as factories and as objects, and what is refused."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calumma.core import extensions
from calumma.core.errors import InputError
from calumma.core.rng import generator
from calumma.core.values import Budget
from calumma.prior.collection import CollectSettings
from calumma.search import (
    RandomStrategy,
    SearchStrategy,
    StrategyParts,
    check_strategy,
    make_strategy,
    register_strategy,
    strategy_name,
    strategy_names,
)
from calumma.testing import ToySpace
from tests.toy_tuning import Landscape, World, task, three

SPACE = ToySpace()


def luck(parts: StrategyParts) -> SearchStrategy:
    return RandomStrategy(parts.space, parts.rng)


@pytest.fixture
def registered() -> Iterator[str]:
    with extensions.temporary_registrations():
        register_strategy("luck", luck)
        yield "luck"


def test_a_registered_preset_is_made_by_name(registered: str) -> None:
    assert registered in strategy_names()
    made = make_strategy(registered, SPACE, generator(0, "test"))
    same = make_strategy(luck, SPACE, generator(0, "test"))
    np.testing.assert_array_equal(made.ask(8), same.ask(8))


@pytest.mark.parametrize("name", ["random", "chameleon"])
def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*already"):
        register_strategy(name, luck)


def test_an_extension_is_imported_when_an_unknown_name_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from calumma.search import RandomStrategy, register_strategy\n"
    source += 'register_strategy("fortune", lambda parts: RandomStrategy(parts.space, parts.rng))\n'
    (tmp_path / "fortune_extension.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(extensions.VARIABLE, "fortune_extension")
    with extensions.temporary_registrations():
        make_strategy("random", SPACE, generator(0, "test"))
        assert "fortune_extension" not in sys.modules
        assert len(make_strategy("fortune", SPACE, generator(0, "test")).ask(4)) == 4
    del sys.modules["fortune_extension"]
    monkeypatch.delenv(extensions.VARIABLE)
    with extensions.temporary_registrations(), pytest.raises(InputError, match="no strategy is called 'fortune'"):
        make_strategy("fortune", SPACE, generator(0, "test"))


def test_a_preset_gets_what_the_caller_has() -> None:
    got: list[StrategyParts] = []

    def preset(parts: StrategyParts) -> SearchStrategy:
        got.append(parts)
        return luck(parts)

    policy = Path("p.safetensors")
    make_strategy(preset, SPACE, generator(0, "test"), policy=policy)
    (parts,) = got
    assert (parts.name, parts.space, parts.model, parts.policy) == ("preset", SPACE, None, policy)


def test_names_of_all_kinds() -> None:
    assert strategy_name("random") == "random"
    assert strategy_name(luck) == "luck"
    assert strategy_name(functools.partial(luck)) == "partial"
    assert strategy_name(RandomStrategy(SPACE, generator(0, "test"))) == "random"


def test_a_strategy_is_taken_as_it_is_where_one_space_is_searched() -> None:
    own = RandomStrategy(SPACE, generator(0, "test"))
    known = SPACE.sample(np.random.default_rng(0), 8)
    assert make_strategy(own, SPACE, generator(0, "test"), warm=(known, np.ones(8))) is own
    assert not {row.tobytes() for row in known} & {row.tobytes() for row in own.ask(64)}
    with pytest.raises(InputError, match=r"'random' is one object.*give a function"):
        check_strategy(own, single=False)
    with pytest.raises(InputError, match="give a function"):
        CollectSettings(strategy=own)
    assert CollectSettings(strategy=luck).strategy is luck


@pytest.mark.parametrize("wrong", [7, None, object()])
def test_what_is_no_strategy_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="expected a name"):
        make_strategy(wrong, SPACE, generator(0, "test"))
    with pytest.raises(InputError, match=r"preset .* made .*expected an object"):
        make_strategy(lambda parts: wrong, SPACE, generator(0, "test"))


@pytest.mark.parametrize("made", ["factory", "object"])
def test_a_session_takes_what_is_no_name(made: str) -> None:
    world = World([task("only")], [Landscape(1e-3)])
    space = world.tasks[0][1]
    choice = luck if made == "factory" else RandomStrategy(space, generator(0, "test"))
    world.run(Budget(trials=16), strategy=choice)
    (session,) = world.store.sessions()
    assert session.options["strategy"] == strategy_name(choice)
    assert "random" in {record.strategy for record in world.store.records()}


def test_a_session_of_several_tasks_wants_a_factory() -> None:
    with pytest.raises(InputError, match="give a function"):
        three().session(Budget(trials=16), strategy=RandomStrategy(SPACE, generator(0, "test")))
    three().run(Budget(trials=16), strategy=luck)
