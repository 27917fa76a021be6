# sender: not written yet
