"""catp-calibrate: settings and precision of a bundle, chosen from data."""

from __future__ import annotations

from catp.calibration.commands.calibrate_precision import calibrate_precision
from catp.calibration.commands.calibrate_ratio import calibrate_ratio
from catp.calibration.commands.calibrate_schedule import calibrate_schedule
from catp.runtime.commands.console import make_group

app = make_group(
    "Choose a bundle's pruning ratio or encoder schedule, or make its precision, from data.",
    {"ratio": calibrate_ratio, "schedule": calibrate_schedule, "precision": calibrate_precision},
)
