"""Properties are checked without a time limit for each case: a busy machine is no fault of a policy."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
