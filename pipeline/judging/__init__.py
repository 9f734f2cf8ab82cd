"""A model as a judge: asked in a job of its own whether another job's answers are correct; verdicts become grades."""
