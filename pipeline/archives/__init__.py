"""Jobs as Parquet files: written, checked and restored. One folder per job, one file per table."""
