"""The REST service: loads published versions and answers pictures with labelled probabilities."""
