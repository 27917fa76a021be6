# rewrite: not written yet
