"""The queue of jobs and how a job reports its progress.

Free of torch; what a job runs is in `grasp.commands`.
"""
