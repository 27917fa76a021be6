# pacing: not written yet
