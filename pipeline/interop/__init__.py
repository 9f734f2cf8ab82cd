"""Other people's formats: logs of Inspect and of lm-eval, problem sets and results on a hub."""
