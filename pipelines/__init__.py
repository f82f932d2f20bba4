"""Commands and schedules around ctd_core."""
