"""Pages for people: jobs with their live progress, samples to read, comparisons, workers. They work without script."""
