# reply: not written yet
