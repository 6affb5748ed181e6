"""Whether the demonstration has shown what it promises."""

from __future__ import annotations

from dataclasses import dataclass

#: How far the measured gain may be from the predicted one, as a share of it.
TOLERANCE = 0.15

Division = dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to.

    Attributes:
        before: Items a second with the layers divided evenly.
        after: Items a second as suggested.
        predicted: By what the throughput should be multiplied.
        suggested: Layers of each shard in the suggestion.
        served: Layers of each shard in the end.
        wrong: Results that differ from those of the whole model.
        items: Results in all.
    """

    before: float
    after: float
    predicted: float
    suggested: Division
    served: Division
    wrong: int
    items: int

    @property
    def gain(self) -> float:
        """By what the throughput was multiplied in truth."""
        return self.after / self.before


def judge(result: Result) -> list[str]:
    """Everything that is not as it should be; empty when all is."""
    problems = []
    if result.served != result.suggested:
        problems.append(f"the shards serve {result.served}, suggested was {result.suggested}")
    if result.wrong:
        problems.append(f"{result.wrong} of {result.items} results differ from those of the whole model")
    if result.predicted <= 1.0:
        problems.append(f"no gain was predicted: {result.predicted:.2f}")
    if abs(result.gain / result.predicted - 1.0) > TOLERANCE:
        problems.append(
            f"throughput rose by {result.gain:.2f}, {result.predicted:.2f} was predicted: "
            f"more than {TOLERANCE:.0%} apart"
        )
    return problems
