"""catp-calibrate: settings and precision of a bundle, chosen from data, and its providers on a machine."""

from __future__ import annotations

from catp.calibration.commands.calibrate_fastest import calibrate_fastest
from catp.calibration.commands.calibrate_precision import calibrate_precision
from catp.calibration.commands.calibrate_provider import calibrate_provider
from catp.calibration.commands.calibrate_ratio import calibrate_ratio
from catp.calibration.commands.calibrate_schedule import calibrate_schedule
from catp.calibration.commands.calibrate_scorer import calibrate_scorer
from catp.runtime.commands.console import make_group

app = make_group(
    "Choose a bundle's pruning ratio or encoder schedule, teach a scorer, or make its precision, from data; choose its "
    "providers, or the fastest of all these, on this machine.",
    {
        "ratio": calibrate_ratio,
        "schedule": calibrate_schedule,
        "scorer": calibrate_scorer,
        "precision": calibrate_precision,
        "provider": calibrate_provider,
        "fastest": calibrate_fastest,
    },
)
