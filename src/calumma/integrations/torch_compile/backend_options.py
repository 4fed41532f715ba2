"""What `torch.compile(..., options={...})` may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calumma.core.contraction import FLOAT32
from calumma.core.durations import seconds
from calumma.core.errors import InputError
from calumma.pipeline import CompileOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the backend; those of tuning are those of `calumma.tune`."""

    budget: float = 0.0
    """Seconds of tuning for each region, as a number or text ("30s", "2m"); 0 compiles without measuring anything."""
    trials: int | None = None
    """Most kernels to measure for each region; None sets no limit. With a budget of 0, alone limits the tuning."""
    strategy: str | None = None
    """How candidates are proposed; None takes the default."""
    seed: int = 0
    """Decides everything random in tuning."""
    database: str | None = None
    """Records to use and add to, a path or URL; None takes the user's own."""
    prior: str = "auto"
    """Prior to ask about kernels without records: a name, a file, "none", or "auto" for the newest that fits here."""
    tolerance: float | None = None
    """Largest relative error that an algorithm may have by itself, as in `calumma.compile`; None takes all."""
    precision: str = FLOAT32.name
    """What regions' convolutions and matrix products read: "fp32" or "bf16", as in `calumma.compile`."""
    threads: int | None = None
    """Threads of a region; None takes as many as torch uses when the region is compiled."""

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Options:
        """Check what a user gave. Raises InputError."""
        given = dict(given or {})
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"option {name!r}: there is no such option; the backend has {', '.join(known)}")
        for name, least in (("trials", 1), ("threads", 1), ("seed", 0)):
            value = given.get(name)
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"option {name}={value!r}: give a whole number of {least} or more")
        try:
            options = CompileOptions(
                **{name: given[name] for name in ("threads", "tolerance", "precision") if name in given}
            )
            if options.precision != FLOAT32.name:
                options.target()  # or all regions would be left to torch
        except InputError as error:
            raise InputError(f"option {error}") from None
        prior = given.get("prior", "auto")
        if not isinstance(prior, str):
            raise InputError(f"option prior={prior!r}: give the name or file of a prior, 'auto' or 'none'")
        if prior not in ("auto", "none"):
            from calumma.prior import library

            library.find(prior)  # a region that finds none would be left to torch
        if given.get("strategy") is not None:
            from calumma.search import strategy_names  # loads what learns, which few need

            if given["strategy"] not in strategy_names():
                raise InputError(
                    f"option strategy={given['strategy']!r}: there is no such strategy; "
                    f"choose one of {', '.join(strategy_names())}"
                )
        try:
            given["budget"] = seconds(given.get("budget", 0))
        except InputError as error:
            raise InputError(f"option budget: {error}") from None
        return cls(**given)

    @property
    def measures(self) -> bool:
        """Whether regions are tuned."""
        return self.budget > 0 or self.trials is not None
