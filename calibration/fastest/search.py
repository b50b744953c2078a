"""The search: candidates judged on one half of the pictures, timed, and the fastest of them confirmed on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from catp.calibration.accuracy.statistics import lowest_difference, mean_difference
from catp.calibration.benchmark.schedules import Schedule
from catp.calibration.benchmark.timing.intervals import paired_ratio
from catp.calibration.benchmark.timing.rounds import Measured
from catp.calibration.fastest.asking import right_of
from catp.calibration.fastest.choice import Choice, choose, confidence_of, front
from catp.calibration.fastest.progress import Cell
from catp.calibration.fastest.report import Attempt, Candidate
from catp.calibration.fastest.triples import Triple

FIRST = 0
"""The place of the unpruned first bundle among all candidates."""


def judge(
    cells: Sequence[Cell], schedules: Mapping[str, Sequence[Schedule]], budget: float, seed: int
) -> list[Candidate]:
    """Candidates by what they lose against the first one.

    Args:
        cells: on the searching half, all about the same questions, the unpruned first bundle before all others.
        schedules: by bundle.
        budget: of 1, what a candidate may lose at the worse end of the 95 % interval.
        seed: of the intervals.
    """
    full = right_of(cells[FIRST])
    shares = {
        (name, schedule.kept_tokens): schedule.share for name, several in schedules.items() for schedule in several
    }
    found = []
    for place, cell in enumerate(cells):
        right = right_of(cell)
        difference, low = lowest_difference(right, full, cell.images, seed)
        if place == FIRST:
            low = 0.0  # it is itself, whatever pictures did not show
        triple = cell.triple
        found.append(
            Candidate(
                triple=triple,
                tokens_kept=cell.tokens_kept,
                encoder_share=1.0 if triple.kept_tokens is None else shares[triple.bundle, triple.kept_tokens],
                accuracy=float(right.mean()),
                difference=difference.mean,
                interval_95=(difference.low, difference.high),
                low=low,
                within=low >= -budget,
            )
        )
    return found


def with_times(candidates: Sequence[Candidate], measured: Measured, seed: int) -> list[Candidate]:
    """The candidates, those that were timed with their times.

    Args:
        measured: the first candidate among them.
        seed: of the intervals.
    """
    times = {
        place: tuple(round(value, 4) for value in measured.values(candidate.triple.case, "total"))
        for place, candidate in enumerate(candidates)
        if candidate.triple.case in measured.samples
    }
    medians = [float(np.median(values)) for values in times.values()]
    fronts = dict(zip(times, front(medians, [candidates[place].accuracy for place in times])))
    within = [place for place in times if candidates[place].within]
    behind = choose(times, {place: candidates[place].difference for place in within}, within, seed).behind
    return [
        candidate.model_copy(
            update={
                "milliseconds": times[place],
                "median_ms": float(np.median(times[place])),
                "speedup": None if place == FIRST else paired_ratio(times[FIRST], times[place], seed),
                "behind": behind.get(place),
                "on_front": fronts[place],
            }
        )
        if place in times
        else candidate
        for place, candidate in enumerate(candidates)
    ]


def confirm_fastest(
    candidates: Sequence[Candidate],
    ask: Callable[[Sequence[Triple]], Sequence[Cell]],
    budget: float,
    seed: int,
) -> tuple[list[Attempt], int | None, Choice]:
    """Attempts to confirm the fastest candidate on the other half, then the next fastest; the place of the confirmed
    one; and the last choice.

    The unpruned first bundle needs no confirmation. It is the answer where nothing within the budget is faster, and
    none is where everything faster failed.

    Args:
        candidates: with times; those within the budget are chosen among.
        ask: answers of triples on the other half, all about the same questions.

    Raises:
        CatpError: no question of the other half could be asked.
    """
    left = [place for place, candidate in enumerate(candidates) if candidate.within and candidate.milliseconds]
    times = {place: candidates[place].milliseconds for place in left}
    differences = {place: candidates[place].difference for place in left}
    attempts: list[Attempt] = []
    while (choice := choose(times, differences, left, seed)).chosen != FIRST:
        place = choice.chosen
        full, cell = ask([candidates[FIRST].triple, candidates[place].triple])
        attempts.append(_attempt(choice, full, cell, budget, confidence_of(len(attempts) + 1), seed))
        if attempts[-1].confirmed:
            return attempts, place, choice
        left.remove(place)
    return attempts, None if attempts else FIRST, choice


def _attempt(choice: Choice, full: Cell, cell: Cell, budget: float, confidence: float, seed: int) -> Attempt:
    right, baseline = right_of(cell), right_of(full)
    found = mean_difference(right, baseline, seed, clusters=cell.images)
    _, low = lowest_difference(right, baseline, cell.images, seed, confidence)
    return Attempt(
        candidate=choice.chosen,
        fastest=choice.fastest,
        tied=choice.tied,
        confidence=confidence,
        accuracy=float(right.mean()),
        full_accuracy=float(baseline.mean()),
        difference=found.mean,
        interval_95=(found.low, found.high),
        low=low,
        questions=len(right),
        confirmed=low >= -budget,
    )


def reason_of(candidates: Sequence[Candidate], chosen: int, choice: Choice) -> str:
    """Why a candidate was chosen, in words."""
    name = str(candidates[chosen].triple)
    if chosen == FIRST:
        return f"nothing within the budget is clearly faster than {name}, which loses nothing"
    if chosen == choice.fastest and len(choice.tied) == 1:
        return f"{name} is the fastest within the budget"
    if chosen == choice.fastest:
        return f"{name} is the fastest within the budget, and of {len(choice.tied)} as fast none loses less"
    return (
        f"{name} loses less than {candidates[choice.fastest].triple}, the fastest within the budget, and is not "
        "clearly slower"
    )
