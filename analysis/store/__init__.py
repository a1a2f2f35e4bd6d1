"""The workspace's files, records and database.

Reads and writes what is saved; computes nothing from it.
"""
