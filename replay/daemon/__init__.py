"""What a program that runs for months owes the people who run it: metrics, health, a log, word to the service manager, a watched configuration.

Must not know: packets, sockets of the mirror, options. It reads what an engine counts (`Counted`) and never waits for one.
"""
