"""An explorer's prior: one policy trained over many workloads: `python -m benchmarks.policy -o policy.safetensors`.

Its tasks are workloads of the shipped data set, none of them of a network of the suite; it walks on the shipped prior's
scores, so nothing is measured. What it is worth, a replay that starts from it tells:

    python -m benchmarks.search --replay --strategies autotvm,rl+as,chameleon --policy policy.safetensors

Metrics: `tasks`, `train_s`; means over the first and the last tenth of the updates: `return_first`, `return_last` (what
a walk gains, in standard deviations of its starts' scores), `entropy_first`, `entropy_last` (per knob; 1 for a policy
that knows nothing).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks import output
from calumma import tvm_compat
from calumma.core.errors import InputError
from calumma.core.protocols import SearchSpace
from calumma.core.rng import generator
from calumma.prior import library
from calumma.prior.predictor import Predictor
from calumma.search.policies import save_policy
from calumma.search.ppo import PpoSettings, train_policy
from calumma.search.strategy import Score

_TEMPLATES = ("conv2d", "depthwise_conv2d", "matmul")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = _options(arguments)
    return output.exit_status(lambda: _run(options))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = output.parser(__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the policy to write")
    parser.add_argument("--workloads", type=int, default=160, help="how many, drawn at random")
    parser.add_argument("--rounds", type=int, default=12, help="explorations of each")
    options = parser.parse_args(arguments)
    if options.quick:
        options.workloads, options.rounds = 20, 2
    return options


def _run(options: argparse.Namespace) -> int:
    if not options.output.parent.is_dir():
        raise InputError(f"--output {options.output}: there is no folder {options.output.parent}")
    surroundings = output.environment(options.threads)
    tasks = _tasks(options.workloads, tvm_compat.set_threads(options.threads))
    print(f"{len(tasks)} workloads, {options.rounds} explorations of each", flush=True)
    start = time.perf_counter()
    walks = PpoSettings(walkers=64, steps=24, rollout=12)  # those of `chameleon`
    policy, updates = train_policy(tasks, generator(0, "policy"), options.rounds, walks)
    save_policy(policy, options.output, {"workloads": len(tasks), "rounds": options.rounds})
    tenth = max(1, len(updates) // 10)
    metrics = {"tasks": float(len(tasks)), "train_s": time.perf_counter() - start}
    for name, part in (("first", updates[:tenth]), ("last", updates[-tenth:])):
        metrics[f"return_{name}"] = mean(update.episode_return for update in part)
        metrics[f"entropy_{name}"] = mean(update.entropy for update in part)
    for metric, value in metrics.items():
        print(f"{metric:16} {value:.3g}")
    if options.json is not None:
        settings = {"workloads": options.workloads, "rounds": options.rounds}
        output.write(options.json, metrics, [], surroundings, settings=settings)
    return 0


def _tasks(n: int, threads: int) -> list[tuple[SearchSpace, Score]]:
    """Design spaces with the prior's scores of their configurations.

    Raises:
        InputError: nothing is shipped for this machine and number of threads.
    """
    target = tvm_compat.target_for()
    prior, reason = library.choose(target.hardware, threads)
    data = library.data_for("shipped", tvm_compat.toolchain())
    if prior is None or data is None or not data.of_cpu(target.hardware.fingerprint).groups:
        raise InputError(f"no prior to walk on: {reason or 'no data set is shipped for this machine'}")
    own = data.of_cpu(target.hardware.fingerprint).groups
    groups = [group for group in own if group.template in _TEMPLATES and group.threads == threads]
    found: list[tuple[SearchSpace, Score]] = []
    for i in generator(0, "workloads").permutation(len(groups))[:n]:
        group = groups[i]
        space = group.space()
        task = Predictor(prior, target, threads, group.cache_state).task(group.func, space)
        if task is not None:
            found.append((space, task.scores))
    return found


if __name__ == "__main__":
    sys.exit(main())
