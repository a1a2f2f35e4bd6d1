"""Compare the arms of a family: scores, tests, wording, and the static report.

Reads saved evaluations; evidence about one factor is in `analysis.evidence`.
"""
