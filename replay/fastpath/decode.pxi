# decode: not written yet
