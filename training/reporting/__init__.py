"""The parts of a run's report; `training.report` puts them together."""
