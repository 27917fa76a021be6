# ingest: not written yet
