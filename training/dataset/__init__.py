"""Finds, inspects and splits pictures; `training.check` puts the steps together."""
