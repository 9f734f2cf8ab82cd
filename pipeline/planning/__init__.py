"""How many workers a job needs: a simulation of the pools, fed with what was measured of another job."""
