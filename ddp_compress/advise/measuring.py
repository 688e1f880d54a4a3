"""Every method measured on the real ranks, or worked out for ranks that are assumed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ddp_compress.advise.link import Link, ring
from ddp_compress.advise.methods import NO_EXCHANGE, Method
from ddp_compress.advise.outlook import Cost, Outlook, Setting
from ddp_compress.advise.ranks import Ranks
from ddp_compress.advise.stand_in import Busy, MadeUp
from ddp_compress.advise.trial import ECHOED, WARM_UP, Steps, Trial, extended, rehearse
from ddp_compress.advise.workload import Workload
from ddp_compress.recipe import Recipe
from ddp_compress.transport.nodes import Within

DOUBLINGS = 6  # of the number of ranks: up to 64 W
LONG = 4.0  # seconds of a model's work, after which yet more ranks are left out
MOST = 8_000_000  # elements of a sample
GROWTHS, WORTH = 2, 1.3  # how often it grows, by so much at least
FIRST = 2**16, 2**20  # elements of the first, at least and at most
STEP = 0.15  # seconds that a measured step may take
BACKWARD = 0.05  # seconds at most of a backward pass, in trials of what one hides
FEWEST, MANY = 3, 5  # steps that are measured
TOGETHER = 1.0  # seconds that they may take


@dataclass(frozen=True)
class Sampled:
    """A method on two samples of the model, or twice on one.

    Args:
        small, large: the trials.
        link: that they ran over.
    """

    small: Trial
    large: Trial
    link: Link

    def whole(self, numel: int, sent: float) -> float:
        """Seconds for a whole model, which sends so many bytes.

        Work is `extended`; what travels takes as long as there are bytes.
        """
        small, large = self.small, self.large
        travels = self._travels(large)
        work = extended(
            (small.numel, small.seconds - self._travels(small)),
            (large.numel, large.seconds - travels),
            numel,
        )
        if travels > 0:
            travels *= self.link.seconds(large.phases, sent) / self._ideally(large)
        return work + travels

    def _travels(self, trial: Trial) -> float:
        """The part of a trial in which bytes were on their way."""
        return min(trial.seconds, self._ideally(trial))

    def _ideally(self, trial: Trial) -> float:
        return self.link.seconds(trial.phases, trial.sent)


class Measuring:
    """What all methods' measurements share.

    Args:
        workload: what is trained.
        ranks: who measures.
        here: how many ranks there are, or are assumed, and the link between them.
        within: see `CompressionState`.
        per_node: ranks of a node that exchange a slice each; 1 without ``within``.
        done: called when a part of a method is done.
    """

    PARTS = 3  # of each method

    def __init__(
        self,
        workload: Workload,
        ranks: Ranks,
        here: Setting,
        within: Within | None,
        per_node: int,
        done: Callable[[], None],
    ) -> None:
        self._workload, self._ranks, self._here = workload, ranks, here
        self._within, self._per_node, self._done = within, per_node, done
        self._made_up = MadeUp(max(ECHOED[1], min(workload.numel, MOST)), ranks.rank, ranks.device)
        ranks.meet()  # ranks that share cores are busy at the same time
        self._spend = Busy(ranks.device)
        self._copies = self._measured(NO_EXCHANGE)

    def outlooks(self, methods: Sequence[Method]) -> Iterator[Outlook]:
        """One after the other."""
        for method in methods:
            yield self._outlook(method)

    def _outlook(self, method: Method) -> Outlook:
        alone = self._ranks.world_size == 1
        found = None if alone and method.recipe else self._measured(method)
        self._done()
        if found and not alone:
            hidden = self._hidden(method, found.large)
        else:
            hidden = 0.0 if method.recipe or method.one_bucket else 1.0
        self._done()
        costs = dict(self._costs(method, found))
        if found and not alone and method.recipe:
            costs = as_counted(costs, self._here.ranks, self._sent(method, found))
        self._done()
        times = self._workload.numel / found.large.numel if found else 1.0
        return Outlook(
            method.name,
            method.what,
            method.recipe is not None,
            self._here,
            costs,
            kept=method.kept * self._workload.numel / (self._per_node if method.recipe else 1),
            hidden=hidden,
            measured=self._exchange(method, found) if found and not alone else None,
            spread=found.large.spread * times if found else 0.0,
            share=1.0 / times,
        )

    def _exchange(self, method: Method, found: Sampled) -> float:
        """Seconds of the whole model's."""
        return max(0.0, found.whole(self._workload.numel, self._sent(method, found)))

    def _sent(self, method: Method, found: Sampled) -> float:
        """Bytes of the whole model's exchange."""
        if method.recipe is None:
            return ring(method.payload(self._workload.parameters), self._here.ranks)
        return found.large.sent * self._workload.numel / found.large.numel

    def _measured(self, method: Method) -> Sampled:
        """Trials on larger and larger samples, as long as a step takes less than it may."""
        link, (least, most) = self._here.link, FIRST
        first = max(least, min(most, int(link.rate * STEP / 128)))
        small = large = self._trial(method, first, FEWEST)
        for _ in range(GROWTHS):
            within_time = int(large.numel * STEP / max(large.seconds, 1e-6))
            size = min(self._workload.numel, MOST, within_time)
            if size < WORTH * large.numel:
                break
            small, large = large, self._trial(method, size, None)
        return Sampled(small, large, link)

    def _trial(self, method: Method, numel: int, count: int | None) -> Trial:
        steps = self._steps(method, numel)
        warm = steps.run(WARM_UP)
        count = count or max(FEWEST, min(MANY, int(TOGETHER / max(warm[-1], 1e-6))))
        trial = steps.trial(count)
        steps.close()
        return trial

    def _steps(self, method: Method, numel: int, backward: float = 0.0) -> Steps:
        like = self._workload.sample(numel)
        share = sum(each.numel() for each in like) / self._workload.numel
        told = self._made_up, self._ranks, self._within, share
        return Steps(method, like, *told, backward, self._spend)

    def _hidden(self, method: Method, trial: Trial) -> float:
        """Share, of what could be hidden behind backward, that is."""
        could = min(trial.seconds, self._workload.backward, BACKWARD)
        if could <= 0:
            return 0.0
        steps = self._steps(method, trial.numel, backward=could)
        steps.run(WARM_UP)
        left = statistics.median(steps.run(FEWEST))
        steps.close()
        return max(0.0, min(1.0, (trial.seconds - left) / could))

    def _costs(self, method: Method, found: Sampled | None) -> Iterator[tuple[int, Cost]]:
        """By the number of ranks."""
        work = 0.0
        for double in range(DOUBLINGS + 1):
            world_size = self._here.ranks << double
            if method.recipe is None:
                assert found is not None
                yield world_size, self._all_reduced(method, found, world_size)
                continue
            cost = self._rehearsed(method.recipe, world_size)
            if cost is None and double == 0:
                cost = self._as_measured(method, found)
            if cost is None:
                return
            work = max(work, cost.work)  # more ranks are not less work: it is noise
            cost = replace(cost, work=work)
            yield world_size, cost
            if cost.work > LONG:
                return

    def _as_measured(self, method: Method, found: Sampled | None) -> Cost:
        """Where ranks cannot be echoes of each other."""
        if found is None:
            raise ValueError(
                f"the work of {method.name} cannot be measured on one process alone: start the "
                "ranks, or leave it out of recipes"
            )
        large = found.large
        times = self._workload.numel / large.numel
        return Cost(large.seconds * times, large.sent * times, large.phases)

    def _rehearsed(self, recipe: Recipe, world_size: int) -> Cost | None:
        others = max(2, world_size // self._per_node)
        numel = self._workload.numel // self._per_node
        fewer, more = (min(numel, most) for most in ECHOED)
        small = rehearse(recipe, fewer, others, self._ranks, self._made_up)
        large = small and rehearse(recipe, more, others, self._ranks, self._made_up)
        if small is None or large is None:
            return None
        work = extended((small.numel, small.seconds), (large.numel, large.seconds), numel)
        return Cost(work, large.sent * numel / large.numel, large.phases)

    def _all_reduced(self, method: Method, found: Sampled, world_size: int) -> Cost:
        """Of a baseline: its payload does not depend on who there is."""
        payload = method.payload(self._workload.parameters)
        work = found if self._ranks.world_size == 1 else self._copies
        return Cost(work.whole(self._workload.numel, 0.0), ring(payload, world_size), 1)


def as_counted(costs: Mapping[int, Cost], here: int, sent: float) -> dict[int, Cost]:
    """The same with the bytes that real ranks have sent, and in proportion among more of them."""
    times = sent / costs[here].sent if costs[here].sent else 1.0
    return {ranks: replace(cost, sent=cost.sent * times) for ranks, cost in costs.items()}
