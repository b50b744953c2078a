"""The result of one batch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Generation:
    """Tokens, and the seconds that they took."""

    token_ids: list[list[int]]  # per prompt; what ended it (EOS, the tokens of a stop string) is included
    prefill_seconds: float = 0.0
    decode_seconds: list[float] = field(default_factory=list)  # one per decode step
    first_token_seconds: float = 0.0  # from the call of generate() to the first tokens in host memory
