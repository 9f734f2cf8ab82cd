"""``make bench-gpu``: what the pipeline does on one GPU, in one command of under ten minutes."""
