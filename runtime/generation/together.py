"""Answers that grow together: each joins and leaves between two steps, and each has its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from catp.runtime.errors import CatpError, GraphError, UsageError
from catp.runtime.generation.request import Request
from catp.runtime.generation.row import Row
from catp.runtime.language_models.seats import Seat, Seats


@dataclass(eq=False)
class Running:
    """One answer under way; `row.running` says whether it still is.

    Args:
        error: what ended it, if something did that is no end of an answer.
    """

    seat: Seat
    row: Row
    error: CatpError | None = None


class Together:
    """All answers under way on one model's seats. Not for several threads."""

    def __init__(self, seats: Seats) -> None:
        self.seats = seats
        self.running: list[Running] = []
        self.steps = 0

    @property
    def full(self) -> bool:
        """Whether nobody else can join."""
        return len(self.running) >= self.seats.capacity

    def join(self, request: Request) -> Running:
        """Read a prompt, and choose its first token; an answer that ends with it takes no seat.

        Args:
            request: of one prompt.

        Raises:
            UsageError: it does not fit, or asks for beams.
            GraphError: the graph fails, or its scores are not finite. All others go on.
        """
        if request.settings.num_beams > 1:
            raise UsageError(
                f"num_beams {request.settings.num_beams}: an answer that shares its steps with others is searched for "
                "with one beam; give num_beams 1"
            )
        seat: Seat | None = None
        try:
            seat = self.seats.admit(request.batch, request.max_new_tokens[0])
            running = Running(seat, Row(request.contexts[0], seat.limit, request.ending, request.settings))
            self._take(running)
        except BaseException as error:
            if seat is not None:
                self.seats.free(seat)
            if isinstance(error, GraphError):
                raise error.during("reading the prompts") from error
            raise
        if running.row.running:
            self.running.append(running)
        else:
            self.seats.free(seat)
        return running

    def step(self) -> list[Running]:
        """One token more for each; those that this is true of, or that an error ended."""
        advanced, self.running = self.running, []
        if not advanced:
            return []
        try:
            self.seats.step({running.seat: running.row.token_ids[-1] for running in advanced})
        except CatpError as error:
            for running in advanced:
                self._end(running, error)
            return advanced
        self.steps += 1
        for running in advanced:
            try:
                self._take(running)
            except CatpError as error:
                answered = len(running.row.token_ids)
                self._end(running, error.during(f"decode step {answered}") if isinstance(error, GraphError) else error)
            if running.row.running:
                self.running.append(running)
            else:
                self.seats.free(running.seat)
        return advanced

    def leave(self, running: Running) -> None:
        """End an answer before its end."""
        running.row.running = False
        if running in self.running:
            self.running.remove(running)
        self.seats.free(running.seat)

    def _take(self, running: Running) -> None:
        seats, seat = self.seats, running.seat
        running.row.take(seats.graph, seats.vocabulary, seats.token(seat), lambda: seats.logits(seat))

    def _end(self, running: Running, error: CatpError) -> None:
        running.error, running.row.running = error, False
        self.seats.free(running.seat)
