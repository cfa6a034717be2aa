"""Settings to Identity to Plan: the steps that `plan`, `doctor` and the agent all take."""
