"""This module runs tasks on places, in turns, and keeps what they and the node's processes took."""

import time
from collections.abc import Callable, Sequence

from contrib.bench.kernel import cpu_s, usage
from contrib.bench.places import Mount, Place
from contrib.bench.report import Figure, Results
from contrib.bench.tasks import TAR, State, Task, check_freshness

# Hot jobs are short, and the machine is never quite still: the median of several, ext4 and mount alternating.
HOT_ROUNDS_MIN = 5
HOT_ROUNDS_MAX = 25
HOT_S = 4.0
IDLE = "idle node"
IDLE_S = 10.0
IDLE_SETTLE_S = 2.0


def measure(
    tasks: Sequence[Task], places: Sequence[Place], results: Results, say: Callable[[str], None]
) -> None:
    """Run every task in every state, hot ones in turns, so that a drift of the machine hits all places."""
    for task in tasks:
        for place in places:
            for state in place.states:
                if state in task.states and state is not State.HOT:
                    say(f"{state.value} {task.name} on {place.name}")
                    measure_once(task, place, state, results)
        if State.HOT in task.states:
            say(f"hot {task.name} on {' and '.join(place.name for place in places)} in turns")
            measure_hot(task, places, results)
    if any("start" in task.name for task in tasks):
        for place in places:
            check_freshness(place.corner)


def measure_hot(task: Task, places: Sequence[Place], results: Results) -> None:
    """Run *task* on all places in turns, HOT_ROUNDS_MIN times or for HOT_S, after a round for nothing."""
    for place in places:
        # Another place's cold and warm states dropped what the kernel had of this one.
        place.prepare(State.HOT)
        task.run(place.corner)
    deadline = time.monotonic() + HOT_S
    for done in range(HOT_ROUNDS_MAX):
        if done >= HOT_ROUNDS_MIN and time.monotonic() > deadline:
            return
        for place in places:
            measure_once(task, place, State.HOT, results)


def measure_once(task: Task, place: Place, state: State, results: Results) -> None:
    place.prepare(state)
    before = usage(place.node.pid) if isinstance(place, Mount) else None
    figures = task.run(place.corner)
    for name, unit in task.figures.items():
        results.add(Figure(task.name, name, unit), place.name, state, figures[name])
    if not isinstance(place, Mount) or before is None:
        return
    after = usage(place.node.pid)
    if state is State.WARM:
        results.extras["mount of a full cache, s"].append(place.mount_s)
    if state is State.COLD:
        results.extras["resident idle, MB"].append(before.resident_bytes / 1e6)
        results.extras[f"fetched for the cold {task.name}, MB"].append(place.fetched_bytes() / 1e6)
    if task is TAR:
        results.extras[f"resident after the {state.value} tar, MB"].append(after.resident_bytes / 1e6)
        results.extras[f"CPU of the {state.value} tar, s"].append(after.cpu_s - before.cpu_s)


def measure_idle(place: Mount, results: Results) -> None:
    """Leave the mount alone for IDLE_S; keep the share of a core that its processes take meanwhile."""
    place.prepare(State.HOT)
    time.sleep(IDLE_SETTLE_S)
    pids = place.node.processes
    before_s, start = sum(map(cpu_s, pids)), time.perf_counter()
    time.sleep(IDLE_S)
    used_s, elapsed_s = sum(map(cpu_s, pids)) - before_s, time.perf_counter() - start
    results.extras[f"{IDLE}: CPU, % of a core"].append(100 * used_s / elapsed_s)
    if place.node.keeper:
        results.extras["resident keeper, MB"].append(usage(place.node.keeper).resident_bytes / 1e6)
